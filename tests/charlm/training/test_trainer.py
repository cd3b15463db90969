"""The training loop against the same thing written out with torch, its options, and how it stops."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from fastlstm.charlm import CharLM, CharLMError, checkpoint, config, train
from fastlstm.charlm.data.corpus import CorpusOptions, load
from fastlstm.charlm.training.distributed import Ranks
from fastlstm.charlm.training.progress import Reporter
from fastlstm.charlm.training.trainer import Trainer
from tests.charlm.babbling import SMALL, babble


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


class Notes(Reporter):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


class TorchCharModel(nn.Module):
    """The model as char-rnn's user would write it with torch."""

    def __init__(self, V, H, layers, embedding):
        super().__init__()
        self.V, self.embedding = V, nn.Embedding(V, embedding) if embedding else None
        self.lstm = nn.LSTM(embedding or V, H, layers)
        self.out = nn.Linear(H, V)

    def forward(self, ids, state):
        x = self.embedding(ids) if self.embedding else nn.functional.one_hot(ids, self.V).float()
        h, state = self.lstm(x, state)
        return self.out(h), state


@pytest.mark.parametrize("embedding", [0, 5])
def test_training_loop_is_char_rnns(text, tmp_path, embedding):
    """Forty iterations of nn.LSTM, torch's RMSprop and value clipping, the state carried: the same losses."""
    options = {**SMALL, "embedding_dim": embedding, "grad_clip": 0.01, "learning_rate": 0.01}
    settings = config.make(**options).settle(False)
    corpus = load(str(text), CorpusOptions())
    trainer = Trainer(settings, corpus, tmp_path, Ranks("cpu"), Reporter())
    torch_model = TorchCharModel(len(corpus.vocab), 12, 2, embedding)
    torch_model.load_state_dict({name.replace("rnn.", ""): value for name, value in trainer.model.state_dict().items()})
    optimiser = torch.optim.RMSprop(torch_model.parameters(), lr=0.01, alpha=0.95)
    state = trainer.model.zero_state(4)
    for k in range(40):
        x, y = (torch.from_numpy(part) for part in trainer.train.batch(0, k))
        scores, state = torch_model(x, state)
        state = tuple(part.detach() for part in state)
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(torch_model.parameters(), 0.01)
        optimiser.step()
        before = float(trainer.loss_sum)
        trainer.step()
        assert float(trainer.loss_sum) - before == pytest.approx(loss.item(), rel=1e-3, abs=1e-3), k
    assert loss.item() < 2.8  # it learned something: ln 27 = 3.3
    torch.testing.assert_close(trainer.state[0], state[0], rtol=0.02, atol=0.02)


def test_regularisers_reach_the_layers(text, tmp_path):
    """In training each batch has one mask for all steps; weights drop; in evaluation neither does anything."""
    settings = config.make(**SMALL, locked_dropout=0.5, weight_drop=0.25).settle(False)
    model = Trainer(settings, load(str(text), CorpusOptions()), tmp_path, Ranks("cpu"), Reporter()).model
    assert (model.rnn.lstm.locked_dropout, model.rnn.lstm.weight_drop) == (0.5, 0.25)
    ids = torch.zeros(30, 3, dtype=torch.int64)
    model.out = nn.Identity()
    dropped = model.train()(ids)[0] == 0
    assert (dropped == dropped[:1]).all()
    assert 0 < dropped.float().mean() < 1
    assert not (model.eval()(ids)[0] == 0).any()
    undropped = model(ids)[0]
    model.locked.p = model.rnn.lstm.locked_dropout = 0.0
    assert not torch.equal(model.train()(ids)[0], undropped)  # the weights that drop
    assert torch.equal(model.eval()(ids)[0], undropped)


def test_items_of_a_list_start_from_a_zero_state(tmp_path):
    """Half of the newlines reset the state, nothing else does; running text never does."""
    path = tmp_path / "items.txt"
    path.write_text("\n".join(babble(20, seed).replace("\n", " ") for seed in range(300)))
    settings = config.make(**SMALL, lines=True).settle(False)
    trainer = Trainer(
        settings, load(str(path), CorpusOptions(lines=True, unique=True)), tmp_path, Ranks("cpu"), Reporter()
    )
    seen, x = [], torch.from_numpy(trainer.train.batch(0, 0)[0])
    for _ in range(100):
        seen.append(trainer._item_resets(x))
    mask, newline = torch.stack(seen), x == trainer.corpus.vocab.symbols.index("\n")
    assert not mask[:, ~newline].any()
    assert mask[:, newline].float().mean() == pytest.approx(0.5, abs=0.1)
    calls = []
    real, trainer.net = trainer.net, lambda *args: (calls.append(args), real(*args))[1]
    trainer.step()
    assert calls[0][2].any()
    running = Trainer(
        config.make(**SMALL).settle(False), load(str(path), CorpusOptions()), tmp_path, Ranks("cpu"), Reporter()
    )
    assert running._item_resets(x) is None


