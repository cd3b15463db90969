"""torch.compile and torch.export: one graph, one node for the whole module on the CPU, any T; results and gradients unchanged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastlstm


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def _nodes(graph: torch.fx.GraphModule, op: str = "lstm_forward") -> int:
    return sum(op in str(node.target) for node in graph.graph.nodes)


def _operations(graph: torch.fx.GraphModule) -> list[str]:
    """What a graph calls, besides parts of results and `detach`, which do nothing when it runs."""
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    return [target for target in targets if "getitem" not in target and "detach" not in target]


def _grads(run, lstm: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, states and every gradient of a call."""
    x = x.clone().requires_grad_()
    lstm.zero_grad()
    out, (h, c) = run(x)
    (out.square().sum() + h.sum() + c.cos().sum()).backward()
    return [out.detach(), h.detach(), c.detach(), x.grad, *(p.grad.clone() for p in lstm.parameters())]


def _slow(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("options", "dynamic"),
    [
        ({"batch_first": True, "bias": False}, False),
        ({"num_layers": 2, "bidirectional": True, "proj_size": 3}, True),
        _slow({"num_layers": 2, "bidirectional": True, "proj_size": 3}, False),
        _slow({"batch_first": True, "bias": False}, True),
    ],
)
def test_fullgraph_forward_and_backward(options: dict, dynamic: bool) -> None:
    lstm = fastlstm.LSTM(3, 5, **options)
    counter, graph_counts = CompileCounterWithBackend("aot_eager"), []
    compiled = torch.compile(lstm, fullgraph=True, dynamic=dynamic, backend=counter)
    for T, B in ((7, 2), (4, 3), (9, 5)) if dynamic else ((7, 2),):
        x = torch.randn(B, T, 3) if lstm.batch_first else torch.randn(T, B, 3)
        assert all(map(torch.equal, _grads(compiled, lstm, x), _grads(lstm, lstm, x)))
        assert _nodes(counter.graphs[-1], "stack_forward") == 1
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), lstm(x), rtol=0, atol=0)
        assert _nodes(counter.graphs[-1], "stack_forward") == 1
        graph_counts.append(counter.frame_count)
    assert len(set(graph_counts)) == 1, "another shape compiled another graph"


def test_nodes_do_not_grow_with_time_and_only_weights_are_more_with_layers() -> None:
    """Compile time follows the nodes: the same for T 3 and T 3000, and the four weights of each layer."""
    sizes = {}
    for T, L in ((3, 1), (3000, 1), (3, 2), (3, 3)):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("eager")
        torch.compile(fastlstm.LSTM(2, 3, L), fullgraph=True, backend=counter)(torch.randn(T, 2, 2))
        (graph,) = counter.graphs
        sizes[T, L] = len(graph.graph.nodes)
        assert _nodes(graph, "stack_forward") == 1
    assert sizes[3, 1] == sizes[3000, 1] < 20
    assert sizes[3, 3] - sizes[3, 2] == sizes[3, 2] - sizes[3, 1] == 4


