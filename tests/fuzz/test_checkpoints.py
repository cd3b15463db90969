"""Checkpoints with something wrong in them: each is refused in one line, or loads and works.

A case is a saved checkpoint with one to three mutations, drawn from a seed: bytes flipped, cut or inserted, a wrong header
length, another header (offsets, shapes, types, names), other metadata (values, depth, missing parts), other numbers in the
weights. FASTLSTM_FUZZ is the number of cases of the fast test; a failing case names the seed that draws it again.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import struct
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from fastlstm.charlm import CharLM, CharLMError, checkpoint, config
from fastlstm.charlm.commands.inspect import describe
from fastlstm.charlm.data.vocab import Vocabulary
from fastlstm.charlm.model import CharModel

CASES = int(os.environ.get("FASTLSTM_FUZZ", "300"))
MEMORY = 1 << 30  # bytes of address space that a case may add; the checkpoints have 10 kB
SECONDS = 60  # after which a case counts as hanging
LONGEST = 700  # characters of a message, the path included

Header = dict[str, Any]
VALUES = [None, True, -1, 0, 1, 3, 1 << 16, 1 << 31, 1 << 63, 1 << 64, 10**300, -0.5, 1e308, math.nan, math.inf, "", "x",
          "\ud800", "\0", "a\nb", "é" * 5000, [], {}, [1], {"a": 1}, ["x"] * 50]  # fmt: skip
DTYPES = [
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "I32",
    "I8",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "F8_E8M0",
    "F4",
    "C64",
    "U64",
    "x",
    "",
    5,
]
NUMBERS = [math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-45, 0.0]


def saved_files(folder: Path) -> list[bytes]:
    """Three small checkpoints: of text, of bytes, and of a run that can be resumed."""
    torch.manual_seed(0)
    files = []
    for vocab, layers, embedding, run in (
        (Vocabulary("\nabcdeé"), 2, 0, False),
        (Vocabulary.of_bytes(), 1, 3, False),
        (Vocabulary("\nabc"), 1, 0, True),
    ):
        model = CharModel(len(vocab), 5, layers, embedding)
        sizes = {"hidden_size": 5, "num_layers": layers, "embedding_dim": embedding, "bytes": vocab.bytes}
        made = checkpoint.Checkpoint(
            config=config.to_json(config.make(**sizes).settle(False)),
            vocab=vocab,
            corpus={"name": "text.txt", "sha256": "0" * 64, "size": 100, "symbols": 100},
            metrics={"iteration": 3, "epoch": 0.5, "train_nats": 1.5, "val_nats": None},
            weights=dict(model.state_dict()),
            train={"h": torch.zeros(layers, 2, 5), "generator": torch.get_rng_state()[None]} if run else {},
            run={"progress": {"iteration": 3, "seconds": 1.5}, "processes": 1} if run else {},
        )
        checkpoint.write(folder / "base.safetensors", made)
        files.append((folder / "base.safetensors").read_bytes())
    return files


def split(content: bytes) -> tuple[Header, bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: Header, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


# Mutations of the bytes


def flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 3, 30])):
        changed[rng.randrange(rng.choice([16, len(changed)]))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + content[min(len(content), at + rng.choice([1, 4, 100, len(content)])) :]


def insert(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + rng.randbytes(rng.choice([1, 4, 100])) + content[at:]


def header_length(content: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    wrong = rng.choice([0, 1, length - 1, length + 1, len(content), 100_000_000, 1 << 32, (1 << 63) - 1, (1 << 64) - 1])
    return struct.pack("<Q", wrong) + content[8:]


# Mutations of the header: names, shapes, types, offsets


def header(change: Callable[[Header, str, random.Random], None]) -> Callable[[bytes, random.Random], bytes]:
    """A mutation that changes one tensor's entry."""

    def mutation(content: bytes, rng: random.Random) -> bytes:
        entries, data = split(content)
        names = [name for name in entries if name != "__metadata__"]
        if names:
            change(entries, rng.choice(names), rng)
        return joined(entries, data)

    mutation.__name__ = change.__name__
    return mutation


@header
def another_type(entries: Header, name: str, rng: random.Random) -> None:
    entries[name]["dtype"] = rng.choice(DTYPES)


@header
def another_shape(entries: Header, name: str, rng: random.Random) -> None:
    shape = entries[name]["shape"]
    entries[name]["shape"] = rng.choice(
        [shape[::-1], [*shape, 1], [1, *shape], [], [0], [1 << 40, 0], [1 << 62, 4], [1 << 32, 1 << 32], [-1], ["3"],
         [math.prod(shape)], [1] * 70, None, {}, [1.5]]
    )  # fmt: skip


