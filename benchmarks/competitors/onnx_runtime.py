"""onnxruntime's LSTM operator on the CPU, inference only. It picks its instruction set itself."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.competitors import AbsentError, Competitor, require, require_plain
from benchmarks.layer import PreparedLayer


def session(prepared: PreparedLayer) -> Competitor:
    """One LSTM node per layer, with as many threads as torch."""
    require_plain(prepared, inference_only=True)
    require("onnxruntime")
    require("onnx")
    if prepared.call.device != "cpu" or prepared.call.dtype != torch.float32:
        raise AbsentError("this competitor is written for float32 on the CPU")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    model = graph(prepared.lstm, prepared.call.case.T, prepared.call.case.B).SerializeToString()
    engine = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    zero = np.zeros((prepared.lstm.num_layers, prepared.call.case.B, prepared.lstm.hidden_size), np.float32)
    h0, c0 = (zero, zero) if prepared.state is None else (s.numpy() for s in prepared.state)
    feed = {"x": prepared.rows.detach().numpy(), "h0": h0, "c0": c0}

    def timed() -> list[np.ndarray]:
        return engine.run(None, feed)

    def compared() -> list[Tensor]:
        return [torch.from_numpy(value) for value in timed()]

    return Competitor(timed, compared)


def graph(lstm: nn.LSTM, T: int, B: int):
    """The ONNX model: x (T, B, I), h0, c0 (L, B, H) → output (T, B, H), h_n, c_n (L, B, H)."""
    from onnx import TensorProto, helper

    I, H, L = lstm.input_size, lstm.hidden_size, lstm.num_layers
    nodes, constants = [], [helper.make_tensor("squeezed", TensorProto.INT64, [1], [1])]
    for name in ("h0", "c0"):
        nodes.append(helper.make_node("Split", [name], [f"{name}_{k}" for k in range(L)], axis=0, num_outputs=L))
    below = "x"
    for k in range(L):
        weights = _weights(lstm, k)
        constants += [helper.make_tensor(n, TensorProto.FLOAT, v.shape, v.ravel()) for n, v in weights.items()]
        inputs = [below, *weights, "", f"h0_{k}", f"c0_{k}"]
        nodes.append(helper.make_node("LSTM", inputs, [f"y_{k}", f"h_{k}", f"c_{k}"], hidden_size=H))
        below = f"out_{k}" if k < L - 1 else "out"
        nodes.append(helper.make_node("Squeeze", [f"y_{k}", "squeezed"], [below]))
    for name, letter in (("h_n", "h"), ("c_n", "c")):
        nodes.append(helper.make_node("Concat", [f"{letter}_{k}" for k in range(L)], [name], axis=0))
    state = (L, B, H)
    feeds = {"x": (T, B, I), "h0": state, "c0": state}
    outputs = {"out": (T, B, H), "h_n": state, "c_n": state}
    typed = [
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in side.items()] for side in (feeds, outputs)
    ]
    return helper.make_model(
        helper.make_graph(nodes, "lstm", *typed, constants), opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    )


def _weights(lstm: nn.LSTM, k: int) -> dict[str, np.ndarray]:
    """W, R and B of layer k in ONNX's gate order: i, o, f, g."""

    def ordered(name: str) -> np.ndarray:
        i, f, g, o = getattr(lstm, f"{name}_l{k}").detach().chunk(4)
        return torch.cat([i, o, f, g])[None].numpy()

    bias = np.concatenate([ordered("bias_ih"), ordered("bias_hh")], 1)
    return {f"w_{k}": ordered("weight_ih"), f"r_{k}": ordered("weight_hh"), f"b_{k}": bias}
