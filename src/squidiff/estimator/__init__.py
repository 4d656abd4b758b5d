"""Squidiff: fit, encode, predict, save and load on AnnData."""

from squidiff.estimator.model import RUN_FILES, Squidiff

__all__ = ["RUN_FILES", "Squidiff"]
