"""Files that appear whole or not at all. Every other unit may import this one; it knows nothing of what it writes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from squidiff.config import InputError

Write = Callable[[Path], object]
"""Writes a file of the given path."""


def write_atomically(path: Path, write: Write) -> None:
    """Calls `write` on a temporary file beside `path` and then renames it: a reader sees the old file or the new one.

    Makes the folder. Raises InputError when the file cannot be written; the old one is then as it was.
    """
    write_together({path: write})


def write_together(writes: Mapping[Path, Write]) -> None:
    """Writes several files as `write_atomically` does; none is renamed before all are whole on the disk."""
    for path in writes:
        with saying_where(path):
            _require_file(path)
    temporaries = {path: _temporary(path) for path in writes}
    try:
        for path, temporary in temporaries.items():
            with saying_where(path):
                temporary.parent.mkdir(parents=True, exist_ok=True)
                writes[path](temporary)
                with temporary.open("r+b") as file:  # Windows syncs only what is open for writing
                    os.fsync(file.fileno())
        for path, temporary in temporaries.items():
            with saying_where(path):
                temporary.replace(_real(path))
    finally:
        for temporary in temporaries.values():
            _remove(temporary)


def _real(path: Path) -> Path:
    """Where a file lies that may be named by a link, which stays."""
    return Path(os.path.realpath(path))


def _temporary(path: Path) -> Path:
    path = _real(path)
    return path.with_name(f".{path.stem}.squidiff-{os.getpid()}{path.suffix}")


def is_temporary(name: str, path: Path) -> bool:
    """Whether a file of this name is what a writer of `path`, of whichever process, was writing."""
    return re.fullmatch(rf"\.{re.escape(path.stem)}\.squidiff-[0-9]+{re.escape(path.suffix)}", name) is not None


def sweep(paths: Iterable[Path]) -> None:
    """Removes what writers of these files left behind when they were killed; for whoever alone writes them now."""
    for path in map(_real, paths):
        for left in path.parent.iterdir() if path.parent.is_dir() else ():
            if is_temporary(left.name, path):
                _remove(left)


def require_writable(path: Path) -> None:
    """Raises InputError when a file cannot be written there, before the work that it would hold is done."""
    with saying_where(path):
        _require_file(path)
        with suppress(FileNotFoundError, NotADirectoryError):
            _temporary(path).stat()  # whose name is the longer one
        folder = next((parent for parent in path.parents if parent.exists()), Path())
    if not folder.is_dir():
        raise InputError(f"{path} cannot be written: {folder} is a file, not a folder; choose another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written: {folder} may not be written to; choose another place")


def _require_file(path: Path) -> None:
    if not path.name or path.is_dir():
        raise InputError(f"{path} is a folder: name a file")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is a device or a pipe, which a file cannot replace: name a file")


def require_empty(folder: Path) -> None:
    """Raises InputError when there is a file in its place, or anything in the folder, or it may not be read."""
    with saying_where(folder):
        is_empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_empty:
        raise InputError(f"{folder} is there already and not an empty folder: choose another")


@contextmanager
def saying_where(path: Path) -> Iterator[None]:
    """Turns an OSError of writing `path` into an InputError that names it."""
    try:
        yield
    except FileExistsError as error:  # of making the folder
        raise InputError(
            f"{path} cannot be written: {error.filename} is a file, not a folder; choose another place"
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}; choose another place") from error


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # a folder that does not exist or may not be entered holds no temporary file of ours
        return


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically."""
    write_atomically(path, json_writer(value))


def json_writer(value: Any) -> Write:
    """What writes a value as JSON."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return lambda path: path.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Raises InputError when the file is missing or is not JSON."""
    try:
        # what no float holds is infinite, which is refused where a finite number is wanted
        return json.loads(path.read_text(encoding="utf-8"), parse_int=lambda d: int(d) if len(d) < 300 else float(d))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): it was cut or changed by hand") from error
