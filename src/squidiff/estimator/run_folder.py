"""What a run folder holds, and how a run claims one."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from squidiff.config import InputError, flag
from squidiff.files import is_temporary, read_json, sweep, write_json
from squidiff.train.run import METRICS
from squidiff.train.saving import LOCK, PREVIOUS, STATE

WEIGHTS = "model.safetensors"
BEFORE_DIVERGENCE = "before-divergence"
"""The folder, in that of a run that diverged, of its best weights before that: a run that can be loaded."""
RUN_FILES = (
    *("check.json", "config.json", "manifest.json", "provenance.json"),
    *(METRICS, STATE.as_posix(), PREVIOUS.as_posix(), LOCK.as_posix(), WEIGHTS),
)
"""What a run folder holds, from its root."""
FORMAT = 4
"""Of the run folder; raised when an older version could not read it."""
MAY_DIFFER = ("micro_batch_size",)
"""Of the settings: what a machine's memory holds."""
MUST_BE_THE_SAME = {"data_sha256": "data", "vocabulary_sha256": "embeddings", "started_from": "--from"}
"""Of the manifest, to go on with a run."""


def refuse_claim(
    folder: Path,
    settings: Mapping[str, Any],
    manifest: Mapping[str, Any],
    *,
    resume: bool,
    beside_others: bool,
    further: Sequence[str],
) -> None:
    """Raises InputError when a run may not be begun, or gone on with, in a folder. Nothing is written.

    `further` are files that it writes besides RUN_FILES.
    """
    if (folder / WEIGHTS).exists():
        or_on = ", or train it further on new cells with --from" if resume else ""
        raise InputError(f"{folder} already holds a trained model: choose another folder{or_on}")
    if (folder / "config.json").exists():
        if not resume:
            raise InputError(f"{folder} holds an unfinished run: go on with --resume, or choose another folder")
        earlier = read_object(folder / "config.json")
        if "format" not in earlier:
            raise InputError(f"{folder} holds a config.json that is of no run: choose another folder")
        for part, value in settings.items():
            if _compared(earlier.get(part)) != _compared(value):
                raise InputError(
                    f"{folder} was begun with another {part} ({_difference(earlier.get(part), value)}): give the "
                    "same, or another folder"
                )
        begun_with = read_object(folder / "manifest.json")
        for part, what in MUST_BE_THE_SAME.items():
            if begun_with.get(part, "") != manifest[part]:
                other = f"other {what}" if manifest[part] else f"{what}, which is not given now"
                raise InputError(f"{folder} was begun with {other}: give the same, or another folder")
        return
    # of a run that was killed before config.json, which comes last
    begun = {"check.json", "manifest.json"} | ({STATE.parts[0]} if _is_ours(folder / STATE.parent) else set())
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if beside_others:
        there &= {*(name.split("/")[0] for name in RUN_FILES), *further}
    if not there <= begun:
        raise InputError(f"{folder} holds {min(there - begun)!r} and no run: choose another folder")


def begin_folder(
    folder: Path,
    settings: Mapping[str, Any],
    manifest: Mapping[str, Any],
    check: Mapping[str, Any],
    further: Sequence[str],
) -> None:
    """Writes what a run is known by; of a run that is there, removes what it was writing when it was killed."""
    if (folder / "config.json").exists():
        sweep(folder / name for name in (*RUN_FILES, *further))
        return
    write_json(folder / "check.json", check)
    write_json(folder / "manifest.json", manifest)
    write_json(folder / "config.json", settings)


def _compared(part: Any) -> Any:
    """A part of the settings without what may be another one when a run is gone on with."""
    return {name: v for name, v in part.items() if name not in MAY_DIFFER} if isinstance(part, dict) else part


def end_folder(folder: Path) -> None:
    """Removes what only an unfinished run needs."""
    for name in (STATE, PREVIOUS, LOCK):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody else's files stay
        (folder / STATE.parent).rmdir()


def _is_ours(resume: Path) -> bool:
    """Whether a folder holds nothing but a run's saved states."""
    names = {path.name for path in resume.iterdir()} if resume.is_dir() else set()
    return all(name in (STATE.name, PREVIOUS.name, LOCK.name) or is_temporary(name, STATE) for name in names)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises InputError when it holds anything else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object: it was changed by hand")
    return value


def _difference(before: Any, now: Any) -> str:
    """The first setting that differs, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in _compared(now):
            if before.get(key) != now[key]:
                return f"{flag(key)} was {before.get(key)!r}, is {now[key]!r}"
    return f"was {before!r}, is {now!r}"
