"""torch.compile: seconds of a compiled training step beside an eager one, and of the first compiled step of a process.

    python -m benchmarks.compiled [TREE] [--rounds N] [--processes N] [--out FILE]

T 50, B 50, 2 × 128, float32, for nn.LSTM and fastlstm.LSTM: the LSTM alone, and a character model (embedding, LSTM, output
layer, cross entropy). A step is zero_grad, forward and backward. The four contenders take turns in one process, in a new order
each round, after the loss and gradients of all were compared. The first compiled step includes the import of Dynamo and
Inductor, and is taken in a new process with an empty cache. Times are wall seconds and CPU seconds, child processes (C++
compilers) included; on a shared machine the least CPU time is the one that repeats. TREE: root of the checkout to time, this
one without it. Takes five minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FunctionType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastlstm
from benchmarks.machine import environment
from benchmarks.workload import ALLOWED, check_agreement, same_weights

TREE = Path(__file__).resolve().parents[1]
T, B, H, LAYERS, V = 50, 50, 128, 2, 65
WORKLOADS = ("LSTM", "characters")
LIBRARIES = ("nn.LSTM", "fastlstm")


class Recurrence(nn.Module):
    """The LSTM alone, its output as the result."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(H, H, LAYERS)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        return out


class Characters(nn.Module):
    """Embedding, LSTM, output layer and loss.

    The LSTM lies in a module of its own: Dynamo (torch 2.13) compiles nothing of a function that reads an nn.LSTM, and so
    nothing of a model that calls one in its own forward.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.recurrence, self.head = nn.Embedding(V, H), Recurrence(), nn.Linear(H, V)

    def forward(self, ids: Tensor, target: Tensor) -> Tensor:
        logits = self.head(self.recurrence(self.embedding(ids)))
        return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def with_own_code(model: nn.Module) -> None:
    """Give each module of this file a `forward` that Dynamo has not met: where it gave up once, it gives up at the same code."""
    for module in model.modules():
        if isinstance(module, (Recurrence, Characters)):
            code = type(module).forward.__code__.replace(co_name=f"forward_{id(module)}")
            module.__class__ = type(type(module).__name__, (type(module),), {"forward": FunctionType(code, globals())})


def model_and_step(workload: str, library: str) -> tuple[nn.Module, Callable[[Callable], list[Tensor]]]:
    """A model, and a training step through whatever runs it: what it returned and all gradients."""
    torch.manual_seed(0)
    if workload == "characters":
        model, args = Characters(), (torch.randint(V, (T, B)), torch.randint(V, (T, B)))
        incoming = None
    else:
        model, args, incoming = Recurrence(), (torch.randn(T, B, H),), torch.randn(T, B, H)
    if library == "fastlstm":
        holder = model.recurrence if workload == "characters" else model
        holder.rnn = same_weights(fastlstm.LSTM(H, H, LAYERS), holder.rnn)
    with_own_code(model)

    def step(run: Callable) -> list[Tensor]:
        model.zero_grad()
        result = run(*args)
        result.backward(incoming)
        return [result.detach(), *(p.grad for p in model.parameters())]

    return model, step


def steps(workload: str) -> dict[str, Callable[[], list[Tensor]]]:
    """Contender → its training step, each warm and compared with nn.LSTM's."""
    made = {}
    for library in LIBRARIES:
        model, step = model_and_step(workload, library)
        compiled = torch.compile(model)
        made[f"{library}, eager"] = lambda step=step, model=model: step(model)
        made[f"{library}, compiled"] = lambda step=step, compiled=compiled: step(compiled)
    expected = None
    for name, call in made.items():
        for _ in range(3):
            results = [v.double() for v in call()]
        expected = expected or results
        check_agreement(name, results, expected, ALLOWED[torch.float32])
    return made


