"""Ways in and out: `replace`, `restore`, `from_torch`, `to_torch`, and what the restored model can do again."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from importlib import util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastlstm


class Tagger(nn.Module):
    """Embedding, two recurrent layers of different kinds, and a head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.rnns = nn.ModuleList(
            [nn.LSTM(6, 5, bidirectional=True, batch_first=True), nn.LSTM(10, 6, batch_first=True)]
        )
        self.head = nn.Linear(6, 11)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for rnn in self.rnns:
            x, _ = rnn(x)
        return self.head(x)


class TorchSubclass(nn.LSTM):
    """Somebody's subclass."""


def _rnn_types(model: nn.Module) -> list[type]:
    return [type(m) for m in model.modules() if isinstance(m, nn.RNNBase)]


def _results(model: nn.Module, ids: Tensor) -> list[Tensor]:
    model.zero_grad()
    out = model(ids)
    out.square().mean().backward()
    return [out.detach(), *(p.grad.clone() for p in model.parameters())]


def test_replace_and_restore_keep_results_and_gradients() -> None:
    model, ids = Tagger(), torch.randint(11, (3, 7))
    expected, parameters, modules = _results(model, ids), list(model.parameters()), list(model.modules())
    keys, text = list(model.state_dict()), repr(model)
    assert fastlstm.replace(model) is model
    assert _rnn_types(model) == [fastlstm.LSTM] * 2
    torch.testing.assert_close(_results(model, ids), expected)
    assert fastlstm.restore(model) is model
    assert _rnn_types(model) == [nn.LSTM] * 2
    torch.testing.assert_close(_results(model, ids), expected, rtol=0, atol=0)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    assert (list(model.state_dict()), repr(model)) == (keys, text)


def test_replace_and_restore_take_an_lstm_itself_and_may_be_repeated() -> None:
    lstm = nn.LSTM(3, 5)
    assert fastlstm.replace(fastlstm.replace(lstm)) is lstm
    assert type(lstm) is fastlstm.LSTM
    assert type(fastlstm.restore(fastlstm.restore(lstm))) is nn.LSTM


def test_optimisers_hooks_and_tied_weights_stay_valid() -> None:
    def trained(change) -> tuple[list[Tensor], int]:
        torch.manual_seed(3)
        model, calls = Tagger(), []
        model.rnns[1].weight_hh_l0 = nn.Parameter(model.rnns[1].weight_hh_l0.detach().clone())
        model.rnns[0].bias_hh_l0_reverse = model.rnns[0].bias_hh_l0  # tied
        optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
        model.rnns[0].register_forward_hook(lambda *_: calls.append("forward"))
        model.rnns[0].register_full_backward_hook(lambda *_: calls.append("backward"))
        model.rnns[1].weight_hh_l0.register_hook(lambda grad: grad * 0.5)
        ids = torch.randint(11, (3, 7))
        for step in range(4):
            if step == 2:
                change(model)
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
            optimiser.step()
        assert model.head.weight is model.embedding.weight
        assert model.rnns[0].bias_hh_l0_reverse is model.rnns[0].bias_hh_l0
        assert calls == ["forward", "backward"] * 4
        return [p.detach() for p in model.parameters()], len(calls)

    torch.testing.assert_close(trained(fastlstm.replace), trained(lambda model: model), rtol=1e-4, atol=1e-4)


def test_one_module_at_two_places_is_swapped_once() -> None:
    lstm = nn.LSTM(5, 5)
    model = nn.ModuleList([lstm, nn.ModuleDict({"again": lstm})])
    fastlstm.replace(model)
    assert model[0] is model[1]["again"] is lstm
    assert type(lstm) is fastlstm.LSTM


def test_subclasses_and_quantised_modules_are_left_alone_and_named() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LSTM(3, 5)), {nn.LSTM})
    model = nn.ModuleDict(
        {"own": TorchSubclass(3, 5), "small": quantised, "cell": nn.LSTMCell(3, 5), "gru": nn.GRU(3, 5)}
    )
    model["plain"] = nn.LSTM(3, 5)
    types_before = {name: type(m) for name, m in model.named_modules()}
    with pytest.warns(UserWarning, match="left alone what is not exactly torch.nn.LSTM") as caught:
        fastlstm.replace(model)
    (message,) = [str(w.message) for w in caught]
    assert "own (" in message
    assert "test_convert.TorchSubclass" in message
    assert "small.0 (torch.ao.nn.quantized.dynamic.modules.rnn.LSTM)" in message
    assert "gru" not in message
    assert {name for name, m in model.named_modules() if type(m) is not types_before[name]} == {"plain"}
    assert caught[0].filename == __file__


