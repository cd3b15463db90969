"""Work of the character model: a training step, and sampling for one stream and for many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastlstm
from benchmarks.work import Run, Work, chosen_by_dispatch, columns, same_weights
from fastlstm.charlm.data.vocab import Vocabulary
from fastlstm.charlm.model import CharModel
from fastlstm.charlm.sampling.sample import Sampling, sample_ids

V = 65  # symbols of tinyshakespeare
FIRST_INPUT = ("rnn.embedding.weight", "rnn.lstm.weight_ih_l0")  # a decoder reads one row of their product
State = tuple[Tensor, Tensor]
Loop = Callable[[Sampling], list[Tensor]]


class Embedded(nn.Module):
    """nn.Embedding and nn.LSTM, as people write it."""

    def __init__(self, H: int, L: int) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(V, H), nn.LSTM(H, H, L)

    def forward(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        return self.lstm(self.embedding(ids), state)


class TorchModel(nn.Module):
    """The character model of torch's own parts: ids (T, B) to scores (T, B, V). Its weights fit CharModel."""

    def __init__(self, H: int, L: int) -> None:
        super().__init__()
        self.rnn, self.out = Embedded(H, L), nn.Linear(H, V)

    def forward(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        h, state = self.rnn(ids, state)
        return self.out(h), state


def ours_of(theirs: TorchModel) -> CharModel:
    """charlm's model with the same weights on the same device."""
    model = CharModel(V, theirs.out.in_features, theirs.rnn.lstm.num_layers, embedding_dim=theirs.out.in_features)
    return same_weights(model.to(theirs.out.weight.device), theirs)


def training_step(L: int, H: int, B: int, T: int, device: str = "cpu") -> Work:
    """ids, model, cross-entropy, backward, value clip, RMSProp."""
    ids, targets = torch.randint(V, (2, T, B), device=device)
    theirs = TorchModel(H, L).to(device)
    models: dict[str, nn.Module] = {name: ours_of(theirs) for name in columns(device)}
    runs = {name: optimised(model, ids, targets) for name, model in {**models, "torch": theirs}.items()}
    flops = 3 * 2 * T * B * (4 * H * H * (2 * L - 1) + H * V)
    chosen = chosen_by_dispatch(models["dispatched"].rnn, ids)
    return Work(runs, flops=flops, chosen=chosen)


def optimised(model: nn.Module, ids: Tensor, targets: Tensor) -> Run:
    """One whole training step; returns the loss and every gradient before clipping took place in them."""
    optimiser = torch.optim.RMSprop(model.parameters(), lr=2e-3, alpha=0.95, foreach=True)

    def run() -> list[Tensor]:
        optimiser.zero_grad()
        loss = F.cross_entropy(model(ids)[0].flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_value_(model.parameters(), 5.0)
        optimiser.step()
        return [loss, *(p.grad for p in model.parameters())]

    return run


def sampling(L: int, H: int, num: int = 1, length: int = 100) -> Work:
    """`length` characters of `num` streams. Checked with argmax, timed with sampling at temperature 1.

    torch: a Python loop over nn.LSTM; charlm: what `fastlstm sample` runs; cpu, dispatched: fastlstm.decode.
    """
    theirs = TorchModel(H, L)
    ours = ours_of(theirs).eval()
    decoded = decode_loop(ours, num, length)
    loops: dict[str, Loop] = dict.fromkeys(columns("cpu"), decoded)
    loops |= {"charlm": charlm_loop(ours, num, length), "torch": torch_loop(theirs, num, length)}
    with fastlstm.backend(None):
        decoded(Sampling(num=num))
        chosen = fastlstm.last_plan().split(":")[0]
    return Work(
        {name: partial(loop, Sampling(num=num)) for name, loop in loops.items()},
        checked={name: partial(loop, Sampling(num=num, argmax=True)) for name, loop in loops.items()},
        grad=False,
        chosen=chosen,
        bytes=4.0 * length * sum(p.numel() for name, p in ours.named_parameters() if name not in FIRST_INPUT),
        characters=num * length,
    )


def torch_loop(model: TorchModel, num: int, length: int) -> Loop:
    """Sampling as people write it: softmax, multinomial, feed the character back."""

    def loop(sampling: Sampling) -> list[Tensor]:
        ids, state, found = torch.zeros(1, num, dtype=torch.int64), None, []
        for _ in range(length):
            scores, state = model(ids, state)
            if sampling.argmax:
                ids = scores.argmax(-1)
            else:
                ids = torch.multinomial(F.softmax(scores[0] / sampling.temperature, -1), 1).view(1, num)
            found.append(ids[0])
        return [torch.stack(found)]

    return loop


def decode_loop(model: CharModel, num: int, length: int) -> Loop:
    """fastlstm.decode as a user calls it: weights are packed anew in every call."""

    def loop(sampling: Sampling) -> list[Tensor]:
        temperature = 0.0 if sampling.argmax else sampling.temperature
        layers = (model.rnn, model.out.weight, model.out.bias)
        return [fastlstm.decode(*layers, [0], length, num=num, temperature=temperature, seed=sampling.seed).ids]

    return loop


def charlm_loop(model: CharModel, num: int, length: int) -> Loop:
    """The sampler of `fastlstm sample`, from the symbol 0 (a newline) on as the other loops."""
    vocabulary = Vocabulary("\n" + "".join(map(chr, range(64, 63 + V))))

    def loop(sampling: Sampling) -> list[Tensor]:
        pieces = list(sample_ids(model, vocabulary, replace(sampling, length=length)))
        return [torch.from_numpy(np.concatenate(pieces))]

    return loop
