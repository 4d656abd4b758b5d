"""A note that belongs to its author: the program replaces what it wrote itself, and nothing else.

Owns: blocks of Markdown between comments that Obsidian and GitHub hide, and how new ones come into an old note. Must
not know: what the blocks say. Every character outside of an untouched block stays, in its order.
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from squidiff.config import InputError
from squidiff.files import Write, write_together

_END = r"[ \t]*(?=\r?$)"
_BLOCK = re.compile(
    r"^<!-- squidiff:begin (?P<name>[\w/.-]+) (?P<digest>[0-9a-f]{12}) -->[ \t]*\r?\n(?P<body>.*?)"
    rf"^<!-- squidiff:end (?P=name) -->{_END}",
    re.MULTILINE | re.DOTALL,
)
_SECTION = re.compile(rf"^<!-- squidiff:section (?P<name>[\w.-]+) -->{_END}", re.MULTILINE)
_HEADING = re.compile(r"^#+ ", re.MULTILINE)
BACKUP = ".bak"
"""Ending of the copy of the note as it was before."""


@dataclass(frozen=True)
class Block:
    """What the program writes, whole lines of Markdown; it is found again by its name, `SECTION/NAME`."""

    name: str
    body: str

    @property
    def section(self) -> str:
        return self.name.partition("/")[0]

    def written(self, beside: str = "") -> str:
        """With its comments around it; `beside` is a line before it, for one beside a block that its author edited."""
        body = f"{beside}\n\n{self.body}" if beside else self.body
        return f"<!-- squidiff:begin {self.name} {_digest(body)} -->\n{body}<!-- squidiff:end {self.name} -->"


@dataclass(frozen=True)
class NewSection:
    """A section as it is first written: text that is its author's from then on, with blocks in it."""

    name: str
    text: str
    """Whole lines, a heading first; `{NAME}` stands where the block of that name goes."""
    blocks: tuple[Block, ...]

    def written(self) -> str:
        """With a comment under its heading, by which it is found again."""
        heading, _, text = self.text.partition("\n")
        written = {block.name: block.written() for block in self.blocks}
        # whole lines alone, and each once: what comes from data may look like a place, too
        text = re.sub(r"^\{([\w/.-]+)\}$", lambda found: written.get(found[1], found[0]), text, flags=re.MULTILINE)
        return f"{heading}\n<!-- squidiff:section {self.name} -->\n{text}"


def update(note: str, sections: Sequence[NewSection], beside: str) -> str:
    """The note with the blocks of the sections as they are now.

    sections: in the order in which a note has them; one that is not there is put before the first that follows it, or
    at the end. A block that its author has not edited is replaced; one that was edited stays, and the new one is put
    after it, under the line `beside`, unless it says what the edited one said before. A block that is gone comes back
    at the end of its section. What is new has the line ends of most of the note.
    """
    if "\n" not in note and "\r" in note:  # of an old editor
        return update(note.replace("\r", "\n"), sections, beside).replace("\n", "\r")
    n_windows = note.count("\r\n")
    ends = "\r\n" if n_windows > note.count("\n") - n_windows else "\n"
    order = [section.name for section in sections]
    for section in sections:
        if _starts(note, section.name) is None:
            note = _insert_section(note, section, order[order.index(section.name) + 1 :], ends)
            continue
        for block in section.blocks:
            note = _put(note, block, beside, order, ends)
    return note


def write_note(path: Path, sections: Sequence[NewSection], *, head: str, beside: str) -> None:
    """Writes a new note, `head` and the sections, or updates the one that is there, whose old state is kept beside it.

    Raises InputError when the note cannot be read as UTF-8, or written; it is then as it was.
    """
    path = path.resolve()  # a note that lies elsewhere is written there
    if not path.exists():
        text = head + "\n" + "\n".join(section.written() for section in sections)
        write_together({path: lambda temporary: temporary.write_bytes(text.encode("utf-8"))})
        return
    try:
        mode = path.stat().st_mode
        before = path.read_bytes()
        note = before.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text, and so not be added to: {error}") from error
    after = update(note, sections, beside).encode("utf-8")
    if after == before:
        return
    if not mode & stat.S_IWUSR:
        raise InputError(f"{path} is read-only: make it writable, or move it away")

    def write(text: bytes) -> Write:
        return lambda temporary: (temporary.write_bytes(text), temporary.chmod(stat.S_IMODE(mode)))

    write_together({path.with_name(path.name + BACKUP): write(before), path: write(after)})


def untouched(text: str) -> Iterator[re.Match[str]]:
    """The blocks that are as the program wrote them."""
    return (found for found in _BLOCK.finditer(text) if _is_untouched(found))


def _is_untouched(found: re.Match[str]) -> bool:
    return _digest(found["body"]) == found["digest"]


def _put(text: str, block: Block, beside: str, order: Sequence[str], ends: str) -> str:
    there = [found for found in _BLOCK.finditer(text) if found["name"] == block.name]
    own = [found for found in there if _is_untouched(found)]
    edited = [found for found in there if not _is_untouched(found)]
    new = block.written(beside if edited else "").replace("\n", ends)
    if own:
        same = own[0][0].replace("\r\n", "\n") == new.replace("\r\n", "\n")
        return text if same else text[: own[0].start()] + new + text[own[0].end() :]
    if any(found["digest"] in (_digest(block.body), _digest(f"{beside}\n\n{block.body}")) for found in edited):
        return text  # it says what the author has edited already
    if edited:
        return text[: edited[-1].end()] + 2 * ends + new + text[edited[-1].end() :]
    at = _section_end(text, block.section, order[order.index(block.section) + 1 :])
    return _between(text, at, new, ends)


def _starts(text: str, section: str) -> int | None:
    """Where a section begins: at the heading over its comment or, where that is gone, at its first block; or None."""
    found = [_heading(text, m.start()) for m in _SECTION.finditer(text) if m["name"] == section]
    found += [m.start() for m in _BLOCK.finditer(text) if m["name"].partition("/")[0] == section]
    return min(found, default=None)


def _heading(text: str, at: int) -> int:
    """Where the heading before begins, if no block or section of ours stands between; else the place itself."""
    headings = [found.start() for found in _HEADING.finditer(text, 0, at)]
    ours = [found.end() for pattern in (_BLOCK, _SECTION) for found in pattern.finditer(text, 0, at)]
    return headings[-1] if headings and headings[-1] >= max(ours, default=0) else at


def _section_end(text: str, section: str, later: Sequence[str]) -> int:
    """Where the next section that is there begins; the end of the note where there is none."""
    start = _starts(text, section) or 0
    others = [at for name in later if (at := _starts(text, name)) is not None and at > start]
    return min(others, default=len(text))


def _insert_section(text: str, section: NewSection, later: Sequence[str], ends: str) -> str:
    at = next((at for name in later if (at := _starts(text, name)) is not None), len(text))
    return _between(text, at, section.written().rstrip("\n").replace("\n", ends), ends)


def _between(text: str, at: int, new: str, ends: str) -> str:
    """The new lines at a place that begins a line or ends the text, with an empty line on either side."""
    before, after = text[:at], text[at:]
    lines = before.replace("\r\n", "\n")
    gap = "" if not lines or lines.endswith("\n\n") else ends if lines.endswith("\n") else 2 * ends
    return f"{before}{gap}{new}{ends}" + (ends + after if after else "")


def _digest(body: str) -> str:
    return hashlib.sha256(body.replace("\r\n", "\n").encode("utf-8", "surrogatepass")).hexdigest()[:12]
