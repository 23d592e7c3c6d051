"""Rows of a CSV file: what comes in, what is refused and why, and the columns that are added on the way out.

The dialect is RFC 4180 in UTF-8, with or without a byte order mark: commas, double quotes, line ends inside quotes. The
first line is always the header; a file without one cannot be told from a file with one. Row 1 is the first below it,
and blank lines are no rows. One wrong row never costs another: a row that cannot be read is refused with its reason.
"""

import csv
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

from retrue.errors import BadInput

TEXT, ID, LABEL = "text", "id", "label"
ANSWERS = ("label", "score", "prediction_id")
REJECTS = ("row", "reason")
LONGEST_ROW = 1_000_000  # characters; beyond it a quote is taken as never closed


@dataclass(frozen=True, slots=True)
class Row:
    """One row that has as many cells as the header."""

    number: int
    cells: list[str]


@dataclass(frozen=True, slots=True)
class Rejected:
    """One row that is refused; `cells` are its own, as far as they could be told apart."""

    number: int
    reason: str
    cells: list[str]


def read(stream: TextIO) -> tuple[list[str], Iterator[Row | Rejected]]:
    """The header and the rows of a text stream, in memory bounded by LONGEST_ROW.

    The stream must have been opened with encoding="utf-8-sig", errors="surrogateescape" and newline="". BadInput where
    there is no header.
    """
    records = _records(stream)
    found = next(records, None)
    if found is None:
        raise BadInput("the file is empty: put a header such as `text` in its first line")
    header, reason = found
    if reason is not None or _damage(header) is not None:
        raise BadInput("the first line is not a CSV header in UTF-8: save the file as CSV UTF-8")
    return header, _judged(records, len(header))


def text_column(header: list[str]) -> int:
    """Where the texts are: the column `text`, or the only column. BadInput names the columns that there are."""
    found = column(header, TEXT)
    if found is not None:
        return found
    if len(header) > 1:
        raise BadInput(f"no column is called `text`; the columns are {_names(header)}: rename one")
    if ";" in header[0] or "\t" in header[0]:
        raise BadInput("the columns are not separated by commas: save the file with commas")
    return 0


def label_columns(header: list[str]) -> tuple[int, int]:
    """Where the ids and the labels are."""
    ids, labels = column(header, ID), column(header, LABEL)
    if ids is None or labels is None:
        raise BadInput(f"labels need the columns `id` and `label`; the columns are {_names(header)}: rename them")
    return ids, labels


def column(header: list[str], name: str) -> int | None:
    """The place of a column, whatever its case and the spaces around it; BadInput where there are two."""
    places = [place for place, cell in enumerate(header) if cell.strip().lower() == name]
    if len(places) > 1:
        raise BadInput(f"{len(places)} columns are called `{name}`: keep one")
    return places[0] if places else None


def check_text(row: Row, place: int, longest: int) -> Row | Rejected:
    """The row, or its refusal where the text is empty or has more than `longest` characters."""
    text = row.cells[place]
    if not text.strip():
        return Rejected(row.number, "the text is empty", row.cells)
    if len(text) > longest:
        return Rejected(row.number, f"the text has {len(text)} characters, more than {longest}", row.cells)
    return row


def added(header: list[str], names: tuple[str, ...]) -> list[str]:
    """Names for columns that are put beside those of a header: one that is taken gets a number, as in label_2."""
    taken = {cell.strip().lower() for cell in header}
    free = []
    for name in names:
        choice, number = name, 2
        while choice in taken:
            choice, number = f"{name}_{number}", number + 1
        taken.add(choice)
        free.append(choice)
    return free


def _names(header: list[str]) -> str:
    """The columns for a message; cut, since in a file without a header they are somebody's text."""
    shown = [cell.strip()[:20] or "(no name)" for cell in header[:10]]
    return ", ".join(f"`{name}`" for name in shown) + (" and more" if len(header) > len(shown) else "")


def _judged(records: Iterator[tuple[list[str], str | None]], width: int) -> Iterator[Row | Rejected]:
    for number, (cells, reason) in enumerate(records, 1):
        if reason is None:
            reason = _damage(cells)
        if reason is None and len(cells) != width:
            hint = ": put double quotes around a text that holds commas" if len(cells) > width else ""
            reason = f"{len(cells)} cells where the header has {width}{hint}"
        yield Row(number, cells) if reason is None else Rejected(number, reason, cells)


def _damage(cells: list[str]) -> str | None:
    if any("\0" in cell for cell in cells):
        return "it holds a NUL character"
    try:
        for cell in cells:
            cell.encode()
    except UnicodeEncodeError:  # surrogates, which stand for the bytes that could not be decoded
        return "it is not UTF-8"
    return None


def _records(stream: TextIO) -> Iterator[tuple[list[str], str | None]]:
    """Cells of one record after the other, with a reason where the record itself is broken."""
    # The csv module's own limit counts one cell and is lower; ours counts the whole row.
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_ROW))
    lines = _Lines(stream)
    reader = csv.reader(lines, strict=True)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except _UnfinishedError as error:
            yield lines.give_back(), str(error)
            continue
        except csv.Error:
            yield lines.give_back(), "a double quote stands alone inside a cell: write two of them"
            continue
        lines.forget()
        if cells:
            yield cells, None


class _UnfinishedError(Exception):
    """A record that does not end where it should."""


class _Lines:
    """Physical lines for the csv module, which remember the record that is being read.

    A quote that is never closed would swallow the rows behind it. When that shows, only the line that opened the
    quote is refused and the lines behind it are read again.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.again: deque[str] = deque()
        self.taken: list[str] = []
        self.size = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self.again.popleft() if self.again else self._read()
        if not line:
            if self.taken:
                raise _UnfinishedError("a double quote is opened and never closed")
            raise StopIteration
        self.taken.append(line)
        self.size += len(line)
        if len(line) == LONGEST_ROW:
            raise _UnfinishedError(f"the row has more than {LONGEST_ROW} characters; it is cut here")
        if self.size > LONGEST_ROW:
            raise _UnfinishedError(f"a double quote is opened and not closed within {LONGEST_ROW} characters")
        return line

    def forget(self) -> None:
        self.taken, self.size = [], 0

    def give_back(self) -> list[str]:
        """The cells of the line that began the record; the lines behind it will be read again."""
        first, *others = self.taken
        self.again.extendleft(reversed(others))
        self.forget()
        return next(csv.reader([first]), [])

    def _read(self) -> str:
        """The next line; of one that is too long, the beginning."""
        line = piece = self.stream.readline(LONGEST_ROW)
        while len(piece) == LONGEST_ROW and not piece.endswith(("\n", "\r")):
            piece = self.stream.readline(LONGEST_ROW)
        return line
