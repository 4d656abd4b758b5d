"""One small model, in memory and as a run folder, for all tests of the estimator."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_models import TRAIN

from made_cells import SCHEMA, SMALL
from squidiff.estimator import Squidiff


@pytest.fixture(scope="session")
def model() -> Squidiff:
    return Squidiff(SCHEMA, SMALL, "cpu").fit(TRAIN)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder of the same settings and data."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    Squidiff(SCHEMA, SMALL, "cpu").fit(TRAIN, out=folder)
    return folder
