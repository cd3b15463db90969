"""The simulation with the small kernels of this folder; skipped where it cannot be built."""

from pathlib import Path

import pytest

from fastlstm.backends.hostsim import build


@pytest.fixture(scope="session")
def library():
    if reason := build.why_not():
        pytest.skip(reason)
    here = Path(__file__).parent
    return build.load("simulation_tests", [here / "kernels.cpp"], [here / "bindings.cpp"])
