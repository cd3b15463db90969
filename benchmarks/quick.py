"""Speed beside torch, as ratios in one process: `python -m benchmarks.quick [--json FILE]`.

Both sides run interleaved on the same tensors; the ratio is that of the medians (torch's time / ours): above 1 is faster
than torch. Two threads. To compare on AVX2, start it with FASTLSTM_ISA=avx2 ONEDNN_MAX_CPU_ISA=AVX2
MKL_ENABLE_INSTRUCTIONS=AVX2 ATEN_CPU_CAPABILITY=avx2. Each pair is checked to agree before it is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm
from fastlstm.backends import native

Step = Callable[[], Tensor]


def medians(ours: Step, theirs: Step, rounds: int) -> tuple[float, float]:
    """Return the median seconds of both, run in turns after two warm-up rounds."""
    found: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 2):
        for step, times in zip((ours, theirs), found, strict=True):
            start = time.perf_counter()
            step()
            if turn >= 2:
                times.append(time.perf_counter() - start)
    return statistics.median(found[0]), statistics.median(found[1])


def layer_pair(I: int, H: int, L: int = 1) -> tuple[nn.Module, nn.Module]:
    """The same weights in fastlstm.LSTM and nn.LSTM."""
    theirs = nn.LSTM(I, H, L)
    ours = fastlstm.LSTM(I, H, L)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def training_step(T: int, B: int, H: int, packed: bool = False) -> tuple[Step, Step]:
    """Forward and backward of one layer; `packed`: lengths T ... T / 4 over the batch."""
    x = torch.randn(T, B, H, requires_grad=True)
    lengths = torch.linspace(T, T / 4, B).long()
    sequence = pack_padded_sequence(x, lengths) if packed else x

    def step(lstm: nn.Module) -> Step:
        def run() -> Tensor:
            out, _ = lstm(sequence)
            out = out.data if packed else out
            out.backward(torch.ones_like(out), retain_graph=packed)
            return out

        return run

    ours, theirs = layer_pair(H, H)
    return step(ours), step(theirs)


class CharacterModel(nn.Module):
    """A one-hot or embedded character model: ids (T, B) to logits (T * B, V)."""

    def __init__(self, body: nn.Module, H: int, V: int) -> None:
        super().__init__()
        self.body, self.out = body, nn.Linear(H, V)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.body(ids)[0]).flatten(0, 1)


class EmbeddedLSTM(nn.Module):
    """nn.Embedding and nn.LSTM, as people write it today."""

    def __init__(self, V: int, H: int, L: int) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(V, H), nn.LSTM(H, H, L)

    def forward(self, ids: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return self.lstm(self.embedding(ids))


def character_step(H: int, L: int, B: int, T: int, V: int = 65) -> tuple[Step, Step]:
    """ids, LSTM, linear, cross-entropy, backward, value clip, RMSProp."""
    ids, targets = torch.randint(0, V, (T, B)), torch.randint(0, V, (T * B,))
    theirs_body, ours_body = EmbeddedLSTM(V, H, L), fastlstm.TokenLSTM(V, H, H, L)
    ours_body.load_state_dict(theirs_body.state_dict())
    theirs, ours = CharacterModel(theirs_body, H, V), CharacterModel(ours_body, H, V)
    ours.out.load_state_dict(theirs.out.state_dict())

    def step(model: nn.Module) -> Step:
        optimiser = torch.optim.RMSprop(model.parameters(), lr=2e-3, alpha=0.95, foreach=True)

        def run() -> Tensor:
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(ids), targets)
            loss.backward()
            nn.utils.clip_grad_value_(model.parameters(), 5.0)
            optimiser.step()
            return loss.detach()

        return run

    return step(ours), step(theirs)


def one_step(H: int, L: int) -> tuple[Step, Step]:
    """A module call for one step of one sequence with a given state, without gradients."""
    ours, theirs = layer_pair(H, H, L)
    x, state = torch.randn(1, 1, H), (torch.randn(L, 1, H), torch.randn(L, 1, H))

    def step(lstm: nn.Module) -> Step:
        def run() -> Tensor:
            with torch.no_grad():
                return lstm(x, state)[0]

        return run

    return step(ours), step(theirs)


# name, the pair, rounds, the least ratio that the project promises
CASES = (
    ("training step T50 B50 H128", lambda: training_step(50, 50, 128), 21, 1.0),
    ("training step T50 B100 H256", lambda: training_step(50, 100, 256), 9, 1.0),
    ("training step T64 B32 H512", lambda: training_step(64, 32, 512), 9, 1.0),
    ("character model 2x128 B50 T50", lambda: character_step(128, 2, 50, 50), 15, 1.4),
    ("character model 1x128 B50 T50", lambda: character_step(128, 1, 50, 50), 15, 1.8),
    ("packed T100 B32 H128", lambda: training_step(100, 32, 128, packed=True), 9, 3.0),
    ("one step 2x128", lambda: one_step(128, 2), 301, 5.0),
)


def environment() -> dict[str, object]:
    """Machine, versions, threads, instruction set and commit of this run."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    model = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine()
    )
    return {
        "cpu": model,
        "torch": torch.__version__,
        "fastlstm": fastlstm.__version__,
        "threads": torch.get_num_threads(),
        "isa": native.load().isa(),
        "onednn_max_isa": os.environ.get("ONEDNN_MAX_CPU_ISA", "default"),
        "commit": commit.stdout.strip() or "unknown",
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def main() -> None:
    """Print the table; with --json also write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    where, rows = environment(), []
    print("  ".join(f"{k} {v}" for k, v in where.items()))
    print(f"{'case':32}{'torch ms':>10}{'fastlstm ms':>13}{'ratio':>8}{'promised':>10}")
    with fastlstm.backend("cpu"):
        for name, make, rounds, promised in CASES:
            ours, theirs = make()
            torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-4)
            mine, other = medians(ours, theirs, rounds)
            print(f"{name:32}{other * 1e3:10.3f}{mine * 1e3:13.3f}{other / mine:8.2f}{promised:10.1f}", flush=True)
            rows.append(
                {
                    "case": name,
                    "torch_ms": other * 1e3,
                    "fastlstm_ms": mine * 1e3,
                    "ratio": other / mine,
                    "promised": promised,
                }
            )
    if options.json:
        options.json.write_text(
            json.dumps({"command": "python -m benchmarks.quick", **where, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
