"""What the GPU backends ask torch about: whether a GPU is NVIDIA's, and whether float32 may be multiplied as TF32."""

from __future__ import annotations

import torch


def allows_tf32() -> bool:
    """Return whether torch would let cuDNN's LSTM multiply float32 as TF32."""
    rnn = getattr(torch.backends.cudnn, "rnn", None)
    precision = getattr(rnn, "fp32_precision", None)
    return torch.backends.cudnn.allow_tf32 if precision is None else precision == "tf32"


def not_nvidia() -> str | None:
    """Return why torch's GPUs are not NVIDIA's, or None."""
    if torch.version.hip is None:
        return None
    return "this torch is built for AMD GPUs (ROCm); the kernels run on NVIDIA's"
