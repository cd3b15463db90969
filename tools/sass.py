"""Reads compiled GPU code (a cubin): resources, instruction counts, and what lies inside loops."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from importlib import util
from pathlib import Path

_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
_REGISTER = re.compile(r"\bR(\d+)\b")
_LABEL = re.compile(r"^\s*(\.L_\w+):")
_BRANCH = re.compile(r"\bBRA\b.*?(\.L_\w+)")
TENSOR = ("HMMA", "HGMMA", "QMMA", "OMMA", "UTCHMMA", "UTCQMMA", "IMMA")


@dataclass(frozen=True)
class Code:
    """One kernel: registers, stack bytes, and instructions (opcode with suffixes → count) in all and inside loops."""

    registers: int
    stack: int
    all: Counter
    loops: Counter
    in_flight: tuple[int, ...] = ()  # of each group of loads of exchanged words: see `strong_groups`
    step: int = 0  # instructions of a pass through the loops over time: see `time_loops`
    send: int = 0  # of those, from the barrier to the first store of an exchanged word behind it

    def count(self, *opcodes: str, in_loops: bool = False) -> int:
        """How many instructions have one of these opcodes (before the first dot, or in full if it has one)."""
        counter = self.loops if in_loops else self.all
        return sum(n for op, n in counter.items() for opcode in opcodes if op == opcode or op.startswith(opcode + "."))

    @property
    def spills(self) -> int:
        """Local-memory instructions inside loops."""
        return self.count("STL", "LDL", in_loops=True)

    @property
    def tensor(self) -> int:
        """Tensor-core instructions."""
        return self.count(*TENSOR)


def tool(name: str) -> str:
    """Return the path of nvdisasm, cuobjdump or ptxas: the CUDA toolkit's, else the one inside Triton."""
    toolkit = Path("/usr/local/cuda/bin") / name
    path = shutil.which(name) or (str(toolkit) if toolkit.exists() else None)
    if path is None:
        spec = util.find_spec("triton")
        inside = Path(spec.origin).parent / "backends/nvidia/bin" / name if spec else None
        path = str(inside) if inside is not None and inside.exists() else None
    if path is None:
        raise FileNotFoundError(f"{name} is neither on the PATH, in /usr/local/cuda/bin nor inside Triton")
    return path


def read(cubin: bytes) -> Code:
    """Disassemble a cubin that holds one kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = _output(tool("nvdisasm"), "-c", file.name)
        usage = _output(tool("cuobjdump"), "-res-usage", file.name)
    resources = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    return parse(text, int(resources[1]), int(resources[2]))


def read_all(cubin: Path) -> dict[str, Code]:
    """Disassemble a cubin file; mangled name of a kernel → its code."""
    text = _output(tool("nvdisasm"), "-c", str(cubin))
    usage = re.findall(
        r"Function (\S+):\n\s*REG:(\d+) STACK:(\d+)", _output(tool("cuobjdump"), "-res-usage", str(cubin))
    )
    _, *parts = re.split(r"^\s*\.section\s+\.text\.(\w+).*$", text, flags=re.M)
    bodies = dict(zip(parts[::2], parts[1::2], strict=True))
    return {name: parse(bodies[name], int(registers), int(stack)) for name, registers, stack in usage}


def parse(text: str, registers: int, stack: int) -> Code:
    """Count instructions in nvdisasm's text; a loop is what lies between a label and a later branch back to it."""
    labels, lines, loops = {}, [], set()
    for line in text.splitlines():
        label, op = _LABEL.match(line), _INSTRUCTION.search(line)
        if label:
            labels[label[1]] = len(lines)
        if op is None:
            continue
        target = _BRANCH.search(line)
        if target and labels.get(target[1], len(lines)) < len(lines):  # not the branch to itself at the end
            loops.add((labels[target[1]], len(lines)))
        lines.append(op[1])
    inside = {k for begin, end in loops for k in range(begin, end + 1)}
    step, send = time_loops(lines, loops)
    return Code(
        registers, stack, Counter(lines), Counter(lines[k] for k in inside), strong_groups(text), len(step), send
    )


def time_loops(lines: list[str], loops: set[tuple[int, int]]) -> tuple[set[int], int]:
    """The instructions that a step takes when nothing is waited for, and how many of them stand between barrier and send.

    lines: opcodes; loops: first and last instruction of each. The loops over time are the innermost that hold a barrier, a
    product on tensor cores or a store of exchanged words; loops inside them that poll are not counted, nor is any that
    starts with its test. A branch that skips something skips nothing here.
    """

    def holds(loop: tuple[int, int], test) -> bool:
        return any(test(lines[k]) for k in range(loop[0], loop[1] + 1))

    marks = {loop for loop in loops if holds(loop, _is_of_a_step)}
    innermost = {a for a in marks if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in marks)}
    polling = {loop for loop in loops - marks if holds(loop, lambda op: _is_strong(op, "LD"))}
    step = {k for begin, end in innermost for k in range(begin, end + 1)}
    step -= {k for begin, end in polling for k in range(begin, end + 1)}
    send = 0
    for begin, end in sorted(innermost):
        barrier = next((k for k in range(begin, end + 1) if lines[k].startswith("BAR.SYNC")), end)
        store = next((k for k in range(barrier, end + 1) if _is_strong(lines[k], "ST")), None)
        if store is not None:
            send = send or len([k for k in range(barrier + 1, store + 1) if k in step])
    return step, send


def _is_strong(op: str, kind: str) -> bool:
    """A load (LD) or store (ST) of words that all blocks see."""
    return op.startswith(kind) and ".STRONG.GPU" in op


def _is_of_a_step(op: str) -> bool:
    return op.startswith("BAR.SYNC") or op.split(".")[0] in TENSOR or _is_strong(op, "ST")


def strong_groups(text: str) -> tuple[int, ...]:
    """How many loads of exchanged words (LDG….STRONG.GPU) are issued before an instruction names a register of theirs.

    A group ends there: what the instruction needs is a round trip through L2 away.
    """
    groups, waiting, loads = [], set(), 0
    for line in text.splitlines():
        op = _INSTRUCTION.search(line)
        if op is None:
            continue
        operands = line[op.end(1) :]
        named = {int(number) for number in _REGISTER.findall(operands)}
        strong = op[1].startswith("LDG.") and op[1].endswith(".STRONG.GPU")
        if strong:
            target = int(_REGISTER.search(operands)[1])
            width = int(width[1]) // 32 if (width := re.search(r"\.(64|128)\b", op[1])) else 1
            named.discard(target)
        if named & waiting:
            groups.append(loads)
            waiting, loads = set(), 0
        if strong:
            waiting |= set(range(target, target + width))
            loads += 1
    return (*groups, loads) if loads else tuple(groups)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
