"""Where the rows of packed steps lie: counted without the batch sizes, and kept so that a CUDA graph needs no copy."""

from __future__ import annotations

import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastlstm
from fastlstm.backends.cuda import launch as cuda_launch
from fastlstm.backends.cuda import launch_backward
from fastlstm.modules import layers
from fastlstm.modules.call import Call
from fastlstm.ops import offsets
from fastlstm.ops.arguments import Grads, OpInputs, Saved
from fastlstm.ops.cell import Stack
from fastlstm.ops.recompute import h_previous
from fastlstm.testing.cases import Case, make, make_grads

DIRECTIONS = ("forward", "backward")
LENGTHS = [(1,), (3, 3), (5, 4, 4, 1), (7, 1, 1), (4, 3, 2, 1)]


def packed(lengths: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Batch sizes, offsets and number of rows."""
    case = Case("packed", max(lengths), len(lengths), 1, 1, 1, lengths=lengths)
    return case.batch_sizes, offsets.of(case.batch_sizes, torch.device("cpu")), case.N


@pytest.fixture
def kept(monkeypatch):
    """Nothing kept so far; what `make` made is counted."""
    monkeypatch.setattr(offsets, "_recent", {})
    monkeypatch.setattr(offsets, "_captured", {})
    made = []

    def get(key, stream: int = 1, capturing: bool = False) -> torch.Tensor:
        def make():
            made.append(key)
            return torch.zeros(3)

        return offsets._kept(key, stream, capturing, make)

    get.made = made
    return get


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_offsets_give_each_rows_step_and_the_row_of_its_next_step(lengths):
    sizes, first, N = packed(lengths)
    assert first.tolist() == [sum(sizes[:t]) for t in range(len(sizes))]
    step_and_sequence = [(t, b) for t, n in enumerate(sizes.tolist()) for b in range(n)]
    assert offsets.steps(first, N).tolist() == [t for t, _ in step_and_sequence]
    rows, has_next = offsets.later(first, N)
    for row, (t, b) in enumerate(step_and_sequence):
        assert has_next[row] == ((t + 1, b) in step_and_sequence)
        if has_next[row]:
            assert step_and_sequence[rows[row]] == (t + 1, b)
    assert rows.min() >= 0
    assert rows.max() < N


def test_the_same_lengths_on_one_stream_are_made_once(kept):
    assert kept("a") is kept("a")
    assert kept.made == ["a"]


def test_another_stream_does_not_wait_for_the_first(kept):
    assert kept("a", stream=1) is not kept("a", stream=2)
    assert kept.made == ["a", "a"]


def test_a_capture_takes_what_its_warm_up_made_on_whatever_stream(kept):
    assert kept("a", stream=1) is kept("a", stream=9, capturing=True)
    assert kept.made == ["a"]


def test_a_capture_without_a_warm_up_says_what_to_do(kept):
    with pytest.raises(RuntimeError, match="run the call once outside"):
        kept("a", capturing=True)
    assert kept.made == []


def test_only_the_latest_are_kept_and_for_ever_what_a_graph_reads(kept):
    captured = kept("graph"), kept("graph", capturing=True)
    for k in range(2 * offsets._MOST):
        kept(k)
    assert len(offsets._recent) == offsets._MOST
    assert kept("graph", stream=5, capturing=True) is captured[0]
    assert kept(0) is not None
    assert kept.made.count(0) == 2
    assert kept.made.count("graph") == 1


def test_what_a_graph_reads_outlives_a_later_capture_of_the_same_lengths(kept):
    kept("a", stream=1)
    first = weakref.ref(kept("a", stream=1, capturing=True))
    kept("a", stream=2)  # a call elsewhere has its own …
    second = kept("a", stream=2, capturing=True)  # … and another graph reads what the first one does
    assert first() is second
    assert len(kept.made) == 2


def test_what_was_made_in_inference_mode_serves_training(kept):
    with torch.inference_mode():
        kept("a")
    assert not kept("a").is_inference()


def test_batch_sizes_are_read_only_outside_dispatch_modes_vmap_and_tracing(monkeypatch):
    sizes = torch.tensor([2, 1])
    assert offsets._read(sizes)
    with TorchDispatchMode():
        assert not offsets._read(sizes)
    torch.func.vmap(lambda _: pytest.fail("read") if offsets._read(sizes) else torch.zeros(()))(torch.zeros(2))
    monkeypatch.setattr(torch.jit, "is_tracing", lambda: True)
    assert not offsets._read(sizes)


class CaptureCheck(TorchDispatchMode):
    """Looks for what no CUDA graph can hold: operations that take numbers from the CPU, or that the host waits for.

    The meta device stands in for a GPU: its tensors have no numbers, so none can be read.
    """

    WAITS = frozenset(
        {"_local_scalar_dense", "nonzero", "masked_select", "unique_consecutive", "_unique2", "equal", "is_nonzero"}
    )

    def __init__(self):
        super().__init__()
        self.forbidden, self.count = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "fastlstm":  # which reads the lengths on the CPU; what is in it has a test of its own
            return func(*args, **kwargs)
        tensors = [v for v in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)]
        devices = {v.device.type for v in tensors if v.dim() or func.overloadpacket.__name__ in ("copy_", "_to_copy")}
        target = kwargs.get("device")
        devices |= {target.type} if func.overloadpacket.__name__ == "_to_copy" and target is not None else set()
        self.count += "meta" in devices
        if len(devices) > 1 or (func.overloadpacket.__name__ in self.WAITS and "meta" in devices):
            self.forbidden.append(str(func))
        return func(*args, **kwargs)


def test_copies_from_the_cpu_are_seen_as_forbidden():
    with CaptureCheck() as check:
        sizes, on_gpu = torch.zeros(3, dtype=torch.int64), torch.zeros(3, device="meta")
        sizes.to("meta", non_blocking=True)
        on_gpu.copy_(sizes)
        on_gpu.add_(1)
    assert check.forbidden == ["aten._to_copy.default", "aten.copy_.default"]
    assert check.count == 3


def test_threads_may_ask_at_the_same_time(kept):
    """As nn.DataParallel's do, each with a GPU and lengths of its own, more of them than are kept."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda k: kept((k % 4, (k * 7 % 97,)), stream=k % 4), range(4000)))
    finally:
        sys.setswitchinterval(before)
    assert len(offsets._recent) == offsets._MOST


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"reset": True}, {"proj_size": 3}, {"recompute": True}, {"input_dropout": 0.5, "locked_dropout": 0.5}],
    ids=str,
)
def test_a_packed_training_step_takes_nothing_from_the_cpu(monkeypatch, bidirectional, options):
    """Two layers, forward and backward; the lengths have been there before."""
    options = dict(options)
    lengths, reset = torch.tensor([4, 2, 1]), options.pop("reset", False)
    N = int(lengths.sum())
    lstm = fastlstm.LSTM(3, 5, 2, bidirectional=bidirectional, device="meta", **options)
    x = torch.zeros(N, 3, device="meta", requires_grad=True)
    mask = torch.zeros(N, dtype=torch.bool, device="meta") if reset else None
    first, order = torch.zeros(3, dtype=torch.int64, device="meta"), torch.arange(4, device="meta")
    monkeypatch.setattr(offsets, "of", lambda sizes, device: first)
    with CaptureCheck() as check, fastlstm.backend("cuda"):
        out, state = lstm(torch.nn.utils.rnn.PackedSequence(x, lengths, order, order), reset=mask)
        loss = out.data.sum() + state[0].sum() + state[1].sum()
        torch.autograd.grad(loss, [x, *lstm.parameters()])
    assert check.count > 30
    assert check.forbidden == []


