"""Workloads of the character model: a training step, and sampling of one stream and of many."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastlstm
from benchmarks.layer import LSTMState
from benchmarks.workload import ContenderCall, Workload, chosen_by_dispatch, fastlstm_contenders, same_weights
from fastlstm.charlm.data.vocab import Vocabulary
from fastlstm.charlm.model import CharModel
from fastlstm.charlm.sampling.sample import Sampling, sample_ids

V = 65  # symbols of tinyshakespeare
TEMPERATURE = 1.0
FIRST_INPUT = ("rnn.embedding.weight", "rnn.lstm.weight_ih_l0")  # `decode` reads one row of their product per step
SamplingLoop = Callable[[bool], list[Tensor]]  # argument: argmax instead of a draw


class Embedded(nn.Module):
    """nn.Embedding and nn.LSTM. Its weights fit fastlstm.TokenLSTM."""

    def __init__(self, H: int, L: int) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(V, H), nn.LSTM(H, H, L)

    def forward(self, ids: Tensor, state: LSTMState | None = None) -> tuple[Tensor, LSTMState]:
        return self.lstm(self.embedding(ids), state)


class TorchModel(nn.Module):
    """The character model of torch's own parts: ids (T, B) to scores (T, B, V). Its weights fit CharModel."""

    def __init__(self, H: int, L: int) -> None:
        super().__init__()
        self.rnn, self.out = Embedded(H, L), nn.Linear(H, V)

    def forward(self, ids: Tensor, state: LSTMState | None = None) -> tuple[Tensor, LSTMState]:
        h, state = self.rnn(ids, state)
        return self.out(h), state


def fastlstm_like(torch_model: TorchModel) -> CharModel:
    """Return charlm's model with the same weights on the same device."""
    model = CharModel(
        V, torch_model.out.in_features, torch_model.rnn.lstm.num_layers, embedding_dim=torch_model.out.in_features
    )
    return same_weights(model.to(torch_model.out.weight.device), torch_model)


def training_step(L: int, H: int, B: int, T: int, device: str = "cpu") -> Workload:
    """ids, model, cross-entropy, backward, value clip, RMSProp; judged by the same step in float64 on the CPU."""
    ids, targets = torch.randint(V, (2, T, B), device=device)
    torch_model = TorchModel(H, L).to(device)
    exact = optimised(deepcopy(torch_model).double().cpu(), ids.cpu(), targets.cpu())
    models: dict[str, nn.Module] = {name: fastlstm_like(torch_model) for name in fastlstm_contenders(device)}
    runs = {name: optimised(model, ids, targets) for name, model in {**models, "torch": torch_model}.items()}
    flops = 3 * 2 * T * B * (4 * H * H * (2 * L - 1) + H * V)
    chosen = chosen_by_dispatch(models["dispatched"].rnn, ids)
    return Workload(runs, exact=exact, device=device, flops=flops, chosen=chosen)


def optimised(model: nn.Module, ids: Tensor, targets: Tensor) -> ContenderCall:
    """Return a function that makes one training step and returns the loss and the clipped gradients."""
    optimiser = torch.optim.RMSprop(model.parameters(), lr=2e-3, alpha=0.95, foreach=True)

    def run() -> list[Tensor]:
        optimiser.zero_grad()
        loss = F.cross_entropy(model(ids)[0].flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_value_(model.parameters(), 5.0)
        optimiser.step()
        return [loss, *(p.grad for p in model.parameters())]

    return run


def sampling(L: int, H: int, num: int = 1, length: int = 100) -> Workload:
    """Sample `length` characters of `num` streams. Checked with argmax, timed with a draw.

    torch: a Python loop over nn.LSTM; charlm: what `fastlstm sample` runs; cpu, dispatched: fastlstm.decode.
    """
    torch_model = TorchModel(H, L)
    model = fastlstm_like(torch_model).eval()
    decoded = decode_loop(model, num, length)
    loops: dict[str, SamplingLoop] = dict.fromkeys(fastlstm_contenders("cpu"), decoded)
    loops |= {"charlm": charlm_loop(model, num, length), "torch": torch_loop(torch_model, num, length)}
    with fastlstm.backend(None):
        decoded(False)
        chosen = fastlstm.last_plan().split(":")[0]
    return Workload(
        {name: partial(loop, False) for name, loop in loops.items()},
        checked={name: partial(loop, True) for name, loop in loops.items()},
        grad=False,
        chosen=chosen,
        bytes=4.0 * length * sum(p.numel() for name, p in model.named_parameters() if name not in FIRST_INPUT),
        characters=num * length,
    )


def torch_loop(model: TorchModel, num: int, length: int) -> SamplingLoop:
    """Sampling in plain torch: softmax, multinomial, the character is the next input."""

    def loop(argmax: bool) -> list[Tensor]:
        ids, state, drawn = torch.zeros(1, num, dtype=torch.int64), None, []
        for _ in range(length):
            scores, state = model(ids, state)
            if argmax:
                ids = scores.argmax(-1)
            else:
                ids = torch.multinomial(F.softmax(scores[0] / TEMPERATURE, -1), 1).view(1, num)
            drawn.append(ids[0])
        return [torch.stack(drawn)]

    return loop


def decode_loop(model: CharModel, num: int, length: int) -> SamplingLoop:
    """fastlstm.decode, which packs the weights in every call."""

    def loop(argmax: bool) -> list[Tensor]:
        layers = (model.rnn, model.out.weight, model.out.bias)
        return [fastlstm.decode(*layers, [0], length, num=num, temperature=0.0 if argmax else TEMPERATURE).ids]

    return loop


def charlm_loop(model: CharModel, num: int, length: int) -> SamplingLoop:
    """The sampler of `fastlstm sample`. It starts from symbol 0 (a newline), as the other loops do."""
    vocabulary = Vocabulary("\n" + "".join(map(chr, range(64, 63 + V))))

    def loop(argmax: bool) -> list[Tensor]:
        pieces = list(
            sample_ids(model, vocabulary, Sampling(num=num, length=length, temperature=TEMPERATURE, argmax=argmax))
        )
        return [torch.from_numpy(np.concatenate(pieces))]

    return loop
