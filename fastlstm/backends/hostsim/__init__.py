"""The host simulation of the CUDA kernels (csrc/hostsim): runs them on the CPU, for tests only."""

NAME = "hostsim"
