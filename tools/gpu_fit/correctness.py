"""The section of docs/gpu-measured.md on right and wrong: kernels against the definition, replays, modules, errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tools.gpu_tables import markdown

HEAD = """### Right or wrong

Every kernel forward and backward against the definition in float64; *worst*: the largest error as a share of what is allowed
(twice the error of torch's operations in the same type, or 4 eps).
"""


def section(rows: Sequence[dict]) -> list[str]:
    """A table of kernels and types, and a line for everything else that was compared."""
    judged = [row for row in rows if row["stage"] == "right" and "fine" in row]
    others = "".join(f"- {line}\n" for line in _others(rows))
    return [HEAD, _kernels(judged) if judged else "", others] if judged or others else []


def _kernels(judged: Sequence[dict]) -> str:
    lines = []
    for kernel, math in dict.fromkeys((row["kernel"], row["math"]) for row in judged):
        checks = [row for row in judged if (row["kernel"], row["math"]) == (kernel, math)]
        correct, worst = sum(row["fine"] is True for row in checks), max(_size(row["worst"]) for row in checks)
        lines.append((kernel, math, f"{correct} of {len(checks)}", f"{worst:.2f}"))
    return markdown(("kernel", "type", "right", "worst"), lines)


def _size(worst: float | str) -> float:
    """NaN, a word in rows, counts as infinite."""
    return float(worst) if float(worst) == float(worst) else float("inf")


def _others(rows: Sequence[dict]) -> list[str]:
    of = {
        stage: [row for row in rows if row["stage"] == stage] for stage in dict.fromkeys(row["stage"] for row in rows)
    }
    lines = []
    replays = [row for row in of.get("graph", ()) if "same" in row]
    if replays:
        same = sum(row["same"] is True for row in replays)
        lines.append(f"CUDA graphs: {same} of {len(replays)} replayed calls gave the bits of the eager call")
    checked = [row for row in of.get("triton", ()) if "case" in row]
    if checked:
        apply = [row for row in checked if not row.get("skipped")]
        fine = sum(not row.get("wrong") for row in apply)
        lines.append(
            f"Triton: {fine} of {len(apply)} cases right, {len(checked) - len(apply)} do not apply (a size that does not fit)"
        )
    for stage, what in NAMES.items():
        compared = [row for row in of.get(stage, ()) if "wrong" in row]
        if compared:
            wrong, (column, less) = sum(bool(row["wrong"]) for row in compared), LESS.get(stage, ("", ""))
            how = f" ({less})" if less and not any(column in row for row in compared) else ""
            lines.append(f"{what}{how}: {wrong} of {len(compared)} wrong")
    errors = Counter(f"{row['stage']}: {row['error']}" for row in rows if row["stage"] != "stage" and "error" in row)
    lines += [f"{count} times {error}" for error, count in errors.items()]
    lost = [row for row in of.get("stage", ()) if row.get("lost")]
    return lines + [f"a process was lost in {row['name']} at {row['lost']}: {row['code']}" for row in lost]


NAMES = {
    "module": "modules beside nn.LSTM",
    "sweep": "tilings one by one",
    "characters": "character models",
    "kernelbench": "KernelBench's problems",
}
LESS = {  # what earlier runs compared, whose rows lack a column
    "sweep": ("beside", "compared with the planner's pick"),
    "characters": ("off", "the first loss alone compared"),
}
