"""What a run of ours knows of the checkpoints of upstream's form that lie in its folder, which tell sizes alone."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from squidiff.config import PRESETS, Config, settings_from_json
from squidiff.files import read_json


class Beside(NamedTuple):
    """Levels and gene names."""

    n_diffusion_steps: int
    noise_schedule: str
    genes: tuple[str, ...] | None
    """None where they are not known."""


USUAL = Beside(PRESETS["upstream"].n_diffusion_steps, PRESETS["upstream"].noise_schedule, None)
"""Upstream's defaults, which its samplers take whatever a model was trained with."""


def beside(checkpoint: Path) -> Beside:
    """What the run says in whose folder the checkpoint lies, or what is usual where it lies in none.

    Raises InputError when the folder's config.json is damaged.
    """
    path = checkpoint.parent / "config.json"
    saved = read_json(path) if path.is_file() else None
    if not isinstance(saved, dict) or not isinstance(saved.get("config"), dict):
        return USUAL
    if saved["config"].get("architecture") != "upstream":
        return USUAL
    config = settings_from_json(Config, saved["config"])
    genes = tuple(saved["genes"]) if "genes" in saved else None  # not before training has ended
    return Beside(config.n_diffusion_steps, config.noise_schedule, genes)
