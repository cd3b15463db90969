"""Random calls of modules, streams, decoders and ops: each gives nn.LSTM's numbers or one error, and nothing crashes or leaks.

    python -m tests.fuzz.calls N [first seed]        (make fuzz N=100000)

Call number n is made from seed n alone. The number is written to the log before the call, so a crash tells which it was.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastlstm
from tests.fuzz.hostile import CHANGES, HOSTILE_PACKING, HOSTILE_TENSORS, RELAYOUT, is_whole

REFUSALS = (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


@dataclass
class Call:
    """One random call. hostile: what is wrong with it, so that an error is the right answer; empty where all is well."""

    rng: random.Random
    sizes: dict[str, object]
    dtype: torch.dtype
    token: bool
    hostile: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, seed: int) -> Call:
        rng = random.Random(seed)
        torch.manual_seed(seed)
        hidden = rng.choice([1, 2, 3, 5, 7, 8, 16, 17, 33])
        sizes = {
            "input_size": rng.choice([1, 2, 3, 7, 9, 16]),
            "hidden_size": hidden,
            "num_layers": rng.choice([1, 1, 2, 3]),
            "bias": rng.random() < 0.8,
            "batch_first": rng.random() < 0.3,
            "bidirectional": rng.random() < 0.3,
            "proj_size": rng.randrange(1, hidden) if hidden > 2 and rng.random() < 0.2 else 0,
        }
        dtype = rng.choice([torch.float32] * 6 + [torch.float64] * 2 + [torch.bfloat16, torch.float16])
        return cls(rng, sizes, dtype, rng.random() < 0.25)

    def pick(self, choices: dict[str, Callable], share: float, hostile: bool = False) -> Callable | None:
        """One of the choices, at this share of calls; its name is kept."""
        if self.rng.random() >= share:
            return None
        name = self.rng.choice(list(choices))
        (self.hostile if hostile else self.notes).append(name)
        return choices[name]

    def changed(self, tensor: Tensor) -> Tensor:
        """The same numbers in other memory, or now and then something else altogether."""
        relayout = self.pick(RELAYOUT, 0.35)
        if relayout is not None:
            tensor = relayout(tensor)
        spoil = self.pick(HOSTILE_TENSORS, 0.03, hostile=True)
        return tensor if spoil is None else spoil(tensor)


def _modules(call: Call) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The module and nn.LSTM in float64, of equal weights."""
    make = {"dtype": call.dtype, "device": "cpu"}
    if call.token:
        sizes = dict(call.sizes)
        module = fastlstm.TokenLSTM(11, sizes.pop("input_size"), sizes.pop("hidden_size"), **sizes, **make)
        lstm = module.lstm
    else:
        module = lstm = fastlstm.LSTM(**call.sizes, **make)
    definition = torch.nn.LSTM(**call.sizes, dtype=torch.float64, device="cpu")
    definition.load_state_dict({k: v.double() for k, v in lstm.state_dict().items()})
    return module, definition


def _input(call: Call) -> tuple[Tensor | PackedSequence, Tensor | PackedSequence, Tensor, int]:
    """What the module gets, what nn.LSTM gets, the leaf of the gradient, B."""
    rng, width = call.rng, call.sizes["input_size"]
    T, B = rng.choice([1, 1, 2, 3, 7, 20]), rng.choice([1, 1, 2, 3, 4, 9])
    kind = rng.choice(["dense", "dense", "packed", "unbatched"])
    if call.token:
        ids = torch.randint(11, (T, B), dtype=torch.int64, device="cpu")
        leaf, rows = ids, call.embedding.double()[ids]
    else:
        leaf = torch.randn(T, B, width, dtype=torch.float64, device="cpu").to(call.dtype)
        rows = leaf.double()
    if kind == "unbatched":
        leaf, rows, B = leaf[:, 0].clone(), rows[:, 0], 1
    elif call.sizes["batch_first"] and kind == "dense":
        leaf, rows = leaf.transpose(0, 1).contiguous(), rows.transpose(0, 1)
    given = call.changed(leaf)
    if kind != "packed":
        return given, rows, leaf, B
    lengths = [rng.randint(1, T) for _ in range(B)]
    lengths[rng.randrange(B)] = T
    packed = pack_padded_sequence(leaf, torch.tensor(lengths, dtype=torch.int64, device="cpu"), enforce_sorted=False)
    expected = pack_padded_sequence(rows, packed_lengths(packed), enforce_sorted=False)
    spoil = call.pick(HOSTILE_PACKING, 0.15, hostile=True)
    return (packed if spoil is None else spoil(packed, rng)), expected, packed.data, B