def test_a_list_is_sampled_as_it_was_learned(tmp_path):
    """From a zero state, as from a carried one, an item begins with what items begin with."""
    path = tmp_path / "items.txt"
    path.write_text("".join(f"A{a}{b}{c}\n" for a in "bcdefgh" for b in "ijklmnop" for c in "qrstuvwx"))
    options = {"hidden_size": 24, "batch_size": 8, "seq_length": 25, "max_epochs": 25, "learning_rate": 0.01}
    done = train(str(path), tmp_path / "run", lines=True, optimizer="adam", num_layers=1, init_scale=0.0, **options)
    lm = done.load()
    alone = lm.sample(num=200, seed=1)
    assert sum(item.startswith("A") for item in alone) > 190
    together = lm.sample(length=1000, seed=1, num=2)
    assert sum(item.startswith("A") for text in together for item in text.split("\n")[:-1]) > 360


def test_a_run_writes_log_and_checkpoints(small_run):
    log = log_of(small_run.folder)
    assert log[0]["iteration"] == 1
    assert [row["iteration"] for row in log[1:4]] == [5, 10, 15]
    assert all({"iteration", "epoch", "train_nats", "chars_per_s"} <= set(row) for row in log)
    last = log[-1]
    assert (last["iteration"], last["epoch"]) == (small_run.iteration, 1.0)
    assert last["val_nats"] == pytest.approx(small_run.nats)
    assert last["val_nats"] < 2.9 < log[0]["train_nats"]
    assert sorted(path.name for path in small_run.folder.iterdir()) == [
        "best.safetensors",
        "last.safetensors",
        "log.jsonl",
        "samples.jsonl",
    ]
    assert small_run.reason == "all epochs done"


def test_validation_is_char_rnns(small_run):
    """The logged loss against a loop over the validation batches, the state zero at first and carried on."""
    lm = CharLM.load(small_run.last)
    data = lm.divide(lm.corpus())
    state, total, n = None, 0.0, 0
    with torch.no_grad():
        for x, y, _ in data.val.chunks(20):
            scores, state = lm.model(torch.from_numpy(x), state)
            total += float(nn.functional.cross_entropy(scores.flatten(0, 1), torch.from_numpy(y).flatten()))
            n += 1
    assert total / n == pytest.approx(log_of(small_run.folder)[-1]["val_nats"], rel=1e-5)
    assert lm.evaluate().nats_per_char == pytest.approx(total / n, rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamw", "weight_decay": 0.1, "schedule": "cosine", "warmup": 10, "clip_norm": 1.0},
        {"lines": True, "dropout": 0.2},
        {"bytes": True, "embedding_dim": 8},
        {"split": "contiguous", "val_frac": 0.1, "num_layers": 1},
        {"locked_dropout": 0.2, "weight_drop": 0.2},
    ],
)
def test_runs_with_other_options_learn_and_repeat(text, tmp_path, options):
    if "lines" in options:
        text.write_text("\n".join({babble(30, seed).strip() for seed in range(700)}))
    result = train(str(text), tmp_path / "run", **{**SMALL, **options})
    assert result.nats < 3.0
    assert train(str(text), tmp_path / "again", **{**SMALL, **options}).nats == result.nats


def test_patience_and_max_time_stop_the_run(text, tmp_path):
    stuck = train(str(text), tmp_path / "a", **{**SMALL, "learning_rate": 0.0, "eval_every": 10, "patience": 3})
    assert (stuck.iteration, stuck.reason) == (40, "no better evaluation in 3")
    quick = train(str(text), tmp_path / "b", **{**SMALL, "max_epochs": 10**6, "max_time": 0.3})
    assert quick.reason == "time is up"
    assert "val_nats" in log_of(quick.folder)[-1]  # and evaluated at its end
    assert all(row["chars_per_s"] > 0 for row in log_of(quick.folder))
    assert 0.3 <= quick.seconds < 30


