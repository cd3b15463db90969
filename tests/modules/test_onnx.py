"""torch.onnx.export without restore: torch's own LSTM stands in the graph, which becomes ONNX's."""

from __future__ import annotations

from importlib import util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastlstm

_MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime") if util.find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(bool(_MISSING), reason=f"needs {', '.join(_MISSING)}"),
    pytest.mark.filterwarnings("ignore"),
]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = fastlstm.LSTM(3, 5, 2, bidirectional=True)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out, (h, c) = self.lstm(x, (h, c))
        return out, h, c


@pytest.mark.parametrize("dynamo", [True, False])
def test_both_exporters_make_onnx_lstms(tmp_path: Path, dynamo: bool) -> None:
    import onnx
    import onnxruntime

    model, path = Model().eval(), str(tmp_path / "model.onnx")
    inputs = (torch.randn(7, 2, 3), torch.randn(4, 2, 5), torch.randn(4, 2, 5))
    torch.onnx.export(model, inputs, path, input_names=["x", "h", "c"], dynamo=dynamo)
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    assert nodes.count("LSTM") == 2
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    made = session.run(None, {n: v.numpy() for n, v in zip(("x", "h", "c"), inputs, strict=True)})
    torch.testing.assert_close([torch.from_numpy(v) for v in made], list(model(*inputs)), rtol=1e-4, atol=1e-5)


def test_what_onnx_lacks_is_named() -> None:
    lstm = fastlstm.LSTM(3, 5, return_cell_states=True).eval()
    with pytest.raises(Exception, match="ONNX has no LSTM with reset, return_cell_states"):
        torch.onnx.export(lstm, (torch.randn(7, 2, 3),), dynamo=True)
