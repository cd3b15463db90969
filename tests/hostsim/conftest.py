"""The simulation with the small kernels of this folder and with the shipped ones; skipped where it cannot be built."""

from pathlib import Path

import pytest
import torch

from tests.hostsim import backend as hostsim
from tests.hostsim import build


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors are tiny here; torch's threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def library():
    if reason := build.unavailable():
        pytest.skip(reason)
    folder = Path(__file__).parent
    return build.load("simulation_tests", [folder / "kernels.cpp"], [folder / "bindings.cpp"])


@pytest.fixture(scope="session")
def hostsim_library():
    if reason := build.unavailable():
        pytest.skip(reason)
    return hostsim.library()
