"""The boundary where a tensor becomes an address (csrc/bindings/boundary.h): what it refuses, and what it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.testing._internal.two_tensor import TwoTensor

from fastlstm import _torch_compat
from fastlstm.backends import native

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
REFUSED = "was it changed after it was passed"


class OwnClass(Tensor):
    """A subclass without operations of its own."""


@pytest.fixture(params=["dispatch keys", "exchange API", "Python"])
def boundary(request: pytest.FixtureRequest) -> Iterator[str]:
    """Tensors read by torch's C functions, with and without the dispatch keys, and by Python as in a torch without them."""
    objects = _torch_compat.native_boundary()
    if request.param == "Python":
        objects |= {"exchange_api": None, "storage_bytes": 0, "storage_offset": 0}
    elif objects["exchange_api"] is None:
        pytest.skip("this torch has no exchange API")
    elif request.param == "exchange API":
        objects["keys"] = []
    native.load().set_up_boundary(objects)
    yield request.param
    native.load().set_up_boundary(_torch_compat.native_boundary())


def _arguments(**change: object) -> dict:
    """One step of lstm_forward on packed rows of zeros."""
    T, B, H = 3, 2, 5
    shapes = {"h": (T, B, H), "c": (T, B, H), "gates": (T, B, 4 * H), "h_n": (B, H), "c_n": (B, H)}
    shapes |= {"x_gates": (T, B, 4 * H), "w_hh": (4 * H, H), "h0": (B, H), "c0": (B, H)}
    sizes = {"double": False, "T": T, "B": B, "H": H, "P": H, "reverse": False, "threads": 2}
    return sizes | {name: torch.zeros(shape) for name, shape in shapes.items()} | change


def _run(**change: object) -> dict:
    arguments = _arguments(**change)
    native.load().lstm_forward(**arguments)
    return arguments


def _shortened(shape: tuple[int, ...]) -> Tensor:
    v = torch.zeros(shape)
    v.untyped_storage().resize_(v.numel() * 4 - 4)
    return v


def _freed(shape: tuple[int, ...]) -> Tensor:
    v = torch.zeros(shape)
    v.untyped_storage().resize_(0)
    return v


def _beyond(shape: tuple[int, ...]) -> Tensor:
    v = torch.zeros(7 + torch.Size(shape).numel())[7:].view(shape)
    v.untyped_storage().resize_(v.numel() * 4)
    return v


def _wrapped(function: Callable[[Tensor], object]) -> Callable[[tuple[int, ...]], Tensor]:
    """What a transform of torch.func makes of a tensor, kept after the transform."""

    def make(shape: tuple[int, ...]) -> Tensor:
        kept = []
        function(lambda v: (kept.append(v), v.sum())[1])(torch.zeros(shape))
        return kept[0]

    return make


HOSTILE: dict[str, Callable[[tuple[int, ...]], object]] = {
    "float64": lambda shape: torch.zeros(shape, dtype=torch.float64),
    "bfloat16": lambda shape: torch.zeros(shape, dtype=torch.bfloat16),
    "int32": lambda shape: torch.zeros(shape, dtype=torch.int32),
    "complex64": lambda shape: torch.zeros(shape, dtype=torch.complex64),
    "bool": lambda shape: torch.zeros(shape, dtype=torch.bool),
    "one row less": lambda shape: torch.zeros(shape)[:-1],
    "one row more": lambda shape: torch.zeros((shape[0] + 1, *shape[1:])),
    "other width": lambda shape: torch.zeros((*shape[:-2], shape[-1], shape[-2])),
    "transposed": lambda shape: torch.zeros((*shape[:-2], shape[-1], shape[-2])).mT,
    "spaced": lambda shape: torch.zeros((*shape[:-1], 2 * shape[-1]))[..., ::2],
    "expanded": lambda shape: torch.zeros(shape[-1]).expand(shape),
    "empty": lambda shape: torch.zeros(0),
    "meta": lambda shape: torch.zeros(shape, device="meta"),
    "sparse": lambda shape: torch.zeros(shape).to_sparse(),
    "mkldnn": lambda shape: torch.zeros(shape).to_mkldnn(),
    "negated": lambda shape: torch._neg_view(torch.zeros(shape)),
    "zero tensor": lambda shape: torch._efficientzerotensor(shape),
    "functional": lambda shape: torch._to_functional_tensor(torch.zeros(shape)),
    "wrapper": lambda shape: TwoTensor(torch.zeros(shape), torch.zeros(shape)),
    "fake": lambda shape: torch._subclasses.FakeTensorMode().from_tensor(torch.zeros(shape)),
    "shortened storage": _shortened,
    "freed storage": _freed,
    "storage that ends before": _beyond,
    "of torch.func.grad": _wrapped(torch.func.grad),
    "of torch.func.vmap": _wrapped(lambda f: lambda v: torch.func.vmap(f)(v[None])),
    "an address": lambda shape: torch.zeros(shape).data_ptr(),
    "a list": lambda shape: [0.0],
    "numpy": lambda shape: torch.zeros(shape).numpy(),
    "a number": lambda shape: 0,
}