def _traced_passes(lstm: nn.Module, x: Tensor) -> dict[str, torch.fx.GraphModule]:
    """The graphs of both passes of a compiled training step, whose results are compared with the eager ones."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    graphs = {}

    def keep(name: str):
        def compiler(graph: torch.fx.GraphModule, _: list) -> object:
            graphs[name] = graph
            return make_boxed_func(graph.forward)

        return compiler

    backend = aot_autograd(fw_compiler=keep("forward"), bw_compiler=keep("backward"))
    actual = _grads(torch.compile(lstm, fullgraph=True, backend=backend), lstm, x)
    torch.testing.assert_close(actual, _grads(lstm, lstm, x))
    return graphs


def test_each_pass_is_one_operation_on_the_cpu() -> None:
    """No sum of biases, product, stack or fill beside it: Inductor has nothing to compile."""
    graphs = _traced_passes(fastlstm.LSTM(3, 5, 2, bidirectional=True), torch.randn(6, 2, 3))
    assert _operations(graphs["forward"]) == ["fastlstm.stack_forward.default"]
    assert _operations(graphs["backward"]) == ["fastlstm.stack_backward.default"]


@pytest.mark.parametrize("why", ["recompute", "backend"])
def test_each_pass_is_one_node_a_layer_where_the_whole_is_none(why: str) -> None:
    """Recomputing is done layer by layer; another backend takes one layer."""
    lstm = fastlstm.LSTM(3, 5, 2, bidirectional=True, recompute=why == "recompute")
    with fastlstm.backend("reference" if why == "backend" else None):
        graphs = _traced_passes(lstm, torch.randn(6, 2, 3))
    assert (_nodes(graphs["forward"]), _nodes(graphs["backward"], "lstm_backward")) == (4, 4)
    assert (_nodes(graphs["backward"]), _nodes(graphs["forward"], "stack_forward")) == (0, 0)


@pytest.mark.parametrize("kind", ["dense", "float64", "state", "packed", "ids"])
def test_a_compiled_training_step_has_the_bits_of_an_eager_one(kind: str) -> None:
    dtype = torch.float64 if kind == "float64" else torch.float32
    lstm = fastlstm.TokenLSTM(11, 3, 5, 2) if kind == "ids" else fastlstm.LSTM(3, 5, 2, dropout=0.5, dtype=dtype)
    lstm.eval()  # dropout between layers is off, and the layers stay one node
    x = torch.randint(11, (6, 4)) if kind == "ids" else torch.randn(6, 4, 3, dtype=dtype)
    x = pack_padded_sequence(x, [2, 6, 1, 4], enforce_sorted=False) if kind == "packed" else x
    hx = None
    if kind == "state":
        hx = tuple(torch.randn(2, 4, 5, requires_grad=True) for _ in range(2))
    counter, results = CompileCounterWithBackend("aot_eager"), []
    for run in (torch.compile(lstm, fullgraph=True, backend=counter), lstm):
        lstm.zero_grad()
        out, (h, c) = run(x, hx)
        out = out.data if kind == "packed" else out
        leaves = [*lstm.parameters(), *(hx or ())]
        made = torch.autograd.grad(out.square().sum() + h.sum() + c.cos().sum(), leaves)
        results.append([out.detach(), h.detach(), c.detach(), *made])
    assert all(map(torch.equal, *results))
    assert _nodes(counter.graphs[0], "stack_forward") == 1


def test_a_compiled_state_that_is_half_used_gives_the_same() -> None:
    """Gradients come from h_n alone, from c_n alone, and with weights that are frozen."""
    lstm, x = fastlstm.LSTM(3, 5, 2), torch.randn(6, 2, 3)
    lstm.weight_ih_l0.requires_grad_(False)
    compiled = torch.compile(lstm, fullgraph=True, backend="aot_eager")
    leaves = [p for p in lstm.parameters() if p.requires_grad]
    for k in range(2):
        grads = [torch.autograd.grad(run(x)[1][k].sum(), leaves) for run in (compiled, lstm)]
        assert all(map(torch.equal, *grads))


def test_transforms_inside_a_compiled_function_take_the_op_of_one_layer() -> None:
    lstm, x = fastlstm.LSTM(3, 5), torch.randn(2, 4, 3, 3)

    def losses(x: Tensor) -> Tensor:
        return torch.func.vmap(lambda part: lstm(part)[0].square().sum())(x)

    counter = CompileCounterWithBackend("aot_eager")
    actual = torch.compile(losses, fullgraph=True, backend=counter)(x)
    torch.testing.assert_close(actual, torch.stack([lstm(part)[0].square().sum() for part in x]))
    assert (_nodes(counter.graphs[0]), _nodes(counter.graphs[0], "stack_forward")) == (1, 0)


def test_the_graph_s_op_can_be_differentiated_twice() -> None:
    """By a compiler that runs the graph as it is; AOTAutograd refuses second derivatives of any graph."""
    lstm, x = fastlstm.LSTM(3, 5, dtype=torch.float64), torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    seconds = []
    for run in (torch.compile(lstm, fullgraph=True, backend="eager"), lstm):
        (first,) = torch.autograd.grad(run(x)[0].square().sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*seconds)


def test_options_and_initial_states_give_the_same_compiled() -> None:
    lstm = fastlstm.LSTM(3, 5, 2, recompute=True)
    x, hx = torch.randn(6, 2, 3), (torch.randn(2, 2, 5), torch.randn(2, 2, 5))
    reset = torch.rand(6, 2) < 0.3

    def call(x: Tensor):
        return lstm(x, hx, reset=reset, return_cell_states=True, return_gates=True)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), call(x))


def test_compiled_dropout_acts_in_training_only() -> None:
    lstm = fastlstm.LSTM(3, 5, 2, dropout=0.5, weight_drop=0.3)
    compiled, x = torch.compile(lstm, fullgraph=True, backend="aot_eager"), torch.randn(4, 2, 3)
    first, second = compiled(x)[0], compiled(x)[0]
    assert not torch.equal(first, second)
    lstm.eval()
    torch.testing.assert_close(compiled(x), lstm(x))


def test_unbatched_input_and_autocast_give_the_same_compiled() -> None:
    lstm = fastlstm.LSTM(3, 5)
    x = torch.randn(6, 3)
    compiled = torch.compile(lstm, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), lstm(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, expected = compiled(x), lstm(x)
    assert actual[0].dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("with_state", [False, True])
def test_packed_input_compiles_to_one_graph(with_state: bool) -> None:
    """Packed outside or from tensors inside; lengths are data, so others compile nothing new."""
    lstm = fastlstm.LSTM(3, 5, 2, bidirectional=True)
    hx = (torch.randn(4, 3, 5), torch.randn(4, 3, 5)) if with_state else None

    def call(data: Tensor, batch_sizes: Tensor) -> tuple[Tensor, Tensor]:
        out, (h, _) = lstm(PackedSequence(data, batch_sizes), hx)
        return out.data, h

    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(call, fullgraph=True, backend=counter)
    for lengths in ([6, 4, 1], [6, 3, 2]):
        packed = pack_padded_sequence(torch.randn(6, 3, 3), lengths)
        torch.testing.assert_close(compiled(*packed[:2]), call(*packed[:2]))
    assert counter.frame_count == 1
    whole = torch.compile(lstm, fullgraph=True, backend="eager")
    torch.testing.assert_close(whole(packed, hx)[0].data, lstm(packed, hx)[0].data)


def test_unsorted_packed_input_trains_in_one_graph() -> None:
    """The order of the sequences tells how many they are, so no number is read from a tensor while tracing."""
    lstm = fastlstm.LSTM(3, 5, 2)
    compiled = torch.compile(lstm, fullgraph=True, backend="aot_eager")
    for lengths in ([2, 6, 1], [4, 6, 3]):
        packed, results = pack_padded_sequence(torch.randn(6, 3, 3), lengths, enforce_sorted=False), []
        for run in (compiled, lstm):
            lstm.zero_grad()
            out, (h, c) = run(packed)
            (out.data.square().sum() + h.sum() + c.cos().sum()).backward()
            results.append([out.data.detach(), h.detach(), c.detach(), *(p.grad.clone() for p in lstm.parameters())])
        torch.testing.assert_close(results[0], results[1])


def test_a_model_with_an_lstm_in_it_compiles_to_one_graph() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.rnn, self.head = nn.Embedding(11, 3), fastlstm.LSTM(3, 5), nn.Linear(5, 11)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.rnn(self.embedding(ids))[0])

    model, ids = Model(), torch.randint(11, (7, 2))
    counter = CompileCounterWithBackend("aot_eager")
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend=counter)(ids), model(ids))
    assert counter.frame_count == 1


def test_token_lstm_gives_the_same_compiled() -> None:
    lstm = fastlstm.TokenLSTM(11, 3, 5)
    ids = torch.randint(11, (7, 2))
    torch.testing.assert_close(torch.compile(lstm, fullgraph=True, backend="aot_eager")(ids), lstm(ids))


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True}])
def test_export_with_dynamic_batch_and_time(options: dict) -> None:
    lstm = fastlstm.LSTM(3, 5, **options).eval()
    time, batch = torch.export.Dim("time", min=2), torch.export.Dim("batch", min=2)
    dims = {0: batch, 1: time} if lstm.batch_first else {0: time, 1: batch}
    with torch.no_grad():
        exported = torch.export.export(lstm, (torch.randn(7, 4, 3),), dynamic_shapes={"input": dims})
    assert _nodes(exported.graph_module) == lstm.num_layers * (2 if lstm.bidirectional else 1)
    for T, B in ((7, 4), (2, 9), (30, 2)):
        x = torch.randn(B, T, 3) if lstm.batch_first else torch.randn(T, B, 3)
        torch.testing.assert_close(exported.module()(x), lstm(x))


def test_double_backward_under_compile_says_that_torch_cannot() -> None:
    lstm = fastlstm.LSTM(3, 5)
    compiled, x = torch.compile(lstm, fullgraph=True, backend="aot_eager"), torch.randn(4, 2, 3, requires_grad=True)
    (first,) = torch.autograd.grad(compiled(x)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        first.sum().backward()


def test_inductor_compiles_no_kernel_for_the_module() -> None:
    """C++ that Inductor writes takes seconds to compile; for a training step of the LSTM it writes none."""
    from torch._inductor import metrics

    metrics.reset()
    lstm = fastlstm.LSTM(3, 5, 2)
    compiled, x = torch.compile(lstm, fullgraph=True), torch.randn(6, 2, 3)
    assert all(map(torch.equal, _grads(compiled, lstm, x), _grads(lstm, lstm, x)))
    with torch.no_grad():
        compiled(x)
    assert metrics.generated_kernel_count == 0


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_inductor_gives_the_same(dynamic: bool) -> None:
    """With torch's default compiler, which builds C++."""
    lstm = fastlstm.LSTM(3, 5, 2)
    compiled = torch.compile(lstm, fullgraph=True, dynamic=dynamic)
    for T in (6, 9):
        x = torch.randn(T, 2, 3)
        torch.testing.assert_close(_grads(compiled, lstm, x), _grads(lstm, lstm, x))
