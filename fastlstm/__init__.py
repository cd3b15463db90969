"""fastlstm: torch.nn.LSTM with fused kernels, and character models on top.

fastlstm.LSTM, fastlstm.TokenLSTM      the modules
fastlstm.backend, fastlstm.explain     which kernels run
"""

from fastlstm._version import __version__
from fastlstm.dispatch import BackendError, backend, last_plan
from fastlstm.nn import LSTM, TokenLSTM

__all__ = ["LSTM", "BackendError", "TokenLSTM", "__version__", "backend", "last_plan"]
