"""What users, other threads and other libraries do to tensors: the same numbers in other memory, and what no call can take."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


class OwnClass(Tensor):
    """A subclass without operations of its own."""


class Answers(Tensor):
    """A subclass that answers questions about memory itself, with what does not fit."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (Tensor.new_empty, Tensor.contiguous, Tensor.new_zeros):
            return torch.ones(1, dtype=torch.float32, device="cpu")
        return super().__torch_function__(func, types, args, kwargs or {})


def _spaced(v: Tensor) -> Tensor:
    return torch.stack([v, v], -1)[..., 0]


def _at_an_offset(v: Tensor) -> Tensor:
    room = torch.zeros(v.numel() + 3, dtype=v.dtype, device=v.device)
    return room[3:].view(v.shape).copy_(v)


def _in_numpy(v: Tensor) -> Tensor:
    return (
        torch.from_numpy(v.detach().resolve_neg().numpy().copy()) if v.dtype != torch.bfloat16 else v.detach().clone()
    )


def _inferred(v: Tensor) -> Tensor:
    with torch.inference_mode():
        return v.detach().clone()


# The numbers of a tensor stay what they are.
RELAYOUT: dict[str, Callable[[Tensor], Tensor]] = {
    "copy": lambda v: v.detach().clone(),
    "transposed": lambda v: v.mT.contiguous().mT if v.dim() > 1 else v,
    "spaced": _spaced,
    "at an offset": _at_an_offset,
    "in numpy": _in_numpy,
    "negated view": lambda v: torch._neg_view(-v) if v.is_floating_point() else v,
    "subclass": lambda v: v.detach().clone().as_subclass(OwnClass),
    "parameter": lambda v: torch.nn.Parameter(v.detach().clone()) if v.is_floating_point() else v,
}


def is_whole(v: Tensor) -> bool:
    """Whether torch's own operations may read a tensor: its storage was not freed or made shorter."""
    return v.untyped_storage().nbytes() >= (v.storage_offset() + v.numel()) * v.element_size()


def _freed(v: Tensor) -> Tensor:
    v = v.detach().clone()
    v.untyped_storage().resize_(0)
    return v


def _negated_freed(v: Tensor) -> Tensor:
    v = torch._neg_view(v.detach().clone()) if v.is_floating_point() else v.detach().clone()
    v.untyped_storage().resize_(0)
    return v


def _shortened(v: Tensor) -> Tensor:
    v = v.detach().clone(memory_format=torch.contiguous_format)
    v.untyped_storage().resize_(max(v.numel() * v.element_size() - v.element_size(), 0))
    return v


# An error is the right answer, or the answer that torch's own operations would give.
HOSTILE_TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "freed": _freed,
    "negated, freed": _negated_freed,
    "shortened": _shortened,
    "other type": lambda v: v.to(torch.int32 if v.is_floating_point() else torch.float32),
    "complex": lambda v: v.to(torch.complex64),
    "one row less": lambda v: v[:-1],
    "one column less": lambda v: v[..., :-1],
    "one dimension more": lambda v: v[None],
    "empty": lambda v: v.new_empty(0),
    "meta": lambda v: v.to("meta"),
    "answers itself": lambda v: v.detach().clone().as_subclass(Answers),
    "answers itself, spaced": lambda v: _spaced(v).as_subclass(Answers),
    "sparse": lambda v: v.detach().to_sparse(),
    "ids outside": lambda v: v + 11 if not v.is_floating_point() else v[..., :0],
}


def _with_sizes(
    change: Callable[[Tensor, random.Random], Tensor],
) -> Callable[[PackedSequence, random.Random], PackedSequence]:
    return lambda packed, rng: packed._replace(batch_sizes=change(packed.batch_sizes.clone(), rng))


def _one_changed(sizes: Tensor, rng: random.Random) -> Tensor:
    sizes[rng.randrange(len(sizes))] += rng.choice([-(2**40), -1, 1, 2, 2**31, 2**62])
    return sizes


def _order(packed: PackedSequence, rng: random.Random) -> PackedSequence:
    """An order of other sequences than those packed."""
    order = packed.sorted_indices
    order = rng.choice([order[:-1], torch.cat([order, order]), order + 1000, -order - 1000, order.to(torch.float32)])
    return packed._replace(sorted_indices=order)


HOSTILE_PACKING: dict[str, Callable[[PackedSequence, random.Random], PackedSequence]] = {
    "one batch size changed": _with_sizes(_one_changed),
    "rising batch sizes": _with_sizes(lambda sizes, rng: sizes.flip(0) if len(set(sizes.tolist())) > 1 else sizes + 1),
    "no batch sizes": _with_sizes(lambda sizes, rng: sizes[:0]),
    "batch sizes of another type": _with_sizes(lambda sizes, rng: sizes.to(torch.int32) + 1),
    "fewer rows": lambda packed, rng: packed._replace(data=packed.data[:-1]),
    "freed rows": lambda packed, rng: packed._replace(data=_freed(packed.data)),
    "freed batch sizes": _with_sizes(lambda sizes, rng: _freed(sizes)),
    "other order": _order,
    "order on meta": lambda packed, rng: packed._replace(sorted_indices=packed.sorted_indices.to("meta")),
    "order back on meta": lambda packed, rng: packed._replace(unsorted_indices=packed.unsorted_indices.to("meta")),
}


def _some_weight(module: torch.nn.Module, rng: random.Random) -> Tensor:
    return rng.choice(list(module.parameters()))


def _data_replaced(module: torch.nn.Module, given: Tensor | PackedSequence, rng: random.Random) -> None:
    target = rng.choice([_some_weight(module, rng), _rows(given)])
    target.data = rng.choice(
        [target.data[:-1], target.data[..., :-1], target.data.mT if target.dim() > 1 else target.data[None]]
    )


def _storage_resized(module: torch.nn.Module, given: Tensor | PackedSequence, rng: random.Random) -> None:
    rng.choice([_some_weight(module, rng), _rows(given)]).untyped_storage().resize_(rng.choice([0, 4]))


def _rows(given: Tensor | PackedSequence) -> Tensor:
    return given.data if isinstance(given, PackedSequence) else given


def _sizes_changed(module: torch.nn.Module, given: Tensor | PackedSequence, rng: random.Random) -> None:
    if isinstance(given, PackedSequence):
        given.batch_sizes.numpy()[rng.randrange(len(given.batch_sizes))] = 2**40


# What happens between forward and backward.
CHANGES: dict[str, Callable[[torch.nn.Module, Tensor | PackedSequence, random.Random], None]] = {
    "another type": lambda module, given, rng: module.to(rng.choice([torch.float16, torch.float64])) and None,
    "another device": lambda module, given, rng: module.to("meta") and None,
    "data replaced": _data_replaced,
    "storage resized": _storage_resized,
    "ids or numbers replaced": lambda module, given, rng: _rows(given).data.fill_(2**40) and None,
    "batch sizes changed": _sizes_changed,
}
