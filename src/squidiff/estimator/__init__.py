"""Squidiff: fit, encode, predict, save and load on AnnData."""

from squidiff.estimator.generate import Unpredictable
from squidiff.estimator.model import Squidiff
from squidiff.estimator.run_folder import RUN_FILES

__all__ = ["RUN_FILES", "Squidiff", "Unpredictable"]
