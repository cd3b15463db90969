"""All private names of torch that this package uses, each behind one function with a word for what it asks.

is_plain_eager   may this call go past torch's dispatcher without anybody noticing?
is_recorded      does somebody differentiate, batch or record the operations that run now?
is_plain         does the address of this tensor hold its numbers?
dynamo_skip      torch.compile must not look into this function or module
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")
_C = torch._C
SingleLevelFunction = torch.autograd.function._SingleLevelFunction  # torch.func has chosen the level before it runs
torch_lstm = torch._VF.lstm  # what nn.LSTM calls
assert_async = torch._assert_async


def _forward_gradients() -> bool:
    return torch.autograd.forward_ad._current_level >= 0 or (_C._are_functorch_transforms_active() and _in_jvp())


def _in_jvp() -> bool:
    """True inside a jvp of torch.func; a traced one (torch.compile) enters no level of forward_ad."""
    stack = _C._functorch.get_interpreter_stack()
    return any(level.key() == _C._functorch.TransformType.Jvp for level in stack or ())


# Who would notice that a call goes past torch's dispatcher. Each returns something true while it is active. The first two
# also take part in backward: they record or replace every operation.
_RECORDERS = (
    _C._are_functorch_transforms_active,  # torch.func: grad, vmap, jvp, functionalize
    _C._len_torch_dispatch_stack,  # TorchDispatchMode: fake tensors, make_fx, FLOP counters
)
NATIVE_OBSERVERS = (
    *_RECORDERS,
    _C._len_torch_function_stack,  # TorchFunctionMode: `with torch.device(...)`
    _C._get_tracing_state,  # torch.jit.trace
    _C._is_any_autocast_enabled,
    torch.autograd._profiler_enabled,
)
OBSERVERS = (*NATIVE_OBSERVERS, _forward_gradients)  # the last one is Python: small_call.cpp reads its variable instead


def is_plain_but_autocast() -> bool:
    """`is_plain_eager`, but autocast may be on."""
    return not any(active() for active in OBSERVERS if active is not _C._is_any_autocast_enabled)


def is_plain_eager() -> bool:
    """True if no transform, mode, tracer, autocast, forward gradient or profiler is active.

    A call on plain tensors may then go past torch's dispatcher: nobody can observe that it does.
    """
    for active in OBSERVERS:  # noqa: SIM110 - a generator would double the time, which small calls feel
        if active():
            return False
    return True


def is_transformed() -> bool:
    """True inside a transform of torch.func or under a dispatch mode."""
    return bool(_RECORDERS[0]() or _RECORDERS[1]())


def flop_registries() -> list[dict]:
    """The formulas of every FlopCounterMode that is active, and torch's own that later ones copy; empty where none is."""
    if not _RECORDERS[1]():
        return []
    modes = torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    found = [getattr(getattr(mode, "counter", mode), "flop_registry", None) for mode in modes]
    active = [registry for registry in found if isinstance(registry, dict)]
    return [*active, sys.modules["torch.utils.flop_counter"].flop_registry] if active else []


def is_recorded(*values: Tensor | None) -> bool:
    """True if operations on these values are recorded (autograd, forward gradients, torch.func, a dispatch mode), or a
    value is not plain.
    """
    if torch.is_grad_enabled() or is_transformed() or _forward_gradients():
        return True
    return not all(v is None or is_plain(v) for v in values)


def in_functorch() -> bool:
    """True inside a transform of torch.func."""
    return _C._are_functorch_transforms_active()


def is_fake(*values: object) -> bool:
    """True where a value is a fake tensor, or FakeTensorMode is active. The usual call asks only for types."""
    if all(type(v) in _PLAIN for v in values) and not _C._len_torch_dispatch_stack():
        return False
    from torch._guards import detect_fake_mode

    return detect_fake_mode(list(values)) is not None


def forward_gradients_are_on() -> bool:
    """True inside torch.autograd.forward_ad."""
    return _forward_gradients()


_PLAIN = (Tensor, torch.nn.Parameter)
_bits = getattr(_C.DispatchKeySet, "raw_repr", repr)  # torch 2.4 has no raw_repr, and writes the keys' names


def _without_modes(make: Callable[[], _T]) -> _T:
    """What a function returns in a thread of its own: there no mode, transform or default of the caller's is on.

    Under fake tensors or functionalize a tensor that is made here would be a wrapped one.
    """
    made: Future[_T] = Future()

    def run() -> None:
        try:
            made.set_result(make())
        except BaseException as error:  # for the caller
            made.set_exception(error)

    try:
        threading.Thread(target=run).start()
    except RuntimeError:  # the interpreter is shutting down
        return make()
    return made.result()


