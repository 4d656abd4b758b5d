"""How upstream trains: its loss, its falling learning rate, an average that starts at the first weights."""

from __future__ import annotations

import functools

from torch import nn

from squidiff.config import Config, ShownBatch
from squidiff.diffusion.loss import Losses, Noise, draw_upstream_noise, upstream_loss
from squidiff.diffusion.schedule import StepSchedule
from squidiff.model.upstream import UpstreamNetwork
from squidiff.train.loop import Loss, Recipe, warmed_up_rate


def upstream_learning_rate(step: int, config: Config) -> float:
    """Rate of step number `step` (from 0): the highest, times 1 - n / n_train_steps after n whole steps.

    Upstream sets the rate of a step after the step before it, so the first two have the highest. A warm-up is ours;
    upstream has none.
    """
    return warmed_up_rate(step, config) * (1 - max(step - 1, 0) / config.n_train_steps)


def upstream_recipe(schedule: StepSchedule) -> Recipe[ShownBatch]:
    """The newest weights are what is saved: upstream's model.pt."""

    def losses(network: nn.Module, batch: ShownBatch, noise: Noise) -> Losses:
        assert isinstance(network, UpstreamNetwork)
        z_sem = network.encoder(batch.shown)
        return upstream_loss(lambda x_t, step: network(x_t, step, z_sem), batch.target, schedule, noise)

    loss = Loss(functools.partial(draw_upstream_noise, n_steps=len(schedule.betas)), losses)
    return Recipe(loss, loss, upstream_learning_rate, lambda n_steps, config: config.ema_decay, keeps_average=False)
