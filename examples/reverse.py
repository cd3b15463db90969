"""Sequence to sequence: reversing, with an encoder, a decoder and attention.

The encoder (bidirectional, packed input: sequences of different lengths) reads the tokens; the decoder starts from its
last state and looks back at what the encoder saw at each place (dot-product attention) for each token it writes.

python examples/reverse.py           trains for under a minute, then reverses a thousand unseen sequences
"""

import argparse
import time

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

import fastlstm

TOKENS, LONGEST = 20, 10
END = TOKENS  # closes a sequence, and begins one
PAD = TOKENS + 1


class Reverser(nn.Module):
    """Tokens in, the same tokens backwards out. H: units of the decoder, twice those of each encoder direction."""

    def __init__(self, H=128):
        super().__init__()
        self.encoder = fastlstm.TokenLSTM(TOKENS + 2, 32, H // 2, bidirectional=True)
        self.decoder = fastlstm.TokenLSTM(TOKENS + 2, 32, H)
        self.mix = nn.Linear(2 * H, H)
        self.out = nn.Linear(H, TOKENS + 1)

    def read(self, tokens, lengths):
        """tokens (T, B) padded, lengths (B,) → what was seen (B, T, H), where there was something, the state."""
        packed = pack_padded_sequence(tokens, lengths, enforce_sorted=False)
        seen, (h, c) = self.encoder(packed)
        seen = pad_packed_sequence(seen)[0].transpose(0, 1)
        state = tuple(torch.cat([part[0], part[1]], -1)[None] for part in (h, c))  # both directions side by side
        return seen, torch.arange(seen.shape[1]) < lengths[:, None], state

    def write(self, tokens, seen, where, state):
        """Previous tokens (T, B) → scores of the next ones (T, B, TOKENS + 1), and the state."""
        h, state = self.decoder(tokens, state)
        looks = torch.einsum("tbh,bsh->tbs", h, seen) / h.shape[-1] ** 0.5
        looks = looks.masked_fill(~where, -torch.inf).softmax(-1)
        context = torch.einsum("tbs,bsh->tbh", looks, seen)
        return self.out(torch.tanh(self.mix(torch.cat([h, context], -1)))), state

    @torch.no_grad()
    def reverse(self, sequences):
        """Lists of tokens → lists of tokens, always the most likely one next."""
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        seen, where, state = self.read(pad_sequence([torch.tensor(s) for s in sequences]), lengths)
        tokens, steps = torch.full((1, len(sequences)), END), []
        for _ in range(LONGEST + 2):
            scores, state = self.write(tokens, seen, where, state)
            tokens = scores.argmax(-1)
            steps.append(tokens[0])
        rows = torch.stack(steps, 1).tolist()
        return [row[: row.index(END)] if END in row else row for row in rows]


def make(generator, number):
    """Random sequences of 1 to LONGEST tokens."""
    lengths = torch.randint(1, LONGEST + 1, (number,), generator=generator)
    return [torch.randint(TOKENS, (int(n),), generator=generator) for n in lengths]


def train(iterations=1000, B=64, seed=0, show=lambda text: None):
    """A trained Reverser."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Reverser()
    optimiser = torch.optim.Adam(model.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, iterations)
    end = torch.tensor([END])
    for i in range(1, iterations + 1):
        sequences = make(generator, B)
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        before = pad_sequence([torch.cat([end, s.flip(0)]) for s in sequences], padding_value=PAD)
        after = pad_sequence([torch.cat([s.flip(0), end]) for s in sequences], padding_value=-100)
        scores, _ = model.write(before, *model.read(pad_sequence(sequences, padding_value=PAD), lengths))
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), after.flatten())  # -100 is not counted
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if i % 100 == 0:
            show(f"iteration {i:5}  loss {loss.item():.4f} nats a token")
    return model.eval()


def accuracy(model, number=1000, seed=10**6):
    """The share of unseen sequences that come back exactly reversed, and some of them: (sequence, written)."""
    sequences = [s.tolist() for s in make(torch.Generator().manual_seed(seed), number)]
    pairs = list(zip(sequences, model.reverse(sequences), strict=True))
    return sum(one[::-1] == two for one, two in pairs) / number, pairs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--iterations", type=int, default=1000)
    start = time.monotonic()
    model = train(parser.parse_args().iterations, show=print)
    share, pairs = accuracy(model)
    for sequence, written in pairs[:5]:
        print("right: " if sequence[::-1] == written else "WRONG: ", *sequence, " → ", *written)
    print(f"{share:.1%} of 1,000 unseen sequences reversed exactly, after {time.monotonic() - start:.0f} s")
