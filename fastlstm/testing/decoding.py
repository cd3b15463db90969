"""A backend's sampling loop, judged id by id: what it drew is fed to the definition in float64, which draws beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlstm import dispatch
from fastlstm.backends.base import Backend
from fastlstm.modules.token_lstm import TokenLSTM
from fastlstm.sampling.decode import Decoder
from fastlstm.sampling.options import Options, Streams
from fastlstm.sampling.plain import TorchEngine, choose
from fastlstm.sampling.weights import Layer, Weights, collect
from fastlstm.testing import accuracy

PRIME = (1, 0, 1)


@dataclass(frozen=True)
class DecodeCase:
    """L layers of H units, V ids, B streams that draw `length` ids in two calls; stored: type of the weights."""

    id: str
    L: int
    H: int
    V: int
    B: int
    length: int = 12
    stored: torch.dtype = torch.float32
    options: Mapping = field(default_factory=dict)


# States of an automaton over 17 ids: from the first any id leads on, the second forbids every third
_NEXT = [[v % 2 for v in range(17)], [-1 if v % 3 == 0 else 0 for v in range(17)]]
_FOLLOWS = torch.tensor(_NEXT, dtype=torch.int32, device="cpu")
_STOPS = ((3, 1), (2,), (5,))
# Few and many streams, weights that fit a chip and that do not, wide and odd layers; streams that end on the way, in one pass
# and in several
CASES = (
    DecodeCase("1x128, 1 stream", 1, 128, 65, 1, 40),
    DecodeCase("3x512, 2 streams", 3, 512, 100, 2, options={"top_p": 0.9}),
    DecodeCase("2x129, 5 streams, bfloat16", 2, 129, 17, 5, stored=torch.bfloat16, options={"top_k": 5}),
    DecodeCase("2x64, 64 streams", 2, 64, 300, 64, options={"temperature": 0.7, "top_k": 40, "top_p": 0.95}),
    DecodeCase("2x1024, 11 streams", 2, 1024, 96, 11, 6),
    DecodeCase("2x96, 6 streams, stops", 2, 96, 17, 6, 30, options={"stop": _STOPS}),
    DecodeCase("1x96, 67 streams, stops", 1, 96, 17, 67, 20, options={"stop": _STOPS, "top_p": 0.9}),
    DecodeCase("2x64, 2 streams, automaton", 2, 64, 17, 2, options={"automaton": (_FOLLOWS, 0), "stop": (4,)}),
    DecodeCase("2x64, 9 streams, automaton", 2, 64, 17, 9, options={"automaton": (_FOLLOWS, 1)}),
    DecodeCase("2x1500, 1 stream, argmax", 2, 1500, 40, 1, 6, options={"temperature": 0}),
)


def unfit(backend: Backend, case: DecodeCase, device: torch.device) -> str | None:
    """Why a backend cannot draw a case on a device, or None."""
    return backend.cannot_decode((case.L, case.H, case.H, case.V), case.stored, device)


def errors(backend: Backend, case: DecodeCase, seed: int, device: torch.device) -> dict[str, tuple[float, float]]:
    """Of state, log-probabilities and ids: the error beside what is allowed.

    Of numbers by the rule of `accuracy`; of ids how many differ from what the definition draws after the same ids, both in
    float64 and in float32.
    """
    model, weight, bias = _model(case, seed)
    with dispatch.backend(backend.name):
        drawing = Decoder(model.to(device), weight.to(device), bias.to(device), case.stored).start(
            PRIME, num=case.B, seed=seed, **case.options
        )
        parts = [drawing.draw(n, log_probs=True) for n in (3, case.length - 3)]
    drawn = torch.cat([part.ids for part in parts]).cpu()
    log_probs = torch.cat([part.log_probs for part in parts]).cpu()
    weights = collect(model.to("cpu"), weight, bias, case.stored)
    options = Options.of(weights.sizes, case.B, **{**_USUAL, "seed": seed, **case.options})
    exact, rounded = (_forced(weights, options, drawn, real) for real in (torch.float64, torch.float32))
    wrong = ((drawn != exact.ids) & (drawn != rounded.ids)).sum() + _wrong_ends(drawn, options.stop, case.length)
    found = {"ids": (float(wrong), 0.5)}
    results = {"h": parts[1].state[0].cpu(), "c": parts[1].state[1].cpu(), "log_probs": log_probs}
    for name, value in results.items():
        right, baseline = getattr(exact, name), getattr(rounded, name)
        found[name] = accuracy.error(value, right), accuracy.tolerance(right, baseline)
    return found


_USUAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "stop": (), "automaton": None, "position": 0}


def _model(case: DecodeCase, seed: int) -> tuple[TokenLSTM, Tensor, Tensor]:
    """Weights larger than usual: scores that differ."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int, spread: float) -> Tensor:
        own = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")
        return own.sub_(0.5).mul_(spread * case.H**-0.5)

    model = TokenLSTM(case.V, None, case.H, case.L, dtype=torch.float32, device="cpu").requires_grad_(False)
    for p in model.parameters():
        p.copy_(drawn(*p.shape, spread=6.0))
    return model, drawn(case.V, case.H, spread=16.0), drawn(case.V, spread=1.0)