def test_the_names_preset_stops_early(tmp_path):
    """Each item once, shuffled, with the preset's dropout and patience: it ends long before its epochs do."""
    (tmp_path / "items.txt").write_text("".join(f"{a}{b}{c}\n" * 2 for a in "ABCDEFG" for b in "aeiou" for c in "lmnr"))
    sizes = {"hidden_size": 8, "num_layers": 1, "batch_size": 2, "seq_length": 16, "eval_every": 4}
    done = train("items.txt", "run", preset="names", **sizes)
    assert done.reason == "no better evaluation in 25"
    log = [row for row in log_of(done.folder) if "val_nats" in row]
    best = min(range(len(log)), key=lambda k: log[k]["val_nats"])
    assert len(log) == best + 26
    assert done.nats == log[best]["val_nats"] < log[0]["val_nats"] - 0.5
    saved = CharLM.load(done.best).saved
    assert saved.metrics["iteration"] == log[best]["iteration"] < done.iteration < 250 * 16
    assert saved.corpus["symbols"] == 4 * 7 * 5 * 4


def with_losses(monkeypatch, losses):
    """Let the run see these losses, the last one for ever."""

    def loss_sum(self):
        at = min(self.progress.iteration, len(losses)) - 1
        return torch.tensor(losses[at] * self.progress.loss_count)

    monkeypatch.setattr(Trainer, "loss_sum", property(loss_sum, lambda self, value: None), raising=False)


def test_a_loss_that_explodes_stops_the_run_and_saves_it(text, tmp_path):
    says = r"stopped at iteration \d+: the loss is .* nats, its lowest was 3\.\d+; try a smaller .*; (.*) holds the last one"
    with pytest.raises(CharLMError, match=says) as seen:
        train(str(text), tmp_path / "run", **{**SMALL, "learning_rate": 50.0, "grad_clip": 0.0})
    iteration = int(str(seen.value).split("iteration ")[1].split(":")[0].replace(",", ""))
    saved = CharLM.load(tmp_path / "run/last.safetensors")
    assert saved.saved.metrics["iteration"] == iteration


def test_a_fine_tuning_that_began_near_zero_goes_on_when_its_loss_rises(small_run, text, tmp_path, monkeypatch):
    """Sixty times its first loss is still below that of an even guess, the logarithm of the number of characters."""
    options = {**SMALL, "log_every": 1, "init_from": str(small_run.folder)}
    with_losses(monkeypatch, [0.05, 0.2, 1.0, 3.0])
    done = train(str(text), tmp_path / "calm", **options)
    assert done.reason == "all epochs done"
    with_losses(monkeypatch, [0.05, 0.2, 1.0, 3.0, 3.1 * 3.4])
    with pytest.raises(CharLMError, match=r"stopped at iteration 5: the loss is 10\.5\d* nats, its lowest was 0.05;"):
        train(str(text), tmp_path / "tuned", **options)
    assert checkpoint.read(tmp_path / "tuned/last.safetensors").metrics["iteration"] == 5


def test_a_loss_is_compared_with_the_lowest_one(text, tmp_path, monkeypatch):
    """Begun at 20 nats and learned down to 5: 16 is three times that, though not the first loss."""
    with_losses(monkeypatch, [20.0, 5.0, 14.9, 15.1])
    with pytest.raises(CharLMError, match=r"stopped at iteration 4: the loss is 15\.1 nats, its lowest was 5;"):
        train(str(text), tmp_path / "run", **{**SMALL, "log_every": 1})


def test_a_loss_of_nan_stops_the_run(text, tmp_path, monkeypatch):
    real = Trainer.step

    def poisoned(self):
        real(self)
        if self.progress.iteration == 50:
            with torch.no_grad():
                self.flat.vector[0] = float("nan")

    monkeypatch.setattr(Trainer, "step", poisoned)
    with pytest.raises(
        CharLMError, match=r"the loss is nan nats.*nothing was worth keeping: the weights are no longer"
    ):
        train(str(text), tmp_path / "run", **SMALL)
    with pytest.raises(CharLMError, match=r"last.safetensors holds the run as it was before"):
        train(str(text), tmp_path / "saved", checkpoint_every=40, **SMALL)
    assert checkpoint.read(tmp_path / "saved/last.safetensors").metrics["iteration"] == 40


def test_a_text_that_changes_under_the_run_is_noticed(text, tmp_path):
    class Changes(Notes):
        def row(self, trainer, row):
            if row["iteration"] == 5:
                text.write_text("something else")

    reporter = Changes()
    train(str(text), tmp_path / "run", reporter=reporter, **SMALL)
    assert len(reporter.notes) == 1
    assert "babble.txt changed on disk since the run began" in reporter.notes[0]


def test_a_run_is_not_overwritten(small_run, text):
    with pytest.raises(CharLMError, match="already holds a run: go on with it by --resume"):
        train(str(text), small_run.folder, **SMALL)
    before = small_run.best.read_bytes()
    assert train(str(text), small_run.folder, overwrite=True, **SMALL).best.read_bytes() == before


