"""The character-model tool: char-rnn, on fastlstm's public API.

Read in this order: corpus.py, splits.py, model.py, optim.py, trainer.py, sample.py; the rest stands around them.
"""

from __future__ import annotations
