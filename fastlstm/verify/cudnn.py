"""Which of cuDNN's algorithms torch's own LSTM runs: torch's rules (`get_algo` in aten/src/ATen/native/cudnn/RNN.cpp).

They hold on GPUs of compute capability 8.0 and newer with 98 multiprocessors or more, 8.6 excepted; elsewhere
PERSIST_STATIC is not used. STANDARD is a product and a pointwise kernel per step; the others keep W_hh on the chip.
"""

from __future__ import annotations

STANDARD = "STANDARD"
PERSIST_STATIC = "PERSIST_STATIC"
SMALL_H = "PERSIST_STATIC_SMALL_H"


def algorithm(
    math: str, H: int, I: int, B: int, layers: int, bidirectional: bool, packed: bool, projected: bool, training: bool
) -> str:
    """Return the algorithm of a call of nn.LSTM.

    math: float32, tf32, bfloat16 or float16; layers: of the whole module; training: backward runs too. Where forward
    and backward differ (128 < H ≤ 192), both are named with a stroke between.
    """
    if packed or projected:
        return STANDARD
    kept = _kept(math, H, I, B, layers, bidirectional)
    forward = SMALL_H if H <= 192 else kept
    backward = SMALL_H if H <= 128 else kept
    return forward if not training or forward == backward else f"{forward}/{backward}"


def _kept(math: str, H: int, I: int, B: int, layers: int, bidirectional: bool) -> str:
    """The algorithm of dense input where H is not small."""
    alone = layers == 1 and not bidirectional
    sizes = H % 128 == 0 and I % 128 == 0 and H <= 1024 and B % 8 == 0 and B <= 128
    return PERSIST_STATIC if math == "float16" and alone and sizes else STANDARD
