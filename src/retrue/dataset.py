"""A prepared dataset: three splits of labelled texts in one immutable folder, named by the hash of what it holds.

    root/<id>/train.jsonl.gz, validation.jsonl.gz, test.jsonl.gz    one Example a line, UTF-8
    root/<id>/manifest.json                                         Manifest

The id is the first 12 hexadecimal digits of the sha256 over the three splits, each row as its JSON line. Rows are kept
in the order of the sha256 of their texts, so the order in which they came changes neither the id nor the files. The
other facts in the manifest are not part of the id: what the first writer said stays.
"""

import gzip
import hashlib
import json
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from retrue.errors import BadDataset
from retrue.records import Record

SPLITS = ("train", "validation", "test")
MANIFEST = "manifest.json"
CUT = 0.1  # the share of train that stands in for a missing split


@dataclass(frozen=True, slots=True)
class Example(Record):
    """A text with its label; rows of one `group` (a film, a customer) are never parted when a split is cut."""

    text: str
    label: str
    group: str | None = None
    source: str = "base"
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest(Record):
    """What a dataset holds: `counts` by split and label, `dropped` by reason ("duplicates", "leaks", "empty")."""

    id: str
    name: str
    source: str
    labels: list[str]
    counts: dict[str, dict[str, int]]
    dropped: dict[str, int]
    synthetic: bool = False
    notice: str = ""


def write(
    root: Path,
    splits: Mapping[str, Iterable[Example]],
    *,
    name: str,
    source: str,
    synthetic: bool = False,
    notice: str = "",
) -> Path:
    """Clean the splits, cut those that are missing, and return the folder root/<id>, written only where it is not yet.

    Texts of white space only are dropped. Of equal texts in one split the first stays. A text of test is dropped from
    validation and train, one of validation from train. A missing or empty test, then validation, is cut from train:
    the groups (texts where there is no group) whose hash is in the lowest tenth, so that a row stays where it is when
    others come. BadDataset where the rows cannot train a classifier.
    """
    rows, dropped = _clean(splits)
    labels = _labels(rows)
    lines = {split: b"".join(row.to_json().encode() + b"\n" for row in rows[split]) for split in SPLITS}
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update(f"{split} {len(rows[split])}\n".encode() + lines[split])
    id = digest.hexdigest()[:12]
    folder = root / id
    if (folder / MANIFEST).is_file():
        return folder
    counts = {split: dict(sorted(Counter(row.label for row in rows[split]).items())) for split in SPLITS}
    manifest = Manifest(id, name, source, labels, counts, dropped, synthetic, notice)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".writing-") as writing:
        made = Path(writing, id)
        made.mkdir()
        for split in SPLITS:
            (made / f"{split}.jsonl.gz").write_bytes(gzip.compress(lines[split], 3, mtime=0))
        (made / MANIFEST).write_text(json.dumps(asdict(manifest), ensure_ascii=False, indent=1), "utf-8")
        try:
            made.rename(folder)
        except OSError:
            # Another writer of the same content was first; any other failure must be seen.
            if not (folder / MANIFEST).is_file():
                raise
    return folder


def read(folder: Path, split: str) -> list[Example]:
    """The rows of one of SPLITS, in the order of the file."""
    if split not in SPLITS:
        raise BadDataset(f"there is no split {split!r}: use one of {', '.join(SPLITS)}")
    path = folder / f"{split}.jsonl.gz"
    if not path.is_file():
        raise BadDataset(f"{folder.name} holds no {path.name}: prepare the dataset again")
    try:
        return [Example.from_json(line) for line in gzip.decompress(path.read_bytes()).split(b"\n") if line]
    except (gzip.BadGzipFile, EOFError, zlib.error, ValueError, TypeError) as error:
        raise BadDataset(f"{folder.name}/{path.name} is damaged ({type(error).__name__}): prepare it again") from None


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a dataset's folder."""
    path = folder / MANIFEST
    if not path.is_file():
        raise BadDataset(f"{folder.name} holds no {MANIFEST}, so it is not a prepared dataset: prepare it first")
    return Manifest.from_json(path.read_text("utf-8"))


def _clean(splits: Mapping[str, Iterable[Example]]) -> tuple[dict[str, list[Example]], dict[str, int]]:
    unknown = sorted(set(splits) - set(SPLITS))
    if unknown:
        raise BadDataset(f"unknown splits {', '.join(unknown)}: name them {', '.join(SPLITS)}")
    dropped = {"duplicates": 0, "leaks": 0, "empty": 0}
    unique: dict[str, dict[str, Example]] = {}
    for split in SPLITS:
        unique[split] = {}
        for number, row in enumerate(splits.get(split, ()), 1):
            _check(row, f"row {number} of {split}")
            if not row.text.strip():
                dropped["empty"] += 1
            elif row.text in unique[split]:
                dropped["duplicates"] += 1
            else:
                unique[split][row.text] = row
    if not any(unique.values()):
        reason = "every text is empty: check which column holds the text" if dropped["empty"] else "there are no rows"
        raise BadDataset(f"{reason}; a dataset needs texts with at least two labels")
    for part in ("test", "validation"):
        unique[part] = unique[part] or _cut(unique["train"], part)
        for other in SPLITS[: SPLITS.index(part)]:
            if other != part:
                kept = {text: row for text, row in unique[other].items() if text not in unique[part]}
                dropped["leaks"] += len(unique[other]) - len(kept)
                unique[other] = kept
    return {split: sorted(unique[split].values(), key=lambda row: _hash(row.text)) for split in SPLITS}, dropped


def _cut(train: dict[str, Example], part: str) -> dict[str, Example]:
    """Take the lowest tenth by hash out of train; with very few groups, the lowest one."""
    place = {row.group or row.text: _hash(f"{part} {row.group or row.text}")[0:4] for row in train.values()}
    limit = int(CUT * 2**32).to_bytes(4)
    chosen = {key for key, at in place.items() if at < limit} or set(sorted(place, key=lambda key: place[key])[:1])
    return {text: train.pop(text) for text, row in list(train.items()) if (row.group or text) in chosen}


def _check(row: Example, where: str) -> None:
    if not row.label.strip():
        raise BadDataset(f"{where} has no label: fill it in or leave the row out")
    try:
        "".join((row.text, row.label, row.group or "", row.source, row.id or "")).encode()
    except UnicodeEncodeError:
        raise BadDataset(f"{where} holds half a surrogate pair, which is not text: repair its encoding") from None


def _labels(rows: dict[str, list[Example]]) -> list[str]:
    for split in SPLITS:
        if not rows[split]:
            raise BadDataset(
                f"no rows are left for {split}: give more rows, or texts that the other splits do not hold"
            )
    labels = sorted({row.label for row in rows["train"]})
    if len(labels) < 2:
        raise BadDataset(f"train holds only the label {labels[0]!r}: a classifier needs at least two")
    for split in SPLITS[1:]:
        strange = sorted({row.label for row in rows[split]} - set(labels))
        if strange:
            raise BadDataset(
                f"{split} has labels that train never has ({', '.join(strange[:5])}): add such rows to train"
            )
    return labels


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