def test_a_parametrised_module_is_left_alone() -> None:
    lstm = nn.utils.parametrizations.weight_norm(nn.LSTM(3, 5), "weight_hh_l0")
    with pytest.warns(UserWarning, match="ParametrizedLSTM"):
        fastlstm.replace(lstm)
    assert isinstance(lstm, nn.LSTM)


def test_restore_names_an_option_that_nn_lstm_lacks_and_changes_nothing() -> None:
    model = nn.ModuleDict({"a": fastlstm.LSTM(3, 5, recompute=True), "b": fastlstm.LSTM(3, 5, weight_drop=0.5)})
    with pytest.raises(ValueError, match=r"b uses weight_drop, which torch\.nn\.LSTM does not have; turn it off first"):
        fastlstm.restore(model)
    assert _rnn_types(model) == [fastlstm.LSTM] * 2
    model["b"].weight_drop = 0.0
    assert _rnn_types(fastlstm.restore(model)) == [nn.LSTM] * 2
    assert fastlstm.replace(model)["a"].recompute is True

    class FastSubclass(fastlstm.LSTM):
        pass

    with pytest.warns(UserWarning, match=r"restore left alone .*the model \(.*FastSubclass"):
        fastlstm.restore(FastSubclass(3, 5))


def test_from_torch_and_to_torch_share_parameters() -> None:
    torch_lstm = nn.LSTM(3, 5, 2, dropout=0.5, batch_first=True, proj_size=2).eval()
    lstm = fastlstm.LSTM.from_torch(torch_lstm)
    back = lstm.to_torch()
    assert (type(lstm), type(back)) == (fastlstm.LSTM, nn.LSTM)
    assert repr(lstm) == repr(torch_lstm) == repr(back)
    assert not lstm.training
    for a, b, c in zip(torch_lstm.parameters(), lstm.parameters(), back.parameters(), strict=True):
        assert a is b is c
    x = torch.randn(2, 4, 3)
    torch.testing.assert_close(lstm(x), torch_lstm(x))
    lstm.train()
    lstm.weight_hh_l0 = nn.Parameter(torch.zeros(20, 2))
    assert not torch_lstm.training
    assert torch_lstm.weight_hh_l0 is not lstm.weight_hh_l0
    with pytest.raises(TypeError, match=r"module is a GRU, expected torch\.nn\.LSTM"):
        fastlstm.LSTM.from_torch(nn.GRU(3, 5))
    with pytest.raises(ValueError, match="return_gates"):
        fastlstm.LSTM(3, 5, return_gates=True).to_torch()


def test_state_dicts_load_in_both_directions() -> None:
    model, ids = Tagger(), torch.randint(11, (2, 3))
    expected, other = model(ids), fastlstm.replace(Tagger())
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(ids), expected)
    model.load_state_dict(other.state_dict())
    for copied in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        assert _rnn_types(copied) == [fastlstm.LSTM] * 2
        torch.testing.assert_close(copied(ids), expected)
    buffer = io.BytesIO()
    torch.save(other.state_dict(), buffer)
    buffer.seek(0)
    model.load_state_dict(torch.load(buffer, weights_only=True))


def test_pickled_state_of_old_torch_versions_loads() -> None:
    """Pickles from before torch 1.8 have no proj_size, older ones names of another form and no flat list."""
    torch_lstm, lstm = nn.LSTM(3, 5), fastlstm.LSTM(3, 5)
    x = torch.randn(2, 1, 3)
    for module in (torch_lstm, lstm):
        torch.manual_seed(0)
        module.reset_parameters()
        state = module.__getstate__()
        for name in ("proj_size", "_flat_weights", "_flat_weights_names"):
            state.pop(name)
        state["_all_weights"] = [[0]]
        module.__dict__.clear()
        module.__setstate__(state)
    torch.testing.assert_close(lstm(x), torch_lstm(x))
    assert lstm._flat_weights_names == torch_lstm._flat_weights_names