@header
def other_offsets(entries: Header, name: str, rng: random.Random) -> None:
    a, b = entries[name]["data_offsets"]
    entries[name]["data_offsets"] = rng.choice(
        [
            [b, a],
            [a, a],
            [0, b],
            [a + 4, b + 4],
            [0, 1 << 62],
            [-4, b],
            [a],
            [a, b, b],
            None,
            ["0", "4"],
            [1 << 64, 1 << 65],
        ]
    )


@header
def another_name(entries: Header, name: str, rng: random.Random) -> None:
    new = rng.choice(
        ["", "x", "train/", "train/x", "out.weight", "rnn.lstm.weight_hh_l9", name + "\n", "é" * 3000, "\ud800"]
    )
    entries[new] = entries.pop(name)


@header
def no_tensor(entries: Header, name: str, rng: random.Random) -> None:
    del entries[name]


@header
def not_an_entry(entries: Header, name: str, rng: random.Random) -> None:
    entries[name] = rng.choice(VALUES)


@header
def two_of_one_place(entries: Header, name: str, rng: random.Random) -> None:
    entries[rng.choice(["y", "out.weight", "train/h"])] = dict(entries[name])


def named_twice(content: bytes, rng: random.Random) -> bytes:
    entries, data = split(content)
    text = json.dumps(entries)
    name = rng.choice(list(entries))
    text = text[:-1] + f", {json.dumps(name)}: {json.dumps(entries[name])}" + "}"
    return struct.pack("<Q", len(text.encode())) + text.encode() + data


def deep_header(content: bytes, rng: random.Random) -> bytes:
    depth, data = rng.choice([50, 500, 50_000]), split(content)[1]
    text = rng.choice([b'{"a":' * depth + b"1" + b"}" * depth, b"[" * depth + b"]" * depth, b"[" * depth])
    return struct.pack("<Q", len(text)) + text + data