def timed_steps(workload: str, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each contender: medians and least, wall and CPU."""
    calls = steps(workload)
    wall, cpu = ({name: [] for name in calls} for _ in range(2))
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(calls), len(calls)):  # what ran before a step leaves its memory behind
            call = calls[name]
            begin, used = time.perf_counter(), time.process_time()
            call()
            wall[name].append(1e3 * (time.perf_counter() - begin))
            cpu[name].append(1e3 * (time.process_time() - used))
    return {name: summary(wall[name], cpu[name]) for name in calls}


def summary(wall: list[float], cpu: list[float]) -> dict[str, float]:
    """Median and least of both."""
    values = {"wall median": statistics.median(wall), "wall least": min(wall)}
    values |= {"cpu median": statistics.median(cpu), "cpu least": min(cpu)}
    return {name: round(value, 3) for name, value in values.items()}


def first_step(workload: str, library: str) -> tuple[float, float]:
    """Wall and CPU seconds of the first compiled step of this process."""
    model, step = model_and_step(workload, library)
    begin, used = time.perf_counter(), _cpu_seconds()
    step(torch.compile(model))
    return time.perf_counter() - begin, _cpu_seconds() - used


def _cpu_seconds() -> float:
    return sum(os.times()[:4])  # user and system, of this process and of children that have ended


def first_steps(processes: int, threads: int) -> dict[str, dict[str, dict[str, float]]]:
    """Workload → library → seconds of the first compiled step, in turns, each in a new process with an empty cache."""
    first = f"--threads={threads}", "--first"
    taken = {workload: {library: [] for library in LIBRARIES} for workload in WORKLOADS}
    for _ in range(processes):
        for workload, libraries in taken.items():
            for library, times in libraries.items():
                with tempfile.TemporaryDirectory() as cache:
                    times.append(_in_new_process(*first, workload, library, TORCHINDUCTOR_CACHE_DIR=cache))
    return {
        w: {name: summary(*zip(*times, strict=True)) for name, times in by.items() if times} for w, by in taken.items()
    }


def _in_new_process(*arguments: str, **variables: str) -> list:
    env = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1", **variables}
    # As a script: another checkout's `benchmarks` may lack this module.
    command = [sys.executable, __file__, *arguments]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with status {run.returncode}:\n{run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])


def lines(results: dict[str, dict[str, dict[str, dict[str, float]]]]) -> list[str]:
    """The results as text."""
    told = []
    for what, by_workload in results.items():
        for workload, by_name in by_workload.items():
            told.append(f"{what}, {workload}")
            for name, values in by_name.items():
                told.append(f"  {name:20}" + "".join(f"{key:>14}{value:9.2f}" for key, value in values.items()))
    return told


def main() -> int:
    """Measure, print, and write a file if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path, nargs="?", default=TREE, metavar="TREE", help="root of a checkout")
    parser.add_argument("--rounds", type=int, default=150, metavar="N", help="steps of each contender")
    parser.add_argument("--processes", type=int, default=3, metavar="N", help="first steps of each kind")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="threads of a step")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a JSON file too")
    parser.add_argument("--first", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--steps", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.first:
        print(json.dumps(first_step(*options.first)))
        return 0
    if options.steps:
        print(json.dumps([environment(), {w: timed_steps(w, options.rounds) for w in WORKLOADS}]))
        return 0
    os.environ["PYTHONPATH"] = os.pathsep.join([str(options.tree.resolve()), str(TREE)])
    machine, timed = _in_new_process("--steps", f"--rounds={options.rounds}", f"--threads={options.threads}")
    results = {
        "ms a training step": timed,
        "s of the first compiled step": first_steps(options.processes, options.threads),
    }
    print("\n".join(lines(results)))
    if options.out:
        counts = f"--rounds {options.rounds} --processes {options.processes} --threads {options.threads}"
        command = f"python -m benchmarks.compiled {counts}"
        text = json.dumps({"command": command, "machine": machine, "results": results}, indent=1, ensure_ascii=False)
        options.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