def packed_lengths(packed: PackedSequence) -> Tensor:
    """The lengths of the sequences in the order in which they were packed."""
    steps = packed.batch_sizes.tolist()
    by_length = torch.tensor([sum(n > b for n in steps) for b in range(steps[0])], dtype=torch.int64, device="cpu")
    return by_length if packed.unsorted_indices is None else by_length[packed.unsorted_indices]


def _data(out: Tensor | PackedSequence) -> Tensor:
    return out.data if isinstance(out, PackedSequence) else out


def _context(call: Call) -> contextlib.ExitStack:
    """What the user may have set around a call."""
    stack, rng = contextlib.ExitStack(), call.rng
    if rng.random() < 0.1:
        before = torch.get_default_dtype()
        torch.set_default_dtype(rng.choice([torch.float64, torch.bfloat16, torch.float32]))
        stack.callback(torch.set_default_dtype, before)
        call.notes.append("default type")
    if rng.random() < 0.1:
        stack.enter_context(torch.device(rng.choice(["meta", "cpu"])))
        call.notes.append("default device")
    if rng.random() < 0.2:
        relayout = rng.choice(list(RELAYOUT))
        call.notes.append(f"hooks: {relayout}")
        stack.enter_context(saved_tensors_hooks(lambda v: v, lambda v: RELAYOUT[relayout](v) if is_whole(v) else v))
    if rng.random() < 0.3:
        threads = torch.get_num_threads()
        torch.set_num_threads(3 - threads)
        stack.callback(torch.set_num_threads, threads)
    return stack


def _close(call: Call, what: str, actual: Tensor, expected: Tensor) -> None:
    actual, limit = actual.detach().double(), TOLERANCE[call.dtype]
    if actual.shape != expected.shape:
        raise AssertionError(f"{what} has shape {list(actual.shape)}, nn.LSTM's {list(expected.shape)}")
    if actual.numel() and not (actual - expected.detach()).abs().max() <= limit * (1 + expected.detach().abs().max()):
        raise AssertionError(f"{what} differs by {(actual - expected.detach()).abs().max().item():.3g}")


def module_call(call: Call) -> str:
    """Forward, and often backward, of a module; returns what happened."""
    module, definition = _modules(call)
    call.embedding = module.embedding.weight.detach() if call.token else None
    given, rows, leaf, B = _input(call)
    count = call.sizes["num_layers"] * (1 + call.sizes["bidirectional"])
    widths = (call.sizes["proj_size"] or call.sizes["hidden_size"], call.sizes["hidden_size"])
    unbatched = _data(rows).dim() == 2 and not isinstance(rows, PackedSequence)
    hx = given_hx = None
    if call.rng.random() < 0.5:
        states = [torch.randn(count, B, n, dtype=torch.float64, device="cpu").to(call.dtype) for n in widths]
        states = [v[:, 0].clone() for v in states] if unbatched else states
        hx, given_hx = tuple(v.double() for v in states), tuple(call.changed(v) for v in states)
    train = call.rng.random() < 0.5
    grads = bool(train and not call.token and isinstance(given, Tensor) and given is leaf and leaf.is_leaf)
    if grads:
        leaf.requires_grad_()
        rows = leaf.detach().double().requires_grad_()
    with _context(call), contextlib.nullcontext() if train else torch.no_grad():
        out, (h_n, c_n) = module(given, given_hx)
        if train:
            change = call.pick(CHANGES, 0.08, hostile=True)
            if change is not None:
                change(module, given, call.rng)
            _data(out).sum().backward()
    if call.hostile:
        return "hostile, answered"
    expected, (e_h, e_c) = definition(rows, hx)
    for what, actual, right in (("out", _data(out), _data(expected)), ("h_n", h_n, e_h), ("c_n", c_n, e_c)):
        _close(call, what, actual, right)
    if train:
        _data(expected).sum().backward()
        lstm, scale = (module.lstm if call.token else module), _data(out).numel() ** 0.5
        for (name, p), right in zip(lstm.named_parameters(), definition.parameters(), strict=True):
            _close(call, f"gradient of {name}", p.grad / scale, right.grad / scale)
        if grads:
            _close(call, "gradient of x", leaf.grad, rows.grad)
    return "compared"


