"""A file is the old one or the new one, never a part of either."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squidiff.config import InputError
from squidiff.files import (
    read_json,
    require_empty,
    require_writable,
    sweep,
    write_atomically,
    write_json,
    write_together,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class OfTheWriterError(Exception):
    """What a writer raises here."""


# --- write_atomically


def test_the_new_file_takes_the_place_of_the_old_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old and long")
    (tmp_path / "beside").write_text("other")
    write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert contents(tmp_path) == {"a.txt": b"new", "beside": b"other"}


def test_the_old_file_is_whole_until_the_writer_is_done(tmp_path: Path) -> None:
    path = tmp_path / "a.h5ad"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent  # a rename within one file system
        assert temporary.suffix == path.suffix  # writers go by it
        temporary.write_text("new")

    write_atomically(path, write)
    assert contents(tmp_path) == {"a.h5ad": b"new"}


@pytest.mark.parametrize(
    ("error", "raised"), [(OfTheWriterError(), OfTheWriterError), (OSError(28, "full"), InputError)]
)
@pytest.mark.parametrize("old", [b"old", None])
def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: Exception, raised: type, old: bytes | None
) -> None:
    path = tmp_path / "a.txt"
    if old is not None:
        path.write_bytes(old)

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(raised):
        write_atomically(path, write)
    assert contents(tmp_path) == ({} if old is None else {"a.txt": old})


def test_a_writer_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(InputError, match=r"a\.txt cannot be written: No such file or directory; choose another place$"):
        write_atomically(tmp_path / "a.txt", lambda temporary: None)
    assert contents(tmp_path) == {"a.txt": b"old"}


def test_the_folder_is_made(tmp_path: Path) -> None:
    write_atomically(tmp_path / "x" / "y" / "a.txt", lambda temporary: temporary.write_text("new"))
    assert contents(tmp_path) == {"x/y/a.txt": b"new"}


@pytest.mark.parametrize("below", ["a.txt", "folder/a.txt"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, below: str) -> None:
    """Below a regular file no folder can be made, not even by root."""
    (tmp_path / "file").write_text("here")
    with pytest.raises(InputError, match=r"a\.txt cannot be written: .*; choose another place$"):
        write_atomically(tmp_path / "file" / below, lambda temporary: temporary.write_text("new"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"folder is a folder: name a file$"):
        write_atomically(tmp_path / "folder", lambda temporary: temporary.write_text("new"))
    assert contents(tmp_path) == {"file": b"here"}


def test_of_several_files_all_are_written_or_none(tmp_path: Path) -> None:
    one, other = tmp_path / "a.txt", tmp_path / "b.txt"
    one.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "full")

    with pytest.raises(InputError, match=r"b\.txt cannot be written: full; choose another place$"):
        write_together({one: lambda temporary: temporary.write_text("new"), other: fail})
    assert contents(tmp_path) == {"a.txt": b"old"}
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"folder is a folder: name a file$"):
        write_together({one: lambda temporary: temporary.write_text("new"), tmp_path / "folder": fail})
    assert contents(tmp_path) == {"a.txt": b"old"}
    write_together({path: lambda temporary: temporary.write_text("new") for path in (one, other)})
    assert contents(tmp_path) == {"a.txt": b"new", "b.txt": b"new"}


# --- JSON


@settings(max_examples=50, deadline=None, derandomize=True)
@given(value=JSON)
def test_json_comes_back(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value
    assert json.loads(path.read_bytes().decode("utf-8")) == value


def test_what_json_does_not_know_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    for value, error in (({"x": float("nan")}, ValueError), ({"x": {1, 2}}, TypeError)):
        with pytest.raises(error):
            write_json(path, value)
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"gene": "Ülk", "list": [1, 2, 3]})
    whole = path.read_bytes()
    for end in range(len(whole) - 1):  # the last byte ends the line; the one before it closes the object
        path.write_bytes(whole[:end])
        with pytest.raises(InputError, match=r"a\.json is not valid JSON \(.*\): it was cut or changed by hand$"):
            read_json(path)


def test_what_is_nested_too_deep_is_refused_and_a_number_too_large_is_infinite(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" * 200_000)
    with pytest.raises(InputError, match=r"a\.json is not valid JSON \(.*\): it was cut or changed by hand$"):
        read_json(path)
    for n_digits in (400, 5000):
        path.write_text(f"[{'9' * n_digits}, -{'9' * n_digits}, {'9' * 30}]")
        assert read_json(path) == [float("inf"), float("-inf"), int("9" * 30)]


def test_a_file_that_is_missing_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.json", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(InputError, match=f"^{path} cannot be read: {reason}$"):
            read_json(path)


def test_what_a_killed_writer_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    others = (
        ".model-1.pt",
        ".model.squidiff-a1.pt",
        ".other.squidiff-1.pt",
        ".model.squidiff-1.txt",
        ".m*.squidiff-1.pt",
    )
    for name in (".model.squidiff-123.pt", ".model.squidiff-9.pt", "model.pt", *others):
        (tmp_path / name).write_text("x")

    def killed(temporary: Path) -> None:
        temporary.write_text("half")
        (tmp_path / "left").write_bytes(temporary.read_bytes())
        (tmp_path / "left").rename(
            temporary.with_name(".model.squidiff-77.pt")
        )  # as a process of another number leaves it
        temporary.write_text("whole")

    write_atomically(tmp_path / "model.pt", killed)
    sweep([tmp_path / "model.pt", tmp_path / "none" / "a.txt", tmp_path / "[a-z]*.txt"])
    assert sorted(contents(tmp_path)) == sorted(["model.pt", *others])


def test_a_link_stays_and_its_file_is_written(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "a.txt").symlink_to("data/real.txt")
    for text in ("new", "newer"):  # at first nothing is there
        write_atomically(tmp_path / "a.txt", lambda temporary, text=text: temporary.write_text(text))
        assert (tmp_path / "a.txt").is_symlink()
        assert contents(tmp_path / "data") == {"real.txt": text.encode()}


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for refused in (
        lambda: require_writable(tmp_path / "pipe"),
        lambda: write_atomically(tmp_path / "pipe", lambda temporary: temporary.touch()),
        lambda: write_atomically(Path("/dev/null"), lambda temporary: temporary.touch()),
    ):
        with pytest.raises(InputError, match=r"is a device or a pipe, which a file cannot replace: name a file$"):
            refused()
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("refuse", [require_writable, require_empty])
@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + "/a.txt"])
def test_a_name_that_is_too_long_is_refused(tmp_path: Path, refuse: Callable[[Path], None], name: str) -> None:
    with pytest.raises(InputError, match=r"cannot be written: File name too long; choose another place$"):
        refuse(tmp_path / name)


def test_a_place_that_cannot_be_written_is_known_before(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    require_writable(tmp_path / "new" / "deep" / "a.txt")
    require_writable(Path("a.txt"))
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="file is a file, not a folder; choose another place"):
        require_writable(tmp_path / "file" / "deep" / "a.txt")
    with pytest.raises(InputError, match="is a folder: name a file"):
        require_writable(tmp_path)