# Mutations of the metadata


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    for key, item in (
        list(value.items()) if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield value, key
        yield from _places(item)


def metadata(change: Callable[[Any, random.Random], Any]) -> Callable[[bytes, random.Random], bytes]:
    """A mutation that changes the JSON of the metadata, or its text."""

    def mutation(content: bytes, rng: random.Random) -> bytes:
        entries, data = split(content)
        changed = change(json.loads(entries["__metadata__"]["charlm"]), rng)
        entries["__metadata__"]["charlm"] = changed if isinstance(changed, str) else json.dumps(changed)
        return joined(entries, data)

    mutation.__name__ = change.__name__
    return mutation


@metadata
def another_value(record: Any, rng: random.Random) -> Any:
    container, key = rng.choice(list(_places(record)))
    container[key] = rng.choice(VALUES)
    return record


@metadata
def no_value(record: Any, rng: random.Random) -> Any:
    container, key = rng.choice(list(_places(record)))
    del container[key]
    return record


@metadata
def one_more_value(record: Any, rng: random.Random) -> Any:
    container, key = rng.choice(list(_places(record)))
    if isinstance(container, dict):
        container[rng.choice(["x", "", "\0", key + "x"])] = rng.choice(VALUES)
    return record


@metadata
def other_sizes(record: Any, rng: random.Random) -> Any:
    name = rng.choice(["hidden_size", "num_layers", "embedding_dim"])
    record["config"][name] = rng.choice([0, 1, 2, 4, 6, 1000, 1 << 16, 1 << 20])
    return record


@metadata
def other_symbols(record: Any, rng: random.Random) -> Any:
    symbols = record["vocabulary"]["symbols"]
    record["vocabulary"]["symbols"] = rng.choice(
        [symbols[::-1], symbols[1:], symbols + "z", symbols + symbols[:1], symbols[:-1] + "\ud800", symbols[:-1] + "\U0010ffff",
         "".join(map(chr, range(50_000, 55_000)))]
    )  # fmt: skip
    record["vocabulary"]["bytes"] = rng.random() < 0.3
    return record


@metadata
def deep_value(record: Any, rng: random.Random) -> Any:
    container, key = rng.choice(list(_places(record)))
    container[key] = "DEEP"
    depth = rng.choice([10, 300, 900, 100_000])
    return json.dumps(record).replace(
        '"DEEP"', rng.choice(["[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth])
    )


@metadata
def spoilt_text(record: Any, rng: random.Random) -> Any:
    text = json.dumps(record)
    at = rng.randrange(len(text))
    return (
        text[:at]
        + rng.choice(["", '"', "{", "]", "NaN", "1e999", "\\ud800", "9" * 5000, "\0"])
        + text[at + rng.choice([0, 1, 20]) :]
    )


# Mutations of the numbers


def other_numbers(content: bytes, rng: random.Random) -> bytes:
    entries, data = split(content)
    changed = bytearray(data)
    for _ in range(rng.choice([1, 5])):
        at = 4 * rng.randrange(len(changed) // 4)
        changed[at : at + 4] = struct.pack("<f", rng.choice(NUMBERS))
    return joined(entries, bytes(changed))


MUTATIONS = [
    flip, cut, insert, header_length, another_type, another_shape, other_offsets, another_name, no_tensor, not_an_entry,
    two_of_one_place, named_twice, deep_header, another_value, another_value, another_value, no_value, one_more_value,
    other_sizes, other_symbols, deep_value, spoilt_text, other_numbers, other_numbers,
]  # fmt: skip


def mutated(files: list[bytes], seed: int) -> tuple[bytes, list[str]]:
    """A case, and the names of its mutations."""
    rng = random.Random(seed)
    content, names = rng.choice(files), []
    for _ in range(rng.choice([1, 1, 2, 3])):
        mutation = rng.choice(MUTATIONS)
        try:
            content = mutation(content, rng)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, struct.error):
            continue  # an earlier mutation left nothing to mutate
        names.append(mutation.__name__)
    return content, names


@contextmanager
def limits() -> Iterator[None]:
    """MEMORY more address space than now, and SECONDS, after which an alarm ends the case."""
    resource = pytest.importorskip("resource", reason="limits are POSIX's")
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else None

    def late(number: int, frame: Any) -> None:
        raise TimeoutError(f"the case hangs: it took more than {SECONDS} s")

    old = signal.signal(signal.SIGALRM, late)
    if pages is not None:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
        resource.setrlimit(resource.RLIMIT_AS, before)


def outcome(path: Path) -> str:
    """`loaded`, `refused` or, of a model that loads and cannot be used, `loaded, then refused`."""
    stage = "refused"
    try:
        describe(checkpoint.read(path, with_train=True))
        lm = CharLM.load(path)
        stage = "loaded, then refused"
        lm.sample(length=5, seed=1)
        lm.score(["ab"], unknown="skip")
    except CharLMError as error:
        message = str(error)
        assert message, "the message is empty"
        assert "\n" not in message, f"the message has more than one line: {message}"
        assert len(message) <= LONGEST, f"the message has {len(message)} characters: {message[:200]}"
        return stage
    return "loaded"


def fuzz(folder: Path, cases: int, seed: int = 0) -> Counter:
    """Try cases seed … seed + cases - 1. Returns how many had each outcome; failures are kept as `case N` in `folder`."""
    files, outcomes, failures = saved_files(folder), Counter(), []
    path = folder / "case.safetensors"
    for number in range(seed, seed + cases):
        content, names = mutated(files, number)
        path.write_bytes(content)
        try:
            with limits():
                outcomes[outcome(path)] += 1
        except Exception as error:
            failures.append(f"case {number} ({', '.join(names)}): {type(error).__name__}: {str(error)[:300]}")
            failures[-1] += "\n    " + traceback.format_exc(limit=-3).replace("\n", "\n    ")
            (folder / f"case {number}").write_bytes(content)
    print(f"{cases} checkpoints from seed {seed}: {dict(outcomes)}, {len(failures)} failures")
    assert not failures, f"{len(failures)} of {cases}:\n" + "\n".join(failures[:20])
    return outcomes


def test_the_unchanged_files_load(tmp_path):
    for content in saved_files(tmp_path):
        (tmp_path / "case.safetensors").write_bytes(content)
        assert outcome(tmp_path / "case.safetensors") == "loaded"


def test_mutated_checkpoints_are_refused_in_one_line_or_loaded(tmp_path):
    outcomes = fuzz(tmp_path, CASES)
    assert outcomes["refused"] > CASES / 2
    assert outcomes["loaded"] > CASES / 100


@pytest.mark.slow
def test_two_thousand_mutated_checkpoints(tmp_path):
    fuzz(tmp_path, 2000, seed=1_000_000)


def test_a_fault_in_the_reader_is_found(tmp_path, monkeypatch):
    """The fuzzer's own test: a reader that lets an exception of another class through fails."""
    monkeypatch.setattr(checkpoint, "_BAD_TENSOR", ())
    monkeypatch.setattr(checkpoint, "brief", lambda value: f"{value}\n")
    with pytest.raises(AssertionError, match="more than one line"):
        fuzz(tmp_path, 200)
