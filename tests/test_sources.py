"""Folders, CSVs, Parquet files and downloads become the same splits of Examples."""

import csv
import gzip
import hashlib
import io
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrue import dataset, sources
from retrue.dataset import Example
from retrue.errors import BadDataset
from retrue.sources import Archive, Columns
from retrue.wording import fold

NAMES = {"0": "negative", "1": "positive"}


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode())
    return root


def review_tree(root: Path) -> Path:
    """Two films a label, in the layout of aclImdb."""
    files = {"imdb.vocab": "the\n", "README": "made for the tests\n"}
    for split in ("train", "test"):
        for label, film in (("neg", 10), ("pos", 20)):
            for number in (0, 1, 2, 10):
                files[f"{split}/{label}/{number}_7.txt"] = f"{split} {label} {number}"
            addresses = [f"http://www.imdb.com/title/tt{film + n // 2}/usercomments" for n in range(11)]
            files[f"{split}/urls_{label}.txt"] = "\n".join(addresses)
    files["train/unsup/0_0.txt"] = "nobody knows"
    return put(root, files)


# folders


def test_a_folder_tree_becomes_splits_with_the_film_as_group_and_without_unlabelled_texts(tmp_path: Path) -> None:
    splits = sources.load(str(review_tree(tmp_path)), tmp_path / "cache")
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 8, "test": 8}
    assert splits["train"][0] == Example("train neg 0", "neg", "tt10", id="train/neg/0_7")
    groups = {row.text: row.group for row in splits["test"]}
    assert (groups["test pos 1"], groups["test pos 2"], groups["test pos 10"]) == ("tt20", "tt21", "tt25")


def test_a_folder_tree_without_addresses_has_no_groups(tmp_path: Path) -> None:
    put(tmp_path, {"train/good/a.txt": "\ufefffine", "val/good/b.txt": "line\u0085one\r\ntwo", "dev/bad/3_1.txt": "no"})
    splits = sources.tree(tmp_path)
    assert splits["train"] == [Example("fine", "good", id="train/good/a")]
    assert [(row.text, row.label, row.group) for row in splits["validation"]] == [
        ("no", "bad", None),
        ("line\u0085one\r\ntwo", "good", None),
    ]


def test_folders_can_be_renamed_or_dropped(tmp_path: Path) -> None:
    review_tree(tmp_path)
    columns = Columns(names={"pos": "positive"}, drop=frozenset({"neg"}))
    assert {row.label for rows in sources.tree(tmp_path, columns).values() for row in rows} == {"positive"}
    with pytest.raises(BadDataset, match="label 'neg' has no name"):
        sources.tree(tmp_path, Columns(names={"pos": "positive"}))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [("pos/a.txt", b"x", "pos is no split: the layout is"), ("train/pos/a.txt", b"caf\xe9", r"a\.txt is not UTF-8")],
)
def test_a_folder_of_another_layout_or_encoding_is_refused(
    tmp_path: Path, name: str, text: bytes, message: str
) -> None:
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_bytes(text)
    with pytest.raises(BadDataset, match=message):
        sources.tree(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="holds no texts"):
        sources.tree(tmp_path)


# CSV


def test_a_csv_is_read_with_its_byte_order_mark_and_quoted_line_breaks(tmp_path: Path) -> None:
    put(tmp_path, {"a.csv": '\ufefflabel,text\r\nyes,"one\r\ntwo, ""three"""\r\nno,a lone " quote\r\n'})
    assert sources.table(tmp_path / "a.csv") == {
        "train": [Example('one\r\ntwo, "three"', "yes"), Example('a lone " quote', "no")]
    }


def test_columns_can_be_named_and_splits_and_groups_taken_from_them(tmp_path: Path) -> None:
    put(
        tmp_path,
        {"a.csv": "n,review,stars,part,film\n1,good,5,train,x\n2,bad,1,val,\n3,so,3,test,y\n4,fine,5,,x\n5,?,,,\n"},
    )
    columns = Columns(
        "review", "stars", "part", "film", "n", names={"5": "positive", "1": "negative"}, drop=frozenset({"3", ""})
    )
    assert sources.load(str(tmp_path / "a.csv"), tmp_path, columns) == {
        "train": [Example("good", "positive", "x", id="1"), Example("fine", "positive", "x", id="4")],
        "validation": [Example("bad", "negative", None, id="2")],
    }


