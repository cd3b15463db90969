"""Scripts for developers: what kernels compile to, and what they are predicted to cost. Not part of the package."""
