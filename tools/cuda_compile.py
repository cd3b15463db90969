"""Compiles the CUDA kernels for one GPU architecture, without a GPU, and reads what came out.

    python -m tools.cuda_compile 90 --json out.jsonl --log out.txt

Any warning is an error. One JSON line per kernel, with the fields that tools/gpu_resources.py shows; the log holds the
commands and what the compiler said.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from fastlstm.backends import cost_model
from tools import sass
from tools.gpu_rows import KernelRow

CUDA = Path(__file__).parent.parent / "csrc" / "cuda"
FLAGS = (
    "-std=c++17",
    "-O3",
    "--expt-relaxed-constexpr",
    "-Xcompiler=-Wall,-Wno-unknown-pragmas",
    "-Werror=all-warnings",
)
TYPES = {"float": "float32", "tf32_t": "tf32", "half_t": "float16", "bfloat_t": "bfloat16"}


@dataclass(frozen=True)
class CudaKernelRow(KernelRow):
    """What one kernel compiled to. `spill_bytes` is ptxas's count; `limit`: shared memory of a block, in bytes.

    in_flight: loads of exchanged words in the smallest group that is issued before one of its results is used; of `lean`,
    which polls only the words that are missing, in the largest. step_instructions, send_instructions: what a warp of `lean`
    issues in a pass through a step when it waits for nothing, and from the barrier to the first word that it sends.
    """

    limit: int
    stack: int
    spill_bytes: int
    spills: int
    tensor: int
    ffma: int
    constant_loads: int
    strong_loads: int
    in_flight: int
    async_copies: int
    step_instructions: int
    send_instructions: int


def find_nvcc() -> str | None:
    """Return the path of nvcc: CUDACXX, PyPI's in this environment, else the system's; None without one."""
    from_pypi = sorted(Path(sysconfig.get_path("purelib"), "nvidia").glob("cu*/bin/nvcc"))
    system = Path("/usr/local/cuda/bin/nvcc")
    requested = os.environ.get("CUDACXX") or (str(from_pypi[-1]) if from_pypi else None) or shutil.which("nvcc")
    return requested or (str(system) if system.exists() else None)


def version(nvcc: str) -> str:
    """Return nvcc's version, such as 13.0.88."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V(\d+(?:\.\d+)*)", text)[1]


def compile_file(nvcc: str, source: Path, capability: int, cubin: Path) -> str:
    """Compile one file to a cubin and return what the compiler said; raises RuntimeError with it on any warning."""
    command = [nvcc, *FLAGS, f"-arch=sm_{capability}", "-Xptxas=-v", "-cubin", "-o", str(cubin), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    text = done.stdout + done.stderr
    if done.returncode or re.search(r"\bwarning\b", text):
        raise RuntimeError(f"{' '.join(command)}\n{text[-4000:]}")
    return text


def spill_bytes(text: str) -> dict[str, int]:
    """Mangled name of a kernel → bytes that ptxas spilled, stores and loads together, from its -v output."""
    pattern = r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    return {name: int(stores) + int(loads) for name, stores, loads in re.findall(pattern, text, re.S)}


def demangle(names: Iterable[str]) -> dict[str, str]:
    """Mangled name → the kernel with its template arguments, such as per_step_forward<half_t, float, 4>."""
    names = list(names)
    lines = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True).stdout.splitlines()
    short = (re.sub(r"\(anonymous namespace\)::|fastlstm::cuda::|_kernel(?=<)|^void ", "", line) for line in lines)
    return {name: line[: line.index(">(") + 1] for name, line in zip(names, short, strict=True)}


