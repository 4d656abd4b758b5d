"""The whole network: untrained, it generates Gaussian cells of the right covariance; it repeats with its seed."""

from __future__ import annotations

import math

import pytest
import torch
from gaussian_cells import (
    IDENTITY,
    N_CONDITION,
    N_GENES,
    awakened,
    covariance,
    randn,
    seeded,
    standardisation,
    untrained,
)
from torch import nn

from squidiff.config import Config
from squidiff.diffusion.loss import denoising_loss, draw_noise
from squidiff.diffusion.samplers import SAMPLERS, last
from squidiff.diffusion.schedule import sampling_levels
from squidiff.model.network import Network


@pytest.mark.parametrize("name", SAMPLERS)
def test_untrained_samples_have_the_covariance_of_the_cells(name: str) -> None:
    """Untrained, the sampler is a linear map M of the noise, so the samples' covariance is M M', without chance.

    It must be that of x_t at the last level, alpha^2 S + sigma^2, with S = V diag V' + r (1 - V V').
    """
    network, levels = untrained(), sampling_levels(200)
    denoise = network.denoise(randn(1, 4, seed=21))
    with torch.no_grad():
        mapped = last(SAMPLERS[name](denoise, IDENTITY, levels))
        nothing = last(SAMPLERS[name](denoise, torch.zeros(1, N_GENES, dtype=torch.float64), levels))
    assert torch.equal(nothing, torch.zeros_like(nothing))
    alpha, sigma = levels[-1]
    expected = alpha**2 * covariance() + sigma**2 * IDENTITY
    tolerance = 0.06 if name == "ddim" else 0.004  # of order 1 and 2 in 200 steps, on variances of up to 3
    torch.testing.assert_close(mapped.T @ mapped, expected, rtol=0, atol=tolerance)


def test_untrained_samples_in_the_unit_of_the_data() -> None:
    """Drawn and restored: mean anchor and covariance D S D, where D is diag(scale); in float32, as it is used."""
    n = 4000
    s, network = standardisation(), untrained().float()
    anchor = randn(N_GENES, seed=22).float()
    noise = torch.randn(n, N_GENES, generator=seeded(23))
    with torch.no_grad():
        denoise = network.denoise(torch.zeros(1, 4))
        cells = network.restore(last(SAMPLERS["dpmpp_2m"](denoise, noise, sampling_levels(60))), anchor)
    expected = torch.outer(s.scale, s.scale) * covariance()
    deviation = expected.diagonal().sqrt()
    # in units of the deviations: a mean has the standard error 1 / sqrt(n), a covariance at most sqrt(2 / n)
    standard = (cells.double() - anchor) / deviation
    torch.testing.assert_close(standard.mean(dim=0), torch.zeros_like(deviation), rtol=0, atol=5 / math.sqrt(n))
    correlation = expected / torch.outer(deviation, deviation)
    torch.testing.assert_close(torch.cov(standard.T), correlation, rtol=0, atol=5 * math.sqrt(2 / n))


def test_standardise_by_hand_and_back() -> None:
    network = untrained()
    anchor, cells = randn(9, N_GENES, seed=24), randn(9, N_GENES, seed=25)
    scale = standardisation().scale
    one_above = network.standardise(anchor + scale, anchor)
    torch.testing.assert_close(one_above, torch.ones_like(anchor), rtol=0, atol=1e-14)
    torch.testing.assert_close(network.restore(network.standardise(cells, anchor), anchor), cells, rtol=0, atol=1e-14)


def test_initialise_repeats_bit_by_bit_with_its_seed_alone() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        one = untrained(seed=7).state_dict()
        torch.manual_seed(2)
        other = untrained(seed=7).state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_another_seed_draws_every_weight_anew() -> None:
    one, other = (dict(untrained(seed).named_parameters()) for seed in (0, 1))
    constant = {"denoiser.norm.weight", "denoiser.norm.bias", "encoder.layers.1.weight", "encoder.layers.1.bias"}
    constant |= {f"denoiser.{layer}.{kind}" for layer in ("modulation", "project") for kind in ("weight", "bias")}
    assert {name for name in one if torch.equal(one[name], other[name])} == constant


