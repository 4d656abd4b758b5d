"""A query is read as it is written."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pandas as pd
import pytest

from squidiff.config import InputError, Schema
from squidiff.data.conditions import Part
from squidiff.data.queries import Query, read_queries

SCHEMA = Schema(condition_key="condition", control="ctrl", context_keys=("type",), dose_key="dose")
TEXT = "type,condition,dose,n_cells,note\nNA,B+A,1,20,None\n007,A,0.50,3,\nT,ctrl,,1,nan\n"


def read(tmp_path: Path, text: str, schema: Schema = SCHEMA) -> list[Query]:
    path = tmp_path / "queries.csv"
    path.write_text(text)
    return read_queries(path, schema)


# --- reading


def test_text_stays_as_it_is_written(tmp_path: Path) -> None:
    queries = read(tmp_path, TEXT)
    assert [q.columns for q in queries] == [
        {"type": "NA", "condition": "B+A", "dose": "1", "note": "None"},
        {"type": "007", "condition": "A", "dose": "0.50", "note": ""},
        {"type": "T", "condition": "ctrl", "dose": "", "note": "nan"},
    ]
    assert [q.n_cells for q in queries] == [20, 3, 1]


def test_a_query_is_its_population(tmp_path: Path) -> None:
    queries = read(tmp_path, TEXT)
    assert [q.key for q in queries] == [("NA", "A @ 1 + B @ 1", None), ("007", "A @ 0.5", None), ("T", "", None)]
    assert [q.parts for q in queries] == [(Part("A", 1.0), Part("B", 1.0)), (Part("A", 0.5),), ()]


def test_a_frame_gives_what_its_file_gives(tmp_path: Path) -> None:
    frame = pd.read_csv(StringIO(TEXT), dtype=str, keep_default_na=False)
    assert read_queries(frame, SCHEMA) == read(tmp_path, TEXT) == read_queries(str(tmp_path / "queries.csv"), SCHEMA)


def test_a_frame_may_hold_numbers_in_any_index() -> None:
    frame = pd.DataFrame({"type": [1, 2], "condition": ["A", "B"], "dose": [1.0, 10], "n_cells": [5, 6]}, index=[7, 7])
    before = frame.copy()
    queries = read_queries(frame, SCHEMA)
    assert [(q.key, q.n_cells) for q in queries] == [(("1", "A @ 1", None), 5), (("2", "B @ 10", None), 6)]
    pd.testing.assert_frame_equal(frame, before)


def test_equal_rows_are_queries_of_their_own_in_the_order_written(tmp_path: Path) -> None:
    queries = read(tmp_path, "type,condition,dose\nT,A,1\nT,B,1\nT,A,1.0\n")
    assert [q.key[1] for q in queries] == ["A @ 1", "B @ 1", "A @ 1"]
    assert [q.columns["dose"] for q in queries] == ["1", "1", "1.0"]


def test_the_number_of_cells_and_the_smiles_may_be_left_out(tmp_path: Path) -> None:
    schema = Schema(condition_key="condition", control="ctrl", smiles_key="smiles")
    (query,) = read(tmp_path, "condition\nA\n", schema)
    assert (query.n_cells, query.columns, query.parts) == (None, {"condition": "A"}, (Part("A"),))


def test_a_time_is_a_number(tmp_path: Path) -> None:
    queries = read(tmp_path, "day,n_cells\n2,4\n2.50,4\n", Schema(time_key="day"))
    assert [q.key for q in queries] == [("", "", 2.0), ("", "", 2.5)]


# --- what cannot be read


@pytest.mark.parametrize("bad", ["0", "-3", "2.5", "many", "nan", "inf", "1_0"])
def test_a_number_of_cells_must_be_whole_and_positive(tmp_path: Path, bad: str) -> None:
    message = f"^n_cells of a query is '{bad}': it must be a whole number of 1 or more$"
    with pytest.raises(InputError, match=message):
        read(tmp_path, f"type,condition,dose,n_cells\nT,A,1,20\nT,B,1,{bad}\n")


def test_a_query_without_a_number_beside_one_with_it_takes_all_cells(tmp_path: Path) -> None:
    queries = read(tmp_path, "type,condition,dose,n_cells\nT,A,1,20\nT,B,1, \n")
    assert [q.n_cells for q in queries] == [20, None]
    frame = pd.DataFrame({"type": ["T", "T"], "condition": ["A", "B"], "dose": [1, 1], "n_cells": [float("nan"), 3]})
    assert [q.n_cells for q in read_queries(frame, SCHEMA)] == [None, 3]


def test_too_many_cells_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"n_cells of a query is more than 10,000,000"):
        read(tmp_path, "type,condition,dose,n_cells\nT,A,1,10000001\n")


def test_rows_longer_than_the_header_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read as a CSV file"):
        read(tmp_path, "type,condition,dose\nT,A,1,\nB,A,1,\n")


@pytest.mark.parametrize(("mark", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_another_mark_between_columns_is_named(tmp_path: Path, mark: str, name: str) -> None:
    with pytest.raises(InputError, match=rf"csv has {name} between its columns: write it with commas$"):
        read(tmp_path, "type,condition,dose\nT,A,1\n".replace(",", mark))


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^column 'dose' is missing in the queries: it has type, condition$"):
        read(tmp_path, "type,condition\nT,A\n")


@pytest.mark.parametrize("text", ["type,condition,dose\n", "type,condition,dose"])
def test_a_table_without_a_row_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"^there is no query: give a row for each population to predict$"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    "content", [b'type,condition\n"T,A\n', b"type\xff,condition\nT,A\n", b"type,condition,dose\nT,A\nT,A,1,2,3\n"]
)
def test_a_file_that_is_no_csv_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "q.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"q\.csv cannot be read as a CSV file: "):
        read_queries(tmp_path / "q.csv", SCHEMA)
    if b"\xff" in content:
        with pytest.raises(InputError, match=r"; save it as UTF-8$"):
            read_queries(tmp_path / "q.csv", SCHEMA)
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(InputError, match=r"does not exist or is not a file: give a CSV file of queries$"):
            read_queries(path, SCHEMA)


def test_a_condition_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dose '-1' of condition 'A' must be a number of 0 or more"):
        read(tmp_path, "type,condition,dose\nT,A,-1\n")


# --- what spreadsheets leave


def test_empty_columns_and_rows_of_a_spreadsheet_are_left_out(tmp_path: Path) -> None:
    (query,) = read(tmp_path, "type,condition,dose,,\nT,A,1,,\n,,,,\n , ,,,\n\n")
    assert query.columns == {"type": "T", "condition": "A", "dose": "1"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("type,condition,dose,\nT,A,1,x\n", r"^column '' of the queries cannot name a column of an \.h5ad file"),
        ("type,condition,dose,a/b\nT,A,1,x\n", r"^column 'a/b' of the queries cannot name a column"),
        ("type,condition,dose,.\nT,A,1,x\n", r"^column '\.' of the queries cannot name a column"),
        ("type,condition,dose,..\nT,A,1,x\n", r"^column '\.\.' of the queries cannot name a column"),
        ("type,condition,dose,anchor\nT,A,1,x\n", r"^column 'anchor' of the queries has a name that predictions keep"),
        ("type,condition,dose,_index\nT,A,1,x\n", r"^column '_index' of the queries has a name"),
        ("type,condition,dose,note\nT,A,1,x\0y\n", r"^column 'note' of the queries holds the character NUL: remove"),
        ("type,type,condition,dose\nT,T,A,1\n", r"^column 'type' of the queries stands there twice: keep one$"),
    ],
)
def test_a_column_that_no_file_can_hold_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, text)


def test_what_pandas_calls_missing_is_an_empty_text() -> None:
    frame = pd.DataFrame({"type": ["T", "U"], "condition": ["A", "A"], "dose": [1, 2]})
    frame["plate"] = pd.array([3, None], dtype="Int64")
    frame["fresh"] = pd.array([None, True], dtype="boolean")
    assert [(q.columns["plate"], q.columns["fresh"]) for q in read_queries(frame, SCHEMA)] == [("3", ""), ("", "True")]


@pytest.mark.parametrize("dtype", ["float32", "float64", "category"])
def test_a_dose_is_the_same_at_any_precision(dtype: str) -> None:
    frame = pd.DataFrame({"type": ["T"], "condition": ["A"], "dose": pd.Series([0.1]).astype(dtype)})
    (query,) = read_queries(frame, SCHEMA)
    assert query.key == ("T", "A @ 0.1", None)


@pytest.mark.parametrize(
    ("given", "kind"), [({"condition": "A"}, "dict"), ([{"condition": "A"}], "list"), (None, "NoneType")]
)
def test_what_is_no_table_is_told_what_is(given: object, kind: str) -> None:
    with pytest.raises(InputError, match=rf"^the queries are a {kind}: give a table, as pandas\.DataFrame"):
        read_queries(given, SCHEMA)  # type: ignore[arg-type]
