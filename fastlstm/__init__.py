"""fastlstm: torch.nn.LSTM with fused kernels, and character models on top.

fastlstm.LSTM, fastlstm.TokenLSTM      the modules
fastlstm.decode, fastlstm.Decoder      ids drawn from a TokenLSTM and an output layer
fastlstm.replace, fastlstm.restore     swap the nn.LSTMs of a whole model, and back
fastlstm.backend, fastlstm.explain     which kernels run, and why
fastlstm.check                         after replays of a CUDA graph: what went wrong in its kernels
fastlstm.warm_up                       compile Triton kernels before the first call
"""

from fastlstm import autograd, checks, direct, dispatch, gradients, native, ops, products, quick, stream
from fastlstm._version import __version__
from fastlstm.backends.cuda_status import check
from fastlstm.decoding import Decoded, Decoder, decode
from fastlstm.decoding import native as decoding_native
from fastlstm.dispatch import BackendError, backend, last_plan
from fastlstm.explain import explain
from fastlstm.nn import LSTM, TokenLSTM
from fastlstm.swap import replace, restore
from fastlstm.untraced import leave_alone
from fastlstm.warmup import warm_up

__all__ = [
    "LSTM",
    "BackendError",
    "Decoded",
    "Decoder",
    "TokenLSTM",
    "__version__",
    "backend",
    "check",
    "decode",
    "explain",
    "last_plan",
    "replace",
    "restore",
    "warm_up",
]

leave_alone(autograd, checks, decoding_native, direct, dispatch, gradients, native, ops, products, quick, stream)
leave_alone(LSTM._directly, TokenLSTM._directly)
