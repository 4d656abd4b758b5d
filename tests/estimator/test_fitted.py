"""What is fitted before the network: the axes and the rest hold all variance of the cells, of few genes too."""

from __future__ import annotations

import numpy as np
import pytest

from squidiff.config import Config, Schema
from squidiff.data.conditions import ConditionEncoder
from squidiff.data.table import CellTable
from squidiff.estimator import Squidiff
from squidiff.estimator.fitted import Sample, fit_standardisation, summarise


@pytest.mark.parametrize(("n_genes", "n_axes"), [(20, 32), (21, 20), (60, 32), (60, 4)])
def test_axes_and_rest_hold_all_variance(n_genes: int, n_axes: int) -> None:
    import anndata as ad

    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(2.0, rng.uniform(0.5, 2.0, n_genes), (60, n_genes)), 0).astype(np.float32)
    table = CellTable.from_anndata(ad.AnnData(x), Schema())
    encoder = ConditionEncoder.fit(table.parts, Schema())
    populations = summarise(table, np.stack([encoder.describe(parts) for parts in table.parts]), Schema())
    config = Config(n_axes=n_axes)
    found = fit_standardisation(Sample.of(table, config), populations, config)
    n_off = n_genes - found.axes.shape[1]
    total = found.axis_variance.sum().item() + n_off * found.rest_variance.item()
    standard = (x - x.mean(axis=0)) / found.scale.numpy()
    assert total == pytest.approx(standard.var(axis=0, ddof=1).sum(), rel=1e-5)
    assert found.rest_variance.item() > 0.01


def test_an_untrained_model_knows_every_direction_of_few_genes() -> None:
    """The error of the noise is that of the best linear denoiser, at the 1,000 steps of Squidiff 1.0.8."""
    import anndata as ad

    rng = np.random.default_rng(1)
    x = (rng.normal(size=(1200, 12)) @ rng.normal(size=(12, 12)) + 20).astype(np.float32)
    model = Squidiff(Schema(), Config(width=8, n_latent=2, n_train_steps=1, batch_size=16)).fit(ad.AnnData(x))
    standard = (x - x.mean(axis=0)) / x.std(axis=0)
    variance = np.linalg.eigvalsh(np.cov(standard.T))
    alpha2 = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    error = np.mean([np.mean(a * variance / (a * variance + 1 - a)) for a in alpha2])
    # 1,024 cells at steps drawn at random, whose errors lie between 0 and 1: a standard error of 4 %
    assert model.provenance["noise_error"] == pytest.approx(error, rel=0.12)