@dataclass(frozen=True)
class _Forced:
    """What the definition makes of ids that were drawn: the state after them, and of each row what it draws itself."""

    ids: Tensor
    h: Tensor
    c: Tensor
    log_probs: Tensor


def _forced(weights: Weights, options: Options, drawn: Tensor, real: torch.dtype) -> _Forced:
    def kept(w: Tensor | None) -> Tensor | None:
        return None if w is None else w.to(weights.stored).to(real)

    layers = [Layer(one.start.to(real), kept(one.w_ih), kept(one.w_hh), None) for one in weights.layers]
    cast = Weights(weights.sizes, layers, kept(weights.w_out), weights.b_out.to(real), real)
    engine, (L, H, _, _) = TorchEngine(cast), weights.sizes
    B = drawn.shape[1]
    state = [cast.w_out.new_zeros(L, B, H) for _ in range(2)]
    states = None if options.starts is None else options.starts.clone()
    streams = Streams(drawn[:1], 1, *state, torch.zeros(B, dtype=torch.uint8, device="cpu"), states, 0)
    prime = torch.tensor(PRIME, dtype=torch.int64, device="cpu")[:, None].expand(-1, B)
    rows, ids = torch.cat([prime, drawn]), torch.full_like(drawn, -1)
    log_probs = cast.w_out.new_zeros(drawn.shape)
    for row in range(len(rows) - 1):
        step = row + 1 - len(PRIME)
        live = (rows[row + 1] >= 0).nonzero()[:, 0]  # a stream that ended is not fed its last id
        h = engine.step(rows[row, live], streams, live)
        if step < 0:
            continue
        scores = F.linear(h, cast.w_out, cast.b_out)
        ids[step, live] = choose(engine.allowed(scores, streams, options, live), options, step, live)
        chosen = drawn[step, live]
        log_probs[step, live] = scores.double().log_softmax(1).gather(1, chosen[:, None])[:, 0].to(real)
        if states is not None:
            states[live] = options.follows[states[live].long(), chosen]
    return _Forced(ids, *state, log_probs)


def _wrong_ends(drawn: Tensor, stops: tuple[tuple[int, ...], ...], length: int) -> int:
    """How many streams did not end with the first of their stops, or did without one."""
    wrong = 0
    for one in drawn.T.tolist():
        own = [v for v in one if v >= 0]
        ends = [n for n in range(1, len(own) + 1) if any(tuple(own[max(n - len(s), 0) : n]) == s for s in stops)]
        wrong += len(own) != (ends[0] if ends else length)
    return wrong
