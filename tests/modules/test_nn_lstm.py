"""fastlstm.NNLSTM: the module as a subclass of torch.nn.LSTM, and what asks isinstance(module, nn.LSTM)."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn.utils import rnn

import fastlstm
from tests.modules.pairs import leaves, results


def _pair(**options: object) -> tuple[nn.LSTM, fastlstm.NNLSTM]:
    torch_lstm = nn.LSTM(3, 5, **options)
    return torch_lstm, fastlstm.replace(copy.deepcopy(torch_lstm), subclass=True)


def test_it_is_both() -> None:
    for lstm in (fastlstm.NNLSTM(3, 5), fastlstm.replace(nn.LSTM(3, 5), subclass=True)):
        assert isinstance(lstm, nn.LSTM)
        assert isinstance(lstm, fastlstm.LSTM)
        assert type(lstm) is fastlstm.NNLSTM


def test_initial_weights_are_those_of_nn_lstm() -> None:
    made = []
    for cls in (nn.LSTM, fastlstm.NNLSTM):
        torch.manual_seed(3)
        made.append(cls(3, 5, 2, bidirectional=True, proj_size=2).state_dict())
    torch.testing.assert_close(made[1], made[0], rtol=0, atol=0)
    assert fastlstm.NNLSTM(3, 5, recompute=True, batch_first=True).recompute
    with pytest.warns(UserWarning, match="dropout option adds dropout") as caught:
        fastlstm.NNLSTM(3, 5, dropout=0.5)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"proj_size": 2}], ids=str)
def test_results_and_gradients_are_those_of_nn_lstm(options: dict, packed: bool) -> None:
    x = torch.randn(6, 4, 3)
    x = rnn.pack_padded_sequence(x, [6, 4, 4, 1]) if packed else x
    torch_lstm, lstm = _pair(**options)
    torch.testing.assert_close(results(lstm, x), results(torch_lstm, x), rtol=1e-4, atol=1e-5)


def test_every_fast_route_takes_it() -> None:
    lstm, plain = fastlstm.NNLSTM(3, 5, 2), fastlstm.LSTM(3, 5, 2)
    plain.load_state_dict(lstm.state_dict())
    for x in (torch.randn(1, 1, 3), torch.randn(6, 4, 3)):
        for gradients in (False, True):
            with torch.set_grad_enabled(gradients):
                torch.testing.assert_close(leaves(lstm(x)), leaves(plain(x)), rtol=0, atol=0)
                assert fastlstm.explain(lstm, x) == fastlstm.explain(plain, x)
                plans = []
                for module in (lstm, plain):
                    module(x)
                    plans.append(fastlstm.last_plan())
                assert plans[0] == plans[1]


def test_a_changed_weight_shows_in_the_next_small_call() -> None:
    lstm, x = fastlstm.NNLSTM(3, 5), torch.randn(1, 1, 3)
    with torch.no_grad():
        before = lstm(x)[0]
        lstm.weight_hh_l0 = nn.Parameter(lstm.weight_hh_l0 * 2)
        lstm.bias_ih_l0.add_(1)
        plain = fastlstm.LSTM(3, 5)
        plain.load_state_dict(lstm.state_dict())
        torch.testing.assert_close(lstm(x)[0], plain(x)[0], rtol=0, atol=0)
        assert not torch.equal(lstm(x)[0], before)


def test_copies_pickles_and_state_dicts() -> None:
    lstm, x = fastlstm.NNLSTM(3, 5, 2, batch_first=True), torch.randn(2, 4, 3)
    expected, buffer = lstm(x), io.BytesIO()
    torch.save(lstm, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for copied in (copy.deepcopy(lstm), pickle.loads(pickle.dumps(lstm)), loaded, copy.copy(lstm)):
        assert type(copied) is fastlstm.NNLSTM
        torch.testing.assert_close(copied(x), expected)
    torch_lstm = nn.LSTM(3, 5, 2, batch_first=True)
    torch_lstm.load_state_dict(lstm.state_dict())
    torch.testing.assert_close(torch_lstm(x), expected)
    assert type(lstm.to_torch()) is nn.LSTM
    assert type(fastlstm.NNLSTM.from_torch(torch_lstm)) is fastlstm.NNLSTM


def test_replace_gives_the_class_that_was_asked_for_and_restore_takes_both() -> None:
    model = nn.ModuleList([nn.LSTM(3, 5), fastlstm.LSTM(3, 5), fastlstm.NNLSTM(3, 5)])
    parameters = list(model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for subclass, cls in ((True, fastlstm.NNLSTM), (False, fastlstm.LSTM)):
            assert {type(m) for m in fastlstm.replace(model, subclass=subclass)} == {cls}
        model[0] = fastlstm.replace(model[0], subclass=True)
        assert {type(m) for m in fastlstm.restore(model)} == {nn.LSTM}
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))


def test_initialisation_loops_find_it() -> None:
    """As transformers' `_init_weights` and many a user's: by isinstance, on nn.LSTM alone."""

    def init(module: nn.Module) -> None:
        if isinstance(module, nn.LSTM):
            for name, p in module.named_parameters():
                nn.init.constant_(p, 1.0 if "bias" in name else 0.5)

    model = fastlstm.replace(nn.Sequential(nn.LSTM(3, 5)), subclass=True).apply(init)
    assert {float(p.detach().mean()) for p in model.parameters()} == {0.5, 1.0}


def test_torch_compile_breaks_the_graph_at_it_unless_rnns_are_allowed() -> None:
    """Results are right both ways; the parts around it are compiled, and with allow_rnn there is one graph."""
    model, x = nn.Sequential(nn.Linear(3, 3), fastlstm.NNLSTM(3, 5)), torch.randn(6, 4, 3)
    expected, graphs = model(x), {}
    for allow in (False, True):
        torch._dynamo.reset()
        counter = CompileCounter()
        with torch._dynamo.config.patch(allow_rnn=allow):
            torch.testing.assert_close(torch.compile(model, backend=counter, fullgraph=allow)(x), expected)
        graphs[allow] = counter.frame_count
    assert graphs[True] == 1
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=False), pytest.raises(torch._dynamo.exc.Unsupported, match="allow_rnn"):
        torch.compile(model, backend="eager", fullgraph=True)(x)