@pytest.mark.parametrize("name", ["h", "c", "gates", "h_n", "x_gates", "w_hh", "h0", "c0"])
@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.filterwarnings("ignore")
def test_what_is_not_the_expected_memory_is_refused(kind: str, name: str, boundary: str) -> None:
    shape = tuple(_arguments()[name].shape)
    if kind == "one row less" and name in ("h_n", "h0", "c0"):
        pytest.skip("a row less of a state is the next row")
    with pytest.raises(RuntimeError, match=f"lstm_forward: {name} is .*expected float32, .*{REFUSED}"):
        _run(**{name: HOSTILE[kind](shape)})


def test_parts_of_states_lie_one_after_another(boundary: str) -> None:
    h_n = torch.full((4, 2, 5), 7.0)
    states = {"h_n": h_n, "c_n": torch.zeros(4, 2, 5), "h0": torch.zeros(4, 2, 5), "c0": torch.zeros(4, 2, 5)}
    _run(part=2, **states)
    assert h_n[2].eq(0).all()
    assert h_n[[0, 1, 3]].eq(7).all()
    for part in (-1, 4, 2**62):
        with pytest.raises(RuntimeError, match="h_n is float32 with shape"):
            _run(part=part, **states)


def test_what_has_plain_memory_is_read(boundary: str) -> None:
    """Parameters, inference tensors, views at an offset, subclasses without operations of their own, tensors in a graph."""
    with torch.inference_mode():
        inferred = torch.ones(20, 5)
    weights = torch.ones(20, 5)
    kinds = [
        torch.nn.Parameter(weights),
        inferred,
        torch.ones(30, 5)[7:27],
        weights.as_subclass(OwnClass),
        weights.clone().requires_grad_() * 1,
        torch.ones(1, 20, 5)[0],
    ]
    expected = _run(w_hh=weights, h0=torch.ones(2, 5))["h"]
    assert expected.ne(0).all()
    for w_hh in kinds:
        assert torch.equal(_run(w_hh=w_hh, h0=torch.ones(2, 5))["h"], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"T": -1}, "T is -1, expected an int of 0 or more"),
        ({"B": -1}, "B is -1, expected an int of 0 or more"),
        ({"H": 0}, "H is 0, expected an int of 1 or more"),
        ({"threads": 0}, "threads is 0, expected an int of 1 or more"),
        ({"rounding": 3}, "rounding is 3, expected an int in 0 to 2"),
        ({"T": 2**62, "B": 2**62}, "sizes multiply to more than memory can hold"),
        ({"T": 2**40, "B": 2**40}, "sizes multiply to more than memory can hold"),
        ({"H": 2**61, "P": 2**61}, "sizes multiply to more than memory can hold"),
        ({"P": 4}, "P is 4, expected H = 5 without w_hr"),
    ],
    ids=str,
)
def test_sizes_that_arithmetic_cannot_hold_are_refused(change: dict, message: str) -> None:
    change = (
        change
        if "P" not in change or change["P"] != 4
        else change | {"w_hh": torch.zeros(20, 4), "h": torch.zeros(3, 2, 4)}
    )
    change = change if change.get("P") != 4 else change | {"h_n": torch.zeros(2, 4), "h0": torch.zeros(2, 4)}
    with pytest.raises(ValueError, match=message):
        _run(**change)


def test_batch_sizes_are_checked_in_a_copy() -> None:
    packed = {name: torch.zeros(4, n) for name, n in (("h", 5), ("c", 5), ("gates", 20), ("x_gates", 20))}
    _run(batch_sizes=torch.tensor([2, 1, 1]), **packed)
    for sizes in ([1, 1, 2], [2, 0, 2], [2, 2, -1], [2**62, 2, 1], [1, 1, 1], [2, 3, 1]):
        with pytest.raises((IndexError, RuntimeError), match=r"batch_sizes hold|expected float32"):
            _run(batch_sizes=torch.tensor(sizes), **packed)
    with pytest.raises(RuntimeError, match="batch_sizes is int32 with shape"):
        _run(batch_sizes=torch.tensor([2, 1, 1], dtype=torch.int32), **packed)


