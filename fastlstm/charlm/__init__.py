"""The character-model tool: char-rnn, on fastlstm's public API.

    from fastlstm.charlm import CharLM, train
    result = train("names", "runs/names", preset="names", max_epochs=20)
    model = result.load()                      # or CharLM.load("runs/names"), CharLM.load("names")
    model.sample(num=10, temperature=0.8)
    model.evaluate().nats_per_char
    trace(model, text).c, find_cells(model, text).rows         # what goes on inside

Subpackages, in the order in which data meets them; each imports only from those before it:

    data       text sources, corpora, vocabulary, splits       config.py, model.py, checkpoint.py use it
    sampling   text from a model, its novelty, its syntax      evaluate.py, ngram.py, lm.py (CharLM) are above it
    analysis   traces, labels, the search for cells
    training   the loop, optimiser, processes, resuming, logs
    page       the HTML page of `fastlstm visualize`
    commands   the command line

To read the whole: data/corpus.py, data/splits.py, model.py, training/optim.py, training/trainer.py, sampling/sample.py.
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