def test_resets_masks_and_states_need_no_batch_sizes_on_the_gpu():
    """The parts of it, with nothing in their place."""
    with CaptureCheck() as check:
        first = torch.zeros(3, dtype=torch.int64, device="meta")
        data, h0 = torch.zeros(7, 5, device="meta"), torch.zeros(4, 5, device="meta")
        reset = torch.zeros(7, dtype=torch.bool, device="meta")
        sizes = torch.tensor([4, 2, 1])
        stack = Stack.of(torch.nn.LSTM(5, 5, bidirectional=True, device="meta"))
        call = Call(stack, data, None, sizes, (h0, h0), [], reset=reset)
        layers._resets(call, first)
        for reverse in (False, True):
            h_previous(data, OpInputs(data, None, h0, None, h0, None, h0, h0, sizes, first, reset, reverse, 1))
        layers._locked_dropout(0.5, data, call, first)
    assert check.count > 30
    assert check.forbidden == []


@pytest.mark.parametrize("save", [1, 2])
@pytest.mark.parametrize("kernel", ["per_step", "single_block", "cooperative", "lean"])
@pytest.mark.parametrize("ids", [False, True])
def test_a_packed_call_of_the_cuda_backend_takes_nothing_from_the_cpu(kernel, save, ids):
    """One packed call with resets, its launches left out."""
    case = Case("packed", 4, 3, 0 if ids else 3, 8, 8, V=5 * ids, lengths=(4, 2, 1), reset=True, ids=ids)
    lib = SimpleNamespace(ForwardArgs=SimpleNamespace, BackwardArgs=SimpleNamespace, partial_words=lambda *_: 4)
    for name in (
        "per_step_forward",
        "per_step_backward",
        *(f"{k}_{d}" for k in ("single_block", "cooperative", "lean") for d in DIRECTIONS),
    ):
        setattr(lib, name, lambda *args: None)
    rt = SimpleNamespace(
        lib=lib,
        stream=0,
        status=torch.zeros(1, dtype=torch.int32),
        use=lambda name, tensor, *_: 0 if tensor is None else 16,
        product=lambda a, b, out: out.copy_(a.float() @ b.float()),
        product_type=lambda dtype: torch.float32,
    )
    chosen = SimpleNamespace(kernel=kernel, t=SimpleNamespace(gate_splits=2, row_blocks=1))
    plan = cuda_launch.LaunchPlan(chosen, chosen, False)
    v = make(case, torch.bfloat16)
    v = v._replace(**{k: t.to("meta") for k, t in v._asdict().items() if t is not None and k != "batch_sizes"})
    grads = [g.to("meta") for g in make_grads(case, torch.bfloat16)]
    inputs = OpInputs(*v, False, save)
    with CaptureCheck() as check:
        h, c, gates, _, _ = cuda_launch.forward(rt, plan, inputs)
        launch_backward.backward(rt, plan, inputs, Saved(h, c, gates), Grads(*grads))
    assert check.count > 10
    assert check.forbidden == []


def test_offsets_are_sent_once_for_each_gpu_and_lengths(kept, monkeypatch):
    sent, now = [], {"device": 0}
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext(now.update(device=device.index)))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: now["device"])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=5))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(offsets, "_sent", lambda sizes, device: sent.append((sizes, device.index)) or torch.zeros(1))
    gpus = [torch.device("cuda", k) for k in (0, 1)]
    first = offsets.of(torch.tensor([2, 1]), gpus[0])
    assert offsets.of(torch.tensor([2, 1]), gpus[0]) is first
    offsets.of(torch.tensor([2, 1]), gpus[1])
    offsets.of(torch.tensor([2, 2]), gpus[0])
    assert sent == [((2, 1), 0), ((2, 1), 1), ((2, 2), 0)]
