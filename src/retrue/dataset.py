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
from retrue.wording import fold

SPLITS = ("train", "validation", "test")
MANIFEST = "manifest.json"
REASONS = ("duplicates", "conflicts", "leaks", "group_leaks", "empty")
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
    """What a dataset holds: `counts` of rows by split and label, and rows that were `dropped`, by reason.

    "empty" has only white space; "duplicates" have the wording and label of another row of their split; "conflicts"
    the wording of another row with another label; "leaks" have a wording and "group_leaks" a group that a later split
    holds. A snapshot adds what it left out of the feedback, and the base rows that feedback "replaced".
    """

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
    dropped: Mapping[str, int] | None = None,
) -> Path:
    """Clean the splits, cut those that are missing, and return the folder root/<id>, written only where it is not yet.

    Texts are equal where their wording is. Those of white space only are dropped, then each split is settled. Texts
    and groups of test are dropped from validation and train, those of validation from train. A missing or empty test,
    then validation, is cut from train: the groups (texts where there is no group) whose hash is in the lowest tenth,
    so that a row stays where it is when others come. `dropped` counts what the caller has left out. BadDataset where
    the rows cannot train a classifier.
    """
    rows, lost = _clean(splits)
    lost += Counter(dropped)
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
    manifest = Manifest(id, name, source, labels, counts, {**dict.fromkeys(REASONS, 0), **lost}, synthetic, notice)
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


def settle(rows: Iterable[Example]) -> tuple[dict[str, Example], Counter[str]]:
    """Rows by their wording: of equal ones the first, and none where their labels differ; and how many are dropped.

    Which of two labels is right cannot be known here, and whoever learns both learns nothing.
    """
    alike: dict[str, list[Example]] = {}
    for row in rows:
        alike.setdefault(fold(row.text), []).append(row)
    settled = {wording: same[0] for wording, same in alike.items() if len({row.label for row in same}) == 1}
    conflicts = sum(len(same) for wording, same in alike.items() if wording not in settled)
    duplicates = sum(map(len, alike.values())) - conflicts - len(settled)
    return settled, Counter(duplicates=duplicates, conflicts=conflicts)


def _clean(splits: Mapping[str, Iterable[Example]]) -> tuple[dict[str, list[Example]], Counter[str]]:
    unknown = sorted(set(splits) - set(SPLITS))
    if unknown:
        raise BadDataset(f"unknown splits {', '.join(unknown)}: name them {', '.join(SPLITS)}")
    dropped: Counter[str] = Counter()
    unique: dict[str, dict[str, Example]] = {}
    for split in SPLITS:
        filled = []
        for number, row in enumerate(splits.get(split, ()), 1):
            _check(row, f"row {number} of {split}")
            if row.text.strip():
                filled.append(row)
            else:
                dropped["empty"] += 1
        unique[split], lost = settle(filled)
        dropped += lost
    if not any(unique.values()):
        reason = "there are no rows"
        if dropped["empty"]:
            reason = "every text is empty: check which column holds the text"
        if dropped["conflicts"]:
            reason = "every text has several labels: check which column holds the label"
        raise BadDataset(f"{reason}; a dataset needs texts with at least two labels")
    for part in ("test", "validation"):
        unique[part] = unique[part] or _cut(unique["train"], part)
        groups = {row.group for row in unique[part].values() if row.group}
        for other in SPLITS[: SPLITS.index(part)]:
            kept = {wording: row for wording, row in unique[other].items() if wording not in unique[part]}
            apart = {wording: row for wording, row in kept.items() if row.group not in groups}
            dropped += Counter(leaks=len(unique[other]) - len(kept), group_leaks=len(kept) - len(apart))
            unique[other] = apart
    return {split: sorted(unique[split].values(), key=lambda row: _hash(row.text)) for split in SPLITS}, dropped


def _cut(train: dict[str, Example], part: str) -> dict[str, Example]:
    """Take the lowest tenth by hash out of train; with very few groups, the lowest one."""
    keys = {wording: row.group or wording for wording, row in train.items()}
    place = {key: _hash(f"{part} {key}")[0:4] for key in keys.values()}
    limit = int(CUT * 2**32).to_bytes(4)
    chosen = {key for key, at in place.items() if at < limit} or set(sorted(place, key=lambda key: place[key])[:1])
    return {wording: train.pop(wording) for wording, key in keys.items() if key in chosen}


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
                f"no rows are left for {split}: give more rows, or texts and groups that the other splits do not hold"
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
