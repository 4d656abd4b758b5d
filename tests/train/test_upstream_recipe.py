"""Upstream's recipe: its learning rate and its average by closed forms, and its steps by an independent loop."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from squidiff.config import PRESETS, ShownBatch
from squidiff.diffusion.schedule import StepSchedule
from squidiff.model.upstream import UpstreamNetwork, UpstreamSizes
from squidiff.train.loop import TrainState, training_steps
from squidiff.train.upstream_recipe import upstream_learning_rate, upstream_recipe

SETTINGS = dataclasses.replace(PRESETS["upstream"], n_train_steps=12, learning_rate=0.01, ema_decay=0.9)
SIZES = UpstreamSizes(n_genes=6, n_fingerprint=0, n_latent=3, width=8, n_embedding=8, n_blocks=2, n_encoder=8)


def batch(i: int) -> ShownBatch:
    cells = torch.randn(16, 6, generator=torch.Generator().manual_seed(i))
    return ShownBatch(cells, cells)


def test_the_rate_falls_linearly_a_step_late_as_upstreams_does() -> None:
    rates = [upstream_learning_rate(step, SETTINGS) for step in range(12)]
    assert rates == pytest.approx([0.01, *(0.01 * (1 - k / 12) for k in range(11))])
    warm = dataclasses.replace(SETTINGS, n_warmup_steps=4)
    assert upstream_learning_rate(1, warm) == pytest.approx(0.5 * 0.01)


def test_the_steps_are_those_of_upstreams_loop() -> None:
    """AdamW of torch, the rate set after each step, no clipping, an average from the first weights on."""
    schedule = StepSchedule.named("linear", 1000)
    state = TrainState.start(UpstreamNetwork.initialise(SIZES, 0), SETTINGS, upstream_recipe(schedule))
    numbers = iter(range(100))
    found = [s.losses.loss for s in training_steps(state, lambda: batch(next(numbers)), SETTINGS)]

    network = UpstreamNetwork.initialise(SIZES, 0).train()
    generator = torch.Generator().manual_seed(SETTINGS.seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.0)
    average = [p.detach().clone() for p in network.parameters()]
    for i in range(12):
        x0 = batch(i).target
        step = torch.randint(1000, (16,), generator=generator)
        eps = torch.randn(16, 6, generator=generator)
        remains = schedule.alphas_cumprod[step].float().unsqueeze(1)
        x_t = remains.sqrt() * x0 + (1 - remains).sqrt() * eps
        loss = (network(x_t, step, network.encoder(x0)) - eps).square().mean(dim=1)
        torch.testing.assert_close(found[i], loss.detach(), rtol=1e-4, atol=1e-5)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        for old, new in zip(average, network.parameters(), strict=True):
            old.mul_(0.9).add_(new.detach(), alpha=0.1)
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - i / 12)
    for (name, p), q, r in zip(network.named_parameters(), state.network.parameters(), average, strict=True):
        # BatchNorm takes a bias before it away: its gradient is rounding error, which AdamW makes as large as any other
        if name not in ("encoder.fc1.bias", "encoder.fc2.bias"):
            torch.testing.assert_close(q, p, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(state.average[name], r, rtol=1e-3, atol=1e-5)
