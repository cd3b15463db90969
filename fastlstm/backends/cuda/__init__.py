"""The CUDA backend: the kernels of csrc/cuda on an NVIDIA GPU."""
