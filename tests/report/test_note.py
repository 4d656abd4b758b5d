"""Nothing that a person wrote into a note is ever lost, and what the program wrote is found again and replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squidiff.config import InputError
from squidiff.report.note import BACKUP, Block, NewSection, untouched, update, write_note

BESIDE = "The block above was edited; this is what is measured now:"
HEAD = "---\ntags: []\n---\n"


def sections(value: str, numbers: tuple[int, ...] = (1, 2)) -> list[NewSection]:
    made = []
    for number in numbers:
        name = f"exp{number:02}"
        blocks = (Block(f"{name}/works", f"> works of {number}\n"), Block(f"{name}/results", f"> {value}\n> more\n"))
        text = f"## Experiment {number}\n\n{{{name}/works}}\n\n{{{name}/results}}\n\n- [ ] next\n"
        made.append(NewSection(name, text, blocks))
    made.append(NewSection("summary", "## Summary\n\n{summary/table}\n", (Block("summary/table", f"| {value} |\n"),)))
    return made


def new_note(value: str = "0.8", numbers: tuple[int, ...] = (1, 2)) -> str:
    return HEAD + "\n" + "\n".join(section.written() for section in sections(value, numbers))


def human(text: str) -> str:
    """What is not the program's: all but the untouched blocks."""
    kept, at = [], 0
    for found in untouched(text):
        kept.append(text[at : found.start()])
        at = found.end()
    return "".join([*kept, text[at:]])


def is_subsequence(some: str, text: str) -> bool:
    rest = iter(text)
    return all(letter in rest for letter in some)


def test_running_again_changes_nothing_and_new_numbers_replace_the_old_ones() -> None:
    note = new_note()
    assert update(note, sections("0.8"), BESIDE) == note
    assert update(note, sections("0.9"), BESIDE) == new_note("0.9")


def test_words_around_the_blocks_and_check_boxes_stay() -> None:
    note = new_note().replace("- [ ] next\n", "- [x] next\n- [ ] 自分の考え\n", 1).replace("## Summary", "## まとめ")
    again = update(note, sections("0.9"), BESIDE)
    assert "- [x] next\n- [ ] 自分の考え\n" in again
    assert "## まとめ" in again
    assert human(again) == human(note)
    assert "0.8" not in again


def test_an_edited_block_stays_and_the_new_one_is_put_beside_it_once() -> None:
    note = new_note().replace("> 0.8\n", "> 0.8 (I doubt this)\n", 1)
    once = update(note, sections("0.9"), BESIDE)
    assert "> 0.8 (I doubt this)\n" in once
    assert once.count(BESIDE) == 1
    at = once.index("I doubt this")
    assert at < once.index(BESIDE) < once.index("> 0.9", at) < once.index("- [ ] next")
    twice = update(once, sections("0.95"), BESIDE)
    assert twice.count(BESIDE) == 1
    assert "> 0.8 (I doubt this)\n" in twice
    assert twice.count("> 0.95") == 2  # of both experiments
    assert "> 0.9\n" not in twice


def test_an_edited_block_whose_numbers_are_the_same_gets_nothing_beside_it() -> None:
    note = new_note().replace("> 0.8\n", "> 0.8!\n", 1)
    assert update(note, sections("0.8"), BESIDE) == note


def test_a_new_experiment_comes_in_order_whatever_was_written_around() -> None:
    note = new_note("0.8", (1, 3)).replace("## Summary", "my words\n\n## Summary")
    note = note.replace("- [ ] next\n", "- [ ] next\n\nof the third\n").replace("of the third", "of the first", 1)
    again = update(note, sections("0.8", (1, 2, 3)), BESIDE)
    assert again.index("of the first") < again.index("## Experiment 2") < again.index("of the third")
    places = [again.index(f"## Experiment {n}") for n in (1, 2, 3)]
    assert places == sorted(places)
    assert again.index("## Experiment 3") < again.index("my words") < again.index("## Summary")
    last = update(note, sections("0.8", (1, 3, 4)), BESIDE)
    assert last.index("my words") < last.index("## Experiment 4") < last.index("## Summary")
    without = note.replace("<!-- squidiff:section summary -->\n", "").replace("## Summary", "")
    assert update(without, sections("0.8", (1, 3, 4)), BESIDE).index("## Experiment 4") < len(without)


def test_a_block_that_was_deleted_comes_back_at_the_end_of_its_section() -> None:
    note = new_note()
    block = sections("0.8")[0].blocks[1].written()
    again = update(note.replace(block, ""), sections("0.9"), BESIDE)
    assert again.index("## Experiment 1") < again.index("> 0.9") < again.index("## Experiment 2")


def test_a_comment_that_was_broken_makes_its_block_the_authors() -> None:
    note = new_note().replace("<!-- squidiff:end exp01/results -->\n", "", 1)
    again = update(note, sections("0.9"), BESIDE)
    assert is_subsequence(human(note), again)
    assert "> 0.8\n" in again  # it is nobody's now but the author's
    assert again.index("> 0.9") < again.index("## Experiment 2")


def test_windows_line_ends_stay(tmp_path: Path) -> None:
    path = tmp_path / "note.md"
    path.write_bytes(new_note().replace("\n", "\r\n").encode())
    write_note(path, sections("0.9"), head=HEAD, beside=BESIDE)
    assert path.read_bytes() == new_note("0.9").replace("\n", "\r\n").encode()