def test_a_gzipped_csv_reads_the_same(tmp_path: Path) -> None:
    text = "text,label\ngood,1\nbad,0\n"
    put(tmp_path, {"a.csv": text})
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert sources.table(tmp_path / "a.csv.gz") == sources.table(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"review,label\nx,1\n", "has no column text: name one of review, label"),
        (b"", "has no column text, label"),
        (b"text,label\nonly\n", "line 2: fewer cells"),
        (b'text,label\n"never closed,1\n', "line 2: unexpected end of data"),
        (b"text,label\ncaf\xe9,1\n", "is not UTF-8"),
        (b"text,label\n" + b"x" * (sources.LONGEST_CELL + 1) + b",1\n", "field larger than field limit"),
    ],
)
def test_a_wrong_csv_is_refused_and_its_texts_stay_out_of_the_message(
    tmp_path: Path, body: bytes, message: str
) -> None:
    for name, content in (("a.csv", body), ("b.csv.gz", gzip.compress(body))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadDataset, match=message) as raised:
            sources.table(tmp_path / name)
        assert not any(word in str(raised.value) for word in ("caf", "never", "only"))


def test_a_csv_gz_that_is_cut_or_not_gzip_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(b"text,label\n" + b"good,1\n" * 9)
    for broken in (whole[:-10], b"text,label\n", whole[:12] + b"\xff\xff" + whole[14:]):
        (tmp_path / "a.csv.gz").write_bytes(broken)
        with pytest.raises(BadDataset, match="no whole gzip file"):
            sources.table(tmp_path / "a.csv.gz")


def test_an_unknown_split_in_a_column_is_refused(tmp_path: Path) -> None:
    put(tmp_path, {"a.csv": "text,label,part\ngood,1,train\nbad,0,extra\n"})
    with pytest.raises(BadDataset, match=r"row 2 of a\.csv is in no known split: use train, validation, test"):
        sources.table(tmp_path / "a.csv", Columns(split="part"))


