"""The CPU backend: C++ SIMD kernels (csrc/cpu)."""
