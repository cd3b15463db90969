"""Captions for pictures: what is seen becomes the first state of a language model, as in NeuralTalk.

Pictures of one or two shapes are drawn at random, in three shapes, four colours and two sizes, anywhere and over noise.
A small convolutional network reads the picture; its output is the state in which fastlstm.TokenLSTM begins to write,
word by word. Training feeds the words of the true captions, packed, since they differ in length.

python examples/captions.py          trains for about a minute, then captions a thousand unseen pictures
"""

import argparse
import time

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fastlstm

SIZE = 32  # pixels of a picture's side
COLOURS = {"red": (1, 0, 0), "green": (0, 0.8, 0), "blue": (0.1, 0.2, 1), "yellow": (1, 0.9, 0)}
SHAPES = ("circle", "square", "triangle")
SIZES = {"small": 3.5, "large": 6.5}  # half the width, in pixels
WORDS = ("<end>", "a", "above", "beside", *COLOURS, *SHAPES, *SIZES)
IDS = {word: number for number, word in enumerate(WORDS)}
LONGEST = 12  # words


def draw(picture, shape, colour, half, y, x):
    """Paint a shape with its middle at (y, x) into a picture (SIZE, SIZE, 3)."""
    dy, dx = np.mgrid[:SIZE, :SIZE] - np.array([y, x])[:, None, None]
    inside = {
        "circle": dy**2 + dx**2 <= half**2,
        "square": (abs(dy) <= half) & (abs(dx) <= half),
        "triangle": (dy <= half) & (2 * abs(dx) <= dy + half),
    }[shape]
    picture[inside] = COLOURS[colour]


def make(rng):
    """A picture (3, SIZE, SIZE) float32 and its caption, a list of words."""
    picture = rng.random((SIZE, SIZE, 3)) * 0.25
    caption, relation = [], rng.choice([None, "above", "beside"])
    for part in range(1 if relation is None else 2):
        shape, colour, size = rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.choice(list(SIZES))
        where = rng.uniform(7, SIZE - 8, 2)  # y, x
        if relation is not None:  # the first one is above, or on the left
            where[0 if relation == "above" else 1] = rng.uniform(7, 8) + 16 * part
            caption += [relation] if part else []
        draw(picture, shape, colour, SIZES[size], *where)
        caption += ["a", size, colour, shape]
    return picture.transpose(2, 0, 1).astype(np.float32), caption


def _convolution(inputs, outputs, width):
    """Half the size, more channels."""
    return (
        nn.Conv2d(inputs, outputs, width, stride=2, padding=width // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Captioner(nn.Module):
    """Picture → first state → words."""

    def __init__(self, H=128):
        super().__init__()
        self.eye = nn.Sequential(
            *_convolution(3, 16, 5),
            *_convolution(16, 32, 3),
            *_convolution(32, 64, 3),
            nn.Flatten(),
            nn.Linear(64 * (SIZE // 8) ** 2, 2 * H),
        )
        self.rnn = fastlstm.TokenLSTM(len(WORDS), None, H)
        self.out = nn.Linear(H, len(WORDS))

    def look(self, pictures):
        """(B, 3, SIZE, SIZE) → the state (h0, c0), (1, B, H) each."""
        h, c = self.eye(pictures)[None].chunk(2, -1)
        return torch.tanh(h).contiguous(), c.contiguous()

    @torch.no_grad()
    def write(self, pictures):
        """Captions, always with the most likely word. The word before the first is <end>."""
        state = self.look(pictures)
        words, steps = torch.zeros(1, len(pictures), dtype=torch.int64), []
        for _ in range(LONGEST):
            h, state = self.rnn(words, state)
            words = self.out(h).argmax(-1)
            steps.append(words[0])
        return [_until_end(row) for row in torch.stack(steps, 1).tolist()]


def _until_end(ids):
    return [WORDS[i] for i in (ids[: ids.index(0)] if 0 in ids else ids)]


def batch(rng, B):
    """B pictures and their captions as ids, each closed by <end>."""
    pictures, captions = zip(*(make(rng) for _ in range(B)), strict=True)
    return torch.from_numpy(np.stack(pictures)), [torch.tensor([IDS[word] for word in [*c, "<end>"]]) for c in captions]


def train(iterations=1500, B=64, seed=0, show=lambda text: None):
    """A trained Captioner."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = Captioner()
    optimiser = torch.optim.Adam(model.parameters(), 2e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, iterations)
    for i in range(1, iterations + 1):
        pictures, captions = batch(rng, B)
        before = pack_sequence([torch.cat([c.new_zeros(1), c[:-1]]) for c in captions], enforce_sorted=False)
        after = pack_sequence(captions, enforce_sorted=False)
        h, _ = model.rnn(before, model.look(pictures))
        loss = nn.functional.cross_entropy(model.out(h.data), after.data)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if i % 100 == 0:
            show(f"iteration {i:5}  loss {loss.item():.4f} nats a word")
    return model.eval()


def accuracy(model, number=1000, seed=10**6):
    """The share of exact captions on unseen pictures, and some of them: (true, written)."""
    pictures, captions = batch(np.random.default_rng(seed), number)
    true = [_until_end(ids.tolist()) for ids in captions]
    pairs = list(zip(true, model.write(pictures), strict=True))
    return sum(one == two for one, two in pairs) / number, pairs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--iterations", type=int, default=1500)
    start = time.monotonic()
    model = train(parser.parse_args().iterations, show=print)
    share, pairs = accuracy(model)
    for true, written in pairs[:6]:
        print("right: " + " ".join(written) if true == written else f"WRONG: {' '.join(written)}, not {' '.join(true)}")
    print(f"{share:.1%} of 1,000 unseen pictures captioned exactly, after {time.monotonic() - start:.0f} s")
