"""What a source cell draws, bound to its name: the same whatever stands beside it, and in whatever order."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd


def choose(names: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which n of some cells (their names, (N,)) a population is made from, and the how manyth time of each, (n,).

    All are taken once before one is taken again; the order is that of hashes of their names.
    """
    rounds = -(-n // len(names))
    chosen = [np.array(sorted(range(len(names)), key=lambda i: _key(names[i], r, seed))) for r in range(rounds)]
    return np.concatenate(chosen)[:n], np.repeat(np.arange(rounds), len(names))[:n]


def draw(names: np.ndarray, rounds: np.ndarray, genes: tuple[str, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Uniform and standard normal numbers (N x G each) of cells for the how manyth time they are taken (N,).

    Each cell has a stream of its own, which its genes take from in the order of their names.
    """
    order = np.argsort(np.array(genes, dtype=object), kind="stable")
    uniform, normal = np.empty((2, len(names), len(genes)), dtype=np.float32)
    for i, (name, r) in enumerate(zip(names, rounds, strict=True)):
        rng = np.random.default_rng(int.from_bytes(_key(name, r, seed), "little"))
        uniform[i, order] = rng.random(len(genes), dtype=np.float32)
        normal[i, order] = rng.standard_normal(len(genes), dtype=np.float32)
    return uniform, normal


def distinct(names: np.ndarray) -> np.ndarray:
    """The names, each that has been there already with how often it was: cells of one name are not one cell."""
    index = pd.Index(names)
    if index.is_unique:
        return names
    before = pd.Series(names).groupby(index).cumcount()
    return np.array([f"{name}\0{n}" if n else name for name, n in zip(names, before, strict=True)], dtype=object)


def _key(name: str, r: int, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}\0{r}\0{name}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
