"""What is done with the minutes, in the order of what is lost if the machine goes away."""

from __future__ import annotations

from typing import NamedTuple


class Stage(NamedTuple):
    """One process. module: of this package, it has `items` and `run`; rows: the `stage` of its rows; timeout: of silence."""

    name: str
    module: str
    expected: float  # seconds, as an H200 took them; those with `lean` are estimates
    limit: float  # seconds after which it is ended
    timeout: float = 30.0  # seconds without a row or a new item after which it counts as hanging
    args: tuple = ()
    row_name: str = ""  # the `stage` of its rows, where that is not the module

    @property
    def rows(self) -> str:
        return self.row_name or self.module


STAGES = (
    Stage("env", "env", 7, 60),
    Stage("ubench", "ubench", 1, 30),
    Stage("right", "correctness", 15, 60, row_name="right"),
    Stage("module", "module", 32, 75),
    Stage("cudnn", "cudnn", 60, 75),
    Stage("sweep-bf16", "sweep", 30, 60, 20, ("bf16",)),
    Stage("sweep-f32", "sweep", 15, 40, 20, ("tf32", "f32")),
    Stage("train", "train", 3, 15),
    Stage("graph", "graph", 4, 20),
    Stage("host", "host", 15, 40),
    Stage("characters", "characters", 9, 25),
    Stage("kernelbench", "kernelbench", 9, 25),
    Stage("ncu", "ncu", 54, 110, 90),
    Stage("triton", "triton", 39, 55, 50),
    Stage("sanitizer", "sanitizer", 20, 85, 45),
)


def names() -> list[str]:
    return [stage.name for stage in STAGES]


def chosen(requested: list[str]) -> list[Stage]:
    """The stages with these names (or of these modules: `sweep` is both sweeps); all where none is named."""
    unknown = [name for name in requested if not any(name in (s.name, s.module) for s in STAGES)]
    if unknown:
        raise ValueError(f"no stage is called {unknown[0]!r}, expected some of {', '.join(names())}")
    return [s for s in STAGES if not requested or s.name in requested or s.module in requested]


def named(name: str) -> Stage:
    return next(stage for stage in STAGES if stage.name == name)
