"""The character-model tool: char-rnn, on fastlstm's public API.

    from fastlstm.charlm import CharLM, train
    result = train("names", "runs/names", preset="names", max_epochs=20)
    model = result.load()                      # or CharLM.load("runs/names"), CharLM.load("names")
    model.sample(num=10, temperature=0.8)
    model.evaluate().nats_per_char
    trace(model, text).c, find_cells(model, text).rows         # what goes on inside

Read the sources in this order: corpus.py, splits.py, model.py, optim.py, trainer.py, sample.py; the rest stands around.
"""

from .analysis.cells import Findings, find_cells
from .analysis.tracing import Trace, pieces, trace
from .errors import CharLMError
from .lm import CharLM
from .training.runs import Interrupted, TrainResult, train

__all__ = [
    "CharLM",
    "CharLMError",
    "Findings",
    "Interrupted",
    "Trace",
    "TrainResult",
    "find_cells",
    "pieces",
    "trace",
    "train",
]
