"""Int8LSTM: what it gives, keeps and refuses."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

import fastlstm
from fastlstm import BackendError
from tests.modules.tagger import Tagger

OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"proj_size": 5, "num_layers": 2, "bidirectional": True},
    {"batch_first": True, "bias": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cls", [nn.LSTM, fastlstm.LSTM, fastlstm.NNLSTM])
def test_results_have_the_form_of_the_float_module_s_and_are_near(cls: type, options: dict) -> None:
    torch.manual_seed(0)
    lstm = cls(9, 33, **options).eval()
    made = fastlstm.quantize(lstm)
    x, sequences = torch.randn(7, 3, 9), [torch.randn(n, 9) for n in (2, 6, 1)]
    inputs = [x, x[:, 0], pack_sequence(sequences, enforce_sorted=False), x.transpose(0, 1)[:, ::2]]
    for value in inputs:
        with torch.no_grad():
            expected, got = lstm(value), made(value)
            again = made(value, got[1])
            torch.testing.assert_close(again, lstm(value, got[1]), rtol=0, atol=0.02)
        torch.testing.assert_close(got, expected, rtol=0, atol=0.02)


def test_unsorted_packing_gives_each_sequence_its_own_result() -> None:
    made = fastlstm.quantize(nn.LSTM(3, 5))
    x, lengths = torch.randn(6, 3, 3), [2, 6, 4]
    out, (h, c) = made(pack_padded_sequence(x, lengths, enforce_sorted=False))
    out, _ = nn.utils.rnn.pad_packed_sequence(out)
    for b, n in enumerate(lengths):
        alone, (h_alone, c_alone) = made(x[:n, b])
        torch.testing.assert_close((out[:n, b], h[:, b], c[:, b]), (alone, h_alone, c_alone), rtol=0, atol=0)


@pytest.mark.parametrize("embedding", [6, None])
def test_ids_give_what_their_vectors_give(embedding: int | None) -> None:
    torch.manual_seed(0)
    tokens = fastlstm.TokenLSTM(11, embedding, 20, 2, bidirectional=True).eval()
    made = fastlstm.quantize(tokens)
    assert type(made) is fastlstm.TokenLSTM
    ids = torch.randint(0, 11, (5, 3))
    vectors = nn.functional.one_hot(ids, 11).float() if embedding is None else made.embedding(ids)
    torch.testing.assert_close(made(ids), made.lstm(vectors), rtol=0, atol=2e-6)
    torch.testing.assert_close(made(ids), tokens(ids), rtol=0, atol=0.02)
    with torch.no_grad():
        made.lstm.bias_l0.add_(1)
        if embedding:
            made.embedding.weight.mul_(2)
            vectors = made.embedding(ids)
    torch.testing.assert_close(made(ids), made.lstm(vectors), rtol=0, atol=2e-6)
    packed = pack_sequence([ids[:4, 0], ids[:2, 1]])
    torch.testing.assert_close(made(packed)[0].data[0], made(ids[:4, :1])[0][0, 0], rtol=0, atol=0)
    with pytest.raises(IndexError, match="ids hold 11, expected 0 to 10"):
        made(ids.clone().fill_(11))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_state_dict_safetensors_pickle_and_deepcopy(options: dict, tmp_path) -> None:
    made, x = fastlstm.quantize(nn.LSTM(9, 17, **options)), torch.randn(4, 2, 9)
    expected = made(x)
    fresh = {**options, "num_layers": options.get("num_layers", 1)}

    def new() -> fastlstm.Int8LSTM:
        return fastlstm.Int8LSTM(9, 17, **fresh)

    loaded = new()
    loaded(x)  # packed before the weights are loaded
    loaded.load_state_dict(made.state_dict())
    saved = new()
    save_model(made, str(tmp_path / "model.safetensors"))
    load_model(saved, str(tmp_path / "model.safetensors"))
    buffer = io.BytesIO()
    torch.save(made.state_dict(), buffer)
    buffer.seek(0)
    stored = new()
    stored.load_state_dict(torch.load(buffer, weights_only=True))
    for other in (loaded, saved, stored, pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        torch.testing.assert_close(other(x), expected, rtol=0, atol=0)


def test_state_dict_has_the_documented_names_and_types() -> None:
    state = fastlstm.quantize(nn.LSTM(3, 5, bidirectional=True, proj_size=2)).state_dict()
    expected = {}
    for suffix in ("l0", "l0_reverse"):
        for name, shape in (("weight_ih", (20, 3)), ("weight_hh", (20, 2)), ("weight_hr", (2, 5))):
            expected |= {f"{name}_{suffix}": (shape, torch.int8), f"{name}_{suffix}_scale": (shape[:1], torch.float32)}
        expected[f"bias_{suffix}"] = ((20,), torch.float32)
    assert {name: (tuple(v.shape), v.dtype) for name, v in state.items()} == expected


def test_wrong_calls_say_what_was_expected() -> None:
    made = fastlstm.quantize(nn.LSTM(3, 5))
    with pytest.raises(ValueError, match=r"input is torch.float64 on cpu, expected torch.float32 on cpu"):
        made(torch.randn(4, 2, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"input has shape \[4, 2, 7\], expected 3 features last"):
        made(torch.randn(4, 2, 7))
    with pytest.raises(
        ValueError, match=r"h0 is float32 with shape \[1, 9, 5\] on cpu, expected float32 with shape \[1, 2, 5\]"
    ):
        made(torch.randn(4, 2, 3), (torch.zeros(1, 9, 5), torch.zeros(1, 2, 5)))
    with pytest.raises(TypeError, match="hx is a Tensor, expected a pair of tensors"):
        made(torch.randn(4, 2, 3), torch.zeros(1, 2, 5))
    with pytest.raises(ValueError, match="input has no steps"):
        made(torch.randn(0, 2, 3))
    with pytest.raises(
        RuntimeError,
        match=r"(?s)weight_ih_l0 is torch.float32, expected torch.int8; a float state_dict.*weight_hh_l0 is",
    ):
        made.load_state_dict(nn.LSTM(3, 5).state_dict())
    with pytest.raises(
        RuntimeError, match=r"weight_ih_l0_scale is float16 with shape \[20\] on cpu, expected torch.float32"
    ):
        copy.deepcopy(made).half()(torch.randn(4, 2, 3))
    ids = torch.zeros(4, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="an int8 TokenLSTM takes no reset mask"):
        fastlstm.quantize(fastlstm.TokenLSTM(3, None, 5))(ids, reset=ids.bool())


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="hidden_size is 0, expected an int from 1 to 132104"):
        fastlstm.Int8LSTM(3, 0)
    with pytest.raises(ValueError, match="input_size is 200000, expected an int from 1 to 132104"):
        fastlstm.quantize(nn.LSTM(200_000, 1))
    with pytest.raises(ValueError, match="proj_size is 5, expected 0 or less than hidden_size, 5"):
        fastlstm.Int8LSTM(3, 5, proj_size=5)


def test_no_sequences_give_no_rows() -> None:
    made = fastlstm.quantize(nn.LSTM(3, 5, 2, bidirectional=True))
    out, (h, c) = made(torch.zeros(4, 0, 3))
    assert (out.shape, h.shape, c.shape) == ((4, 0, 10), (4, 0, 5), (4, 0, 5))


def test_gradients_are_refused_in_training_and_not_kept_in_evaluation() -> None:
    made, x = fastlstm.quantize(nn.LSTM(3, 5)), torch.randn(4, 2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="Int8LSTM has no gradients, and the module is in training mode"):
        made(x)
    assert not made.eval()(x)[0].requires_grad
    with torch.no_grad():
        made.train()(x)


def test_rows_that_are_not_finite_give_nan_and_leave_others_alone() -> None:
    made, x = fastlstm.quantize(nn.LSTM(3, 5)), torch.randn(6, 3, 3)
    clean, _ = made(x)
    x[2, 0, 1], x[3, 1, 2] = torch.nan, torch.inf
    out, (h, c) = made(x)
    assert bool(out[2:, 0].isnan().all())
    assert bool(out[3:, 1].isnan().all())
    assert bool(h[0, :2].isnan().all())
    assert bool(c[0, :2].isnan().all())
    torch.testing.assert_close(out[:, 2], clean[:, 2], rtol=0, atol=0)
    torch.testing.assert_close(out[:2, 0], clean[:2, 0], rtol=0, atol=0)


def test_changed_weights_show_in_the_next_call() -> None:
    made, x = fastlstm.quantize(nn.LSTM(3, 5)), torch.randn(4, 2, 3)
    before = made(x)[0]
    made.weight_hh_l0.neg_()
    assert not torch.equal(made(x)[0], before)
    made.weight_hh_l0.neg_()
    assert torch.equal(made(x)[0], before)
    with torch.inference_mode():
        assert torch.equal(fastlstm.quantize(nn.LSTM(3, 5))(x)[0][0].isfinite(), torch.ones(2, 5, dtype=torch.bool))


def test_buffers_that_are_replaced_show_in_the_next_call() -> None:
    made, x = fastlstm.quantize(nn.LSTM(3, 33)), torch.randn(4, 2, 3)
    scale = made.weight_hh_l0_scale.clone()
    for n in range(20):
        made.weight_hh_l0_scale = None  # so that the next has its memory
        made.weight_hh_l0_scale = scale * (1 + n / 4)
        got = made(x)
        torch.testing.assert_close(got, copy.deepcopy(made)(x), rtol=0, atol=0)
    assert all(type(v) is torch.Tensor for v in made.state_dict().values())
    assert copy.deepcopy(made)._packed._key is None
    assert pickle.loads(pickle.dumps(made))._packed._key is None


def test_embeddings_that_are_replaced_show_in_the_next_call() -> None:
    made, ids = fastlstm.quantize(fastlstm.TokenLSTM(7, 6, 5).eval()), torch.randint(0, 7, (4, 2))
    weight = made.embedding.weight.detach().clone()
    for n in range(20):
        made.embedding.weight = None  # so that the next has its memory
        made.embedding.weight = nn.Parameter(weight * (1 + n / 4))
        got = made(ids)
        torch.testing.assert_close(got, copy.deepcopy(made)(ids), rtol=0, atol=0)


def test_an_embedding_that_does_not_fit_is_refused() -> None:
    made, ids = fastlstm.quantize(fastlstm.TokenLSTM(7, 6, 5).eval()), torch.randint(0, 7, (4, 2))
    made(ids)
    for weight in (torch.randn(7, 6).bfloat16(), torch.randn(7, 6).double(), torch.randn(9, 6), torch.randn(7, 5)):
        made.embedding.weight = nn.Parameter(weight)
        for backend in ("cpu", "reference"):
            with (
                fastlstm.backend(backend),
                pytest.raises(
                    ValueError, match=r"embedding\.weight is .*, expected float32 with shape \[7, 6\] on cpu"
                ),
            ):
                made(ids)


@pytest.mark.parametrize("embedding", [6, None])
def test_ids_are_checked_where_the_definition_runs(embedding: int | None) -> None:
    made = fastlstm.quantize(fastlstm.TokenLSTM(11, embedding, 5).eval())
    few, many = torch.randint(0, 11, (2, 2)), torch.randint(0, 11, (9, 3))
    with fastlstm.backend("reference"):
        torch.testing.assert_close(made(few)[0], made(torch.cat([few, few, few]))[0][:2], rtol=0, atol=0)
        expected = made(many)
        for wrong in (-1, 11):
            with pytest.raises(IndexError, match=f"ids hold {wrong}, expected 0 to 10"):
                made(few.clone().fill_(wrong))
    torch.testing.assert_close(made(many), expected, rtol=0, atol=0.02)


def test_tracers_and_transforms_are_refused() -> None:
    made, x = fastlstm.quantize(nn.LSTM(3, 5)).eval(), torch.randn(4, 2, 3)
    with pytest.raises(RuntimeError, match=r"Int8LSTM cannot be traced or exported .* use the float model"):
        torch.jit.trace(made, x)
    with pytest.raises(RuntimeError, match=r"Int8LSTM cannot run inside torch\.func"):
        torch.func.vmap(lambda v: made(v)[0])(x[None])
    with pytest.raises(RuntimeError, match=r"Int8LSTM cannot run inside torch\.func"):
        torch.func.grad(lambda v: made(v)[0].sum())(x)
    with torch._subclasses.FakeTensorMode(), pytest.raises(RuntimeError, match="Int8LSTM cannot run on fake tensors"):
        made(torch.empty(4, 2, 3))


def test_options_of_other_lstms() -> None:
    made, x = fastlstm.quantize(nn.LSTM(3, 5)).eval(), torch.randn(4, 2, 3)
    for options in (
        {"reset": torch.zeros(4, 2, dtype=torch.bool)},
        {"return_gates": True},
        {"return_cell_states": True},
    ):
        with pytest.raises(ValueError, match="Int8LSTM takes no reset mask and returns no cell states or gates"):
            made(x, **options)
    made.flatten_parameters()
    assert (made.dropout, made.mode) == (0.0, "LSTM")
    fastlstm.warm_up(made, x)
    with pytest.raises(ValueError, match=r"tables\(\) is of float weights"):
        fastlstm.quantize(fastlstm.TokenLSTM(7, 6, 5)).tables([])


def test_autocast_gives_float32() -> None:
    made, x = fastlstm.quantize(nn.LSTM(3, 5)), torch.randn(4, 2, 3).bfloat16()
    expected = made(x.float())
    state = tuple(v.bfloat16() for v in expected[1])
    after = made(x.float(), tuple(v.float() for v in state))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(made(x), expected, rtol=0, atol=0)
        torch.testing.assert_close(made(x, state), after, rtol=0, atol=0)


def test_an_embedding_gets_no_gradient_in_silence() -> None:
    made, ids = fastlstm.quantize(fastlstm.TokenLSTM(7, 6, 5)), torch.randint(0, 7, (4, 2))
    with pytest.raises(RuntimeError, match="in training mode with an embedding or a state that requires them"):
        made(ids)
    assert not made.eval()(ids)[0].requires_grad


def test_explain_says_what_runs() -> None:
    made = fastlstm.quantize(fastlstm.TokenLSTM(7, None, 5))
    ids = torch.zeros(3, 2, dtype=torch.int64)
    assert fastlstm.explain(made, ids).startswith("runs on cpu: int8, ")
    with fastlstm.backend("reference"):
        assert fastlstm.explain(made, ids) == "runs on reference: int8, in torch operations; 'reference' is forced"
        expected = made(ids)
        assert fastlstm.last_plan() == "reference: int8, in torch operations"
    torch.testing.assert_close(made(ids), expected, rtol=0, atol=0.02)
    with (
        fastlstm.backend("triton"),
        pytest.raises(BackendError, match="backend 'triton' was asked for and has no int8"),
    ):
        made(ids)


def test_a_compiled_model_runs_it() -> None:
    model = Tagger().eval()
    made, ids = fastlstm.quantize(model), torch.randint(0, 11, (5, 2))
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(made, backend="eager")(ids), made(ids), rtol=0, atol=0)
