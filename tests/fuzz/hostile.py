"""What users, other threads and other libraries do to tensors: the same numbers in other memory, and what no call can take."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


class OwnClass(Tensor):
    """A subclass without operations of its own."""


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


def _freed(v: Tensor) -> Tensor:
    v = v.detach().clone()
    v.untyped_storage().resize_(0)
    return v


def _shortened(v: Tensor) -> Tensor:
    v = v.detach().clone(memory_format=torch.contiguous_format)
    v.untyped_storage().resize_(max(v.numel() * v.element_size() - v.element_size(), 0))
    return v


# An error is the right answer, or the answer that torch's own operations would give.
HOSTILE_TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "freed": _freed,
    "shortened": _shortened,
    "other type": lambda v: v.to(torch.int32 if v.is_floating_point() else torch.float32),
    "complex": lambda v: v.to(torch.complex64),
    "one row less": lambda v: v[:-1],
    "one column less": lambda v: v[..., :-1],
    "one dimension more": lambda v: v[None],
    "empty": lambda v: v.new_empty(0),
    "meta": lambda v: v.to("meta"),
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
}
