"""What the TOML files of experiments and benchmarks share: a table is a settings class, a fault is a sentence."""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from squidiff.config import Config, InputError, Preparation, Sampling, Schema, settings_from_json

NAME = re.compile(r"\w[\w .+@-]{0,79}")
"""Of what names a file or a folder."""
Part = TypeVar("Part", Schema, Preparation, Config, Sampling)


def read_toml(file: Path) -> dict[str, Any]:
    """Raises InputError when there is no such file, or it is no TOML, or holds a number that is not finite."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"), parse_float=_finite)
    except FileNotFoundError:
        raise InputError(f"{file} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as TOML: {error}") from error


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number


def part(kind: type[Part], entry: Mapping[str, Any], name: str, where: str) -> Part:
    """The settings that a table of the file names; the seed is given elsewhere."""
    values = entry.get(name, {})
    if not isinstance(values, dict):
        raise InputError(f"{name} of {where} is {values!r}: write it as a table")
    refuse_others(values, {field.name for field in dataclasses.fields(kind)} - {"seed"}, f"{name} of {where}")
    try:
        return settings_from_json(kind, values)
    except InputError as error:
        raise InputError(f"{name} of {where}: {error}") from error


def refuse_others(entry: Mapping[str, Any], known: set[str], where: str) -> None:
    """Raises InputError for a name that means nothing there."""
    unknown = sorted(set(entry) - known)
    if unknown:
        raise InputError(f"{where} has {unknown[0]!r}, which means nothing there: known are {', '.join(sorted(known))}")


def text(entry: Mapping[str, Any], name: str, where: str, is_path: bool = False) -> str:
    """A text that must be there, and can name a folder unless it is a path."""
    value = entry.get(name)
    if not isinstance(value, str) or not value or not (is_path or NAME.fullmatch(value)):
        what = "a text" if is_path else "a text that can name a folder: letters, digits, spaces and any of .+@-_"
        raise InputError(f"{name} of {where} is {value!r}: give {what}")
    return value