def test_default_folders_do_not_collide(text):
    assert [str(train(str(text), **SMALL).folder) for _ in range(2)] == ["runs/babble", "runs/babble-2"]


def test_fine_tuning_starts_from_the_weights(small_run, text, tmp_path):
    tuned = train(str(text), tmp_path / "tuned", init_from=str(small_run.folder), **{**SMALL, "log_every": 1})
    first = log_of(tuned.folder)[0]["train_nats"]
    assert first == pytest.approx(log_of(small_run.folder)[-1]["train_nats"], abs=0.5)
    assert first < 2.9
    with pytest.raises(CharLMError, match="--init-from has --hidden-size 12, not 64"):
        train(str(text), tmp_path / "other", init_from=str(small_run.folder), **{**SMALL, "hidden_size": 64})


@pytest.fixture
def other(text, tmp_path):
    """The same text with three new characters before every `a`."""
    path = tmp_path / "other.txt"
    path.write_text(text.read_text().replace("a", "ÄÖÜa"))
    return path


def test_fine_tuning_on_unknown_characters_is_refused_by_default(small_run, other, tmp_path):
    with pytest.raises(CharLMError, match="3 characters that the model never saw"):
        train(str(other), tmp_path / "x", init_from=str(small_run.folder), **SMALL)
    assert not (tmp_path / "x").exists()
    with pytest.raises(CharLMError, match="--unknown is 'drop', expected error, skip, add"):
        train(str(other), tmp_path / "x", init_from=str(small_run.folder), unknown="drop", **SMALL)
    with pytest.raises(CharLMError, match="--unknown says what becomes of characters that the model of --init-from"):
        train(str(other), tmp_path / "x", unknown="add", **SMALL)


def test_fine_tuning_can_skip_unknown_characters(small_run, other, text, tmp_path):
    """The model is the one that the text without them gives, and can be resumed and evaluated."""
    notes, begin = Notes(), {"init_from": str(small_run.folder), **SMALL}
    plain = train(str(text), tmp_path / "plain", **begin)
    done = train(str(other), tmp_path / "skip", unknown="skip", reporter=notes, **begin)
    assert notes.notes == [
        f"{other} has {3 * text.read_text().count('a'):,} characters that the model never saw ('Ä' 'Ö' 'Ü'): left out"
    ]
    weights = done.load().model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in plain.load().model.state_dict().items())
    assert done.load().evaluate().nats_per_char == pytest.approx(done.nats, rel=1e-5)
    assert train(None, done.folder, resume=True, max_epochs=2).iteration == 2 * done.iteration


@pytest.mark.parametrize("options", [{}, {"embedding_dim": 6, "init_scale": 0.0}])
def test_fine_tuning_can_add_unknown_characters(text, other, tmp_path, options):
    """What the model knew stays to the bit; what is new is small; the new characters are learned, resumed, sampled."""
    begun = train(str(text), tmp_path / "begun", **SMALL, **options).load()
    frozen = {"init_from": str(tmp_path / "begun"), "unknown": "add", **SMALL}
    still_run = train(str(other), tmp_path / "still", learning_rate=0.0, **frozen)
    still = still_run.load()
    assert still.vocab.symbols == begun.vocab.symbols + "ÄÖÜ"
    old, new, V = begun.model.state_dict(), still.model.state_dict(), len(begun.vocab)
    for name, value in old.items():
        assert torch.equal(new[name][tuple(map(slice, value.shape))], value), name
        extra = new[name].clone()
        extra[tuple(map(slice, value.shape))] = 0
        assert extra.abs().max() <= 0.08
        assert (new[name].shape != value.shape) == (extra.abs().max() > 0)
    assert new["out.bias"].shape == (V + 3,)
    done = train(str(other), tmp_path / "added", **frozen)
    assert done.nats < still_run.nats - 0.2
    assert "Ä" in done.load().sample(length=300, seed=1)
    assert train(None, done.folder, resume=True, max_epochs=2).iteration == 2 * done.iteration


def test_fine_tuning_from_weights_that_do_not_fit_is_one_line(small_run, text, tmp_path):
    saved = checkpoint.read(small_run.best)
    saved.weights["out.weight"] = saved.weights["out.weight"][:, :5].clone()
    checkpoint.write(tmp_path / "odd.safetensors", saved)
    with pytest.raises(CharLMError, match=r"damaged: its weights out.weight do not fit its configuration"):
        train(str(text), tmp_path / "x", init_from=str(tmp_path / "odd.safetensors"), **SMALL)
