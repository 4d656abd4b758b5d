"""What is computed does not depend on where numbers lie: the last bit of MKL's products does.

It is the same at all multiples of 16 bytes, where memory of torch and of numpy begins; a tensor of a file lies at any
of 8.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import QUERY, TRAIN
from torch.utils._python_dispatch import TorchDispatchMode

from made_cells import SCHEMA, small
from squidiff.config import Config, Sampling
from squidiff.estimator import Squidiff
from squidiff.train.checkpoint import read_tensors, write_tensors

PRODUCTS = ("mm", "bmm", "linear")


class Products(TorchDispatchMode):
    """Counts the operands of products, and those that do not lie at a multiple of 16 bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.n_seen, self.elsewhere = 0, set[tuple[str, int, tuple[int, ...]]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in str(func) for word in PRODUCTS):
            for i, operand in enumerate(args):
                if isinstance(operand, torch.Tensor):
                    self.n_seen += 1
                    if operand.data_ptr() % 16:
                        self.elsewhere.add((str(func), i, tuple(operand.shape)))
        return func(*args, **(kwargs or {}))


@contextmanager
def well_laid() -> Iterator[None]:
    products = Products()
    with products:
        yield
    assert products.n_seen > 0
    assert products.elsewhere == set()


@pytest.mark.parametrize("config", [small(n_train_steps=2), Config(architecture="upstream", width=32, n_train_steps=2)])
def test_products_are_of_numbers_that_lie_well(tmp_path: Path, config: Config) -> None:
    TRAIN.copy().write_h5ad(tmp_path / "train.h5ad")
    for on_disk in (False, True):
        with well_laid():
            model = Squidiff(SCHEMA, config, "cpu").fit(tmp_path / "train.h5ad", on_disk=on_disk)
    model.save(tmp_path / "run")
    with well_laid():
        loaded = Squidiff.load(tmp_path / "run", "cpu")
        for paired in (False, True) if config.architecture == "squidiff" else (False,):
            loaded.predict(QUERY, TRAIN, Sampling(n_sample_steps=2, cells_per_batch=7), paired=paired)
        loaded.encode(TRAIN)


def test_a_product_with_what_was_read_is_the_same_wherever_it_lay_in_the_file(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    axes, cell = torch.randn(40, 8, generator=generator), torch.randn(1, 8, generator=generator)
    for length in range(0, 64, 8):  # a note moves what follows it
        write_tensors(tmp_path / "axes", {"axes": axes}, {"note": "x" * length})
        read = read_tensors(tmp_path / "axes")[0]["axes"]
        assert torch.equal(cell @ read.T, cell @ axes.T), length
