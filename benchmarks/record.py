"""The one schema of results: a row is one contender of one case. Written as CSV, or inside pytest-benchmark's JSON.

`ratio` is nn.LSTM's figure divided by the contender's, median of the pairs of each round: above 1 is better than nn.LSTM.
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

from benchmarks.suite import Timed
from benchmarks.timing import Times, pair_ratios, quantile
from benchmarks.work import Work


@dataclass(frozen=True)
class Row:
    """One contender of one case; p20, p50, p80 are quantiles over rounds, in `unit` (s a call, or B).

    calls: calls a sample; rounds: samples; characters: drawn by one call; flops, bytes: what one call must do and read;
    gemm: FLOP/s of a large product on this machine in this run; of_gemm: share of it that was reached; chosen: what
    dispatch takes; kernel: what torch takes; skipped: why there are no figures. Then the machine, see `machine.py`.
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


def of_times(case: Timed, work: Work, times: Times, calls: dict[str, int], gemm: float) -> list[Row]:
    """Return the rows of a case that was timed: every contender, then those that took no part."""
    base = Row(case.name, "", **shapes(work), gemm=gemm, chosen=work.chosen, threads=torch.get_num_threads())
    rows = []
    for name in work.runs:
        row = quantiles(replace(base, contender=name), times[name], pair_ratios(times, name, "torch"))
        of_gemm = work.flops / row.p50 / gemm if work.flops and gemm else None
        rows.append(replace(row, calls=calls[name], of_gemm=of_gemm))
    return rows + [replace(base, contender=name, skipped=reason) for name, reason in work.skipped.items()]


def quantiles(row: Row, values: list[float], ratios: list[float]) -> Row:
    """Return `row` with the quantiles of its samples and of its ratios."""
    low, middle, high = quantile(values, 0.2), statistics.median(values), quantile(values, 0.8)
    found = {"ratio_p20": quantile(ratios, 0.2), "ratio": statistics.median(ratios), "ratio_p80": quantile(ratios, 0.8)}
    return replace(row, p20=low, p50=middle, p80=high, rounds=len(values), **found)


def shapes(work: Work) -> dict[str, Any]:
    """The fields of a row that say what the work is."""
    found = {"dtype": str(work.dtype).removeprefix("torch."), "flops": work.flops, "bytes": work.bytes}
    found |= {"characters": work.characters, "training": work.grad}
    if work.made is not None:
        call = work.made.call
        sizes = {name: getattr(call.case, name) for name in ("T", "B", "I", "H", "P")}
        found |= sizes | {"L": call.L, "directions": call.directions, "packed": call.case.packed}
        found |= {"device": call.device, "kernel": torch_kernel(call)}
    return found


def torch_kernel(call: Any) -> str:
    """What torch's own LSTM runs: oneDNN or ATen's loop on the CPU, the class of cuDNN's algorithm on a GPU."""
    if call.device == "cuda":
        from benchmarks.peers.gpu import cudnn_algorithm, this_device

        return f"cuDNN, {cudnn_algorithm(call, this_device(), forward=True)}" + (
            f"; backward {cudnn_algorithm(call, this_device(), forward=False)}" if call.train else ""
        )
    plain = not (call.case.packed or call.case.projection)
    return "oneDNN" if plain and str(call.dtype) == "torch.float32" else "ATen's loop"


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Write rows, one a line under a heading; figures with 6 digits."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(Row))
        for row in rows:
            writer.writerow(_text(value) for value in asdict(row).values())


def _text(value: object) -> object:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def read(path: Path) -> list[Row]:
    """Return the rows of a CSV file or of pytest-benchmark's JSON; raises ValueError for another file."""
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != [field.name for field in fields(Row)]:
                raise ValueError(f"{path}: its columns are not those of benchmarks.record.Row; write it anew")
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
        kind, text = str(field.type), line[field.name]
        values[field.name] = None if "None" in kind and not text else parse[kind.split(" ")[0]](text)
    return Row(**values)
