"""Squidiff: fit, encode, predict, save and load on AnnData."""

from squidiff.estimator.model import Squidiff

__all__ = ["Squidiff"]