def _probes(device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ordinary tensors made outside and in inference mode, then a negated view of each. Storages have 12 float32 numbers; the
    first and its view begin with the fifth.
    """

    def make() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        outside = torch.zeros(12, dtype=torch.float32, device=device)[4:]
        negated = torch._neg_view(outside)
        with torch.inference_mode():
            inside = torch.zeros(12, dtype=torch.float32, device=device)
            return outside, inside, negated, torch._neg_view(inside)

    return _without_modes(make)


@cache
def _plain_keys(device: str) -> frozenset[int | str]:
    """The dispatch keys of an ordinary tensor on a device, made in and outside inference mode, whatever mode is on now."""
    return frozenset(_bits(_C._dispatch_keys(v)) for v in _probes(device)[:2])


_CPU_KEYS = _plain_keys("cpu")
_CPU_MEMORY_KEYS = frozenset(_bits(_C._dispatch_keys(v)) for v in _probes("cpu"))


def is_plain(v: Tensor) -> bool:
    """True if the address of a CPU or CUDA tensor holds its numbers.

    Not of a subclass, of a lazily negated or conjugated view, or of a tensor that autograd's own vmap batches.
    """
    if type(v) not in _PLAIN:
        return False
    keys = _bits(_C._dispatch_keys(v))
    return keys in _CPU_KEYS or (v.is_cuda and keys in _plain_keys("cuda"))


def is_plain_cpu(v: Tensor) -> bool:
    """`is_plain`, of a tensor on the CPU."""
    return type(v) in _PLAIN and _bits(_C._dispatch_keys(v)) in _CPU_KEYS


def has_memory(v: Tensor) -> bool:
    """True if torch's dispatcher takes a tensor, of whatever class, for an ordinary one on the CPU, or a negated view of one."""
    return _bits(_C._dispatch_keys(v)) in _CPU_MEMORY_KEYS


_CODES = {  # type: code and bits, as DLPack writes them
    **{torch.float32: (2, 32), torch.float64: (2, 64), torch.float16: (2, 16), torch.bfloat16: (4, 16)},
    **{torch.int64: (0, 64), torch.int32: (0, 32), torch.int8: (0, 8), torch.uint8: (1, 8), torch.bool: (6, 8)},
}


def storage_bytes_left(v: Tensor) -> int:
    """Bytes of a tensor's storage from the tensor's first element on."""
    return v.untyped_storage().nbytes() - v.storage_offset() * v.element_size()


def memory_of(v: Tensor) -> tuple[int, ...] | None:
    """What csrc/bindings/boundary.cpp asks where torch has no exchange API: address, type, bytes, shape, strides; or None."""
    if v.dtype not in _CODES or not has_memory(v):
        return None
    return (v.data_ptr(), *_CODES[v.dtype], storage_bytes_left(v), *v.shape, *v.stride())


def describe_object(value: object) -> str:
    """What an argument is, for error messages."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    try:
        kind = "" if type(value) in _PLAIN else f" {type(value).__name__}"
        strides = "" if value.layout is not torch.strided or value.is_contiguous() else f" and strides {value.stride()}"
        return (
            f"{str(value.dtype).removeprefix('torch.')}{kind} with shape {list(value.shape)}{strides} on {value.device}"
        )
    except Exception:  # a subclass may refuse any question
        return type(value).__name__


def native_boundary() -> dict[str, object]:
    """What csrc/bindings/boundary.cpp reads tensors with.

    exchange_api: DLPack's table of C functions, None before torch 2.10. storage_bytes, storage_offset: addresses of functions
    of torch's stable C interface, 0 where they are not found; they take the handle that lies in a tensor's Python object, and
    probe_cdata tells where in the probe that is. keys: four C++ tensors, ordinary ones made outside and in inference mode and
    a negated view of each, each with its dispatch keys, by which the keys' place is found; empty where torch writes them as a
    name.
    """
    storage_bytes = storage_offset = 0
    try:
        import ctypes

        names = {"linux": "libtorch_cpu.so", "darwin": "libtorch_cpu.dylib"}
        library = ctypes.CDLL(
            os.path.join(os.path.dirname(torch.__file__), "lib", names.get(sys.platform, "torch_cpu.dll"))
        )
        functions = library.aoti_torch_get_storage_size, library.aoti_torch_get_storage_offset
        storage_bytes, storage_offset = (ctypes.cast(f, ctypes.c_void_p).value for f in functions)
    except (ImportError, OSError, AttributeError):
        pass  # storages are asked through Python then
    probes = probe, *_ = _probes("cpu")
    return {
        "exchange_api": getattr(Tensor, "__dlpack_c_exchange_api__", None),
        **{"tensor": Tensor, "parameter": torch.nn.Parameter, "is_neg": Tensor.is_neg, "has_memory": has_memory},
        **{"memory": memory_of, "bytes_left": storage_bytes_left, "describe": describe_object},
        **{"storage_bytes": storage_bytes, "storage_offset": storage_offset},
        **{"probe": probe, "probe_cdata": probe._cdata, "probes": probes},  # held while their memory is looked at
        "keys": [(v._cdata, keys) for v in probes if isinstance(keys := _bits(_C._dispatch_keys(v)), int)],
    }


def _any_requires_grad_in_python(*args: object) -> bool:
    return any(isinstance(v, Tensor) and v.requires_grad for v in args)


any_requires_grad = getattr(_C, "_any_requires_grad", _any_requires_grad_in_python)  # torch before 2.5 has no quick one

DispatchKeySet = _C.DispatchKeySet
OpOverload = torch._ops.OpOverload
below_autograd = _C._AutoDispatchBelowAutograd


def keys_after_autograd(keyset: DispatchKeySet) -> DispatchKeySet:
    """The dispatch keys of an op's call that lie below autograd."""
    return keyset & _C._after_autograd_keyset


def single_level_functions() -> object:
    """A context in which a single-level autograd Function may run inside a transform of torch.func."""
    from torch._functorch.utils import enable_single_level_autograd_function

    return enable_single_level_autograd_function()


_USUAL = (Tensor, torch.nn.Parameter, type(None))


def has_own_functions(value: object) -> bool:
    """True for a tensor of a class that answers torch's functions itself."""
    cls = type(value)
    if cls in _USUAL:
        return False
    function = cls.__torch_function__
    inherited = getattr(function, "__func__", None) is Tensor.__torch_function__.__func__
    return not inherited and function is not _C._disabled_torch_function_impl


def current_cuda_stream(index: int) -> int:
    """The address of a device's current stream; torch's inner function, where it has that, makes no object for it."""
    raw = getattr(_C, "_cuda_getCurrentRawStream", None)
    return raw(index) if raw else torch.cuda.current_stream(index).cuda_stream


# ---- torch.compile -------------------------------------------------------------------------------------------------
# Where Dynamo breaks a graph at a module, it goes on with the functions that the module calls, one by one. Compiled in
# pieces, a tensor whose address was taken may be freed before the kernel reads it. The ops themselves are nodes of a graph
# as ever: Dynamo never looks into those.

_frames = getattr(_C._dynamo, "eval_frame", None)  # without importing Dynamo, which takes 1.8 s
_What = TypeVar("_What", FunctionType, str)


def dynamo_skip(what: _What) -> _What:
    """Have Dynamo run a function, or all that are written in a module (given by its name), as they are.

    A module that passes addresses of tensors to native code ends with `dynamo_skip(__name__)`; a function is decorated.
    """
    place = sys.modules[what] if isinstance(what, str) else what
    for code in code_of(place, getattr(place, "__name__", "")):
        _skip(code)
    return what


def is_exporting() -> bool:
    """True while torch.export traces; a torch that can't say so (before 2.7) exports what it compiles."""
    asked = getattr(torch.compiler, "is_exporting", None)
    return asked is None or asked()


def constant_for_dynamo(function: Callable) -> Callable:
    """Have Dynamo call a function once while it traces and take the result as a constant.

    What torch.compiler.assume_constant_result does, without importing Dynamo.
    """
    function._dynamo_marked_constant = True
    return function


@constant_for_dynamo
def is_exporting_to_onnx() -> bool:
    """True inside torch.onnx.export. (torch's own question imports the whole exporter, which one that exports has done.)"""
    return "torch.onnx._internal.exporter" in sys.modules and torch.onnx.is_in_onnx_export()


def _skip(code: CodeType) -> None:
    """As torch._dynamo.skip_code does; what the function calls is skipped too where this torch can say so (2.7)."""
    if hasattr(_frames, "set_code_exec_strategy"):
        skip = _frames._FrameAction.SKIP
        _frames.set_code_exec_strategy(code, _frames._FrameExecStrategy(skip, skip))
    elif hasattr(_frames, "skip_code"):
        _frames.skip_code(code)


def code_of(value: object, module: str) -> Iterator[CodeType]:
    """The code of a function, or of all functions of a module or class that are written in that module."""
    if isinstance(value, CodeType):
        yield value
        for constant in value.co_consts:  # comprehensions and functions inside
            if isinstance(constant, CodeType):
                yield from code_of(constant, module)
    elif isinstance(value, FunctionType):
        yield from code_of(value.__code__, module)
    elif isinstance(value, (staticmethod, classmethod)):
        yield from code_of(value.__func__, module)
    elif isinstance(value, property):
        yield from (code for f in (value.fget, value.fset) if f is not None for code in code_of(f, module))
    elif isinstance(value, ModuleType) or (isinstance(value, type) and value.__module__ == module):
        for item in vars(value).values():
            inside = getattr(item, "__module__", module) == module
            if not isinstance(item, ModuleType) and inside:
                yield from code_of(getattr(item, "__wrapped__", item), module)
