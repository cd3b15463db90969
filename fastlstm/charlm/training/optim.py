"""All weights in one flat vector: clipping and the optimiser are then a handful of operations, whatever the layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..config import TrainConfig


class Flat:
    """A module's parameters as views of one vector.

    vector: (n,), matrices first, then biases; vector.grad: (n,), filled by `gather`.
    """

    def __init__(self, module: nn.Module):
        self.parts = sorted(module.parameters(), key=lambda parameter: parameter.dim() < 2)  # stable: matrices first
        self.matrices = sum(part.numel() for part in self.parts if part.dim() >= 2)
        with torch.no_grad():
            self.vector = nn.Parameter(torch.cat([part.reshape(-1) for part in self.parts]))
            views = self.vector.detach().split([part.numel() for part in self.parts])
            for part, view in zip(self.parts, views, strict=True):
                part.data = view.view(part.shape)
        self.vector.grad = torch.zeros_like(self.vector)

    def gather(self) -> Tensor:
        """Moves the gradients of the parts into one vector, (n,), and lets go of theirs."""
        torch.cat([part.grad.reshape(-1) for part in self.parts], out=self.vector.grad)
        for part in self.parts:
            part.grad = None
        return self.vector.grad


class Optimiser:
    """Gradient clipping, the learning rate's schedule, and one of torch's optimisers on the flat vector."""

    def __init__(self, flat: Flat, config: TrainConfig):
        self.flat, self.config = flat, config
        lr = config.learning_rate
        if config.optimizer == "rmsprop":
            self.inner = torch.optim.RMSprop([flat.vector], lr, alpha=config.decay_rate, eps=1e-8)
        else:
            self.inner = torch.optim.Adam([flat.vector], lr, fused=True)
        self._group = self.inner.param_groups[0]

    def step(self, rate: float) -> None:
        """One step at this learning rate, from the gradients that backward left."""
        config, flat = self.config, self.flat
        grad = flat.gather()
        if config.grad_clip:
            grad.clamp_(-config.grad_clip, config.grad_clip)
        if config.clip_norm:
            grad.mul_((config.clip_norm / (grad.norm() + 1e-6)).clamp_(max=1.0))
        if config.optimizer == "adamw" and config.weight_decay:
            flat.vector.detach()[: flat.matrices].mul_(1 - rate * config.weight_decay)  # biases do not decay
        self._group["lr"] = rate
        self.inner.step()

    def state(self) -> dict[str, Tensor]:
        """Its tensors, by name; empty before the first step."""
        return {name: torch.as_tensor(value) for name, value in self.inner.state[self.flat.vector].items()}

    def load(self, state: dict[str, Tensor]) -> None:
        vector = self.flat.vector
        fused = self.config.optimizer != "rmsprop"  # a fused optimiser counts its steps on the device
        self.inner.state[vector] = {
            name: value.to(vector.device if value.dim() or fused else "cpu", copy=True) for name, value in state.items()
        }


def learning_rate(config: TrainConfig, iteration: int, epoch: int, done: float) -> float:
    """The learning rate of an iteration. epoch: whole epochs behind it; done: share of the run behind it, 0…1."""
    rate = config.learning_rate
    if config.schedule == "step" and epoch >= config.learning_rate_decay_after:
        late = epoch - config.learning_rate_decay_after
        rate *= config.learning_rate_decay ** (late // config.learning_rate_decay_every + 1)
    elif config.schedule == "cosine":
        rate *= 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    if iteration < config.warmup:
        rate *= (iteration + 1) / config.warmup
    return rate
