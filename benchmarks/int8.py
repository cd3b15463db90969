"""int8 inference beside nn.LSTM and torch's own dynamic int8 LSTM: times, and what the rounding costs.

    python -m benchmarks.int8 [--seconds S] [--threads N] [--isa NAME] [--out FILE]

The contenders take turns in one process on the same tensors, after the outputs of all were compared. "float32" is
fastlstm.LSTM (or its stream), "int8" what fastlstm.quantize makes of it, "torch int8" what
torch.ao.quantization.quantize_dynamic makes of the nn.LSTM. Ratios are medians over rounds of (the other's time / int8's
time): above 1 int8 is faster. The errors are those of h beside nn.LSTM over 1,000 steps, and the nats a character of the model
of names that comes with the package, over 400 of the names that it draws itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import fastlstm
from benchmarks.machine import environment
from benchmarks.timing import Interleaved, pair_ratios, quantile, take_turns, undisturbed
from benchmarks.workload import check_agreement
from fastlstm.backends import native

ALLOWED = 0.05  # the largest difference of h beside nn.LSTM's
FORWARD = ((64, 1, 512), (64, 32, 512), (64, 1, 128), (64, 32, 128))  # T, B, H = I
STEPS = ((2, 640, 1), (2, 128, 1))  # layers, H = I, B


def torch_int8(lstm: nn.LSTM) -> nn.Module:
    """torch's dynamic int8 LSTM; it warns that it is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(lstm), {nn.LSTM}, dtype=torch.qint8)[0]


def forward_contenders(T: int, B: int, H: int) -> dict[str, Callable[[], Tensor]]:
    """Name → a forward call of one layer: h of all steps."""
    torch.manual_seed(0)
    lstm, x = nn.LSTM(H, H).eval(), torch.randn(T, B, H)
    modules = {"nn.LSTM": lstm, "torch int8": torch_int8(lstm), "float32": fastlstm.LSTM.from_torch(lstm)}
    modules["int8"] = fastlstm.quantize(lstm)
    return {name: lambda module=module: module(x)[0] for name, module in modules.items()}


def step_contenders(layers: int, H: int, B: int) -> dict[str, Callable[[], Tensor]]:
    """Name → one step that goes on from its own last state: the last layer's h."""
    torch.manual_seed(0)
    lstm, x = nn.LSTM(H, H, layers).eval(), torch.randn(B, H)
    made: dict[str, Callable[[], Tensor]] = {}
    for name, module in (("nn.LSTM", lstm), ("torch int8", torch_int8(lstm))):
        made[name] = _stepping(module, x[None], torch.zeros(layers, B, H))
    streams = {"float32": fastlstm.LSTM.from_torch(lstm), "int8": fastlstm.quantize(lstm)}
    for name, module in streams.items():
        stream = module.stream(B)
        made[name] = lambda stream=stream: stream.step(x)
    return made


def _stepping(module: nn.Module, x: Tensor, zero: Tensor) -> Callable[[], Tensor]:
    state = zero, zero

    def step() -> Tensor:
        nonlocal state
        out, state = module(x, state)
        return out[0]

    return step


@torch.no_grad()
def timed(contenders: dict[str, Callable[[], Tensor]], seconds: float) -> dict[str, dict[str, float]]:
    """Microseconds of each contender, and its time / int8's."""
    expected = None
    for name, call in contenders.items():
        out = call()
        expected = out if expected is None else expected
        check_agreement(name, [out.double()], [expected.double()], ALLOWED)
    turns = Interleaved(contenders, "int8")
    with undisturbed():
        take_turns(turns, turns.rounds_for(seconds))
    results = {}
    for name, times in turns.times.items():
        ratios = pair_ratios(turns.times, "int8", name)
        spread = {"ratio p20": quantile(ratios, 0.2), "ratio p80": quantile(ratios, 0.8)}
        results[name] = {"us": 1e6 * statistics.median(times), "ratio": statistics.median(ratios), **spread}
    return {name: {key: round(value, 3) for key, value in values.items()} for name, values in results.items()}


@torch.no_grad()
def errors(H: int = 512, T: int = 1000, B: int = 4) -> dict[str, float]:
    """The largest and the root mean square difference of h over T steps beside nn.LSTM, and torch's int8's."""
    torch.manual_seed(0)
    lstm, x = nn.LSTM(H, H).eval(), torch.randn(T, B, H)
    expected, told = lstm(x)[0], {}
    for name, module in (("int8", fastlstm.quantize(lstm)), ("torch int8", torch_int8(lstm))):
        difference = module(x)[0] - expected
        told |= {
            f"{name} largest": float(difference.abs().max()),
            f"{name} rms": float(difference.square().mean().sqrt()),
        }
    return {name: round(value, 6) for name, value in told.items()}


def nats() -> dict[str, float]:
    """Nats a character of the names model, in float32 and in int8, on names that it draws itself."""
    from fastlstm.charlm import CharLM

    lm = CharLM.load("names")
    texts = list(lm.sample(num=400, seed=1))
    told = {}
    for name in ("float32", "int8"):
        if name == "int8":
            lm.model = fastlstm.quantize(lm.model)
        scored = list(lm.score(texts))
        told[name] = sum(s.total for s in scored) / sum(len(s.nats) for s in scored)
    return {name: round(value, 5) for name, value in told.items()}


def lines(results: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """The times as text."""
    told = []
    for case, by_name in results.items():
        told.append(case)
        for name, values in by_name.items():
            told.append(f"  {name:12}" + "".join(f"{key:>12}{value:10.2f}" for key, value in values.items()))
    return told


def main() -> int:
    """Measure, print, and write a file if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="of each case")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="threads of a call")
    parser.add_argument("--isa", metavar="NAME", help="int8 kernels, as native.load().int8_isa_names() lists them")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a JSON file too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.isa:
        native.load().set_int8_isa(options.isa)
    results = {}
    for T, B, H in FORWARD:
        results[f"forward, T {T}, B {B}, H {H}"] = timed(forward_contenders(T, B, H), options.seconds)
    for layers, H, B in STEPS:
        results[f"one step, {layers} layers, H {H}, B {B}"] = timed(step_contenders(layers, H, B), options.seconds)
    quality = {"error of h, 1000 steps, H 512": errors(), "nats a character, names": nats()}
    print("\n".join(lines(results)))
    print("\n".join(f"{name}: {values}" for name, values in quality.items()))
    if options.out:
        isa = f" --isa {options.isa}" if options.isa else ""
        command = f"python -m benchmarks.int8 --seconds {options.seconds:g} --threads {options.threads}{isa}"
        machine = environment() | {"int8_isa": native.load().int8_isa()}
        told = {"command": command, "machine": machine, "results": results, "quality": quality}
        options.out.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
