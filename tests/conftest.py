"""Shared by all tests: the import path, thread counts, and seeds that do not depend on the order of tests."""

from __future__ import annotations

import os
import sys
from importlib import util
from pathlib import Path

import hypothesis
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # `benchmarks`, `tools` and `tests` as packages

if util.find_spec("triton") is not None:
    # Triton reads TRITON_INTERPRET when it is first imported, and torch's test tools import it too: before any of them
    from tests.backends.triton import interpreter  # noqa: F401

from tests.hostsim import backend  # noqa: F401  registers the backend `hostsim`

hypothesis.settings.register_profile("fastlstm", deadline=None)  # no test has a clock: machines are shared
hypothesis.settings.load_profile("fastlstm")


TESTS = Path(__file__).parent
# The files whose slow tests take longest, in that order. Begun first, none is left for one worker alone at the end.
LONGEST = (
    *("backends/triton/test_kernels.py", "hostsim/test_kernels.py", "tools/test_asan.py"),
    *("backends/triton/test_compile.py", "hostsim/test_mutations.py", "charlm/test_examples.py"),
    *("charlm/training/test_resume.py", "benchmarks/test_instructions.py", "compiling/test_cuda_build.py"),
    "tools/test_hostsim_coverage.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the files of `make test-slow`; pytest-xdist keeps the order with --no-loadscope-reorder."""
    if config.option.markexpr != "slow":
        return
    ranks = {TESTS / name: rank for rank, name in enumerate(LONGEST)}
    if gone := [str(path) for path in ranks if not path.is_file()]:
        raise pytest.UsageError(f"tests/conftest.py orders {', '.join(gone)}, which is not there")
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_configure(config: pytest.Config) -> None:
    """Share the cores between the workers of pytest-xdist instead of giving all of them to each."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))


@pytest.fixture(autouse=True)
def _settable_backend_flags() -> None:
    """Importing torch's own test tools forbids setting torch.backends flags in the whole process: allow it again."""
    torch.backends.flags_frozen.__globals__["__allow_nonbracketed_mutation_flag"] = True


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