def test_initialise_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    Network.initialise(Config(width=16), standardisation(), N_CONDITION)
    assert torch.equal(before, torch.get_rng_state())


def test_weights_are_uniform_within_the_square_root_of_the_inputs() -> None:
    network = Network.initialise(Config(n_latent=64, width=64), standardisation(), N_CONDITION)
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith(("modulation", "project")):
            bound = 1 / math.sqrt(module.in_features)
            assert module.weight.abs().max().item() <= bound
            if module.weight.numel() > 2000:  # standard deviation of a uniform law: bound / sqrt(3)
                assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_the_latent_is_blind_to_the_unit_of_the_data() -> None:
    """encode sees (source - center) / spread only: x -> a x + b of cells, center and spread changes nothing."""
    network, stretched = awakened(), awakened()
    a, b = randn(N_GENES, seed=26).abs() + 0.5, randn(N_GENES, seed=27)
    stretched.center.mul_(a).add_(b)
    stretched.spread.mul_(a)
    source, condition = randn(10, N_GENES, seed=28), randn(10, N_CONDITION, seed=29)
    z_sem, z_stretched = network.encode(source, condition), stretched.encode(a * source + b, condition)
    torch.testing.assert_close(z_sem, z_stretched, rtol=0, atol=1e-12)
    # and it does see both the cell and the condition
    assert (network.encode(source + 1, condition) - z_sem).norm(dim=1).min().item() > 1e-3
    assert (network.encode(source, condition + 1) - z_sem).norm(dim=1).min().item() > 1e-3


def test_a_latent_does_not_depend_on_the_cells_beside_it() -> None:
    network = awakened()
    source, condition = randn(8, N_GENES, seed=30), randn(8, N_CONDITION, seed=31)
    whole = network.encode(source, condition)
    alone = torch.cat([network.encode(source[i : i + 1], condition[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(alone, whole, rtol=0, atol=1e-12)


def test_the_condition_reaches_the_prediction_once_the_zero_layers_are_not_zero() -> None:
    network = awakened()
    source, x_t = randn(20, N_GENES, seed=32), randn(20, N_GENES, seed=33)
    level = sampling_levels(2)[1]
    one, other = (
        network.denoise(network.encode(source, randn(20, N_CONDITION, seed=seed)))(x_t, level).x0 for seed in (34, 35)
    )
    assert ((one - other).norm(dim=1) / one.norm(dim=1)).min().item() > 1e-4


def test_every_weight_learns_by_the_third_step() -> None:
    """The output is zero at first, then the modulation; so the encoder is reached at the third step, and not before."""
    network = untrained().float()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    cells, condition = randn(64, N_GENES, seed=36).float(), randn(64, N_CONDITION, seed=37).float()
    generator = seeded(38)
    reached = []
    for _ in range(3):
        optimizer.zero_grad()
        z_sem = network.encode(cells, condition)
        denoising_loss(network.denoise(z_sem), 2 * cells, draw_noise(cells.shape, generator))[0].mean().backward()
        reached.append({n for n, p in network.named_parameters() if p.grad is not None and p.grad.norm() > 0})
        assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
        optimizer.step()
    assert reached[0] == {"denoiser.project.weight", "denoiser.project.bias"}
    assert reached[2] == {name for name, _ in network.named_parameters()}


def test_what_is_fitted_is_saved_and_not_trained() -> None:
    network, s = untrained(), standardisation()
    saved = network.state_dict()
    for name in ("center", "spread", "scale"):
        assert torch.equal(saved[name], getattr(s, name))
    for name in ("axes", "axis_variance", "rest_variance"):
        assert torch.equal(saved[f"denoiser.gaussian.{name}"], getattr(s, name))
    fitted = {*s._fields, *(f"denoiser.gaussian.{name}" for name in s._fields)}
    assert not fitted & {name for name, _ in network.named_parameters()}
