"""The schema of results: a row is one contender of one case. Stored as CSV, or inside pytest-benchmark's JSON.

`ratio` is the median over rounds of (nn.LSTM's value / the contender's value): above 1 is better than nn.LSTM.
"""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.suite import BenchmarkCase
from benchmarks.timing import Times, pair_ratios, quantile
from benchmarks.workload import Workload


@dataclass(frozen=True)
class Row:
    """One contender of one case. The fields after `threads` are those of `machine.environment`.

    Attributes:
        p20, p50, p80: quantiles over rounds, in `unit` (s per call, or B).
        rounds, calls: number of samples, and of calls in a sample.
        characters: characters that one call draws.
        flops, bytes: operations of one call, and weights that it must read.
        gemm: FLOP/s of a large matrix product on this machine in this run.
        of_gemm: the share of `gemm` that was reached.
        chosen: the backend that dispatch chooses.
        kernel: the implementation that torch chooses.
        skipped: why there are no values.
    """

    case: str
    contender: str
    unit: str = "s"
    p20: float | None = None
    p50: float | None = None
    p80: float | None = None
    ratio_p20: float | None = None
    ratio: float | None = None
    ratio_p80: float | None = None
    rounds: int = 0
    calls: int = 0
    T: int = 0
    B: int = 0
    I: int = 0
    H: int = 0
    P: int = 0
    L: int = 0
    directions: int = 0
    packed: bool = False
    training: bool = False
    characters: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    flops: float = 0.0
    bytes: float = 0.0
    gemm: float = 0.0
    of_gemm: float | None = None
    chosen: str = ""
    kernel: str = ""
    skipped: str = ""
    threads: int = 0
    date: str = ""
    cpu: str = ""
    cores: int = 0
    isa: str = ""
    torch_isa: str = ""
    onednn_isa: str = ""
    gpu: str = ""
    python: str = ""
    torch: str = ""
    fastlstm: str = ""
    onnxruntime: str = ""
    jax: str = ""
    commit: str = ""

    @property
    def group(self) -> str:
        return self.case.split("/")[0]


def of_times(case: BenchmarkCase, workload: Workload, times: Times, calls: dict[str, int], gemm: float) -> list[Row]:
    """Return the rows of a case that was timed: every contender, then those that were skipped."""
    base = Row(case.name, "", **shapes(workload), gemm=gemm, chosen=workload.chosen, threads=torch.get_num_threads())
    rows = []
    for name in workload.runs:
        row = quantiles(replace(base, contender=name), times[name], pair_ratios(times, name, "torch"))
        of_gemm = workload.flops / row.p50 / gemm if workload.flops and gemm else None
        rows.append(replace(row, calls=calls[name], of_gemm=of_gemm))
    return rows + [replace(base, contender=name, skipped=reason) for name, reason in workload.skipped.items()]


def quantiles(row: Row, values: list[float], ratios: list[float]) -> Row:
    """Return `row` with the quantiles of its samples and of its ratios."""
    low, middle, high = quantile(values, 0.2), statistics.median(values), quantile(values, 0.8)
    ratio_quantiles = {
        "ratio_p20": quantile(ratios, 0.2),
        "ratio": statistics.median(ratios),
        "ratio_p80": quantile(ratios, 0.8),
    }
    return replace(row, p20=low, p50=middle, p80=high, rounds=len(values), **ratio_quantiles)


def shapes(workload: Workload) -> dict[str, Any]:
    """Return the fields of a row that describe the workload."""
    values = {"dtype": str(workload.dtype).removeprefix("torch."), "flops": workload.flops, "bytes": workload.bytes}
    values |= {"characters": workload.characters, "training": workload.grad}
    if workload.prepared is not None:
        call = workload.prepared.call
        sizes = {name: getattr(call.case, name) for name in ("T", "B", "I", "H", "P")}
        values |= sizes | {"L": call.L, "directions": call.directions, "packed": call.case.packed}
        values |= {"device": call.device, "kernel": torch_kernel(call)}
    return values


def torch_kernel(call: Any) -> str:
    """Return what nn.LSTM runs: oneDNN or ATen's loop on the CPU, the class of cuDNN's algorithm on a GPU."""
    if call.device == "cuda":
        from benchmarks.competitors.gpu import cudnn_algorithm, current_device_info

        return f"cuDNN, {cudnn_algorithm(call, current_device_info(), forward=True)}" + (
            f"; backward {cudnn_algorithm(call, current_device_info(), forward=False)}" if call.train else ""
        )
    plain = not (call.case.packed or call.case.projection)
    return "oneDNN" if plain and str(call.dtype) == "torch.float32" else "ATen's loop"


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Write a header line and one line per row; numbers have 6 digits."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(Row))
        for row in rows:
            writer.writerow(_text(value) for value in asdict(row).values())


def _text(value: object) -> object:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def read(path: Path) -> list[Row]:
    """Return the rows of a CSV file or of pytest-benchmark's JSON.

    Raises:
        ValueError: the file is neither, or has another schema.
    """
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != [field.name for field in fields(Row)]:
                raise ValueError(f"{path}: its columns are not those of benchmarks.schema.Row; write it anew")
            return [_parsed(line) for line in reader]
    if path.suffix == ".json":
        return list(_of_json(json.loads(path.read_text()), path))
    raise ValueError(f"{path} is neither .csv nor .json")


def _of_json(data: dict[str, Any], path: Path) -> Iterator[Row]:
    for benchmark in data["benchmarks"]:
        if "rows" not in benchmark["extra_info"]:
            raise ValueError(f"{path}: {benchmark['fullname']} has no rows; it is not of this suite")
        for row in benchmark["extra_info"]["rows"]:
            yield Row(**row)


def _parsed(line: dict[str, str]) -> Row:
    parse = {"str": str, "int": int, "float": float, "bool": lambda text: text == "True"}
    values = {}
    for field in fields(Row):
        type_name, text = str(field.type), line[field.name]
        values[field.name] = None if "None" in type_name and not text else parse[type_name.split(" ")[0]](text)
    return Row(**values)
