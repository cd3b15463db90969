"""A training step of a character model: ids, LSTM layers, cross-entropy, backward, clip, RMSProp; characters a second."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastlstm
from benchmarks.gpu_day import measure
from benchmarks.gpu_day.child import Item
from benchmarks.gpu_day.layers import far
from benchmarks.gpu_day.place import ALLOWED, Place

V = 65  # symbols of tinyshakespeare
CELLS = tuple((2, H, B, T) for H, (B, T) in product((128, 512), ((50, 50), (100, 100))))


class Theirs(nn.Module):
    """nn.Embedding, nn.LSTM and nn.Linear: ids (T, B) to scores (T, B, V)."""

    def __init__(self, L: int, H: int) -> None:
        super().__init__()
        self.embedding, self.lstm, self.out = nn.Embedding(V, H), nn.LSTM(H, H, L), nn.Linear(H, V)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.lstm(self.embedding(ids))[0])


class Ours(nn.Module):
    """The same with fastlstm.TokenLSTM, which reads rows of a table."""

    def __init__(self, of: Theirs) -> None:
        super().__init__()
        H, L = of.out.in_features, of.lstm.num_layers
        self.rnn, self.out = fastlstm.TokenLSTM(V, H, H, num_layers=L), nn.Linear(H, V)
        self.rnn.embedding.load_state_dict(of.embedding.state_dict())
        self.rnn.lstm.load_state_dict(of.lstm.state_dict())
        self.out.load_state_dict(of.out.state_dict())

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.rnn(ids)[0])


def items(place: Place) -> list[Item]:
    place.start()
    if place.rehearsal:
        return [Item("2x16", (2, 16, 2, 3, "tf32", "none"))]
    kinds = (("tf32", "none"), ("tf32", "bf16"), ("f32", "none"))
    wanted = [(*cell, *kind) for kind, cell in product(kinds, CELLS)]
    return [Item(f"{L}x{H} B{B} T{T} {m} autocast {a}", (L, H, B, T, m, a)) for L, H, B, T, m, a in wanted]


def run(place: Place, item: Item) -> Iterator[dict]:
    L, H, B, T, math, autocast = item.values
    torch.manual_seed(0)
    with place.math(math):
        kind = math if autocast == "none" else "f16"  # what autocast on CUDA is to an LSTM, of whichever type
        forced = place.avoid(kind, H, B)
        models = {"torch": Theirs(L, H)}
        models["cuda"] = Ours(models["torch"])
        ids, targets = torch.randint(V, (2, T, B), device=place.device)
        found = {
            name: _gradients(place, model.to(place.device), name, ids, targets, autocast == "bf16")
            for name, model in models.items()
        }
        off = far(found["cuda"], found["torch"])
        for graph in (False, True):
            calls = {
                name: _step(place, model, name, ids, targets, autocast == "bf16", graph)
                for name, model in models.items()
            }
            first = {name: float(call()[0]) for name, call in calls.items()}
            plan = fastlstm.dispatch.last_plan()
            about = {
                "L": L,
                "H": H,
                "B": B,
                "T": T,
                "math": math,
                "autocast": autocast,
                "graph": graph,
                "forced": forced,
            }
            about |= {"loss": first, "plan": plan[:120], "off": off, "wrong": not off <= 3 * ALLOWED[kind]}
            errors: dict[str, str] = {}
            if graph:
                calls, errors = measure.replays(place, calls)
            seconds, often = measure.in_turns(place, calls)
            rates = {name: B * T / found for name, found in seconds.items()}
            yield {**about, "characters_per_second": rates, "repeats": often | errors, "status": place.taken()}


def _gradients(place: Place, model: nn.Module, name: str, ids: Tensor, targets: Tensor, half: bool) -> list[Tensor]:
    """Scores, and the gradient of the loss in every parameter, in one order for both models."""
    scores = _scores(place, model, name, ids, half)
    named = sorted((key.removeprefix("rnn."), value) for key, value in model.named_parameters())
    loss = F.cross_entropy(scores.float().flatten(0, 1), targets.flatten())
    return [scores.detach(), *torch.autograd.grad(loss, [value for _, value in named])]


def _scores(place: Place, model: nn.Module, name: str, ids: Tensor, half: bool) -> Tensor:
    forced = place.backend if name == "cuda" else "torch"
    with fastlstm.backend(forced), torch.autocast(place.device.type, torch.bfloat16, enabled=half):
        return model(ids)


def _step(
    place: Place, model: nn.Module, name: str, ids: Tensor, targets: Tensor, half: bool, capturable: bool
) -> measure.Run:
    """One whole training step; returns the loss."""
    capturable &= not place.rehearsal
    optimiser = torch.optim.RMSprop(model.parameters(), lr=2e-3, alpha=0.95, foreach=True, capturable=capturable)

    def run() -> list[Tensor]:
        optimiser.zero_grad()
        loss = F.cross_entropy(_scores(place, model, name, ids, half).float().flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_value_(model.parameters(), 5.0)
        optimiser.step()
        return [loss.detach()]

    return run
