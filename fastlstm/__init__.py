"""fastlstm: torch.nn.LSTM with fused kernels, and character models on top.

fastlstm.LSTM, fastlstm.TokenLSTM      the modules
fastlstm.NNLSTM                        the LSTM as a subclass of torch.nn.LSTM, for code that asks isinstance
fastlstm.decode, fastlstm.Decoder      ids drawn from a TokenLSTM and an output layer
fastlstm.replace, fastlstm.restore     swap the nn.LSTMs of a whole model, and back
fastlstm.quantize, fastlstm.Int8LSTM   a model's LSTMs with int8 weights, for inference
fastlstm.backend, fastlstm.explain     which kernels run, and why
fastlstm.check                         after replays of a CUDA graph: what went wrong in its kernels
fastlstm.empty_cache                   give memory that is kept between training steps back
fastlstm.warm_up                       compile Triton kernels before the first call
"""

from fastlstm._version import __version__
from fastlstm.backends.cuda.status import check
from fastlstm.backends.native import empty_cache
from fastlstm.dispatch import BackendError, backend, last_plan
from fastlstm.explain import explain
from fastlstm.modules.convert import replace, restore
from fastlstm.modules.int8_lstm import Int8LSTM
from fastlstm.modules.lstm import LSTM, NNLSTM
from fastlstm.modules.quantize import quantize
from fastlstm.modules.token_lstm import TokenLSTM
from fastlstm.modules.warmup import warm_up
from fastlstm.sampling.decode import Decoded, Decoder, decode

__all__ = [
    "LSTM",
    "NNLSTM",
    "BackendError",
    "Decoded",
    "Decoder",
    "Int8LSTM",
    "TokenLSTM",
    "__version__",
    "backend",
    "check",
    "decode",
    "empty_cache",
    "explain",
    "last_plan",
    "quantize",
    "replace",
    "restore",
    "warm_up",
]
