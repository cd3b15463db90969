# ruff: noqa: PT009, PT027  (torch.testing compares tensors, unittest does not; its import needs expecttest)
"""The class of checks that torch runs on its own modules, on fastlstm.LSTM with torch's own samples of nn.LSTM.

Everything is asked of every sample that torch has, in float32 and float64; nothing is expected to fail.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("expecttest", reason="torch's own test tools import expecttest, which is not installed")

from torch.testing._internal import common_modules as torch_samples
from torch.testing._internal.common_device_type import instantiate_device_type_tests
from torch.testing._internal.common_modules import ModuleErrorEnum, ModuleInfo, TrainEvalMode, modules
from torch.testing._internal.common_utils import TestCase, freeze_rng_state, gradcheck, gradgradcheck

import fastlstm

INFO = ModuleInfo(
    fastlstm.LSTM,
    train_and_eval_differ=True,
    module_inputs_func=torch_samples.module_inputs_torch_nn_LSTM,
    module_error_inputs_func=torch_samples.module_error_inputs_torch_nn_RNN_GRU,
)
each_sample = modules([INFO])
each_sample_in_float64 = modules([INFO], allowed_dtypes=[torch.float64])
each_sample_in_float64_once = modules([INFO], allowed_dtypes=[torch.float64], train_eval_mode=TrainEvalMode.train_only)


def _samples(info: ModuleInfo, device: str, dtype: torch.dtype, training: bool, grad: bool = False) -> Iterator[tuple]:
    """(module, positional inputs, the sample) for each of torch's samples."""
    samples = info.module_inputs_func(info, device=device, dtype=dtype, requires_grad=grad, training=training)
    for sample in samples:
        constructor = sample.constructor_input
        module = info.module_cls(*constructor.args, **constructor.kwargs, device=device, dtype=dtype).train(training)
        assert not sample.forward_input.kwargs
        yield module, sample.forward_input.args, sample


