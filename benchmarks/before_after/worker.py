"""The worker of `python -m benchmarks.before_after`: builds a case from fastlstm's public API and times its calls.

A script, with PYTHONPATH set to a tree. It imports nothing of `benchmarks`, which may differ in that tree. The first line of
stdout says which package it imported. Each JSON line on stdin then has one reply, {"error": text} if it failed:

    {"build": function, "arguments": {...}, "threads": 2}  →  {"seconds": of a call, "norms": of its outputs, "contenders": []}
    {"contender": name, "calls": n}                        →  {"seconds": of a call}
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastlstm

WARM_SECONDS = 5e-3  # untimed calls before a block, since the other worker had the cores and the caches
V = 65
Steps = dict[str, Callable[[], object]]  # contender → one call


def layer(case: dict, L: int, bidirectional: bool, train: bool) -> Steps:
    """Forward, or forward and backward, of an LSTM. case: the fields of fastlstm.testing.cases.Case."""
    options = {"proj_size": case["P"] if case["projection"] else 0, "bidirectional": bidirectional}
    torch_lstm, lstm = (lstm(case["I"], case["H"], L, **options) for lstm in (nn.LSTM, fastlstm.LSTM))
    lstm.load_state_dict(torch_lstm.state_dict())
    rows, batch_sizes, state = torch.randn(case["T"], case["B"], case["I"]), None, None
    if case["lengths"]:
        rows, batch_sizes, *_ = pack_padded_sequence(rows, torch.tensor(case["lengths"]))
    if case["initial"]:
        state = tuple(torch.randn(L * (1 + bidirectional), case["B"], case[size]) for size in "PH")
    x = rows.requires_grad_(train) if batch_sizes is None else PackedSequence(rows.requires_grad_(train), batch_sizes)

    def training(module: nn.Module) -> list[Tensor]:
        out, (h_n, c_n) = module(x, state)
        out = out if batch_sizes is None else out.data
        return [out, h_n, c_n, *torch.autograd.grad(out, [rows, *module.parameters()], out.detach())]

    if train:
        return {"fastlstm": lambda: training(lstm), "torch": lambda: training(torch_lstm)}
    return {"fastlstm": lambda: lstm(x, state), "torch": lambda: torch_lstm(x, state)}


def character_model(L: int, H: int) -> tuple[fastlstm.TokenLSTM, nn.Linear]:
    """A TokenLSTM with the weights of nn.Embedding and nn.LSTM, and an output layer."""
    rnn = fastlstm.TokenLSTM(V, H, H, L)
    rnn.load_state_dict(nn.ModuleDict({"embedding": nn.Embedding(V, H), "lstm": nn.LSTM(H, H, L)}).state_dict())
    return rnn, nn.Linear(H, V)


def training_step(L: int, H: int, B: int, T: int) -> Steps:
    """A training step of a character model: cross-entropy, backward, value clip, RMSProp."""
    rnn, linear = model = nn.ModuleList(character_model(L, H))
    ids, targets = torch.randint(V, (2, T, B))
    optimiser = torch.optim.RMSprop(model.parameters(), lr=2e-3, alpha=0.95, foreach=True)

    def step() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(linear(rnn(ids)[0]).flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_value_(model.parameters(), 5.0)
        optimiser.step()
        return loss

    return {"fastlstm": step}


def sampling(L: int, H: int, num: int = 1) -> Steps:
    """100 ids of `num` streams by fastlstm.decode."""
    rnn, linear = character_model(L, H)
    return {"fastlstm": lambda: fastlstm.decode(rnn, linear.weight, linear.bias, [0], 100, num=num).ids}


def decoder(L: int, H: int) -> Steps:
    """100 ids of one stream by a fastlstm.Decoder that was made before."""
    rnn, linear = character_model(L, H)
    prepared = fastlstm.Decoder(rnn, linear.weight, linear.bias)
    return {"fastlstm": lambda: prepared.start([0]).draw(100).ids}


def stream(L: int, H: int) -> Steps:
    """8 steps of `lstm.stream` with bfloat16 weights; the state is carried on from call to call."""
    lstm, x = fastlstm.LSTM(H, H, L), torch.randn(8, 1, H)
    lstm.load_state_dict(nn.LSTM(H, H, L).state_dict())
    stepper = lstm.stream(1, torch.bfloat16)
    return {"fastlstm": lambda: [stepper.step(row) for row in x]}


def charlm(num: int) -> Steps:
    """`num` texts by the character model that comes with the package."""
    from fastlstm.charlm import CharLM

    model = CharLM.load("names")
    return {"fastlstm": lambda: model.sample(num=num, length=200, seed=1)}


def tensors(value: object) -> Iterable[Tensor]:
    """The floating tensors in nested tuples; drawn ids are not compared, since rounding may change a draw."""
    if isinstance(value, (list, tuple)):
        yield from (tensor for item in value for tensor in tensors(item))
    elif isinstance(value, Tensor) and value.is_floating_point():
        yield value


class CaseTimer:
    """The case that was built last."""

    def build(self, build: str, arguments: dict, threads: int) -> dict:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.steps: Steps = globals()[build](**arguments)
        self.grad = arguments.get("train", build == "training_step")
        with torch.set_grad_enabled(self.grad):
            norms = [tensor.detach().double().norm().item() for tensor in tensors(self.steps["fastlstm"]())]
        gc.collect()
        seconds = min(self.time("fastlstm", 1)["seconds"] for _ in range(3))
        return {"seconds": seconds, "norms": norms, "contenders": list(self.steps)}

    def time(self, contender: str, calls: int) -> dict:
        step, clock = self.steps[contender], time.perf_counter
        with torch.set_grad_enabled(self.grad):
            warm_until = clock() + WARM_SECONDS
            step()
            while clock() < warm_until:
                step()
            start = clock()
            for _ in range(calls):
                step()
            return {"seconds": (clock() - start) / calls}


def main() -> None:
    """Reply to every line of stdin."""
    replies, sys.stdout = sys.stdout, sys.stderr
    timer, plan = CaseTimer(), fastlstm.explain(fastlstm.LSTM(8, 8), torch.randn(1, 1, 8))
    print(json.dumps({"file": fastlstm.__file__, "plan": plan.splitlines()[0]}), file=replies, flush=True)
    gc.disable()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = (timer.build if "build" in request else timer.time)(**request)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