def test_jit_script_is_refused_and_works_after_restore() -> None:
    model, ids = fastlstm.replace(Tagger()), torch.randint(11, (2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match=r"fastlstm.restore\(model\) first"):
            torch.jit.script(model)
        expected = model(ids)
        scripted = torch.jit.script(fastlstm.restore(Scriptable(model)))
    torch.testing.assert_close(scripted(ids), expected)


class Scriptable(nn.Module):
    """What TorchScript can read of a Tagger: it does not unroll a ModuleList with a tuple in it."""

    def __init__(self, tagger: Tagger) -> None:
        super().__init__()
        self.embedding, self.head = tagger.embedding, tagger.head
        self.first, self.second = tagger.rnns

    def forward(self, ids: Tensor) -> Tensor:
        x, _ = self.first(self.embedding(ids))
        x, _ = self.second(x)
        return self.head(x)


def test_jit_trace_works_without_restore() -> None:
    model, ids = fastlstm.replace(Tagger()).eval(), torch.randint(11, (2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, ids)
    torch.testing.assert_close(traced(ids), model(ids))


def test_dynamic_quantisation_works_after_restore() -> None:
    model, ids = fastlstm.replace(Tagger()).eval(), torch.randint(11, (2, 3))
    expected = model(ids)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = torch.ao.quantization.quantize_dynamic(fastlstm.restore(model), {nn.LSTM}, dtype=torch.qint8)
    assert "quantized" in type(small.rnns[0]).__module__
    torch.testing.assert_close(small(ids), expected, rtol=0.1, atol=0.05)


@pytest.mark.skipif(
    util.find_spec("onnxruntime") is None or util.find_spec("onnx") is None, reason="needs onnx[runtime]"
)
def test_onnx_export_works_after_restore(tmp_path: Path) -> None:
    import onnxruntime

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 5, 2, bidirectional=True)

        def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            out, (h, c) = self.lstm(x, (h, c))
            return out, h, c

    model = fastlstm.replace(Whole()).eval()
    x, h, c = torch.randn(7, 2, 3), torch.randn(4, 2, 5), torch.randn(4, 2, 5)
    expected, path = model(x, h, c), str(tmp_path / "model.onnx")
    names = ["x", "h", "c"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fastlstm.restore(model)
        axes = {"x": {0: "T", 1: "B"}, "h": {1: "B"}, "c": {1: "B"}}
        torch.onnx.export(model, (x, h, c), path, input_names=names, dynamo=False, dynamic_axes=axes)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {n: v.numpy() for n, v in zip(names, (x, h, c), strict=True)})
    torch.testing.assert_close([torch.from_numpy(v) for v in outputs], list(expected), rtol=1e-4, atol=1e-5)


class OneLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


@pytest.mark.filterwarnings("ignore:.*torch.jit|.*tensor attributes|.*deprecated")
@pytest.mark.parametrize("how", ["script", "trace", "freeze", "export"])
def test_replace_names_an_lstm_in_a_compiled_program(how: str) -> None:
    model, x = OneLSTM().eval(), torch.randn(4, 2, 3)
    program = {
        "script": lambda: torch.jit.script(model),
        "trace": lambda: torch.jit.trace(model, x),
        "freeze": lambda: torch.jit.freeze(torch.jit.script(model)),
        "export": lambda: torch.export.export(model, (x,)).module(),
    }[how]()
    name = "the model" if how in ("freeze", "export") else "lstm"
    with pytest.warns(UserWarning, match=rf"replace left alone what is not exactly torch.nn.LSTM: {name} \("):
        fastlstm.replace(program)


@pytest.mark.filterwarnings("error:fastlstm")
def test_replace_says_nothing_of_a_program_without_an_lstm() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*torch.jit")
        scripted = torch.jit.script(nn.Linear(2, 2))
        fastlstm.replace(scripted)
        fastlstm.replace(torch.jit.freeze(scripted.eval()))


@pytest.mark.parametrize("cls", [fastlstm.LSTM, fastlstm.NNLSTM])
def test_dynamic_quantisation_without_restore_warns(cls: type) -> None:
    model = nn.ModuleDict({"lstm": cls(3, 5), "head": nn.Linear(5, 2)})
    with pytest.warns(UserWarning, match=rf"leaves {cls.__name__} modules .* call fastlstm.restore\(model\) first"):
        small = torch.ao.quantization.quantize_dynamic(model)
    assert type(small["lstm"]) is cls
    assert "quantized" in type(small["head"]).__module__
    x = torch.randn(2, 1, 3)
    torch.testing.assert_close(small["lstm"](x), model["lstm"](x))
    assert not hasattr(model["lstm"], "qconfig")
