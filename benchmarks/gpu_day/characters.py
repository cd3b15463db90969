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
from benchmarks.gpu_day.executor import ALLOWED, GpuExecutor
from benchmarks.gpu_day.layers import relative_difference

V = 65  # symbols of tinyshakespeare
SIZES = tuple((2, H, B, T) for H, (B, T) in product((128, 512), ((50, 50), (100, 100))))


class TorchCharacterModel(nn.Module):
    """nn.Embedding, nn.LSTM and nn.Linear: ids (T, B) to scores (T, B, V)."""

    def __init__(self, L: int, H: int) -> None:
        super().__init__()
        self.embedding, self.lstm, self.out = nn.Embedding(V, H), nn.LSTM(H, H, L), nn.Linear(H, V)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.lstm(self.embedding(ids))[0])


class FastlstmCharacterModel(nn.Module):
    """The same with fastlstm.TokenLSTM, which reads rows of a table."""

    def __init__(self, torch_model: TorchCharacterModel) -> None:
        super().__init__()
        H, L = torch_model.out.in_features, torch_model.lstm.num_layers
        self.rnn, self.out = fastlstm.TokenLSTM(V, H, H, num_layers=L), nn.Linear(H, V)
        self.rnn.embedding.load_state_dict(torch_model.embedding.state_dict())
        self.rnn.lstm.load_state_dict(torch_model.lstm.state_dict())
        self.out.load_state_dict(torch_model.out.state_dict())

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.rnn(ids)[0])


def items(executor: GpuExecutor) -> list[Item]:
    executor.start()
    if executor.rehearsal:
        return [Item("2x16", (2, 16, 2, 3, "tf32", "none"))]
    precisions = (("tf32", "none"), ("tf32", "bf16"), ("f32", "none"))
    combinations = [(*size, *precision) for precision, size in product(precisions, SIZES)]
    return [Item(f"{L}x{H} B{B} T{T} {m} autocast {a}", (L, H, B, T, m, a)) for L, H, B, T, m, a in combinations]


def run(executor: GpuExecutor, item: Item) -> Iterator[dict]:
    L, H, B, T, math, autocast = item.values
    torch.manual_seed(0)
    with executor.math(math):
        lstm_math = math if autocast == "none" else "f16"  # what autocast on CUDA is to an LSTM, of whichever type
        forced_kernel = executor.avoid_failed_kernels(lstm_math, H, B)
        models = {"torch": TorchCharacterModel(L, H)}
        models["cuda"] = FastlstmCharacterModel(models["torch"])
        ids, targets = torch.randint(V, (2, T, B), device=executor.device)
        gradients = {
            name: _gradients(executor, model.to(executor.device), name, ids, targets, autocast == "bf16")
            for name, model in models.items()
        }
        off = relative_difference(gradients["cuda"], gradients["torch"])
        for graph in (False, True):
            calls = {
                name: _step(executor, model, name, ids, targets, autocast == "bf16", graph)
                for name, model in models.items()
            }
            first = {name: float(call()[0]) for name, call in calls.items()}
            plan = fastlstm.dispatch.last_plan()
            columns = {
                "L": L,
                "H": H,
                "B": B,
                "T": T,
                "math": math,
                "autocast": autocast,
                "graph": graph,
                "forced": forced_kernel,
            }
            columns |= {"loss": first, "plan": plan[:120], "off": off, "wrong": not off <= 3 * ALLOWED[lstm_math]}
            errors: dict[str, str] = {}
            if graph:
                calls, errors = measure.replays(executor, calls)
            seconds, repeats = measure.in_turns(executor, calls)
            rates = {name: B * T / step for name, step in seconds.items()}
            yield {
                **columns,
                "characters_per_second": rates,
                "repeats": repeats | errors,
                "status": executor.take_status(),
            }


def _gradients(
    executor: GpuExecutor, model: nn.Module, name: str, ids: Tensor, targets: Tensor, half: bool
) -> list[Tensor]:
    """Scores, and the gradient of the loss in every parameter, in one order for both models."""
    scores = _scores(executor, model, name, ids, half)
    named = sorted((key.removeprefix("rnn."), value) for key, value in model.named_parameters())
    loss = F.cross_entropy(scores.float().flatten(0, 1), targets.flatten())
    return [scores.detach(), *torch.autograd.grad(loss, [value for _, value in named])]


def _scores(executor: GpuExecutor, model: nn.Module, name: str, ids: Tensor, half: bool) -> Tensor:
    forced = executor.backend if name == "cuda" else "torch"
    with fastlstm.backend(forced), torch.autocast(executor.device.type, torch.bfloat16, enabled=half):
        return model(ids)


def _step(
    executor: GpuExecutor, model: nn.Module, name: str, ids: Tensor, targets: Tensor, half: bool, capturable: bool
) -> measure.TimedCall:
    """One whole training step; returns the loss."""
    capturable &= not executor.rehearsal
    optimiser = torch.optim.RMSprop(model.parameters(), lr=2e-3, alpha=0.95, foreach=True, capturable=capturable)

    def run() -> list[Tensor]:
        optimiser.zero_grad()
        loss = F.cross_entropy(_scores(executor, model, name, ids, half).float().flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_value_(model.parameters(), 5.0)
        optimiser.step()
        return [loss.detach()]

    return run
