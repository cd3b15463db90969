"""The character-model tool: char-rnn, on fastlstm's public API.

    from fastlstm.charlm import CharLM, train
    result = train("names", "runs/names", preset="names", max_epochs=20)
    model = result.load()                      # or CharLM.load("runs/names"), CharLM.load("names")
    model.sample(num=10, temperature=0.8)
    model.evaluate().nats_per_char
    trace(model, text).c, find_cells(model, text).rows         # what goes on inside

Modules and subpackages in the order of their imports; each imports only from those above it:

    errors.py                             CharLMError
    data/                                 text sources, corpora, vocabulary, splits
    config.py model.py checkpoint.py      options of a run, the network, its file
    evaluate.py ngram.py                  the loss on a text, and its baseline
    sampling/                             text from a model; its novelty and its syntax
    lm.py                                 CharLM, a trained model
    analysis/                             traces, labels, the search for cells
    training/                             the loop, optimiser, processes, resuming, logs
    page/                                 the HTML page of `fastlstm visualize`
    commands/                             the command line

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
