"""What nn.LSTM does not give: recompute, cell states, gates, resets, DropConnect and locked dropout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import fastlstm

OPTIONS = [
    {},
    {"bidirectional": True},
    {"proj_size": 3},
    {"num_layers": 2, "bias": False},
    {"num_layers": 2, "bidirectional": True},
]


def _grads(lstm: nn.Module, x: Tensor | PackedSequence, **kwargs: object) -> list[Tensor]:
    """Output, states, and the gradients of parameters."""
    lstm.zero_grad()
    out, (h, c), *_ = lstm(x, **kwargs)
    out = out.data if isinstance(out, PackedSequence) else out
    (out.square().sum() + h.sin().sum() + c.cos().sum()).backward()
    return [out.detach(), h.detach(), c.detach(), *(p.grad.clone() for p in lstm.parameters())]


def _saved(lstm: nn.Module, x: Tensor) -> int:
    """Scalars kept for backward, each storage once, without the parameters."""
    sizes, parameters = {}, {p.untyped_storage().data_ptr() for p in lstm.parameters()}

    def pack(v: Tensor) -> Tensor:
        sizes[v.untyped_storage().data_ptr()] = v.untyped_storage().nbytes() // v.element_size()
        return v

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v):
        outputs = lstm(x)
    assert outputs[0].requires_grad
    return sum(n for place, n in sizes.items() if place not in parameters)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_saved_scalars_are_those_of_the_docstring(options: dict, recompute: bool) -> None:
    T, B, I, H = 40, 6, 7, 16
    lstm = fastlstm.LSTM(I, H, recompute=recompute, **options)
    D, L, P = 1 + lstm.bidirectional, lstm.num_layers, lstm.proj_size or H
    per_direction = T * B * (P + (H if recompute else 5 * H)) + B * (P + H) + 4 * H * (lstm.bias and recompute)
    inputs = T * B * I + (L - 1) * T * B * 2 * P * lstm.bidirectional
    assert _saved(lstm, torch.randn(T, B, I)) == L * D * per_direction + inputs


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_recompute_changes_no_result(options: dict) -> None:
    lstm, x = fastlstm.LSTM(3, 5, dropout=0.0, **options), torch.randn(9, 4, 3)
    expected = _grads(lstm, x)
    lstm.recompute = True
    torch.testing.assert_close(_grads(lstm, x), expected)
    packed = pack_sequence([torch.randn(n, 3) for n in (2, 5, 1)], enforce_sorted=False)
    recomputed = _grads(lstm, packed)
    lstm.recompute = False
    torch.testing.assert_close(recomputed, _grads(lstm, packed))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
def test_cell_states_and_gates_are_those_of_steps(options: dict, batch_first: bool) -> None:
    """One step at a time, nn.LSTM returns each c_t; the gates give it back."""
    torch_lstm = nn.LSTM(3, 5, batch_first=batch_first, **options)
    lstm = fastlstm.LSTM.from_torch(torch_lstm)
    x = torch.randn(4, 6, 3)
    out, (h, c), cells, gates = lstm(x, return_cell_states=True, return_gates=True)
    torch.testing.assert_close((out, (h, c)), torch_lstm(x))
    D, L, H = 1 + lstm.bidirectional, lstm.num_layers, 5
    assert [v.shape for v in cells] == [(4, 6, D * H)] * L
    assert [v.shape for v in gates] == [(4, 6, D * 4 * H)] * L
    assert not any(g.requires_grad for g in gates)
    time = 1 if batch_first else 0
    for layer in range(L):
        for d in range(D):
            i, f, g, o = gates[layer].unflatten(-1, (D, 4, H))[..., d, :, :].movedim(time, 0).unbind(2)
            c_all = cells[layer].unflatten(-1, (D, H))[..., d, :].movedim(time, 0)
            before = torch.cat(
                [c_all[1:], torch.zeros_like(c_all[:1])] if d else [torch.zeros_like(c_all[:1]), c_all[:-1]]
            )
            torch.testing.assert_close(f * before + i * g, c_all)
            torch.testing.assert_close(c_all[0 if d else -1], c[layer * D + d])
            if layer == L - 1 and not lstm.proj_size:
                h_all = out.unflatten(-1, (D, H))[..., d, :].movedim(time, 0)
                torch.testing.assert_close(o * c_all.tanh(), h_all)


def test_cell_states_are_differentiable_and_may_be_packed() -> None:
    lstm = fastlstm.LSTM(3, 4, 2, bidirectional=True, dtype=torch.float64, return_cell_states=True)
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: tuple(lstm(x)[2]), x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: tuple(lstm(x)[2]), x, fast_mode=True)
    lengths = [3, 1]
    packed = pack_sequence([x[:n, b] for b, n in enumerate(lengths)])
    _, _, cells = lstm(packed)
    assert isinstance(cells[1], PackedSequence)
    padded, _ = pad_packed_sequence(cells[1])
    for b, n in enumerate(lengths):
        torch.testing.assert_close(padded[:n, b], lstm(x[:n, b])[2][1])


def test_options_of_the_call_override_those_of_the_module() -> None:
    lstm, x = fastlstm.LSTM(3, 5, return_gates=True), torch.randn(2, 1, 3)
    assert len(lstm(x)) == 3
    assert len(lstm(x, return_cell_states=True)) == 4
    assert len(lstm(x, return_gates=False)) == 2
    assert repr(lstm) == "LSTM(3, 5, return_gates=True)"
    for options, error in (
        ({"recompute": 1}, TypeError),
        ({"weight_drop": 1.5}, ValueError),
        ({"input_dropout": True}, ValueError),
    ):
        with pytest.raises(error, match=next(iter(options))):
            fastlstm.LSTM(3, 5, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_reset_is_a_new_sequence(options: dict, packed: bool) -> None:
    """Each part between resets gives what it gives alone, forward and backward, and no gradient crosses."""
    lstm = fastlstm.LSTM(3, 5, **options)
    T, cuts = 7, [(0, 3, 5), (0, 7), (0, 1, 2, 6)]
    x = torch.randn(T, len(cuts), 3, requires_grad=True)
    mask = torch.zeros(T, len(cuts), dtype=torch.bool)
    for b, starts in enumerate(cuts):
        mask[[s for s in starts if 0 < s < T], b] = True
    if packed:
        sequences = pack_sequence(list(x.unbind(1)))
        out = pad_packed_sequence(lstm(sequences, reset=pack_sequence(list(mask.unbind(1))))[0])[0]
    else:
        out = lstm(x, reset=mask)[0]
    for b, starts in enumerate(cuts):
        ends = [*starts[1:], T]
        for start, end in zip(starts, ends, strict=True):
            if start == end:
                continue
            part = x[start:end, b]
            alone = lstm(part)[0]
            torch.testing.assert_close(out[start:end, b], alone)
            (g,) = torch.autograd.grad(out[start:end, b].square().sum(), x, retain_graph=True)
            (expected,) = torch.autograd.grad(alone.square().sum(), x)
            torch.testing.assert_close(g, expected)


def test_a_reset_of_another_shape_or_type_is_refused() -> None:
    lstm, x = fastlstm.LSTM(3, 5), torch.randn(4, 2, 3)
    for wrong in (torch.zeros(4, 3, dtype=torch.bool), torch.zeros(4, 2), torch.zeros(4, 2, 1, dtype=torch.bool)):
        with pytest.raises(RuntimeError, match=r"reset is .*, expected torch.bool with shape \[4, 2\]"):
            lstm(x, reset=wrong)


def test_weight_drop_is_nn_lstm_on_dropped_weights() -> None:
    torch_lstm = nn.LSTM(3, 5, 2, bidirectional=True)
    lstm, x = fastlstm.LSTM.from_torch(torch_lstm), torch.randn(6, 4, 3)
    lstm.weight_drop = 0.4
    torch.manual_seed(7)
    actual = _grads(lstm, x)
    torch.manual_seed(7)
    names = [n for n in torch_lstm._flat_weights_names if n.startswith("weight_hh")]
    dropped = {n: F.dropout(getattr(torch_lstm, n), 0.4, training=True) for n in names}
    torch_lstm.zero_grad()
    out, (h, c) = torch.func.functional_call(torch_lstm, dropped, (x,))
    (out.square().sum() + h.sin().sum() + c.cos().sum()).backward()
    torch.testing.assert_close(actual, [out, h, c, *(p.grad for p in torch_lstm.parameters())])
    assert 0.2 < (lstm.weight_hh_l0.grad == 0).float().mean() < 0.6
    lstm.eval()
    torch.testing.assert_close(lstm(x), torch_lstm(x))


@pytest.mark.parametrize("packed", [False, True])
def test_locked_dropout_is_one_mask_for_all_steps(packed: bool) -> None:
    lstm = fastlstm.LSTM(4, 6, 2, input_dropout=0.3, locked_dropout=0.6)
    first, second = nn.LSTM(4, 6), nn.LSTM(6, 6)
    for k, layer in enumerate((first, second)):
        layer.load_state_dict({n.replace("l1", "l0"): v for n, v in lstm.state_dict().items() if n.endswith(f"l{k}")})
    lengths = [5, 3, 2] if packed else [5, 5, 5]
    rows = [torch.randn(n, 4) for n in lengths]
    torch.manual_seed(5)
    out = lstm(pack_sequence(rows) if packed else torch.stack(rows, 1))[0]
    out = pad_packed_sequence(out)[0] if packed else out
    torch.manual_seed(5)
    masks = [F.dropout(torch.ones(1, 3, n), p, training=True).squeeze(0) for n, p in ((4, 0.3), (6, 0.6))]
    assert all(0 < (m == 0).sum() < m.numel() for m in masks)
    for b, x in enumerate(rows):
        expected = second(first(x * masks[0][b])[0] * masks[1][b])[0]
        torch.testing.assert_close(out[: len(x), b], expected)


@pytest.mark.parametrize("recompute", [False, True])
def test_masks_follow_torch_s_generator_and_are_the_same_when_run_again(recompute: bool) -> None:
    """By a seed, under torch.utils.checkpoint, and with gates computed again in backward."""
    lstm = fastlstm.LSTM(3, 5, 3, dropout=0.3, weight_drop=0.4, input_dropout=0.2, locked_dropout=0.5)
    x = torch.randn(6, 4, 3)
    torch.manual_seed(11)
    expected, other = _grads(lstm, x), _grads(lstm, x)
    assert not torch.allclose(expected[0], other[0])
    lstm.recompute = recompute
    torch.manual_seed(11)
    torch.testing.assert_close(_grads(lstm, x), expected)

    class Checkpointed(nn.Module):
        def forward(self, x: Tensor):
            return checkpoint(lstm, x, use_reentrant=False)

        zero_grad, parameters = lstm.zero_grad, lstm.parameters

    torch.manual_seed(11)
    torch.testing.assert_close(_grads(Checkpointed(), x), expected)
