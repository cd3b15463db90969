"""Any call that nn.LSTM takes, drawn by hypothesis: sizes, strides, lengths, flags, types, states, gradients."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils import rnn

from tests.modules.pairs import leaves, pair, results


def _strided(draw: st.DrawFn, value: Tensor) -> Tensor:
    """The same numbers, lying otherwise."""
    layout = draw(st.sampled_from(["as it is", "gaps", "transposed", "offset", "negated"]))
    if layout == "gaps":
        return torch.stack([value, value.new_full((), float("nan")).expand_as(value)], -1)[..., 0]
    if layout == "transposed":
        return value.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "offset":
        return torch.cat([value.new_full((1, *value.shape[1:]), float("nan")), value])[1:]
    return torch._neg_view(-value) if layout == "negated" else value


@st.composite
def _calls(draw: st.DrawFn) -> tuple:
    """Constructor arguments, the input, the state, and whether gradients are wanted."""
    size = st.integers(1, 9)
    H = draw(size)
    options = {
        "input_size": draw(size), "hidden_size": H, "num_layers": draw(st.integers(1, 3)),
        "bias": draw(st.booleans()), "batch_first": draw(st.booleans()), "bidirectional": draw(st.booleans()),
        "proj_size": draw(st.integers(0, H - 1)), "dtype": draw(st.sampled_from([torch.float32, torch.float64])),
    }  # fmt: skip
    form = draw(st.sampled_from(["dense", "dense", "unbatched", "packed"]))
    T, B = draw(size), draw(size)
    I, dtype = options["input_size"], options["dtype"]
    if form == "packed":
        lengths = draw(st.lists(st.integers(1, T), min_size=B, max_size=B))
        x = rnn.pack_sequence([torch.randn(n, I, dtype=dtype) for n in lengths], enforce_sorted=False)
        x = x._replace(data=_strided(draw, x.data))
    else:
        shape = (T, I) if form == "unbatched" else (B, T, I) if options["batch_first"] else (T, B, I)
        x = _strided(draw, torch.randn(shape, dtype=dtype))
    hx = None
    if draw(st.booleans()):
        rows = options["num_layers"] * (1 + options["bidirectional"])
        lead = (rows,) if form == "unbatched" else (rows, B)
        sizes = (options["proj_size"] or H, H)
        hx = tuple(_strided(draw, torch.randn(*lead, n, dtype=dtype)) for n in sizes)
    return options, x, hx, draw(st.booleans())


@settings(max_examples=40, deadline=None)
@given(_calls(), st.randoms(use_true_random=False))
def test_any_call_gives_what_nn_lstm_gives(call: tuple, random) -> None:
    options, x, hx, wanted = call
    torch_lstm, lstm = pair(**options)
    if random.random() < 0.5:  # weights that lie otherwise
        for module in (torch_lstm, lstm):
            for p in module.parameters():
                p.data = torch.stack([p.data, p.data], -1)[..., 0]
    if wanted:
        torch.testing.assert_close(results(lstm, x, hx), results(torch_lstm, x, hx), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(leaves(lstm(x, hx)), leaves(torch_lstm(x, hx)), rtol=1e-4, atol=1e-5)
