"""Rows of CSV files as people really make them."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrue import rows
from retrue.errors import BadInput
from retrue.rows import Rejected, Row


def opened(body: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(body), encoding="utf-8-sig", errors="surrogateescape", newline="")


def read(body: bytes) -> tuple[list[str], list[Row | Rejected]]:
    header, table = rows.read(opened(body))
    return header, list(table)


def outcome(body: bytes) -> list[tuple[int, list[str] | str]]:
    """Row numbers with the cells, or with the reason of a refusal."""
    return [(item.number, item.cells if isinstance(item, Row) else item.reason) for item in read(body)[1]]


def test_a_byte_order_mark_is_no_part_of_the_first_column() -> None:
    header, table = read("\ufefftext\r\ngut\r\nschön\r\n".encode())
    assert header == ["text"]
    assert table == [Row(1, ["gut"]), Row(2, ["schön"])]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_end_works_and_survives_inside_quotes(end: str) -> None:
    body = f'id,text{end}1,"one{end}two"{end}2,three{end}'.encode()
    assert outcome(body) == [(1, ["1", f"one{end}two"]), (2, ["2", "three"])]


@pytest.mark.parametrize("mark", ["\x85", "\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_only_line_ends_end_a_line(mark: str) -> None:
    assert outcome(f"text\nbefore{mark}after\nnext\n".encode()) == [(1, [f"before{mark}after"]), (2, ["next"])]


def test_the_last_line_needs_no_line_end_and_blank_lines_are_no_rows() -> None:
    assert outcome(b"\ntext\n\none\n\r\n\ntwo") == [(1, ["one"]), (2, ["two"])]


def test_a_row_with_the_wrong_number_of_cells_is_refused_alone() -> None:
    found = outcome(b"id,text\n1,good\n2,bad, since it has a comma\n3\n4,fine\n")
    assert found[0] == (1, ["1", "good"])
    assert found[1][1] == "3 cells where the header has 2: put double quotes around a text that holds commas"
    assert found[2][1] == "1 cells where the header has 2"
    assert found[3] == (4, ["4", "fine"])


def test_bytes_that_are_not_utf8_cost_only_their_own_row() -> None:
    found = outcome(b"text\nfirst\n" + "schön\n".encode("latin-1") + "dernière\n".encode())
    assert found == [(1, ["first"]), (2, "it is not UTF-8"), (3, ["dernière"])]


def test_a_nul_character_costs_only_its_own_row() -> None:
    assert outcome(b"text\na\nb\0c\nd\n") == [(1, ["a"]), (2, "it holds a NUL character"), (3, ["d"])]


def test_a_quote_that_is_never_closed_costs_only_the_line_that_opened_it() -> None:
    found = outcome(b'id,text\n1,one\n2,"two\n3,three\n4,"fo""ur"\n')
    assert found == [
        (1, ["1", "one"]),
        (2, "a double quote stands alone inside a cell: write two of them"),
        (3, ["3", "three"]),
        (4, ["4", 'fo"ur']),
    ]
    assert outcome(b'text\none\n"two\nthree\n') == [
        (1, ["one"]),
        (2, "a double quote is opened and never closed"),
        (3, ["three"]),
    ]


def test_quotes_that_are_not_doubled_cost_only_their_own_row() -> None:
    found = outcome(b'text\n"she said "wow", twice"\nnext\n5" wide\n')
    assert found == [
        (1, "a double quote stands alone inside a cell: write two of them"),
        (2, ["next"]),
        (3, ['5" wide']),
    ]


def test_a_quote_that_is_closed_too_late_to_be_meant_costs_only_the_line_that_opened_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rows, "LONGEST_ROW", 100)
    lines = "".join(f"{n},a text of some length\n" for n in range(3, 20))
    found = outcome(f'id,text\n1,one\n2,"two\n{lines}20,"end"\n'.encode())
    assert found[1] == (2, "a double quote is opened and not closed within 100 characters")
    assert [cells[0] for _, cells in found if isinstance(cells, list)] == ["1", *map(str, range(3, 21))]


@pytest.mark.parametrize("opening", ["", '"two\n3,'])
def test_a_line_without_end_is_cut_and_refused_and_the_next_line_is_read(
    monkeypatch: pytest.MonkeyPatch, opening: str
) -> None:
    monkeypatch.setattr(rows, "LONGEST_ROW", 100)
    _, table = read(f"id,text\n1,one\n2,{opening}{'x' * 950}\n4,four\n".encode())
    assert table[0] == Row(1, ["1", "one"])
    assert table[-1].cells == ["4", "four"]
    assert all(isinstance(item, Rejected) for item in table[1:-1])
    assert table[-2].reason == "the row has more than 100 characters; it is cut here"  # type: ignore[union-attr]
    assert sum(len(cell) for cell in table[-2].cells) == 99


def test_a_cell_longer_than_the_csv_modules_own_limit_is_read() -> None:
    long = "x" * 200_000
    assert outcome(f"text\n{long}\nnext\n".encode()) == [(1, [long]), (2, ["next"])]


@pytest.mark.parametrize(
    ("body", "remedy"),
    [
        (b"", "the file is empty"),
        (b"\n\n\r\n", "the file is empty"),
        ("text\ngood\n".encode("utf-16"), "save the file as CSV UTF-8"),
        (b"\x1f\x8b\x08\x00rest", "save the file as CSV UTF-8"),
        (b'"text\ngood\n', "not a CSV header"),
    ],
)
def test_a_file_without_a_readable_header_is_refused_with_a_remedy(body: bytes, remedy: str) -> None:
    with pytest.raises(BadInput, match=remedy):
        read(body)


@pytest.mark.parametrize("header", [["id", "Text"], ["a", " TEXT "], ["text", "x"], ["review"], ["text", "", ""]])
def test_the_text_is_in_the_column_text_or_in_the_only_one(header: list[str]) -> None:
    assert header[rows.text_column(header)].strip().lower() in {"text", "review"}


def test_a_file_without_a_text_column_is_refused_with_the_names_of_its_columns() -> None:
    with pytest.raises(BadInput, match="`text`; the columns are `id`, `review`, `\\(no name\\)`: rename one"):
        rows.text_column(["id", "review", " "])


def test_a_long_first_line_is_not_quoted_back_whole() -> None:
    with pytest.raises(BadInput) as raised:
        rows.text_column(["a private sentence that somebody wrote without a header", "2"])
    assert "somebody" not in str(raised.value)


@pytest.mark.parametrize("header", [["id;text"], ["id\ttext"]])
def test_other_separators_are_refused_rather_than_taken_for_one_column(header: list[str]) -> None:
    with pytest.raises(BadInput, match="save the file with commas"):
        rows.text_column(header)


def test_two_columns_of_one_name_are_refused() -> None:
    with pytest.raises(BadInput, match="2 columns are called `text`: keep one"):
        rows.text_column(["text", "Text"])


def test_labels_need_their_two_columns() -> None:
    assert rows.label_columns(["Label", "note", "ID"]) == (2, 0)
    with pytest.raises(BadInput, match="`id` and `label`; the columns are `id`, `truth`"):
        rows.label_columns(["id", "truth"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "the text is empty"), (" \t\n", "the text is empty"), ("x" * 11, "the text has 11 characters, more than 10")],
)
def test_empty_and_too_long_texts_are_refused(text: str, reason: str) -> None:
    assert rows.check_text(Row(7, ["1", text]), 1, 10) == Rejected(7, reason, ["1", text])


def test_a_text_of_just_the_right_length_is_taken() -> None:
    row = Row(7, ["1", "x" * 10])
    assert rows.check_text(row, 1, 10) is row


def test_added_columns_never_take_the_name_of_one_that_is_there() -> None:
    assert rows.added(["id", "text"], rows.ANSWERS) == ["label", "score", "prediction_id"]
    assert rows.added(["Label", "label_2", "text"], rows.ANSWERS) == ["label_3", "score", "prediction_id"]


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@given(st.lists(st.tuples(cells, cells), max_size=20))
@settings(deadline=None)
def test_whatever_the_csv_module_writes_is_read_back(table: list[tuple[str, str]]) -> None:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerows([("id", "text"), *table])
    assert read(stream.getvalue().encode())[1] == [Row(n, list(row)) for n, row in enumerate(table, 1)]


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_no_bytes_whatever_break_the_reader(noise: bytes) -> None:
    _, table = read(b"text\n" + noise)
    assert [item.number for item in table] == list(range(1, len(table) + 1))


@given(st.text(st.sampled_from('ab",\n'), max_size=60))
@settings(deadline=None)
def test_no_letter_is_lost_whatever_the_quotes(mess: str) -> None:
    _, table = read(f"id,text\n{mess}".encode())
    letters = "".join(cell for item in table for cell in item.cells)
    assert [c for c in letters if c in "ab"] == [c for c in mess if c in "ab"]
