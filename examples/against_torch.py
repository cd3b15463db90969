"""The same training twice: char-rnn's recipe by fastlstm, and as one writes it with torch.nn.LSTM.

Both see the same batches from the same first weights, in turns of 50 iterations in one process, so that what else the
machine does falls on both. Prints the median time of an iteration of each.

python examples/against_torch.py CORPUS [SECONDS]          (CORPUS: a file, or python, shakespeare)
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fastlstm.charlm import config
from fastlstm.charlm.data.corpus import CorpusOptions, load
from fastlstm.charlm.training.distributed import Ranks
from fastlstm.charlm.training.progress import Reporter
from fastlstm.charlm.training.trainer import Trainer

TURN = 50  # iterations


class Plain:
    """One-hot characters, nn.LSTM, value clipping, torch's RMSprop, the state carried."""

    def __init__(self, trainer):
        settings, self.V = trainer.config, len(trainer.corpus.vocab)
        self.lstm = nn.LSTM(self.V, settings.hidden_size, settings.num_layers)
        self.out = nn.Linear(settings.hidden_size, self.V)
        weights = {name.replace("rnn.lstm.", ""): value for name, value in trainer.model.state_dict().items()}
        self.lstm.load_state_dict({name: value for name, value in weights.items() if not name.startswith("out.")})
        self.out.load_state_dict({name: weights[f"out.{name}"] for name in ("weight", "bias")})
        self.parameters = [*self.lstm.parameters(), *self.out.parameters()]
        self.optimiser = torch.optim.RMSprop(self.parameters, settings.learning_rate, alpha=settings.decay_rate)
        self.trainer, self.state, self.iteration, self.clip = trainer, None, 0, settings.grad_clip

    def step(self):
        data = self.trainer.train
        x, y = (torch.from_numpy(part) for part in data.batch(*divmod(self.iteration, data.batches)))
        h, state = self.lstm(nn.functional.one_hot(x, self.V).float(), self.state)
        self.state = tuple(part.detach() for part in state)
        loss = nn.functional.cross_entropy(self.out(h).flatten(0, 1), y.flatten())
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(self.parameters, self.clip)
        self.optimiser.step()
        self.iteration += 1


def timed(step):
    """Seconds an iteration, over one turn of them."""
    start = time.perf_counter()
    for _ in range(TURN):
        step()
    return (time.perf_counter() - start) / TURN


def main(corpus, seconds):
    with tempfile.TemporaryDirectory() as folder:
        text = load(corpus, CorpusOptions())
        trainer = Trainer(config.make().settle(False), text, Path(folder), Ranks("cpu"), Reporter())
        plain, times, start = Plain(trainer), {"fastlstm": [], "nn.LSTM": []}, time.perf_counter()
        while time.perf_counter() - start < seconds:
            times["fastlstm"].append(timed(trainer.step))
            times["nn.LSTM"].append(timed(plain.step))
    shape = f"{torch.get_num_threads()} threads, {len(times['nn.LSTM'])} turns of {TURN} iterations each"
    print(f"torch {torch.__version__}, {shape}")
    for name, values in times.items():
        low, middle, high = 1000 * np.percentile(values, (20, 50, 80))
        print(f"{name:9} {middle:6.2f} ms an iteration ({low:.2f} to {high:.2f})")
    ratio = [b / a for a, b in zip(times["fastlstm"], times["nn.LSTM"], strict=True)]
    print(f"fastlstm is {np.median(ratio):.2f} times as fast (median of the turns)")


if __name__ == "__main__":
    main(sys.argv[1], float((*sys.argv, 50)[2]))