@pytest.mark.parametrize("bad", [-1, 7, 2**62, -(2**63)])
def test_ids_outside_the_table_are_refused_in_both_passes(bad: int) -> None:
    ids = torch.zeros(3, 2, dtype=torch.int64)
    ids[2, 1] = bad
    with pytest.raises(IndexError, match=f"ids hold {bad}, expected 0 to 6"):
        _run(x_gates=torch.zeros(7, 20), ids=ids)
    zeros = {
        "dh0": (2, 5),
        "dc0": (2, 5),
        "gates": (6, 20),
        "c": (6, 5),
        "c0": (2, 5),
        "w_hh": (20, 5),
        "d_table": (7, 20),
    }
    sizes = {"double": False, "T": 3, "B": 2, "H": 5, "P": 5, "reverse": False, "threads": 1, "V": 7, "ids": ids}
    with pytest.raises(IndexError, match=f"ids hold {bad}, expected 0 to 6"):
        native.load().lstm_backward(**sizes, **{name: torch.zeros(shape) for name, shape in zeros.items()})
    with pytest.raises(IndexError, match=f"ids hold {bad}, expected 0 to 6"):
        native.load().sum_by_id(
            double=False, out=torch.zeros(7, 3), rows=torch.zeros(6, 3), ids=ids, N=6, V=7, width=3, threads=1
        )


def test_products_check_every_size_and_stride(boundary: str) -> None:
    def product(c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        native.load().gemm(double=False, c=c, a=a, b=b, accumulate=False, threads=1)
        return c

    a, b = torch.randn(3, 7), torch.randn(7, 5)
    torch.testing.assert_close(product(torch.empty(3, 5), a, b), a @ b)
    torch.testing.assert_close(product(torch.empty(3, 9)[:, 2:7], a.t().contiguous().t(), b), a @ b)
    for c, left, right in (
        (torch.empty(3, 4), a, b),
        (torch.empty(3, 5), a, b[:6]),
        (torch.empty(5, 3).t(), a, b),
        (torch.empty(5).expand(3, 5), a, b),
        (torch.empty(3, 5), a.double(), b),
        (torch.empty(3, 5), a[0], b),
        (torch.empty(3, 5), torch._neg_view(a), b),
        (torch.empty(3, 5), a, _shortened((7, 5))),
    ):
        with pytest.raises(RuntimeError, match="gemm: "):
            product(c, left, right)


def test_packed_weights_are_those_of_the_call() -> None:
    def layer(numbers: int, start: int = 64, **change: object) -> object:
        given = {"start": torch.zeros(start), "w": torch.zeros(numbers), "w_hr": None, "I": 3}
        return native.load().StepLayer(**given | change)

    def step(one: object, **change: object) -> None:
        tensors = {"out": (2, 5), "h": (2, 1, 2, 16), "c": (1, 2, 16), "h_unprojected": (2, 16), "x": (2, 3)}
        arguments = {"bfloat16": False, "layers": [one], "B": 2, "H": 5, "P": 5, "side": 0, "threads": 1}
        arguments |= {name: torch.zeros(shape) for name, shape in tensors.items()}
        native.load().lstm_step(**arguments | change)

    step(layer(16 * 8 * 4))
    for wrong in (
        layer(16 * 7 * 4),
        layer(16 * 8 * 4, 48),
        layer(16 * 8 * 4, I=4),
        layer(16 * 8 * 4, w=torch.zeros(512).bfloat16()),
    ):
        with pytest.raises(RuntimeError, match="layer 0 was packed for other sizes"):
            step(wrong)
    for change in ({"x": torch.zeros(1, 3)}, {"h": torch.zeros(2, 1, 1, 16)}, {"out": torch.zeros(2, 4)}):
        with pytest.raises(RuntimeError, match="lstm_step: "):
            step(layer(16 * 8 * 4), **change)
    with pytest.raises(ValueError, match="side is 2, expected an int in 0 to 1"):
        step(layer(16 * 8 * 4), side=2)
    with pytest.raises(TypeError, match="needs at least one layer"):
        step(None, layers=[])
    with pytest.raises(RuntimeError, match="StepLayer: w is float64"):
        layer(1, w=torch.zeros(512, dtype=torch.float64))


def test_an_array_of_a_size_that_cannot_be_is_refused() -> None:
    for shape in ([-1, 3], [2**40, 2**40], [2**62]):
        with pytest.raises(ValueError, match="array: the sizes multiply to more than memory can hold"):
            native.load().array(shape, False)
    with pytest.raises(MemoryError):
        native.load().array([2**55], False)