def _flat(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [leaf for item in value for leaf in _flat(item)]


def _mapped(change, value):
    return change(value) if isinstance(value, Tensor) else tuple(_mapped(change, item) for item in value)


def _scattered(value: Tensor) -> Tensor:
    """The same numbers with gaps between them."""
    spread = torch.empty(*value.shape, 2, dtype=value.dtype, device=value.device)[..., 1].detach()
    spread.copy_(value.detach())
    assert not spread.is_contiguous() or spread.numel() < 2
    return spread.requires_grad_(value.requires_grad)


class TestLSTMAsTorchTestsModules(TestCase):
    @each_sample
    def test_forward(self, device, dtype, module_info, training):
        for module, args, sample in _samples(module_info, device, dtype, training):
            with freeze_rng_state():
                out = module(*args)
            with freeze_rng_state():
                expected = sample.reference_fn(module, *args)
            self.assertEqual(out, expected)

    @each_sample
    def test_same_as_nn_lstm(self, device, dtype, module_info, training):
        for module, args, sample in _samples(module_info, device, dtype, training):
            torch_lstm = nn.LSTM(*sample.constructor_input.args, **sample.constructor_input.kwargs, dtype=dtype)
            torch_lstm.load_state_dict(module.state_dict())
            self.assertEqual(module(*args), torch_lstm(*args))
            self.assertEqual(repr(module), repr(torch_lstm))

    @each_sample
    def test_factory_kwargs(self, device, dtype, module_info, training):
        for _, _, sample in _samples(module_info, device, dtype, training):
            constructor = sample.constructor_input
            for factory_dtype in (torch.float32, torch.float64, torch.bfloat16):
                module = module_info.module_cls(
                    *constructor.args, **constructor.kwargs, device=device, dtype=factory_dtype
                )
                self.assertEqual({p.dtype for p in module.parameters()}, {factory_dtype})
            module = module_info.module_cls(*constructor.args, **constructor.kwargs, device="meta")
            self.assertEqual({p.device.type for p in module.parameters()}, {"meta"})
            self.assertEqual({p.device.type for p in module.to_empty(device=device).parameters()}, {"cpu"})

    @each_sample
    def test_repr_and_pickle(self, device, dtype, module_info, training):
        for module, args, _ in _samples(module_info, device, dtype, training):
            self.assertTrue(str(module).startswith("LSTM("))
            buffer = io.BytesIO()
            torch.save(module, buffer)
            buffer.seek(0)
            for again in (torch.load(buffer, weights_only=False), pickle.loads(pickle.dumps(module))):
                self.assertIs(type(again), fastlstm.LSTM)
                self.assertEqual(again(*args), module(*args))

    @each_sample
    def test_non_contiguous(self, device, dtype, module_info, training):
        for module, args, _ in _samples(module_info, device, dtype, training, grad=True):
            plain = _mapped(lambda v: v.detach().clone().requires_grad_(v.requires_grad), args)
            spread = _mapped(_scattered, args)
            results = []
            for inputs in (plain, spread):
                module.zero_grad()
                outputs = _flat(module(*inputs))
                gradients = [_scattered(torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape)) for y in outputs]
                torch.autograd.backward(outputs, gradients)
                leaves = [*_flat(inputs), *module.parameters()]
                results.append([y.detach() for y in outputs] + [v.grad.clone() for v in leaves])
            self.assertEqual(*results)

    def _numerically(self, check, device, module_info, training):
        for module, args, _ in _samples(module_info, device, torch.float64, training, grad=True):
            named = dict(module.named_parameters())
            inputs = _flat(args)

            def call(*values, module=module, named=named, args=args):
                remaining, weights = iter(values), values[-len(named) :]
                x = _mapped(lambda _: next(remaining), args)
                return tuple(_flat(torch.func.functional_call(module, dict(zip(named, weights, strict=True)), x)))

            self.assertTrue(check(call, (*inputs, *named.values()), fast_mode=True))

    @each_sample_in_float64
    def test_grad(self, device, dtype, module_info, training):
        self._numerically(gradcheck, device, module_info, training)

    @each_sample_in_float64_once  # 14 s
    def test_gradgrad(self, device, dtype, module_info, training):
        self._numerically(gradgradcheck, device, module_info, training)

    @each_sample
    def test_train_and_eval_differ(self, device, dtype, module_info, training):
        """torch's way to ask whether a module looks at its mode: it cannot run without one."""
        for module, args, _ in _samples(module_info, device, dtype, training):
            del module.training
            with self.assertRaisesRegex(AttributeError, "'training'"):
                module(*args)
            with torch.no_grad(), self.assertRaisesRegex(AttributeError, "'training'"):
                module(*args)

    @each_sample
    def test_to(self, device, dtype, module_info, training):
        for swap in (False, True):
            before = torch.__future__.get_swap_module_params_on_conversion()
            torch.__future__.set_swap_module_params_on_conversion(swap)
            try:
                for module, args, _ in _samples(module_info, device, dtype, training):
                    kept = [id(p) for p in module.parameters()]
                    other = torch.float64 if dtype == torch.float32 else torch.float32
                    out = module.to(other)(*_mapped(lambda v, other=other: v.to(other), args))
                    self.assertEqual({v.dtype for v in _flat(out)}, {other})
                    self.assertEqual([id(p) for p in module.parameters()], kept)
            finally:
                torch.__future__.set_swap_module_params_on_conversion(before)

    @each_sample
    def test_errors(self, device, dtype, module_info, training):
        error_inputs = module_info.module_error_inputs_func(
            module_info, device=device, dtype=dtype, requires_grad=False, training=training
        )
        self.assertGreater(len(error_inputs), 10)
        for error in error_inputs:
            constructor, stage = error.module_error_input.constructor_input, error.error_on
            if stage == ModuleErrorEnum.CONSTRUCTION_ERROR:
                with self.assertRaisesRegex(error.error_type, error.error_regex):
                    module_info.module_cls(*constructor.args, **constructor.kwargs)
                continue
            module, forward = (
                module_info.module_cls(*constructor.args, **constructor.kwargs),
                error.module_error_input.forward_input,
            )
            with self.assertRaisesRegex(error.error_type, error.error_regex):
                module(*forward.args, **forward.kwargs)
            with torch.no_grad(), self.assertRaisesRegex(error.error_type, error.error_regex):
                module(*forward.args, **forward.kwargs)


WRITTEN = [name for name in vars(TestLSTMAsTorchTestsModules) if name.startswith("test_")]
instantiate_device_type_tests(TestLSTMAsTorchTestsModules, globals(), only_for="cpu")


def test_torch_s_checks_exist_for_both_modes_and_types() -> None:
    """In both modes and both types, but for the two that are numerical."""
    instances = [name for name in dir(TestLSTMAsTorchTestsModulesCPU) if name.startswith("test_")]  # noqa: F821
    for name in WRITTEN:
        of_this = [m for m in instances if m.startswith(f"{name}_LSTM_")]
        assert len(of_this) == {"test_grad": 2, "test_gradgrad": 1}.get(name, 4), name
