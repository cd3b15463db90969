"""Models built by hand, so that what their cells do is known."""

from __future__ import annotations

import random

import torch

from fastlstm.charlm import CharLM, checkpoint, config
from fastlstm.charlm.data.vocab import Vocabulary
from fastlstm.charlm.model import CharModel, initialise


def untrained(symbols: str, hidden_size: int = 24, num_layers: int = 2, seed: int = 0, scale: float = 0.0) -> CharLM:
    """A model as it is before training."""
    torch.manual_seed(seed)
    model = CharModel(len(symbols), hidden_size, num_layers)
    initialise(model, scale)
    options = config.make(hidden_size=hidden_size, num_layers=num_layers).settle(False)
    saved = checkpoint.Checkpoint(config.to_json(options), Vocabulary(symbols), {}, {}, model.state_dict())
    return CharLM(model.eval(), saved)


def with_quote_cell(symbols: str, layer: int, unit: int, hidden_size: int = 24) -> CharLM:
    """An untrained model whose cell is +1 inside double quotes and -1 outside: every quote turns it round.

    In layer 0 a quote opens the input gate and shuts the forget gate, and the candidate is the opposite of the cell's
    own h; all other characters leave it alone. In layer 1 the cell copies one planted below. No other cell sees it.
    """
    lm = untrained(symbols, hidden_size, 2)
    lstm, H, quote = lm.model.rnn.lstm, hidden_size, symbols.index('"')
    with torch.no_grad():
        where = unit if layer == 0 else 0
        i, f, g, o = (gate * H + where for gate in range(4))
        for row in (i, f, g, o):
            for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
                getattr(lstm, name)[row] = 0.0
        lstm.weight_ih_l0[i, quote], lstm.bias_ih_l0[i] = 60.0, -30.0
        lstm.weight_ih_l0[f, quote], lstm.bias_ih_l0[f] = -60.0, 30.0
        lstm.weight_hh_l0[g, where], lstm.bias_ih_l0[g] = -40.0, 4.0
        lstm.bias_ih_l0[o] = 30.0
        own = lstm.weight_hh_l0[:, where].clone()
        lstm.weight_hh_l0[:, where] = 0.0
        lstm.weight_hh_l0[g, where] = own[g]
        lstm.weight_ih_l1[:, where] = 0.0
        if layer == 1:
            _copy_below(lstm, H, where, unit)
    return lm


def _copy_below(lstm: torch.nn.Module, H: int, below: int, unit: int) -> None:
    for gate, bias in ((0, 30.0), (1, -30.0), (2, 0.0), (3, 30.0)):
        row = gate * H + unit
        lstm.weight_ih_l1[row], lstm.weight_hh_l1[row], lstm.bias_hh_l1[row] = 0.0, 0.0, 0.0
        lstm.bias_ih_l1[row] = bias
    lstm.weight_hh_l1[:, unit] = 0.0
    lstm.weight_ih_l1[2 * H + unit, below] = 5.0


def quoted_prose(characters: int, seed: int = 0) -> str:
    """Sentences, some of them in double quotes, some with a bracket, in lines of various lengths."""
    rng = random.Random(seed)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "dogs", "run", "over", "17", "hills", "Rome"]
    text = ""
    while len(text) < characters:
        sentence = " ".join(rng.choice(words) for _ in range(rng.randint(3, 12)))
        if rng.random() < 0.4:
            sentence = f'"{sentence}," he said'
        if rng.random() < 0.2:
            sentence += f" ({rng.choice(words)} {rng.choice(words)})"
        text += sentence.capitalize() + "." + rng.choice("   \n")
    return text[:characters]