def rows(nvcc: str, capability: int, only: str = "*") -> tuple[list[CudaKernelRow], str]:
    """Compile the files that match `only`; returns a row per kernel, and the log."""
    kernels, log = [], []
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted(CUDA.glob(f"{only}.cu")):
            cubin = Path(folder, f"{source.stem}.cubin")
            text = compile_file(nvcc, source, capability, cubin)
            spilled, code = spill_bytes(text), sass.read_all(cubin)
            names = demangle(code)
            log.append(f"$ nvcc {' '.join(FLAGS)} -arch=sm_{capability} -Xptxas=-v -cubin csrc/cuda/{source.name}")
            for mangled in sorted(code, key=names.get):
                row = _row(capability, names[mangled], code[mangled], spilled[mangled])
                kernels.append(row)
                log.append(
                    f"  {names[mangled]}: {row.registers} registers, {row.stack} bytes stack frame, "
                    f"{row.spill_bytes} bytes spilled"
                )
    return kernels, "\n".join(log) + "\n"


def _row(capability: int, name: str, code: sass.Code, spilled: int) -> CudaKernelRow:
    kernel, arguments = name[:-1].split("<")
    first, *rest = arguments.split(", ")
    lean, one_step = kernel.startswith("lean"), kernel in ("lean_forward", "lean_backward")
    if kernel == "decode":
        tile, options = f"{rest[0]} stream{'' if rest[0] == '1' else 's'}", f"weights in {TYPES[first]}"
    else:
        tile, options = lean_words(kernel, rest) if lean else _words(rest)
    limit = next(d.shared_bytes for d in cost_model.KNOWN.values() if d.capability == capability)
    return CudaKernelRow(
        backend="cuda",
        capability=capability,
        kernel=kernel,
        math="float32" if kernel == "decode" else TYPES[first],
        tile=tile,
        options=options,
        registers=code.registers,
        shared=0,  # all of it is asked for at launch: see the table of launches
        limit=limit,
        stack=code.stack,
        spill_bytes=spilled,
        spills=code.spills,
        tensor=code.count(*sass.TENSOR, in_loops=True),
        ffma=code.count("FFMA", "FFMA2", in_loops=True),
        constant_loads=_loads(code, "CONSTANT"),
        strong_loads=_loads(code, "STRONG"),
        in_flight=(max if lean else min)(code.in_flight, default=0),
        async_copies=code.count("LDGSTS", in_loops=True),
        step_instructions=code.step if one_step else 0,
        send_instructions=code.send if one_step else 0,
    )


def _words(rest: list[str]) -> tuple[str, str]:
    """Tile and options, from the template arguments after the type."""
    return (f"{rest[1]} units a thread", f"products in {TYPES[rest[0]]}") if rest else ("as planned", "")


def lean_words(kernel: str, rest: list[str]) -> tuple[str, str]:
    """The same of `lean`: 4, 2, 1, true is "4 spans, 2 groups, 1 tile" and "dense"."""
    names = ("span", "group", "tile") if kernel.endswith("forward") else ("span", "part")
    names = ("span",) if kernel == "lean_layers_backward" else names
    counts = (f"{n} {name}{'' if n == '1' else 's'}" for n, name in zip(rest[:-1], names, strict=True))
    return ", ".join(counts), "dense" if rest[-1] == "true" else "rows"


def _loads(code: sass.Code, modifier: str) -> int:
    """Global loads of a kind inside loops: CONSTANT (the read-only cache), STRONG (seen by the whole GPU)."""
    return sum(n for op, n in code.loops.items() if op.startswith("LDG.") and modifier in op.split("."))


def main() -> None:
    """Compile for the architecture on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("capability", type=int, help="80 for sm_80, 90 for sm_90, …")
    parser.add_argument("--json", required=True, help="file for one line per kernel")
    parser.add_argument("--log", required=True, help="file for commands and what the compiler said")
    options = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        raise SystemExit("no nvcc: install a CUDA toolkit, or pip install 'fastlstm[cuda-build]'")
    kernels, log = rows(nvcc, options.capability)
    Path(options.json).write_text("".join(json.dumps(asdict(row)) + "\n" for row in kernels), encoding="utf-8")
    Path(options.log).write_text(log, encoding="utf-8")


if __name__ == "__main__":
    main()
