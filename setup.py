"""Builds the package: metadata in pyproject.toml, the native module by CMake through scikit-build-core.

Where the native module cannot be built (no compiler, macOS, Windows) the package installs without it and torch's own
path does the work; `fastlstm doctor` then says why. FASTLSTM_NATIVE=on makes a failed build an error instead,
FASTLSTM_NATIVE=off does not try. FASTLSTM_CUDA=auto|on|off governs the CUDA kernels.
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.extension import Extension

ROOT = Path(__file__).parent


class CMakeBuild(build_ext):
    """Configures and builds CMakeLists.txt with ninja, and installs fastlstm/_C into the place setuptools names."""

    def run(self) -> None:
        wanted = os.environ.get("FASTLSTM_NATIVE", "auto")
        if wanted == "off":
            self.extensions = []
            return
        try:
            self._build()
        except (subprocess.CalledProcessError, OSError, ImportError) as error:
            if wanted == "on":
                raise
            print(f"fastlstm: the native module was not built ({error}); torch's own LSTM will be used", file=sys.stderr)
            self.extensions = []

    def _build(self) -> None:
        import pybind11

        target = ROOT if self.inplace else Path(self.build_lib)
        build = ROOT / "build" / f"native-{sys.implementation.cache_tag}"
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            *("cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release"),
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_INSTALL_PREFIX={target.resolve()}",
            f"-DFASTLSTM_WERROR={'ON' if os.environ.get('FASTLSTM_WERROR') else 'OFF'}",
            f"-DFASTLSTM_CUDA={os.environ.get('FASTLSTM_CUDA', 'auto')}",
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)
        subprocess.run(["cmake", "--install", str(build), "--component", "fastlstm"], check=True)

    def get_outputs(self) -> list[str]:
        return [str(p) for p in (Path(self.build_lib) / "fastlstm").glob("_C*")]


setup(ext_modules=[Extension("fastlstm._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
