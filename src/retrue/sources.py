"""Labelled texts from outside, as splits of Examples: a folder of text files, a CSV or Parquet file, a named download.

What comes out goes into `dataset.write`, which cleans it and cuts the splits that are missing.
"""

import csv
import gzip
import hashlib
import http.client
import re
import shutil
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

from tqdm import tqdm

from retrue.dataset import SPLITS, Example
from retrue.errors import BadDataset

ALIASES = {**{split: split for split in SPLITS}, "val": "validation", "valid": "validation", "dev": "validation"}
UNLABELLED = "unsup"  # aclImdb's folder of reviews without a label
CHUNK = 1 << 20
LONGEST_CELL = 1 << 20  # characters; more is a quote that was never closed
Splits = dict[str, list[Example]]


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns mean what; `names` renames labels ({"0": "negative"}), rows with a label in `drop` are left out."""

    text: str = "text"
    label: str = "label"
    split: str | None = None
    group: str | None = None
    id: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    drop: frozenset[str] = frozenset({"-1", ""})


@dataclass(frozen=True, slots=True)
class Archive:
    """A .tar.gz to download: `size` in bytes, `folder` the one inside it that holds the splits."""

    name: str
    url: str
    size: int
    sha256: str
    folder: str
    names: Mapping[str, str]


ARCHIVES = {
    "imdb": Archive(
        "imdb",
        "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
        84_125_825,
        "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe",
        "aclImdb",
        {"neg": "negative", "pos": "positive"},
    )
}
DEFAULTS = Columns()


def load(what: str | Mapping[str, Path], cache: Path, columns: Columns = DEFAULTS) -> Splits:
    """Read a folder, a .csv, .csv.gz or .parquet file, one such file for each split, or one of ARCHIVES by its name."""
    if not isinstance(what, str):
        strange = set(what) - set(SPLITS)
        if strange:
            raise BadDataset(f"unknown splits {', '.join(sorted(strange))}: name them {', '.join(SPLITS)}")
        whole = replace(columns, split=None)
        return {split: table(path, whole)["train"] for split, path in what.items()}
    if what in ARCHIVES:
        archive = ARCHIVES[what]
        return tree(fetch(archive, cache), replace(columns, names=columns.names or archive.names))
    path = Path(what)
    if path.is_dir():
        return tree(path, columns)
    if path.is_file():
        return table(path, columns)
    raise BadDataset(f"{what} is no file, no folder and no known name: known names are {', '.join(ARCHIVES)}")


def tree(root: Path, columns: Columns = DEFAULTS) -> Splits:
    """Read <split>/<label>/*.txt (UTF-8), the layout of aclImdb.

    Where <split>/urls_<label>.txt is there, line n of it (from 0) is the address of the film of review n_*.txt, and
    reviews of one film make a group.
    """
    splits: Splits = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if folder.name not in ALIASES:
            raise BadDataset(f"{root.name}/{folder.name} is no split: the layout is <train or test>/<label>/*.txt")
        rows = splits.setdefault(ALIASES[folder.name], [])
        for labelled in sorted(path for path in folder.iterdir() if path.is_dir() and path.name != UNLABELLED):
            label = _label(labelled.name, columns)
            if label is None:
                continue
            films = _films(folder / f"urls_{labelled.name}.txt")
            for path in sorted(labelled.glob("*.txt")):
                number = path.stem.split("_")[0]
                group = films[int(number)] if number.isdecimal() and int(number) < len(films) else None
                id = f"{folder.name}/{labelled.name}/{path.stem}"
                rows.append(Example(_text(path), label, group, id=id))
    if not any(splits.values()):
        raise BadDataset(f"{root.name} holds no texts: the layout is <train or test>/<label>/*.txt")
    return splits


def table(path: Path, columns: Columns = DEFAULTS) -> Splits:
    """Read a CSV or Parquet file; all rows are train unless a column says the split."""
    wanted = [name for name in (columns.text, columns.label, columns.split, columns.group, columns.id) if name]
    if not path.is_file():
        raise BadDataset(f"there is no file {path}")
    if path.suffix == ".parquet":
        rows = _parquet(path, wanted)
    elif path.name.endswith((".csv", ".csv.gz")):
        rows = _csv(path, wanted)
    else:
        raise BadDataset(f"{path.name} is of no known kind: give a .csv, .csv.gz or .parquet file, or a folder")
    splits: Splits = {}
    for number, row in enumerate(rows, 1):
        label = _label(_plain(row[columns.label]), columns)
        if label is None:
            continue
        split = _plain(row[columns.split]).strip().lower() if columns.split else "train"
        if (split or "train") not in ALIASES:
            raise BadDataset(f"row {number} of {path.name} is in no known split: use {', '.join(ALIASES)}")
        group = _plain(row[columns.group]) if columns.group else ""
        id = _plain(row[columns.id]) if columns.id else ""
        example = Example(_plain(row[columns.text]), label, group or None, id=id or None)
        splits.setdefault(ALIASES[split or "train"], []).append(example)
    return splits or {"train": []}


def fetch(archive: Archive, cache: Path) -> Path:
    """Download, check and unpack an archive once; the folder that holds its splits.

    A broken download stays as <name>.tar.gz.part and is taken up where it stopped. A file whose sha256 is wrong is set
    aside as <name>.tar.gz.wrong and never unpacked.
    """
    ready = cache / archive.name
    if ready.is_dir():
        return ready / archive.folder
    cache.mkdir(parents=True, exist_ok=True)
    whole, part = cache / f"{archive.name}.tar.gz", cache / f"{archive.name}.tar.gz.part"
    if not whole.is_file():
        _download(archive, part)
        part.rename(whole)
    with whole.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != archive.sha256 or whole.stat().st_size != archive.size:
        aside = whole.rename(whole.with_name(whole.name + ".wrong"))
        raise BadDataset(
            f"{archive.url} is not the file that was expected (sha256 {found}); it was set aside as {aside}"
        )
    with tempfile.TemporaryDirectory(dir=cache, prefix=".unpacking-") as folder:
        try:
            with tarfile.open(whole) as tar:
                members = (member for member in tar if f"/{UNLABELLED}/" not in member.name)
                tar.extractall(
                    Path(folder, "whole"), tqdm(members, archive.name, unit=" files", disable=None), filter="data"
                )
        except tarfile.TarError as error:
            raise BadDataset(f"{whole} cannot be unpacked ({type(error).__name__}): delete it and try again") from None
        Path(folder, "whole").rename(ready)
    return ready / archive.folder


def _download(archive: Archive, part: Path) -> None:
    """Append to the partial file until it is whole, as long as each request brings something."""
    before, reason = -1, ""
    while (have := part.stat().st_size if part.is_file() else 0) < archive.size:
        if have <= before:
            raise BadDataset(
                f"{archive.url} stopped at {have} of {archive.size} bytes ({reason}): try again, it goes on from there"
            )
        before, reason = have, "the connection was closed"
        request = urllib.request.Request(archive.url, headers={"Range": f"bytes={have}-"})  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 addresses are constants above
                mode = "ab" if response.status == HTTPStatus.PARTIAL_CONTENT else "wb"
                with (
                    part.open(mode) as file,
                    tqdm.wrapattr(
                        response, "read", archive.size, desc=archive.name, initial=file.tell(), disable=None
                    ) as body,
                ):
                    shutil.copyfileobj(body, file, CHUNK)
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__


def _csv(path: Path, wanted: list[str]) -> Iterator[dict[str, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    # The csv module has one limit for the whole process: whoever reads says what it needs.
    csv.field_size_limit(LONGEST_CELL)
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            _need(path, wanted, reader.fieldnames or ())
            for row in reader:
                if any(row[name] is None for name in wanted):
                    raise BadDataset(f"{path.name}, line {reader.line_num}: fewer cells than the heading has")
                yield row
        except UnicodeDecodeError:
            raise BadDataset(
                f"{path.name} is not UTF-8 after line {reader.reader.line_num}: save it as UTF-8"
            ) from None
        except csv.Error as error:
            raise BadDataset(f"{path.name}, line {reader.reader.line_num}: {error}; check its quotes") from None
        except (EOFError, zlib.error, gzip.BadGzipFile):
            raise BadDataset(f"{path.name} is no whole gzip file: copy it again") from None


def _parquet(path: Path, wanted: list[str]) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise BadDataset("Parquet files need pyarrow: install retrue[cli], or give a CSV") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _need(path, wanted, file.schema_arrow.names)
            for batch in file.iter_batches(columns=wanted):
                yield from batch.to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise BadDataset(f"{path.name} cannot be read as Parquet ({type(error).__name__}): write it again") from None


def _need(path: Path, wanted: Iterable[str], found: Iterable[str]) -> None:
    there = list(found)
    lacking = [name for name in wanted if name not in there]
    if lacking:
        raise BadDataset(f"{path.name} has no column {', '.join(lacking)}: name one of {', '.join(there[:20])}")


def _label(raw: str, columns: Columns) -> str | None:
    label = raw.strip()
    if label in columns.drop:
        return None
    if columns.names and label not in columns.names:
        raise BadDataset(f"label {label[:40]!r} has no name: name it or drop it (named: {', '.join(columns.names)})")
    return columns.names[label] if columns.names else label


def _plain(value: object) -> str:
    """A cell as text: nothing for a null, and 1 for 1.0, which is how whole numbers look in a column with nulls."""
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _films(urls: Path) -> list[str]:
    if not urls.is_file():
        return []
    found = ((re.search(r"/title/(tt\d+)", line), line) for line in _text(urls).split("\n"))
    return [match[1] if match else line for match, line in found]


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadDataset(f"{path.name} is not UTF-8: save it as UTF-8") from None