def test_the_note_before_is_kept_and_one_that_does_not_change_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "note.md"
    write_note(path, sections("0.8"), head=HEAD, beside=BESIDE)
    assert path.read_text(encoding="utf-8") == new_note()
    write_note(path, sections("0.8"), head="another head", beside=BESIDE)
    assert [p.name for p in tmp_path.iterdir()] == ["note.md"]
    write_note(path, sections("0.9"), head=HEAD, beside=BESIDE)
    assert path.with_name("note.md" + BACKUP).read_text(encoding="utf-8") == new_note()
    assert path.read_text(encoding="utf-8") == new_note("0.9")


def test_a_note_in_another_encoding_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "note.md"
    before = "実験".encode("shift-jis")
    path.write_bytes(before)
    with pytest.raises(InputError, match="cannot be read as UTF-8"):
        write_note(path, sections("0.9"), head=HEAD, beside=BESIDE)
    assert path.read_bytes() == before


def test_a_blank_line_or_a_remark_under_a_heading_keeps_it_with_its_section() -> None:
    note = new_note().replace("## Summary\n", "## Summary\n\nwhat I think\n\n")
    again = update(note, sections("0.8", (1, 2, 3)), BESIDE)
    assert again.index("## Experiment 3") < again.index("## Summary") < again.index("what I think")


def test_a_line_of_another_editor_changes_no_other_line() -> None:
    note = new_note().replace("- [ ] next\n", "- [ ] next\r\n", 1)
    again = update(note, sections("0.9"), BESIDE)
    assert again == new_note("0.9").replace("- [ ] next\n", "- [ ] next\r\n", 1)


@pytest.mark.parametrize(
    "change", [lambda text: text.replace(" -->\n", " --> \n"), lambda text: text.replace("\n", "\r")]
)
def test_blanks_after_the_comments_and_old_line_ends_hide_nothing(change: Callable[[str], str]) -> None:
    again = update(change(new_note()), sections("0.9"), BESIDE)
    assert again.count("## Summary") == 1
    assert "0.8" not in again


def test_a_note_that_lies_elsewhere_is_written_there_with_its_mode(tmp_path: Path) -> None:
    (tmp_path / "vault").mkdir()
    there, link = tmp_path / "vault" / "n.md", tmp_path / "note.md"
    there.write_text(new_note(), encoding="utf-8")
    there.chmod(0o600)
    link.symlink_to(there)
    write_note(link, sections("0.9"), head=HEAD, beside=BESIDE)
    assert link.is_symlink()
    assert there.read_text(encoding="utf-8") == new_note("0.9")
    assert there.stat().st_mode & 0o777 == 0o600
    there.chmod(0o400)
    with pytest.raises(InputError, match="is read-only"):
        write_note(link, sections("0.7"), head=HEAD, beside=BESIDE)
    assert there.read_text(encoding="utf-8") == new_note("0.9")


def test_a_text_that_looks_like_the_place_of_a_block_stays_a_text() -> None:
    works = Block("exp01/works", "> | {exp01/results} |\n{exp01/results}\n")
    results = Block("exp01/results", "> 0.8\n")
    section = NewSection("exp01", "## E\n\n{exp01/works}\n\n{exp01/results}\n", (works, results))
    assert section.written().count("> 0.8") == 1
    assert update(section.written(), [section], BESIDE) == section.written()


LINES = st.sampled_from(
    [
        "my own words\n",
        "- [x] done\n",
        "<!-- squidiff:end exp01/results -->\n",
        "<!-- squidiff:begin exp01/results 0123456789ab -->\n",
        "<!-- squidiff:section exp02 -->\n",
        "<!-- squidiff:section summary -->\n",
        "<!-- my comment -->",
        "> quoted",
        "\n",
        "\r",
        "\r\r",
    ]
)
EDITS = st.lists(
    st.tuples(st.integers(0, 10_000), st.integers(0, 60), st.one_of(LINES, st.text(max_size=30))),
    min_size=1,
    max_size=6,
)


def lines_of(text: str) -> str:
    """Without carriage returns: what was the last letter of a note may come to stand before a line end."""
    return text.replace("\r", "")


@pytest.mark.slow
@given(edits=EDITS, value=st.sampled_from(["0.8", "0.9"]), numbers=st.sampled_from([(1, 2), (1, 2, 3), (2,), (2, 5)]))
@settings(derandomize=True, deadline=None, max_examples=400)
def test_edits_at_random_are_found_again_whole(
    edits: list[tuple[int, int, str]], value: str, numbers: tuple[int, ...]
) -> None:
    """Each edit replaces some characters by others; a second run follows, and a third with yet other numbers."""
    note = new_note()
    for at, length, text in edits:
        at %= len(note) + 1
        note = note[:at] + text + note[at + length :]
    normal = lines_of(note)
    once = lines_of(update(note, sections(value, numbers), BESIDE))
    assert is_subsequence(human(normal), once)
    twice = lines_of(update(once, sections("0.7", numbers), BESIDE))
    assert is_subsequence(human(normal), twice)
    assert lines_of(update(twice, sections("0.7", numbers), BESIDE)) == twice
