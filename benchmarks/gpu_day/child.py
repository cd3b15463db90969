"""The process of a stage: waits for its order, then runs the stage's items one after the other.

An item that raises is a row with its error and the stage goes on, unless the GPU context is ruined: then the process ends
and the driver begins another behind this item. FASTLSTM_GPU_DAY_FAULT=stage:item:kind plants a fault for tests; kind is
hang, trap or raise.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_day import stages
from benchmarks.gpu_day.driver import DEVICE_LOST, TORCH_UNUSABLE
from benchmarks.gpu_day.row_file import RowWriter


class Item(NamedTuple):
    """A piece of a stage. key: what is not tried again where this one takes the process with it (kernel and type)."""

    what: str
    values: tuple = ()
    key: str = ""


def wait() -> int:
    """Import what every stage needs, read the order, run it. Does not return: destructors of a ruined GPU may hang."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with the driver
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})  # the stage that runs meanwhile is timed
    import torch

    import fastlstm  # noqa: F401
    from benchmarks.gpu_day import executor  # noqa: F401

    line = sys.stdin.readline()
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))  # it found one
    code = 0
    if line.strip():
        try:
            code = work(json.loads(line))
        except BaseException:
            traceback.print_exc()
            code = 2
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def work(order: dict[str, Any]) -> int:
    """Run the items of a stage from order["after"] on; returns 0, 1 where an item failed, DEVICE_LOST or TORCH_UNUSABLE."""
    from benchmarks.gpu_day.executor import executor_for

    stage = stages.named(order["stage"])
    print(f"==== {stage.name} from item {order['after']}", flush=True)
    rows, progress = RowWriter(Path(order["out"])), Path(order["progress"])
    module = import_module(f"benchmarks.gpu_day.{stage.module}")
    executor = executor_for(order)
    items = module.items(executor, *stage.args)
    failed, left = 0, 0
    for number, item in enumerate(items):
        if number < order["after"]:
            continue
        executor.release_memory()
        _write(progress, at=number, what=item.what, key=item.key, items=len(items), failed=failed)
        try:
            _fault(stage.name, number)  # first: a planted fault happens however long the process took to start
            if time.time() > order["until"]:
                left = len(items) - number
                break
            for row in module.run(executor, item):
                rows.add(stage.rows, **row)
        except Exception as error:
            failed += 1
            rows.add(stage.rows, item=item.what, **error_columns(error))
            if not executor.alive():
                return DEVICE_LOST
        if executor.torch_unusable:
            return TORCH_UNUSABLE
    _write(progress, at=len(items), what="end", items=len(items), left=left + executor.left_out, failed=failed)
    return 1 if failed else 0


def error_columns(error: BaseException) -> dict[str, Any]:
    """The columns of a row that tell of an exception."""
    first = (str(error).splitlines() or [""])[0][:300]
    where = [line.strip() for line in traceback.format_exc().strip().splitlines()[-7:-1]]
    return {"error": f"{type(error).__name__}: {first}", "trace": where}


def _write(path: Path, **what: Any) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(what))
    os.replace(part, path)


def _fault(stage: str, number: int) -> None:
    target, _, fault = os.environ.get("FASTLSTM_GPU_DAY_FAULT", "").rpartition(":")
    if target != f"{stage}:{number}":
        return
    print(f"planted: {fault}", flush=True)
    if fault == "hang":
        time.sleep(1e6)
    elif fault == "trap":
        os.kill(os.getpid(), signal.SIGSEGV)
    else:
        raise RuntimeError("planted")
