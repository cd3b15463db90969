"""The int8 kernels of every instruction set, held to fastlstm/ops/int8.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import fastlstm
from fastlstm.backends import native
from fastlstm.ops import int8

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
KERNELS = native.load().int8_isa_names() if native.unavailable() is None else []
# T, B, I, H, P: tails of 16 units, 64 columns and 64 k; one row, a few, more than a tile, than two; threads by rows
SIZES = [
    (1, 1, 1, 1, 0),
    (5, 3, 7, 3, 0),
    (4, 2, 3, 7, 0),
    (6, 5, 33, 33, 0),
    (3, 17, 129, 129, 0),
    (4, 33, 65, 16, 0),
    (2, 70, 5, 129, 0),
    (9, 1, 64, 128, 0),
    (4, 3, 9, 33, 7),
    (3, 20, 129, 129, 65),
    (300, 2, 3, 65, 0),
]


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    isa, threads = native.load().int8_isa(), torch.get_num_threads()
    yield
    native.load().set_int8_isa(isa)
    torch.set_num_threads(threads)


def _made(T: int, B: int, I: int, H: int, P: int, **options: object) -> tuple[fastlstm.Int8LSTM, Tensor, tuple]:
    torch.manual_seed(T * 1000 + H)
    made = fastlstm.quantize(nn.LSTM(I, H, proj_size=P, **options))
    n = made.num_layers * (2 if made.bidirectional else 1)
    return made, torch.randn(T, B, I), (torch.randn(n, B, P or H) / 3, torch.randn(n, B, H))


def _near(actual: Tensor, expected: Tensor) -> None:
    """Equal but for the rounding of float32; with projection an integer may differ by one where a tie is near."""
    wrong = (actual - expected).abs() > 4e-6 + 4e-6 * expected.abs()
    assert wrong.float().mean() <= 0.01
    torch.testing.assert_close(actual, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_layer_is_that_of_the_definition(size: tuple, kernels: str) -> None:
    native.load().set_int8_isa(kernels)
    made, x, hx = _made(*size, bidirectional=True)
    out, (h_n, c_n) = made(x, hx)
    assert fastlstm.last_plan() == f"cpu: int8, {kernels}"
    width = out.shape[2] // 2
    for d, weights in enumerate(made.weights()):
        given = out[..., d * width : (d + 1) * width]
        x_gates = int8.input_gates(x.flatten(0, 1), weights).view(*x.shape[:2], -1)
        h, h_last, c_last = int8.layer(x_gates, weights, hx[0][d], hx[1][d], None, d == 1, h_read=given)
        _near(given, h)
        _near(h_n[d], h_last)
        _near(c_n[d], c_last)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("reverse", [False, True])
def test_packed_sequences_are_those_of_the_definition(reverse: bool, kernels: str) -> None:
    native.load().set_int8_isa(kernels)
    made, _, hx = _made(1, 5, 9, 33, 0, bidirectional=True)
    packed = pack_sequence([torch.randn(n, 9) for n in (7, 6, 3, 3, 1)])
    out, (h_n, c_n) = made(packed, hx)
    d = int(reverse)
    given, weights = out.data[:, d * 33 : (d + 1) * 33].contiguous(), made.weights()[d]
    x_gates = int8.input_gates(packed.data, weights)
    h, h_last, c_last = int8.layer(x_gates, weights, hx[0][d], hx[1][d], out.batch_sizes, reverse, h_read=given)
    _near(given, h)
    _near(h_n[d], h_last)
    _near(c_n[d], c_last)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_neither_instruction_set_nor_threads_change_a_bit(size: tuple) -> None:
    made, x, hx = _made(*size, num_layers=2, bidirectional=True)
    torch.set_num_threads(1)
    native.load().set_int8_isa("int8_baseline")
    expected = made(x, hx)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for kernels in KERNELS:
            native.load().set_int8_isa(kernels)
            torch.testing.assert_close(made(x, hx), expected, rtol=0, atol=0)


def test_rows_do_not_depend_on_their_neighbours() -> None:
    made, x, hx = _made(5, 37, 33, 65, 0)
    out, (h, c) = made(x, hx)
    alone, (h_alone, c_alone) = made(x[:, 36:].contiguous(), (hx[0][:, 36:], hx[1][:, 36:]))
    torch.testing.assert_close((out[:, 36:], h[:, 36:], c[:, 36:]), (alone, h_alone, c_alone), rtol=0, atol=0)


@pytest.mark.parametrize("P", [0, 17])
def test_packed_sequences_are_those_that_run_alone(P: int) -> None:
    """Several chunks of steps, more sequences than a tile has rows, and threads."""
    made, _, hx = _made(1, 37, 5, 65, P, bidirectional=True)
    sequences = [torch.randn(n, 5) for n in (300, *range(72, 0, -2))]
    packed, runs = pack_sequence(sequences), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        runs.append(made(packed, hx))
    torch.testing.assert_close(runs[0][0].data, runs[1][0].data, rtol=0, atol=0)
    padded, _ = pad_packed_sequence(runs[1][0])
    for b, x in enumerate(sequences):
        alone, (h, c) = made(x[:, None], (hx[0][:, b : b + 1].contiguous(), hx[1][:, b : b + 1].contiguous()))
        torch.testing.assert_close(padded[: len(x), b], alone[:, 0], rtol=0, atol=0)
        torch.testing.assert_close((runs[1][1][0][:, b], runs[1][1][1][:, b]), (h[:, 0], c[:, 0]), rtol=0, atol=0)


@pytest.mark.parametrize("bias", [True, False])
def test_the_one_hot_table_is_that_of_the_identity(bias: bool) -> None:
    made = fastlstm.quantize(nn.LSTM(13, 33, bias=bias))
    own = made.weights()[0]
    expected = int8.input_gates(torch.eye(13), own)
    assert torch.equal(int8.token_table(13, None, own), expected)
    ids = torch.tensor([[3, 12], [0, 3]])
    assert torch.equal(int8.token_gates(ids, 13, None, own), expected[ids])
    vectors = torch.randn(13, 13)
    assert torch.equal(int8.token_gates(ids, 13, vectors, own), int8.token_table(13, vectors, own)[ids])
    with pytest.raises(TypeError, match=r"rows to quantise are torch\.float64, expected torch\.float32"):
        int8.quantise_rows(vectors.double())


@pytest.mark.parametrize("kernels", KERNELS)
def test_the_smallest_int8_and_long_sums_are_exact(kernels: str) -> None:
    """-128 has no positive counterpart, and torch's own quantised weights hold it."""
    native.load().set_int8_isa(kernels)
    made = fastlstm.Int8LSTM(1025, 16)
    made.weight_ih_l0.fill_(-128)
    made.weight_ih_l0_scale.fill_(1.0)
    x = torch.cat([torch.full((1, 1, 1025), 1.0), torch.full((1, 1, 1025), -1.0)]) * 1e-5
    weights = made.weights()[0]
    expected, *_ = int8.layer(int8.input_gates(x[:, 0], weights)[:, None], weights, *torch.zeros(2, 1, 16), None, False)
    _near(made(x)[0], expected)


