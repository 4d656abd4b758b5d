"""The public names, as a user finds them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.metadata import version

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import squidiff
import squidiff as sq

HOMES = {
    "Config": "squidiff.config",
    "InputError": "squidiff.config",
    "Preparation": "squidiff.config",
    "Compute": "squidiff.config",
    "Sampling": "squidiff.config",
    "Schema": "squidiff.config",
    "Squidiff": "squidiff.estimator",
    "check": "squidiff.data.check",
    "compare": "squidiff.evaluate.scoring",
    "evaluate": "squidiff.evaluate.scoring",
    "pl": "squidiff.pl",
    "prepare": "squidiff.data.preprocess",
    "simulate_perturbation": "squidiff.data.simulate",
}


def said(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_every_public_name_has_a_home_and_is_listed() -> None:
    assert set(sq.__all__) == set(HOMES)
    assert sorted(dir(sq)) == sorted([*HOMES, "__version__"])


@pytest.mark.parametrize("name", sorted(set(HOMES) - {"evaluate", "pl"}))
def test_a_public_name_is_the_object_of_its_home(name: str) -> None:
    assert getattr(sq, name) is getattr(importlib.import_module(HOMES[name]), name)


def test_a_star_import_brings_them_all() -> None:
    names: dict[str, object] = {}
    exec("from squidiff import *", names)
    assert {name: names[name] for name in HOMES} == {name: getattr(sq, name) for name in HOMES}


def test_evaluate_is_called_as_its_home_is() -> None:
    adata = ad.AnnData(np.random.default_rng(0).random((20, 5), dtype=np.float32))
    half = adata[:10].copy()
    expected = importlib.import_module("squidiff.evaluate.scoring").evaluate(
        half, adata, sq.Schema(), train=adata, seed=3
    )
    pd.testing.assert_frame_equal(
        sq.evaluate(half, adata, sq.Schema(), train=adata, seed=3), expected, check_exact=True
    )
    with pytest.raises(TypeError, match="unexpected keyword argument 'sead'"):
        sq.evaluate(half, adata, sead=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    [
        "import squidiff.evaluate.scoring",
        "from squidiff.evaluate import scoring",
        "import squidiff.evaluate.metrics as metrics; metrics.score",
        "import squidiff.estimator",
    ],
)
def test_evaluate_can_be_called_whatever_is_imported(first: str) -> None:
    assert said(f"{first}; import squidiff; print(callable(squidiff.evaluate))") == "True"


def test_the_version_is_that_of_the_distribution() -> None:
    assert squidiff.__version__ == version("squidiff-ng")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'squidiff' has no attribute 'predict'$"):
        _ = sq.predict
    assert not hasattr(sq, "config_")
    assert getattr(sq, "nothing", 5) == 5
    with pytest.raises(ImportError, match="cannot import name 'nothing' from 'squidiff'"):
        exec("from squidiff import nothing")


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, squidiff; squidiff.Schema; print([m for m in ('torch', 'scanpy', 'anndata') if m in sys.modules])"
    )
    assert said(code) == "[]"
