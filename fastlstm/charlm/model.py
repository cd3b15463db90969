"""The model: character ids → LSTM layers → scores (logits) of the next character."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fastlstm

from .errors import CharLMError

State = tuple[Tensor, Tensor]  # h and c, (layers, B, H) each; fastlstm exports no name for the pair


class CharModel(nn.Module):
    """An LSTM that predicts the next character.

    Args:
        symbols: V, size of the vocabulary
        hidden_size: H
        num_layers: L
        embedding_dim: of the input; 0 for one-hot
        dropout: after every layer
        locked_dropout: after every layer, one mask for all steps of a call (variational dropout)
        weight_drop: of the recurrent weights (DropConnect)
    """

    def __init__(
        self,
        symbols: int,
        hidden_size: int,
        num_layers: int,
        embedding_dim: int = 0,
        dropout: float = 0.0,
        locked_dropout: float = 0.0,
        weight_drop: float = 0.0,
    ):
        super().__init__()
        between = dropout if num_layers > 1 else 0.0
        self.rnn = fastlstm.TokenLSTM(symbols, embedding_dim or None, hidden_size, num_layers, dropout=between)
        self.rnn.lstm.locked_dropout, self.rnn.lstm.weight_drop = locked_dropout, weight_drop
        self.drop, self.locked = nn.Dropout(dropout), nn.Dropout(locked_dropout)
        self.out = nn.Linear(hidden_size, symbols)

    def forward(self, ids: Tensor, state: State | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """Predict the next character after every character.

        Args:
            ids: (T, B) int64
            state: h and c, (L, B, H) each; None for zero
            reset: (T, B) bool, steps before which the state is set to zero

        Returns:
            Scores (T, B, V) and the last state.
        """
        h, state = self.rnn(ids, state, reset=reset)
        h = self.drop(h)
        if self.training and self.locked.p:
            h = h * self.locked(torch.ones_like(h[:1]))
        return self.out(h), state

    def zero_state(self, batch: int) -> State:
        weight = self.out.weight
        shape = (self.rnn.num_layers, batch, self.out.in_features)
        return weight.new_zeros(shape), weight.new_zeros(shape)


def initialise(model: CharModel, scale: float) -> None:
    """char-rnn's initialisation: parameters uniform in ±scale (0: keep the layers' own), bias of the forget gates 1."""
    with torch.no_grad():
        if scale:
            for parameter in model.parameters():
                parameter.uniform_(-scale, scale)
        H = model.out.in_features
        for name, parameter in model.rnn.named_parameters():
            if ".bias_ih" in name:
                parameter[H : 2 * H] = 1.0
            elif ".bias_hh" in name and not scale:
                parameter[H : 2 * H] = 0.0


def check_finite(model: nn.Module, name: str = "the model") -> None:
    """Raises CharLMError if weights are NaN or infinite. name: of the model in the message."""
    for key, value in model.named_parameters():
        odd = int((~value.isfinite()).sum())
        if odd:
            what = "NaN" if value.isnan().any() else "infinite numbers"
            raise CharLMError(
                f"the weights of {name} hold {what}: {odd:,} of {value.numel():,} in {key}; take an earlier checkpoint, or "
                "train anew with a lower --learning-rate"
            )


def not_finite(model: nn.Module) -> CharLMError:
    """The error for predictions that are NaN or infinite: what is wrong with the model's weights."""
    try:
        check_finite(model)
    except CharLMError as error:
        return error
    return CharLMError(
        "the model's predictions are not finite numbers: its weights are too large; take an earlier checkpoint, or train anew "
        "with a lower --learning-rate"
    )


def find_device(name: str | torch.device) -> torch.device:
    """The device of a name, after a first use of it. Raises CharLMError if there is none here."""
    try:
        device = torch.device(name)
        torch.zeros(
            1, dtype=torch.float32, device=device
        ).item()  # `meta` and devices that are not here fail at their first use
    except (RuntimeError, AssertionError, ImportError, ValueError) as error:
        if str(name).partition(":")[0] == "cuda" and not torch.cuda.is_available():
            raise CharLMError("this torch has no CUDA device here (see `fastlstm doctor`); use --device cpu") from error
        raise CharLMError(f"there is no device {str(name)!r} here; expected auto, cpu, cuda or cuda:0") from error
    return device


def parameters(model: nn.Module) -> int:
    """Number of weights."""
    return sum(parameter.numel() for parameter in model.parameters())