def stream_call(call: Call) -> str:
    """Steps of a stream against the module's own call."""
    call.sizes["bidirectional"], call.token = False, False
    module, definition = _modules(call)
    B, T = call.rng.choice([1, 2, 3, 5]), call.rng.choice([1, 2, 5])
    x = torch.randn(T, B, call.sizes["input_size"], dtype=torch.float64, device="cpu").to(call.dtype)
    stream = module.stream(B, torch.float32)
    steps = [stream.step(call.changed(row.clone())) for row in x]
    if call.hostile:
        return "hostile, answered"
    expected = definition(x.double().transpose(0, 1) if call.sizes["batch_first"] else x.double())[0]
    expected = expected.transpose(0, 1) if call.sizes["batch_first"] else expected
    call.dtype = torch.float32 if call.dtype is torch.float64 else call.dtype  # in which a stream computes
    _close(call, "steps", torch.stack(steps), expected)
    return "compared"


def decode_call(call: Call) -> str:
    """The ids of the native decoder against those of torch's operations."""
    call.sizes |= {"bidirectional": False, "batch_first": False}
    call.token, call.dtype = True, torch.float32
    module, _ = _modules(call)
    P = call.sizes["proj_size"] or call.sizes["hidden_size"]
    weight, bias = (
        torch.randn(11, P, dtype=torch.float32, device="cpu"),
        torch.randn(11, dtype=torch.float32, device="cpu"),
    )
    num, length = call.rng.choice([1, 2, 5]), call.rng.choice([0, 1, 5])
    prime = torch.randint(11, (call.rng.choice([1, 2, 5]),), dtype=torch.int64, device="cpu")
    options = {"num": num, "temperature": call.rng.choice([0, 0.7]), "top_k": call.rng.choice([0, 3]), "seed": 3}
    given = call.changed(weight), call.changed(bias), call.changed(prime)
    actual = fastlstm.decode(module, *given, length, **options)
    if call.hostile:
        return "hostile, answered"
    with fastlstm.backend("reference"):
        expected = fastlstm.decode(module, weight, bias, prime, length, **options)
    if not torch.equal(actual.ids, expected.ids):
        raise AssertionError("other ids were drawn")
    _close(call, "h", actual.state[0], expected.state[0].double())
    return "compared"


KINDS = (module_call, module_call, module_call, module_call, stream_call, decode_call)


def run(seed: int) -> str:
    """Make one call; returns what happened, raises AssertionError with the seed where it was wrong."""
    call = Call.of(seed)
    kind = KINDS[call.rng.randrange(len(KINDS))]
    try:
        return kind(call)
    except REFUSALS as error:
        if call.hostile and str(error):
            return "hostile, refused"
        raise AssertionError(f"seed {seed} ({kind.__name__}, {call}): {type(error).__name__}: {error}") from error
    except AssertionError as error:
        raise AssertionError(f"seed {seed} ({kind.__name__}, {call}): {error}") from None


def megabytes() -> float:
    """The resident memory of the process, in MB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def main(count: int, first: int = 0) -> int:
    """Make `count` calls; prints what happened and the growth of memory in the second half, which is limited."""
    happened: Counter[str] = Counter()
    halfway, began = 0.0, time.monotonic()
    torch.set_num_threads(2)
    importlib.import_module("torch._dynamo")  # 110 MB, which some of the calls on "meta" make torch import
    for n in range(count):
        print(f"\r{first + n}", end="", file=sys.stderr, flush=True)
        happened[run(first + n)] += 1
        if n == count // 2:
            gc.collect()
            halfway = megabytes()
    gc.collect()
    growth, seconds = megabytes() - halfway, time.monotonic() - began
    print(f"{count} calls: {dict(happened)}, {growth:.0f} MB more at the end than halfway, {seconds:.0f} s")
    return int(growth > 32 + count / 2000)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
