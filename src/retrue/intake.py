"""What came into the lake since the monitor last looked: the queue of small objects, read in one pass and batched.

The functions write one object a request, before they answer. Here they are read, oldest first, and made into few
larger ones by the hour, which are written before the small ones are deleted. A record counts as new until it lies in
a batched object: whoever breaks off in between and begins again gives and writes what is left, and nothing twice.
"""

import gzip
import json
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack
from tempfile import TemporaryFile
from typing import Any, Generic, Self, TypeVar

from retrue.lake import CAPTURE, FEEDBACK, LABELLED, PREDICTIONS, Batched, Lake, hour_prefix, span, stamp
from retrue.records import Label, Prediction, from_iso, id_ms

MOST = 10_000  # small objects that one intake takes
DISK = 200_000_000  # bytes on the local disk, of which a function has 512 MB
RECORDS, BYTES = 5_000, 16_000_000  # in one batched object, before compression
PLACES: dict[type, tuple[str, str]] = {Prediction: (CAPTURE, PREDICTIONS), Label: (FEEDBACK, LABELLED)}
HOUR = 3_600_000
STAMP = 12  # hex digits at the head of a mark

R = TypeVar("R", Prediction, Label)


class Intake(Generic[R]):
    """New records of one kind: iterate, and `commit` what the iteration reached; without that the lake stays as it is.

    Memory does not grow with the queue: records wait on the local disk. At most `most` objects are taken; `left` tells
    after the iteration whether there are more. Two that run side by side lose nothing, but may write a record twice.
    """

    def __init__(self, lake: Lake, kind: type[R], most: int = MOST) -> None:
        self.lake, self.most = lake, most
        self.kind: type[R] = kind
        self.queue, self.root = PLACES[kind]
        self.taken: list[str] = []
        self.left = False

    def __enter__(self) -> Self:
        self.stack = ExitStack()
        self.disk: Any = self.stack.enter_context(TemporaryFile())
        self.spool = self.stack.enter_context(gzip.GzipFile(fileobj=self.disk, mode="wb", compresslevel=1))
        self.records: Generator[R, None, None] = self._new()
        return self

    def __exit__(self, *_: object) -> None:
        self.records.close()
        self.stack.close()

    def __iter__(self) -> Iterator[R]:
        return self.records

    def commit(self) -> None:
        """Write what was taken as batched objects, and then delete the small ones."""
        self.records.close()
        self.spool.close()
        self.disk.seek(0)
        with gzip.open(self.disk) as spooled:
            for chunk in chunks(spooled):
                low, high = (int(marked[:STAMP], 16) for marked in (chunk[0], chunk[-1]))
                self.lake.write_batch(self.root, low, high, [marked.partition(b"\t")[2] for marked in chunk])
        self.lake.delete(self.taken)

    def _new(self) -> Generator[R, None, None]:
        """Every object's records are on the disk before the first of them is given."""
        hour, batched = "", None
        for key, lines in self.lake.lines(self._keys()):
            ms, _ = span(key)
            if batched is None or hour != hour_prefix(self.root, ms):
                hour = hour_prefix(self.root, ms)
                batched = Batched(self.lake, hour, self._marks)
            known: set[str] = set().union(*batched.at([ms]))
            new: list[R] = []
            for line in lines:
                record = self.kind.from_json(line)
                if (name := mark(record)) not in known:
                    known.add(name)
                    new.append(record)
                    self.spool.write(f"{name}\t".encode() + line + b"\n")
            self.taken.append(key)
            yield from new

    def _keys(self) -> Iterator[str]:
        for number, key in enumerate(self.lake.keys(self.queue)):
            self.left = number == self.most or self.disk.tell() > DISK
            if self.left:
                return
            yield key

    def _marks(self, lines: list[bytes]) -> set[str]:
        return {mark(self.kind.from_json(line)) for line in lines}


def mark(record: Prediction | Label) -> str:
    """What tells a record from all others, beginning with its time: records sort by their marks."""
    if isinstance(record, Prediction):
        return f"{stamp(id_ms(record.id) or 0)} {record.id}"
    return f"{stamp(from_iso(record.time))} {record.id} {json.dumps(record.label)}"


def chunks(marked: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Lines that begin with their marks, in the order of time, as the sorted contents of batched objects."""
    chunk: list[bytes] = []
    size = 0
    for line in marked:
        hour = int(line[:STAMP], 16) // HOUR
        full = len(chunk) == RECORDS or size > BYTES
        if chunk and (full or hour != int(chunk[-1][:STAMP], 16) // HOUR):
            yield sorted(chunk)
            chunk, size = [], 0
        chunk.append(line.rstrip(b"\n"))
        size += len(line)
    if chunk:
        yield sorted(chunk)
