"""The Triton backend: fused kernels on NVIDIA GPUs without a compiler on the user's machine."""
