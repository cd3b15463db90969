"""Builds the package: metadata in pyproject.toml, the native module by CMake through scikit-build-core.

Where the native module cannot be built (no compiler, macOS, Windows) the package installs without it and torch's own
path does the work; `fastlstm doctor` then says why. FASTLSTM_NATIVE=on makes a failed build an error instead,
FASTLSTM_NATIVE=off does not try.

FASTLSTM_CUDA=auto|on|off governs the CUDA kernels: auto builds them where nvcc is found (CUDACXX, the system's, or
PyPI's), on makes their absence an error and has pip fetch an nvcc for the build where there is none, off leaves them
out. FASTLSTM_CUDA_ARCHS=80,90 names the GPU architectures; without it the kernels are built for all that they know.
FASTLSTM_CPU=off leaves the CPU kernels out, for a machine whose GPU does all the work.
"""

import os
import shutil
import sys

from scikit_build_core.setuptools.build_cmake import BuildCMake
from setuptools import setup

CUDA = os.environ.get("FASTLSTM_CUDA", "auto")
# as in the extra cuda-build
NVCC = [
    f"{name}==13.0.*" for name in ("nvidia-cuda-nvcc", "nvidia-cuda-runtime", "nvidia-cuda-crt", "nvidia-cuda-cccl")
]
NVCC.append("nvidia-nvvm==13.0.*")


def nvcc_to_fetch() -> list[str]:
    """What pip installs for the time of the build (not with --no-build-isolation)."""
    here = os.environ.get("CUDACXX") or shutil.which("nvcc") or os.path.exists("/usr/local/cuda/bin/nvcc")
    return NVCC if CUDA == "on" and not here else []


class BuildNative(BuildCMake):
    """Builds fastlstm._C, or says that it could not and lets the installation go on."""

    def run(self) -> None:
        wanted = os.environ.get("FASTLSTM_NATIVE", "auto")
        if wanted == "off":
            return
        try:
            super().run()
        except (Exception, SystemExit) as error:  # whatever the compiler, CMake or their absence brings
            if wanted == "on" or CUDA == "on":
                raise
            print(f"fastlstm: no native module ({error}); torch's own LSTM will be used", file=sys.stderr)


setup(
    setup_requires=nvcc_to_fetch(),
    cmake_source_dir=".",
    cmake_args=[
        f"-DFASTLSTM_WERROR={'ON' if os.environ.get('FASTLSTM_WERROR') else 'OFF'}",
        f"-DFASTLSTM_CPU={os.environ.get('FASTLSTM_CPU', 'on')}",
        f"-DFASTLSTM_CUDA={CUDA}",
        f"-DFASTLSTM_CUDA_ARCHS={os.environ.get('FASTLSTM_CUDA_ARCHS', '')}",
    ],
    cmdclass={"build_cmake": BuildNative},
)