cells = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(cells, st.sampled_from(["good", "bad"])), min_size=1, max_size=8))
def test_any_text_comes_out_of_csv_and_parquet_as_it_went_in(rows: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as root:
        with Path(root, "a.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL)
            writer.writerows([("text", "label"), *rows])
        pyarrow.parquet.write_table(
            pyarrow.table({"text": [text for text, _ in rows], "label": [label for _, label in rows]}),
            Path(root, "a.parquet"),
        )
        expected = {"train": [Example(text, label) for text, label in rows]}
        assert sources.table(Path(root, "a.csv")) == expected
        assert sources.table(Path(root, "a.parquet")) == expected


# Parquet


def parquet(path: Path, **columns: list[object]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_whole_number_labels_get_names_and_unlabelled_rows_are_left_out(tmp_path: Path) -> None:
    ints = parquet(tmp_path / "a.parquet", text=["good", "bad", "?"], label=[1, 0, -1], film=["x", None, "y"])
    nulls = parquet(tmp_path / "b.parquet", text=["good", "bad", "?"], label=[1.0, 0.0, None], film=["x", None, "y"])
    expected = [Example("good", "positive", "x"), Example("bad", "negative", None)]
    for path in (ints, nulls):
        assert sources.table(path, Columns(group="film", names=NAMES)) == {"train": expected}


def test_one_file_a_split_ignores_what_its_own_column_says(tmp_path: Path) -> None:
    one = parquet(tmp_path / "a.parquet", text=["good", "bad"], label=[1, 0], split=["train", "test"])
    two = put(tmp_path, {"b.csv": "text,label\nfine,1\n"}) / "b.csv"
    splits = sources.load({"train": one, "test": two}, tmp_path, Columns(split="split", names=NAMES))
    assert {split: [row.text for row in rows] for split, rows in splits.items()} == {
        "train": ["good", "bad"],
        "test": ["fine"],
    }
    with pytest.raises(BadDataset, match="unknown splits exam"):
        sources.load({"exam": two}, tmp_path)


def test_a_wrong_parquet_file_is_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", text=["good"], label=[2])
    with pytest.raises(BadDataset, match="no column film"):
        sources.table(path, Columns(group="film"))
    with pytest.raises(BadDataset, match=r"label '2' has no name: name it or drop it \(named: 0, 1\)"):
        sources.table(path, Columns(names=NAMES))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BadDataset, match=r"a\.parquet cannot be read as Parquet"):
        sources.table(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere", "no file, no folder and no known name: known names are imdb"), ("a.xlsx", "no known kind")],
)
def test_what_is_not_known_is_refused(tmp_path: Path, name: str, message: str) -> None:
    put(tmp_path, {"a.xlsx": "x"})
    with pytest.raises(BadDataset, match=message):
        sources.load(str(tmp_path / name), tmp_path)
    with pytest.raises(BadDataset, match="there is no file"):
        sources.load({"train": tmp_path / "nowhere.csv"}, tmp_path)


# downloads


@dataclass
class Shop:
    """A real HTTP server with one file; it hangs up after `cuts` bytes of each answer while there are any."""

    body: bytes
    address: str = ""
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def archive(self, name: str = "small") -> Archive:
        sha = hashlib.sha256(self.body).hexdigest()
        return Archive(name, self.address, len(self.body), sha, "reviews", {"neg": "negative", "pos": "positive"})


def small_tar(folder: Path) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        tar.add(review_tree(folder), "reviews")
    return made.getvalue()


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(small_tar(tmp_path / "made"))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = self.headers.get("Range", "")
            shop.asked.append(asked)
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if shop.ranges and asked else 0
            if start >= len(shop.body):
                self.send_error(416)
                return
            self.send_response(206 if shop.ranges else 200)
            if shop.ranges:
                self.send_header("Content-Range", f"bytes {start}-{len(shop.body) - 1}/{len(shop.body)}")
            self.send_header("Content-Length", str(len(shop.body) - start))
            self.end_headers()
            end = start + shop.cuts.pop(0) if shop.cuts else None
            self.wfile.write(shop.body[start:end])
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        shop.address = f"http://127.0.0.1:{server.server_port}/reviews.tar.gz"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield shop
        server.shutdown()
        thread.join()


def test_a_named_download_is_fetched_checked_and_read_once(
    tmp_path: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sources.ARCHIVES, "imdb", shop.archive("imdb"))
    splits = sources.load("imdb", tmp_path / "cache")
    assert {row.label for rows in splits.values() for row in rows} == {"negative", "positive"}
    assert sum(map(len, splits.values())) == 16
    assert sources.load("imdb", tmp_path / "cache") == splits
    assert shop.asked == ["bytes=0-"]
    assert not (tmp_path / "cache/imdb/reviews/train/unsup/0_0.txt").exists()


def test_a_download_that_was_cut_goes_on_where_it_stopped(tmp_path: Path, shop: Shop) -> None:
    half = len(shop.body) // 2
    shop.cuts = [half]
    folder = sources.fetch(shop.archive(), tmp_path / "cache")
    assert shop.asked == ["bytes=0-", f"bytes={half}-"]
    assert len(sources.tree(folder)["train"]) == 8


def test_what_a_dead_connection_left_behind_is_taken_up_by_the_next_call(tmp_path: Path, shop: Shop) -> None:
    shop.cuts = [100, 0]
    with pytest.raises(BadDataset, match=rf"stopped at 100 of {len(shop.body)} bytes .* it goes on from there"):
        sources.fetch(shop.archive(), tmp_path)
    assert (tmp_path / "small.tar.gz.part").read_bytes() == shop.body[:100]
    sources.fetch(shop.archive(), tmp_path)
    assert shop.asked == ["bytes=0-", "bytes=100-", "bytes=100-"]


def test_a_server_without_ranges_starts_over(tmp_path: Path, shop: Shop) -> None:
    shop.ranges, shop.cuts = False, [100]
    assert sources.fetch(shop.archive(), tmp_path).is_dir()
    assert shop.asked == ["bytes=0-", "bytes=100-"]


def test_a_server_that_cannot_be_reached_is_named(tmp_path: Path, shop: Shop) -> None:
    dead = replace(shop.archive(), url="http://127.0.0.1:1/reviews.tar.gz")
    with pytest.raises(BadDataset, match=r"127\.0\.0\.1:1/reviews\.tar\.gz stopped at 0 of .*refused"):
        sources.fetch(dead, tmp_path)


@pytest.mark.parametrize("longer", [0, 5])
def test_a_file_with_the_wrong_bytes_is_set_aside_and_never_unpacked(tmp_path: Path, shop: Shop, longer: int) -> None:
    good = shop.archive()
    shop.body = shop.body[:-1] + bytes([shop.body[-1] ^ 1]) + b"\0" * longer
    with pytest.raises(BadDataset, match=r"not the file that was expected .* set aside as .*small\.tar\.gz\.wrong"):
        sources.fetch(good, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["small.tar.gz.wrong"]
    shop.body = small_tar(tmp_path / "made")
    assert sources.fetch(shop.archive(), tmp_path / "cache").is_dir()


def test_a_file_that_is_shorter_than_promised_is_not_taken(tmp_path: Path, shop: Shop) -> None:
    promised = replace(shop.archive(), size=len(shop.body) + 1)
    with pytest.raises(BadDataset, match=r"stopped at .* \(HTTP Error 416"):
        sources.fetch(promised, tmp_path)


def test_an_archive_that_reaches_outside_its_folder_is_refused(tmp_path: Path, shop: Shop) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../escaped.txt"))
    shop.body = made.getvalue()
    with pytest.raises(BadDataset, match="cannot be unpacked"):
        sources.fetch(shop.archive(), tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["small.tar.gz"]
    assert not list(tmp_path.rglob("escaped.txt"))


# real data


@pytest.fixture(scope="module")
def imdb(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = {split: real_data / f"imdb_{split}.parquet" for split in ("train", "test")}
    has_films = all("title_id" in pyarrow.parquet.read_schema(path).names for path in files.values())
    columns = Columns(group="title_id" if has_films else None, names=NAMES)
    root = tmp_path_factory.mktemp("imdb")
    return dataset.write(root, sources.load(files, root, columns), name="imdb", source="aclImdb v1.0")


def test_real_reviews_lose_exactly_their_duplicates_and_the_texts_that_leak_into_test(
    real_data: Path, imdb: Path
) -> None:
    texts = {
        split: pyarrow.parquet.read_table(real_data / f"imdb_{split}.parquet", columns=["text"])["text"].to_pylist()
        for split in ("train", "test")
    }
    train, test = ({fold(text) for text in texts[split]} for split in ("train", "test"))
    manifest = dataset.read_manifest(imdb)
    assert manifest.labels == ["negative", "positive"]
    films = manifest.dropped["group_leaks"]
    assert manifest.dropped == {
        "empty": 0,
        "duplicates": len(texts["train"]) - len(train) + len(texts["test"]) - len(test),
        "conflicts": 0,
        "leaks": 123,  # a known fault of the original
        "group_leaks": films,
    }
    assert len(train & test) == 123
    assert films <= 2  # one film has reviews in both splits
    counts = {split: sum(found.values()) for split, found in manifest.counts.items()}
    assert counts["test"] == len(test)
    assert counts["train"] + counts["validation"] == len(train - test) - films
    assert 0.08 < counts["validation"] / len(train - test) < 0.12


def test_no_real_wording_or_film_is_in_two_splits(imdb: Path) -> None:
    read = {split: dataset.read(imdb, split) for split in dataset.SPLITS}
    every = [row.text for rows in read.values() for row in rows]
    assert len(every) == len({fold(text) for text in every})
    assert any("\u0085" in text for text in every)  # a line end for some readers of lines
    films = [{row.group for row in rows} - {None} for rows in read.values()]
    assert sum(map(len, films)) == len(set().union(*films))
