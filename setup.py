"""Builds the package: metadata in pyproject.toml, the native module by CMake through scikit-build-core.

Where the native module cannot be built (no compiler, macOS, Windows) the package installs without it and torch's own
path does the work; `fastlstm doctor` then says why. FASTLSTM_NATIVE=on makes a failed build an error instead,
FASTLSTM_NATIVE=off does not try. FASTLSTM_CUDA=auto|on|off governs the CUDA kernels, FASTLSTM_CUDA_ARCHS their
architectures.
"""

import os
import sys

from scikit_build_core.setuptools.build_cmake import BuildCMake
from setuptools import setup


class BuildNative(BuildCMake):
    """Builds fastlstm._C, or says that it could not and lets the installation go on."""

    def run(self) -> None:
        wanted = os.environ.get("FASTLSTM_NATIVE", "auto")
        if wanted == "off":
            return
        try:
            super().run()
        except (Exception, SystemExit) as error:  # whatever the compiler, CMake or their absence brings
            if wanted == "on":
                raise
            print(f"fastlstm: no native module ({error}); torch's own LSTM will be used", file=sys.stderr)


setup(
    cmake_source_dir=".",
    cmake_args=[
        f"-DFASTLSTM_WERROR={'ON' if os.environ.get('FASTLSTM_WERROR') else 'OFF'}",
        f"-DFASTLSTM_CUDA={os.environ.get('FASTLSTM_CUDA', 'auto')}",
        f"-DFASTLSTM_CUDA_ARCHS={os.environ.get('FASTLSTM_CUDA_ARCHS', '')}",
    ],
    cmdclass={"build_cmake": BuildNative},
)
