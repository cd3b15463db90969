"""A character model in numpy alone: a plain recurrent network, back-propagation through time, Adagrad.

python examples/min_char_rnn.py FILE [ITERATIONS] trains; --check instead compares gradients with finite differences.
    h[t] = tanh(Wxh[:, x[t]] + Whh h[t-1] + bh)     p[t] = softmax(Why h[t] + by)     loss = -sum of log p[t][y[t]]
"""

import sys
from pathlib import Path

import numpy as np

H, T, RATE, CLIP = 100, 25, 0.1, 5.0  # hidden units, steps per update, learning rate, largest gradient value


def make(V, H, rng):
    """Parameters by name, for V characters."""
    shapes = {"Wxh": (H, V), "Whh": (H, H), "Why": (V, H), "bh": (H,), "by": (V,)}
    return {name: rng.standard_normal(s) * 0.01 if len(s) == 2 else np.zeros(s) for name, s in shapes.items()}


def step(p, h, x):
    """One character: the new state (H,) and the probabilities of the next one (V,)."""
    h = np.tanh(p["Wxh"][:, x] + p["Whh"] @ h + p["bh"])
    scores = p["Why"] @ h + p["by"]
    e = np.exp(scores - scores.max())
    return h, e / e.sum()


def loss_and_gradients(p, h0, x, y):
    """Loss in nats of the targets y after the inputs x (T ids each), its gradients, and the last state."""
    hs, probabilities = [h0], []
    for symbol in x:
        h, probability = step(p, hs[-1], symbol)
        hs, probabilities = [*hs, h], [*probabilities, probability]
    loss = -sum(np.log(probability[target]) for probability, target in zip(probabilities, y, strict=True))
    d = {name: np.zeros_like(value) for name, value in p.items()}
    dh_next = np.zeros_like(h0)
    for t in reversed(range(len(x))):
        dscores = probabilities[t] - (np.arange(len(p["by"])) == y[t])  # of softmax and log together
        d["Why"] += np.outer(dscores, hs[t + 1])
        d["by"] += dscores
        dpre = (p["Why"].T @ dscores + dh_next) * (1 - hs[t + 1] ** 2)  # before the tanh
        d["Wxh"][:, x[t]] += dpre
        d["Whh"] += np.outer(dpre, hs[t])
        d["bh"] += dpre
        dh_next = p["Whh"].T @ dpre
    return loss, d, hs[-1]


def sample(p, h, x, n, rng):
    """n ids that follow the id x in the state h."""
    ids = [x]
    for _ in range(n):
        h, probability = step(p, h, ids[-1])
        ids.append(rng.choice(len(probability), p=probability))
    return ids[1:]


def train(text, iterations, rng, show=print):
    """Adagrad over the text, T characters at a time. Returns parameters, characters and the smoothed loss."""
    chars = sorted(set(text))
    ids = np.array([chars.index(c) for c in text])
    p = make(len(chars), H, rng)
    squares = {name: np.zeros_like(value) for name, value in p.items()}
    smooth, at, h = np.log(len(chars)), 0, np.zeros(H)
    for i in range(iterations):
        if at + T + 1 > len(ids):
            at, h = 0, np.zeros(H)
        loss, d, h_next = loss_and_gradients(p, h, ids[at:][:T], ids[at + 1 :][:T])
        smooth = 0.999 * smooth + 0.001 * loss / T
        if i % 1000 == 0:
            written = "".join(chars[k] for k in sample(p, h, ids[at], 200, rng))
            show(f"{i}: {smooth:.3f} nats a character\n{written}\n")
        for name, gradient in d.items():
            squares[name] += gradient.clip(-CLIP, CLIP) ** 2
            p[name] -= RATE * gradient.clip(-CLIP, CLIP) / np.sqrt(squares[name] + 1e-8)
        at, h = at + T, h_next
    return p, chars, smooth


def check(rng, V=6, H=5, T=7, eps=1e-5):
    """The largest relative difference between the gradients and central differences."""
    p = {name: value * 50 for name, value in make(V, H, rng).items()}
    h, (x, y) = rng.standard_normal(H), rng.integers(V, size=(2, T))
    d, worst = loss_and_gradients(p, h, x, y)[1], 0.0
    for name, value in p.items():
        for k in np.ndindex(value.shape):
            numeric = 0.0
            for change, sign in ((eps, 1), (-2 * eps, -1), (eps, 0)):
                value[k] += change
                numeric += sign * loss_and_gradients(p, h, x, y)[0] / (2 * eps)
            worst = max(worst, abs(numeric - d[name][k]) / max(1e-3, abs(numeric)))
    return worst


if __name__ == "__main__":
    if sys.argv[1] == "--check":
        print(f"largest relative error of a gradient: {check(np.random.default_rng(0)):.1e}")
    else:
        train(Path(sys.argv[1]).read_text(), int((*sys.argv, 20_000)[2]), np.random.default_rng(0))
