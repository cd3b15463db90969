"""Instructions of a call, counted by valgrind: `python -m benchmarks.instructions [TREE]`.

Times of small calls vary by a fifth on a shared machine; the instructions that they execute hardly vary. Each line is one
call of the public API, on one thread, kernels included: the small sizes leave mostly Python, torch and the bindings. TREE:
root of the checkout to count, this one without it. Takes two minutes. Needs valgrind with callgrind (Debian: valgrind).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

CALLS = 100  # per case; the instructions that start and end the counting are spread over them (about 3,000 a call)
TREE = Path(__file__).resolve().parents[1]


def count(tree: Path) -> dict[str, int]:
    """Run the calls below on the package of a checkout; return case → instructions a call."""
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile"
        command = [
            "valgrind",
            "--tool=callgrind",
            f"--callgrind-out-file={profile}",
            sys.executable,
            __file__,
            "--calls",
        ]
        env = {**os.environ, "PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        run = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
        if run.returncode:
            raise SystemExit(f"the counted process ended with status {run.returncode}:\n{run.stderr}")
        return dict(read_profile(path.read_text()) for path in sorted(Path(folder).glob("profile.*"), key=_number))


def _number(path: Path) -> int:
    return int(path.suffix[1:])


def read_profile(text: str) -> tuple[str, int]:
    """The case and the instructions a call of one part of callgrind's output."""
    case = re.search(r"^desc: Trigger: dump (\S+)$", text, re.M)
    total = re.search(r"^(?:summary|totals): (\d+)$", text, re.M)
    if case is None or total is None:
        raise ValueError("this is no part of a profile that was written on request; is callgrind_control installed?")
    return case[1], int(total[1]) // CALLS


def _ask(request: str) -> None:
    """Have callgrind begin at zero, or write what it has counted."""
    subprocess.run(["callgrind_control", request, str(os.getpid())], check=True, capture_output=True)


def _counted(case: str, call: Callable[[], object]) -> None:
    for _ in range(30):
        call()
    _ask("-z")
    for _ in range(CALLS):
        call()
    _ask(f"--dump={case}")


def _calls() -> None:
    """Everything that is counted; runs under callgrind."""
    import gc

    import torch
    from torch import nn
    from torch.nn.utils.rnn import pack_padded_sequence

    import fastlstm

    gc.disable()
    torch.set_num_threads(1)
    lstm, deep = fastlstm.LSTM(8, 8), fastlstm.LSTM(8, 8, 2, bidirectional=True)
    x, step, h, c = (torch.randn(T, 1, 8) for T in (5, 1, 1, 1))
    packed = pack_padded_sequence(torch.randn(5, 3, 8), torch.tensor([5, 3, 2]))
    tokens, linear = fastlstm.TokenLSTM(65, 16, 16, 2), nn.Linear(16, 65)
    with torch.no_grad():
        _counted("one-step", lambda: lstm(step, (h, c)))
        _counted("forward-5-steps", lambda: lstm(x))
        _counted("forward-with-state", lambda: lstm(x, (h, c)))
        _counted("packed", lambda: lstm(packed))
        _counted("2-layers-2-directions", lambda: deep(x))
        _counted("decode-5-ids", lambda: fastlstm.decode(tokens, linear.weight, linear.bias, [0], 5))
        stream, row = fastlstm.LSTM(16, 16, 2).stream(1), torch.randn(1, 16)
        _counted("stream-step", lambda: stream.step(row))
    _counted("training-step", lambda: lstm(x)[0].sum().backward())


def main() -> int:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path, nargs="?", default=TREE, metavar="TREE", help="root of a checkout")
    parser.add_argument("--calls", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.calls:
        _calls()
        return 0
    if shutil.which("valgrind") is None:
        raise SystemExit("valgrind is not installed; on Debian: apt install valgrind")
    for case, instructions in count(options.tree).items():
        print(f"{case:24}{instructions:12,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
