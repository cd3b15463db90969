"""Other packages on fastlstm.LSTM and NNLSTM: by themselves where they ask isinstance, else by the code of docs/swapping.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastlstm

DOC = Path(fastlstm.__file__).parent.parent / "docs" / "swapping.md"
pytestmark = pytest.mark.filterwarnings("ignore")


class Model(nn.Module):
    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 5, batch_first=batch_first), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0])


def _run(package: str, **names: object) -> dict[str, object]:
    """What the code for a package leaves, and the value of its last line as "value"."""
    blocks = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = [block for block in blocks if re.match(rf"(import|from) {package}\b", block)]
    *_, last = code.strip().splitlines()
    names = {"fastlstm": fastlstm, "torch": torch, **names}
    exec(code, names)
    return {**names, "value": eval(last, names) if "(" in last and not last.startswith(" ") else None}


@pytest.mark.parametrize("subclass", [False, True])
def test_thop_counts_what_it_counts_for_nn_lstm(subclass: bool) -> None:
    thop = pytest.importorskip("thop")
    x = torch.randn(2, 4, 3)
    expected = thop.profile(Model(), inputs=(x,), verbose=False)
    assert _run("thop", model=fastlstm.replace(Model(), subclass=subclass), x=x)["value"] == expected
    assert expected[0] > 1000


def test_ptflops_counts_what_it_counts_for_nn_lstm() -> None:
    ptflops = pytest.importorskip("ptflops")
    expected = ptflops.get_model_complexity_info(Model(), (4, 3), backend="pytorch", print_per_layer_stat=False)
    assert _run("ptflops", model=fastlstm.replace(Model(), subclass=True), size=(4, 3))["value"] == expected


@pytest.mark.parametrize("subclass", [False, True])
def test_opacus_gets_the_gradients_of_each_sample(subclass: bool) -> None:
    opacus = pytest.importorskip("opacus")
    _run("opacus")
    exact, x = Model(), torch.randn(3, 4, 3)
    model = fastlstm.replace(Model(), subclass=subclass)
    model.load_state_dict(exact.state_dict())
    assert opacus.validators.ModuleValidator.validate(model) == []
    opacus.GradSampleModule(model, loss_reduction="sum")(x).square().sum().backward()
    for k in range(3):
        exact.zero_grad()
        exact(x[k : k + 1]).square().sum().backward()
        for p, q in zip(model.parameters(), exact.parameters(), strict=True):
            torch.testing.assert_close(p.grad_sample[k], q.grad, rtol=1e-4, atol=1e-5)


def test_torchrl_runs_it_as_nn_lstm() -> None:
    modules, tensordict = pytest.importorskip("torchrl.modules"), pytest.importorskip("tensordict")
    lstm, starts, outputs = nn.LSTM(3, 5, batch_first=True), torch.zeros(2, 6, 1, dtype=torch.bool), []
    starts[:, 0] = starts[0, 3] = True
    x, zero = torch.randn(2, 6, 3), torch.zeros(2, 6, 1, 5)
    for change in (lambda lstm: lstm, lambda lstm: fastlstm.replace(lstm, subclass=True)):
        data = {"obs": x, "is_init": starts, "recurrent_state_h": zero, "recurrent_state_c": zero}
        module = modules.LSTMModule(lstm=change(lstm), in_key="obs", out_key="y", default_recurrent_mode=True)
        outputs.append(module(tensordict.TensorDict(data, [2, 6]))["y"])
    assert type(lstm) is fastlstm.NNLSTM
    torch.testing.assert_close(outputs[1], outputs[0])


def test_transformers_initialises_it() -> None:
    transformers = pytest.importorskip("transformers")

    class Config(transformers.PretrainedConfig):
        model_type = "lstm-for-a-test"

    class Pretrained(transformers.PreTrainedModel):
        config_class = Config

        def __init__(self, config: Config) -> None:
            super().__init__(config)
            self.lstm = fastlstm.NNLSTM(3, 5)
            self.post_init()

    assert not Pretrained(Config()).lstm.bias_ih_l0.any()  # transformers' own rule for nn.LSTM