@pytest.mark.parametrize("kernels", KERNELS)
def test_rows_are_quantised_alike(kernels: str) -> None:
    """Through a layer whose weights let single integers through: ties, zeros, tiny rows, NaN and infinity."""
    native.load().set_int8_isa(kernels)
    made = fastlstm.Int8LSTM(2, 1)
    made.weight_ih_l0[:, 1] = 1
    made.weight_ih_l0_scale.fill_(1 / 128)
    rows = [[127, 0.5], [127, 1.5], [127, -2.5], [0, 0], [2.0**-101, 2.0**-102], [2.0**-99, 2.0**-99], [3e38, 1e38]]
    rows += [[torch.nan, 1], [torch.inf, 1], [1, -torch.inf]]
    x = torch.tensor(rows)[None]
    q, _ = int8.quantise_rows(x[0])
    assert q[:5, 1].tolist() == [0, 2, -2, 0, 0]
    weights = made.weights()[0]
    gates = int8.input_gates(x[0], weights)[None]
    expected, _, c = int8.layer(gates, weights, *torch.zeros(2, len(rows), 1), None, False)
    out, (_, c_n) = made(x)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-7, equal_nan=True)
    torch.testing.assert_close(c_n[0], c, rtol=1e-5, atol=1e-7, equal_nan=True)
    assert bool(out[0, 7:].isnan().all())


def test_native_layers_refuse_what_does_not_fit() -> None:
    library, made = native.load(), fastlstm.quantize(nn.LSTM(3, 5))
    (layer,) = made.packed_layers()
    words, scale, sums = (
        torch.zeros(1, 16, 64, 4, dtype=torch.int8),
        torch.zeros(64),
        torch.zeros(64, dtype=torch.int32),
    )
    matrix = (words, scale, sums)
    with pytest.raises(
        RuntimeError, match=r"Int8Layer: start is float32 with shape \[3\] on cpu, expected 64 packed numbers"
    ):
        library.Int8Layer(ih=matrix, hh=matrix, hr=None, start=torch.zeros(3), I=3, H=5, P=5)
    values = {"h": torch.empty(4, 2, 5), "h_n": torch.empty(2, 5), "c_n": torch.empty(2, 5)}
    values |= {"x": torch.randn(4, 2, 3), "h0": torch.zeros(2, 5), "c0": torch.zeros(2, 5)}
    sizes = {"T": 4, "B": 2, "H": 5, "P": 5, "reverse": False, "threads": 1}
    library.int8_forward(layers=[layer], **values, **sizes)
    for name in values:
        wrong = {**values, name: values[name][..., :2]}
        with pytest.raises(RuntimeError, match=f"int8_forward: {name} is float32"):
            library.int8_forward(layers=[layer], **wrong, **sizes)
    with pytest.raises(RuntimeError, match="layer 0 was packed for other sizes than H = 6"):
        library.int8_forward(layers=[layer], **values, **{**sizes, "H": 6})
    with pytest.raises(IndexError, match="batch_sizes hold 3 at step 1"):
        library.int8_forward(layers=[layer], batch_sizes=torch.tensor([2, 3, 1, 1]), **values, **sizes)
