"""fastlstm.quantize: which modules become int8, with which numbers, and what is refused."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import fastlstm
from tests.modules.tagger import Tagger


def _quietly(model: nn.Module, **options: object) -> nn.Module:
    """torch's own dynamic quantisation, which warns that it is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, **options)


def test_a_copy_is_quantised_and_the_model_stays() -> None:
    model = Tagger().eval()
    before = copy.deepcopy(model.state_dict())
    made = fastlstm.quantize(model)
    assert type(model.lstm) is nn.LSTM
    assert type(made) is Tagger
    assert type(made.lstm) is fastlstm.Int8LSTM
    assert not made.lstm.training
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    ids = torch.randint(0, 11, (9, 4))
    torch.testing.assert_close(made(ids), model(ids), rtol=0, atol=0.02)
    assert made.head.weight is not model.head.weight


def test_a_module_used_twice_stays_one_and_tied_weights_stay_tied() -> None:
    lstm = nn.LSTM(4, 4)
    made = fastlstm.quantize(nn.Sequential(lstm, lstm))
    assert made[0] is made[1]
    model = nn.ModuleDict({"tokens": fastlstm.TokenLSTM(7, 6, 6), "head": nn.Linear(6, 7)})
    model["head"].weight = model["tokens"].embedding.weight
    made = fastlstm.quantize(model)
    assert made["head"].weight is made["tokens"].embedding.weight
    assert made["head"].weight is not model["head"].weight


def test_weights_are_within_half_a_step_and_biases_are_summed() -> None:
    lstm = nn.LSTM(9, 17)
    made = fastlstm.quantize(lstm)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        w, q, scale = getattr(lstm, name), getattr(made, name), getattr(made, f"{name}_scale")
        assert int(q.min()) >= -127
        torch.testing.assert_close(scale, w.detach().abs().amax(1) / 127, rtol=0, atol=0)
        assert bool(((q * scale[:, None] - w).abs() <= scale[:, None] * 0.5001).all())
    torch.testing.assert_close(made.bias_l0, (lstm.bias_ih_l0 + lstm.bias_hh_l0).detach(), rtol=0, atol=0)


@pytest.mark.parametrize("per_row", [False, True])
def test_the_integers_of_torch_s_dynamic_lstm_stay(per_row: bool) -> None:
    lstm = nn.LSTM(9, 17, 2, bidirectional=True)
    kinds = {nn.LSTM: torch.ao.quantization.per_channel_dynamic_qconfig} if per_row else {nn.LSTM}
    dynamic = _quietly(nn.Sequential(lstm), qconfig_spec=kinds)
    made = fastlstm.quantize(dynamic)
    weights = dynamic[0].get_weight()
    for name, w in weights.items():
        assert torch.equal(getattr(made[0], name), w.int_repr())
        scale = getattr(made[0], f"{name}_scale")
        torch.testing.assert_close(getattr(made[0], name) * scale[:, None], w.dequantize(), rtol=1e-6, atol=0)
    x = torch.randn(5, 3, 9)
    torch.testing.assert_close(made[0](x), lstm(x), rtol=0, atol=0.03)


def test_a_dynamic_lstm_of_float16_is_refused() -> None:
    dynamic = _quietly(nn.Sequential(nn.LSTM(3, 5)), qconfig_spec={nn.LSTM}, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"0 is a dynamic LSTM of torch.float16, expected torch.qint8"):
        fastlstm.quantize(dynamic)


def test_other_lstms_are_left_and_named() -> None:
    class Own(nn.LSTM):
        pass

    with pytest.warns(UserWarning, match=r"quantize left as they are: 0 \(.*Own\)"):
        made = fastlstm.quantize(nn.Sequential(Own(3, 5)))
    assert type(made[0]) is Own


def test_what_cannot_be_quantised_says_why() -> None:
    with pytest.raises(
        ValueError, match=r"^weight_ih_l0 is torch.float64, expected torch.float32; call model.float\(\)"
    ):
        fastlstm.quantize(nn.LSTM(3, 5).double())
    lstm = nn.LSTM(3, 5)
    lstm.weight_hh_l0.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"^0\.weight_hh_l0 holds NaN or infinity, expected finite weights"):
        fastlstm.quantize(nn.Sequential(lstm))
    with pytest.raises(ValueError, match="the model uses return_gates, which an int8 LSTM does not have"):
        fastlstm.quantize(fastlstm.LSTM(3, 5, return_gates=True))


def test_weights_that_hooks_make_are_refused() -> None:
    normed, pruned = nn.LSTM(3, 5), nn.LSTM(3, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(normed, "weight_hh_l0")
    prune.l1_unstructured(pruned, "weight_hh_l0", 0.5)
    for lstm in (normed, pruned):
        with pytest.raises(ValueError, match=r"^0\.weight_hh_l0 is made .* remove_weight_norm, .* or prune\.remove"):
            fastlstm.quantize(nn.Sequential(lstm))
    prune.remove(pruned, "weight_hh_l0")
    assert type(fastlstm.quantize(pruned)) is fastlstm.Int8LSTM


@pytest.mark.parametrize("cls", [nn.LSTM, fastlstm.LSTM])
def test_parametrised_lstms_are_left_and_named(cls: type) -> None:
    lstm = cls(3, 5)
    nn.utils.parametrize.register_parametrization(lstm, "weight_hh_l0", nn.Identity())
    with pytest.warns(UserWarning, match="quantize left as they are: the model"):
        assert not isinstance(fastlstm.quantize(lstm), fastlstm.Int8LSTM)


def test_a_model_without_lstms_warns() -> None:
    with pytest.warns(UserWarning, match=r"fastlstm\.quantize found no LSTM"):
        fastlstm.quantize(nn.Linear(3, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastlstm.quantize(fastlstm.quantize(nn.LSTM(3, 5)))
