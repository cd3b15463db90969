"""`CharLM`: a trained model with its vocabulary, to sample from, to evaluate and to score text with."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import checkpoint
from . import config as configs
from .checkpoint import Checkpoint
from .config import TrainConfig
from .data import splits
from .data.corpus import Corpus, CorpusOptions, find, load
from .data.recorded import find_recorded, without_paths
from .data.splits import CorpusSplit, EvalText
from .data.text_source import decode, small_text
from .data.unknown import check_policy, encode
from .errors import CharLMError, brief
from .evaluate import Evaluation, evaluate, nats_by_position, targets
from .model import CharModel, check_finite, find_device, not_finite
from .ngram import NGrams
from .sampling.sample import Sampling, sample_texts

EVAL_STREAMS = 64  # streams side by side that a text is evaluated in
TEXTS_AT_ONCE = 256  # texts side by side that are scored


@dataclass(frozen=True)
class Scored:
    """One scored text.

    Attributes:
        text: as it was given
        nats: -log p of each of its characters (of a byte model: bytes), (n,) float32; NaN where one was skipped. A model
            of lines also scores the newline that ends its item: (n + 1,)
    """

    text: str
    nats: np.ndarray

    @property
    def total(self) -> float:
        """-log p of the whole text, in nats."""
        return float(np.nansum(self.nats, dtype=np.float64))

    @property
    def mean(self) -> float:
        """Nats a scored character; NaN of an empty text."""
        scored = int(np.count_nonzero(~np.isnan(self.nats)))
        return self.total / scored if scored else math.nan


def _check_shapes(path: Path, weights: dict[str, Tensor], sizes: tuple[int, int, int, int]) -> None:
    """Raises CharLMError if the weights of a file are not those of a model of some sizes. No memory is taken for the model."""
    with torch.device("meta"):
        expected = {name: list(value.shape) for name, value in CharModel(*sizes).state_dict().items()}
    for name in (*expected, *sorted(set(weights) - set(expected))):
        has, needs = (list(weights[name].shape) if name in weights else "missing"), expected.get(name, "unknown")
        if has != needs:
            what = (
                f"{brief(name)} is {has}, expected {needs}" if needs != "unknown" else f"{brief(name)} is none of them"
            )
            raise CharLMError(f"{path} is damaged: its weights do not fit its configuration ({what})")


class CharLM:
    """A trained character model.

    Args:
        model: the torch module, in eval mode
        saved: the checkpoint it was loaded from
    """

    def __init__(self, model: CharModel, saved: Checkpoint):
        self.model, self.saved = model, saved
        self.vocab = saved.vocab
        self.config: TrainConfig = configs.from_json(saved.config)

    @classmethod
    def load(cls, name: str | Path, device: str = "cpu") -> CharLM:
        """Load a model.

        Args:
            name: a checkpoint, the folder of a run, or a model of the package (`names`)
            device: of the weights

        Raises:
            CharLMError: there is no such checkpoint, or it is damaged.
        """
        path = checkpoint.locate(str(name))
        saved = checkpoint.read(path)
        config = configs.from_json(saved.config)
        sizes = (len(saved.vocab), config.hidden_size, config.num_layers, config.embedding_dim)
        _check_shapes(path, saved.weights, sizes)
        model = CharModel(*sizes)
        model.load_state_dict({key: value.float() for key, value in saved.weights.items()})
        check_finite(model, str(path))
        return cls(model.eval().to(find_device(device)), saved)

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the model, without the state of its run, to a checkpoint.

        Args:
            path: of the file
            dtype: of the weights; torch.float16 halves the file

        Raises:
            CharLMError: the file cannot be written.
        """
        weights = {name: value.to(dtype) for name, value in self.model.state_dict().items()}
        corpus = without_paths(self.saved.corpus)  # the file may go to another machine
        checkpoint.write(Path(path), replace(self.saved, corpus=corpus, weights=weights, train={}, run={}))

    @property
    def of_lines(self) -> bool:
        """True if the model was trained on one item a line."""
        return self.config.lines

    def sampling(self, **options: Any) -> Sampling:
        """Sampling options with this model's defaults: one item of a model of lines, unless length or stop is given."""
        if self.of_lines and options.get("length") is None and options.get("stop") is None:
            options.update(length=1000, stop="\n")
        return Sampling(**{name: value for name, value in options.items() if value is not None})

    def sample(self, num: int | None = None, **options: Any) -> str | list[str]:
        """Sample text from the model.

        Args:
            num: number of samples; None for a single string
            options: fields of `sampling.sample.Sampling`: length, temperature, top_k, top_p, prime, stop, seed, …

        Returns:
            The text, prime included, or a list of `num` texts.

        Raises:
            CharLMError: an option is out of range, or the prime has characters outside the vocabulary.
        """
        sampling = self.sampling(num=num, **options)
        texts = [sampling.prime + text for text in sample_texts(self.model, self.vocab, sampling)]
        return texts[0] if num is None else texts

    def corpus(self, name: str | None = None, unknown: str = "error") -> Corpus:
        """Read a text with the options of the model's own corpus; in other lists repeated items stay.

        Args:
            name: file, folder or name of a corpus; None for the model's own
            unknown: what to do with characters that the model never saw: `error`, or `skip` (leave them out)

        Raises:
            CharLMError: the text cannot be read, has characters outside the vocabulary, or is no longer the text that
                the model was trained on (name None).
        """
        check_policy(unknown, ("error", "skip"))
        config = self.config
        corpus_options = CorpusOptions(config.encoding, config.bytes, config.lines, unique=config.split == "lines")
        if name is not None:
            found = find(name, corpus_options)  # once: a pipe is read once
            options = replace(corpus_options, unique=False)
            text = load(name, options, self.vocab, source_and_note=found, unknown=unknown)
            own = corpus_options.unique and self.is_own_corpus(text)
            return load(name, corpus_options, self.vocab, source_and_note=found) if own else text
        was = self.saved.corpus
        found = find_recorded(was, self.saved.folder, corpus_options)
        text = load(was["name"], corpus_options, self.vocab, source_and_note=found, unknown=config.unknown)
        if not self.is_own_corpus(text):
            raise CharLMError(
                f"{was['name']} is not the text this model learned: it changed since; put that text back, or name "
                "another where one can be named"
            )
        return text

    def is_own_corpus(self, corpus: Corpus) -> bool:
        """True if a corpus is the one that the model was trained on, by its SHA-256."""
        return corpus.sha256 == self.saved.corpus["sha256"]

    def divide(self, corpus: Corpus) -> CorpusSplit:
        """Divide the model's corpus as in training."""
        config = self.config
        return splits.divide(corpus, config.split, config.val_frac, config.batch_size, config.seq_length, config.seed)

    def eval_text(self, corpus: Corpus, part: str) -> EvalText:
        """The part of a corpus to evaluate on: `all` or, of the model's own corpus, `val` or `train`."""
        if part == "all":
            return self._all_text(corpus.ids)
        data = self.divide(corpus)
        if part == "val":
            return data.val
        return self._all_text(np.concatenate([corpus.ids[start:stop] for start, stop in data.train_spans]))

    def _all_text(self, ids: np.ndarray) -> EvalText:
        """All of a text; its first character is predicted from a newline if the vocabulary has one."""
        if "\n" not in self.vocab:
            return splits.held_out(ids, 0, EVAL_STREAMS)
        newline = self.vocab.encode("\n")
        return splits.held_out(np.concatenate([newline, ids]), 1, EVAL_STREAMS)

    def evaluate(self, name: str | None = None, part: str | None = None, unknown: str = "error") -> Evaluation:
        """The loss on a text.

        Args:
            name: file, folder or name of a corpus; None for the model's own
            part: `all`, `train` or `val`; by default `val` of the model's own corpus and `all` of any other
            unknown: as for `corpus`

        Raises:
            CharLMError: as for `corpus`.
        """
        corpus = self.corpus(name, unknown)
        part = part or ("val" if self.is_own_corpus(corpus) else "all")
        return evaluate(self.model, self.vocab, self.eval_text(corpus, part))

    def baseline(self, eval_text: EvalText, orders: int = 6) -> list[float]:
        """Loss of n-grams counted on the model's training text, in nats a character, for n = 1 … orders."""
        corpus = self.corpus()
        train = np.concatenate([corpus.ids[start:stop] for start, stop in self.divide(corpus).train_spans])
        positions = targets(eval_text)
        return [nats / len(positions) for nats in NGrams(train, len(self.vocab), orders).nats(eval_text.ids, positions)]

    def score(self, texts: Iterable[str], unknown: str = "error") -> list[Scored]:
        """Log-probability of each text, read by itself and as it is: nothing is added to it or taken from it.

        A text's first character is predicted from a newline; a model without one gives each of its V symbols the
        probability 1/V, as `sample` begins. A text of a model of lines is one item, which ends with a newline.

        Args:
            texts: to score
            unknown: what to do with characters that the model never saw: `error`, or `skip` (the model does not read
                them; their nats are NaN)

        Raises:
            CharLMError: a text has characters outside the vocabulary (`error`).
        """
        if isinstance(texts, str):
            raise CharLMError(f"score takes several texts, in a list, not one string {texts[:20]!r}")
        check_policy(unknown, ("error", "skip"))
        texts = list(texts)
        encoded = [encode(self.vocab, self._item(text), unknown) for text in texts]
        scored = self._nats_of([one.ids for one in encoded])
        results = []
        for text, one, nats in zip(texts, encoded, scored, strict=True):
            whole = np.full(len(one.kept), np.nan, np.float32)
            whole[one.kept] = nats
            results.append(Scored(text, whole))
        return results

    def _item(self, text: str) -> str:
        """A text as the symbols that are scored."""
        return self.vocab.from_text(text) + "\n" * self.of_lines

    def _nats_of(self, texts: list[np.ndarray]) -> list[np.ndarray]:
        """-log p of every character of some texts, each read by itself. texts: ids, (n,) each."""
        first = self.vocab.encode("\n")[:1] if "\n" in self.vocab else np.zeros(0, self.vocab.dtype)
        nats = [np.full(len(ids), math.log(len(self.vocab)), np.float32) for ids in texts]
        whole = [np.concatenate([first, ids]) for ids in texts]
        lengths = np.array([len(ids) - 1 for ids in whole], np.int64)  # predictions of each text
        order = [k for k in np.argsort(lengths, kind="stable") if lengths[k] > 0]
        for group in (order[a : a + TEXTS_AT_ONCE] for a in range(0, len(order), TEXTS_AT_ONCE)):
            ends = np.cumsum(lengths[group] + 1)
            side_by_side = EvalText(
                np.concatenate([whole[k] for k in group]),
                ends - lengths[group] - 1,
                np.zeros_like(ends),
                lengths[group],
            )
            by_position = nats_by_position(self.model, side_by_side)
            if not np.isfinite(by_position[targets(side_by_side)]).all():
                raise not_finite(self.model)
            for k, end in zip(group, ends, strict=True):
                nats[k][len(nats[k]) - lengths[k] :] = by_position[end - lengths[k] : end]
        return nats

    def read_text(self, path: Path) -> str:
        """The text of a small file, read as the model's own corpus was. Raises CharLMError."""
        return small_text(path, self._encoding)

    def decode_text(self, data: bytes, name: str) -> str:
        """The text of some bytes, likewise. name: of the text in error messages."""
        return decode(data, self._encoding, name)

    @property
    def _encoding(self) -> str | None:
        return None if self.config.bytes else self.config.encoding
