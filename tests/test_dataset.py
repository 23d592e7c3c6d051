"""A prepared dataset is clean, immutable, and the same whatever order its rows came in."""

import gzip
import random
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrue import dataset
from retrue.dataset import SPLITS, Example
from retrue.errors import BadDataset
from retrue.wording import fold


def rows(label: str, *texts: str) -> list[Example]:
    return [Example(text, label) for text in texts]


def both(*texts: str) -> list[Example]:
    return [Example(text, label) for text in texts for label in ("no", "yes") for text in (f"{text} {label}",)]


def write(root: Path, splits: dict[str, list[Example]]) -> Path:
    return dataset.write(root, splits, name="fruit", source="made here")


def texts(folder: Path, split: str) -> set[str]:
    return {row.text for row in dataset.read(folder, split)}


def dropped(folder: Path) -> dict[str, int]:
    """What was dropped, by reason, without the reasons that dropped nothing."""
    return {reason: count for reason, count in dataset.read_manifest(folder).dropped.items() if count}


THREE = {"train": both("apple", "plum"), "validation": both("pear"), "test": both("fig")}


def test_what_is_written_is_read_back_with_every_field(tmp_path: Path) -> None:
    full = Example("kiwi", "yes", group="fruit 7", source="feedback", id="0190-1")
    folder = write(tmp_path, {**THREE, "train": [*THREE["train"], full]})
    assert full in dataset.read(folder, "train")
    assert sorted(dataset.read(folder, "train"), key=lambda row: row.text) == sorted(
        [*THREE["train"], full], key=lambda row: row.text
    )


def test_the_manifest_says_what_is_there(tmp_path: Path) -> None:
    folder = dataset.write(tmp_path, THREE, name="fruit", source="made here", synthetic=True, notice="made up")
    manifest = dataset.read_manifest(folder)
    assert (manifest.id, manifest.labels, manifest.synthetic, manifest.notice) == (
        folder.name, ["no", "yes"], True, "made up",
    )  # fmt: skip
    assert manifest.counts == {
        "train": {"no": 2, "yes": 2},
        "validation": {"no": 1, "yes": 1},
        "test": {"no": 1, "yes": 1},
    }
    assert manifest.dropped == {"duplicates": 0, "conflicts": 0, "leaks": 0, "group_leaks": 0, "empty": 0}


def test_the_same_rows_in_another_order_give_the_same_id_and_the_same_bytes(tmp_path: Path) -> None:
    shuffled = {split: random.Random(3).sample(THREE[split], len(THREE[split])) for split in reversed(SPLITS)}
    one, other = write(tmp_path / "a", THREE), write(tmp_path / "b", shuffled)
    assert one.name == other.name
    assert all((one / f.name).read_bytes() == f.read_bytes() for f in other.iterdir())


def test_writing_the_same_content_again_rewrites_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path, THREE)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert dataset.write(tmp_path, THREE, name="another name", source="elsewhere") == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize("field", ["text", "label", "group", "source", "id"])
def test_any_other_value_gives_another_id(tmp_path: Path, field: str) -> None:
    first = {"text": "apple no", "label": "no", "group": "g", "source": "base", "id": "1"}
    one = write(tmp_path, {**THREE, "train": [*THREE["train"][1:], Example(**first)]})
    changed = Example(**{**first, field: "yes"})
    assert write(tmp_path, {**THREE, "train": [*THREE["train"][1:], changed]}).name != one.name


def test_a_row_in_another_split_gives_another_id(tmp_path: Path) -> None:
    moved = {"train": THREE["train"], "validation": THREE["test"], "test": THREE["validation"]}
    assert write(tmp_path, THREE).name != write(tmp_path, moved).name


def test_reading_and_writing_again_gives_the_same_dataset(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", {"train": both(*(f"apple {n}" for n in range(200)))})
    again = write(tmp_path / "b", {split: dataset.read(folder, split) for split in SPLITS})
    assert again.name == folder.name
    assert not dropped(again)


def test_of_equal_texts_the_first_stays(tmp_path: Path) -> None:
    first = Example("Apple, no!", "no", id="1")
    folder = write(tmp_path, {**THREE, "train": [first, *THREE["train"], Example("apple<br />no", "no")]})
    assert texts(folder, "train") == {first.text, *(row.text for row in THREE["train"][1:])}
    assert first in dataset.read(folder, "train")
    assert dropped(folder) == {"duplicates": 2}


def test_texts_that_come_with_two_labels_are_dropped_in_their_split(tmp_path: Path) -> None:
    torn = [Example("kiwi", "no"), Example("Kiwi.", "yes"), Example("kiwi", "no"), Example("kiwis", "no")]
    folder = write(tmp_path, {**THREE, "train": [*torn, *THREE["train"]], "test": [*torn[:2], *THREE["test"]]})
    assert texts(folder, "train") == {row.text for row in [torn[3], *THREE["train"]]}
    assert texts(folder, "test") == {row.text for row in THREE["test"]}
    assert dropped(folder) == {"conflicts": 5}


def test_the_same_text_with_another_label_in_a_later_split_is_a_leak(tmp_path: Path) -> None:
    folder = write(tmp_path, {**THREE, "train": [*THREE["train"], Example("FIG NO", "yes")]})
    assert folder.name == write(tmp_path, THREE).name
    assert dropped(folder) == {"leaks": 1}


def test_a_text_of_test_is_in_no_other_split_and_one_of_validation_not_in_train(tmp_path: Path) -> None:
    leaky = {
        "train": [*THREE["train"], *THREE["validation"], *rows("no", "Fig, no."), *rows("yes", "FIG no<br />yes")],
        "validation": [*THREE["validation"], *THREE["test"]],
        "test": THREE["test"],
    }
    folder = write(tmp_path, leaky)
    assert folder.name == write(tmp_path, THREE).name
    assert dropped(folder) == {"leaks": 6}


def test_a_group_of_test_is_in_no_other_split_and_one_of_validation_not_in_train(tmp_path: Path) -> None:
    def film(name: str, *reviews: str) -> list[Example]:
        return [Example(text, label, group=name) for text in reviews for label in ("no", "yes")
                for text in (f"{text} {label}",)]  # fmt: skip

    clean = {"train": film("A", "apple"), "validation": film("B", "pear"), "test": film("C", "fig")}
    leaky = {
        "train": [*clean["train"], *film("B", "plum"), *film("C", "kiwi")],
        "validation": [*clean["validation"], *film("C", "lime")],
        "test": clean["test"],
    }
    folder = write(tmp_path, leaky)
    assert folder.name == write(tmp_path, clean).name
    assert dropped(folder) == {"group_leaks": 6}


def test_what_was_left_out_before_is_counted_with_the_rest(tmp_path: Path) -> None:
    before = {"duplicates": 3, "without_text": 2}
    given_rows = {**THREE, "train": [*THREE["train"], *THREE["train"][:1]]}
    folder = dataset.write(tmp_path, given_rows, name="fruit", source="made here", dropped=before)
    assert dropped(folder) == {"duplicates": 4, "without_text": 2}


def test_texts_of_white_space_are_dropped(tmp_path: Path) -> None:
    folder = write(tmp_path, {**THREE, "train": [*THREE["train"], *rows("no", "", " \n\t\u0085")]})
    assert dataset.read_manifest(folder).dropped["empty"] == 2


def test_missing_splits_are_a_tenth_each(tmp_path: Path) -> None:
    folder = write(tmp_path, {"train": both(*(f"apple {n}" for n in range(1000)))})
    found = {split: len(dataset.read(folder, split)) for split in SPLITS}
    assert sum(found.values()) == 2000
    assert 150 < found["test"] < 250
    assert 135 < found["validation"] < 225


def test_a_group_is_never_parted_when_splits_are_cut(tmp_path: Path) -> None:
    grouped = [Example(f"{n} {label}", label, group=f"g{n % 40}") for n in range(400) for label in ("no", "yes")]
    folder = write(tmp_path, {"train": grouped})
    groups = {split: {row.group for row in dataset.read(folder, split)} for split in SPLITS}
    assert all(groups.values())
    assert sum(map(len, groups.values())) == 40


def test_a_row_stays_in_its_split_when_others_come(tmp_path: Path) -> None:
    small, large = both(*(f"apple {n}" for n in range(300))), both(*(f"apple {n}" for n in range(500)))
    one, other = write(tmp_path, {"train": small}), write(tmp_path, {"train": large})
    assert all(texts(one, split) < texts(other, split) for split in SPLITS)


def test_very_few_rows_still_give_three_splits(tmp_path: Path) -> None:
    for seed in range(30):
        folder = write(tmp_path, {"train": both(*(f"apple {seed} {n}" for n in range(6)))})
        assert all(dataset.read(folder, split) for split in SPLITS)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({}, "there are no rows"),
        ({"train": []}, "there are no rows"),
        ({"train": rows("no", "", "  ")}, "every text is empty"),
        ({"train": [*rows("no", "fig"), *rows("yes", "Fig!")]}, "every text has several labels: check which column"),
        ({**THREE, "train": rows("no", "apple", "plum")}, "only the label 'no'"),
        ({**THREE, "test": rows("maybe", "fig")}, r"test has labels that train never has \(maybe\)"),
        ({"test": both("fig")}, "no rows are left for train"),
        ({**THREE, "train": both("fig")}, "no rows are left for train"),
        ({**THREE, "train": [*THREE["train"], Example("kiwi", " ")]}, "row 5 of train has no label"),
        ({**THREE, "train": [*THREE["train"], Example("ki\ud800wi", "no")]}, "row 5 of train holds half a surrogate"),
        ({**THREE, "tset": []}, "unknown splits tset"),
    ],
)
def test_rows_that_cannot_train_a_classifier_are_refused_and_nothing_is_left_behind(
    tmp_path: Path, splits: dict[str, list[Example]], message: str
) -> None:
    with pytest.raises(BadDataset, match=message):
        write(tmp_path, splits)
    assert list(tmp_path.iterdir()) == []


def test_an_error_while_writing_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: str, encoding: str) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, THREE)
    assert list(tmp_path.iterdir()) == []


def test_who_comes_second_takes_what_the_first_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def beaten(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        write(tmp_path, THREE)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", beaten)
    folder = write(tmp_path, THREE)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert dataset.read(folder, "test")


def test_a_damaged_or_missing_file_says_what_to_do(tmp_path: Path) -> None:
    folder = write(tmp_path, THREE)
    path = folder / "train.jsonl.gz"
    whole = path.read_bytes()
    for broken in (whole[:-9], b"no gzip", whole[:20] + b"\0\0\0" + whole[23:], gzip.compress(b'{"text": "a"}\n')):
        path.write_bytes(broken)
        with pytest.raises(BadDataset, match=r"train\.jsonl\.gz is damaged .* prepare it again"):
            dataset.read(folder, "train")
    path.unlink()
    with pytest.raises(BadDataset, match=r"holds no train\.jsonl\.gz: prepare"):
        dataset.read(folder, "train")
    with pytest.raises(BadDataset, match="no split 'trian': use one of train, validation, test"):
        dataset.read(folder, "trian")
    with pytest.raises(BadDataset, match="not a prepared dataset"):
        dataset.read_manifest(tmp_path)


def unicode() -> st.SearchStrategy[str]:
    awkward = st.sampled_from(
        ["\u0085", "\u2028", "\n", "\r\n", "\r", '"', "'", "\\", "\0", "\x1f", "\ufeff", "😀", ","]
    )
    return st.lists(st.one_of(awkward, st.text(max_size=8)), max_size=6).map("".join)


def examples() -> st.SearchStrategy[list[Example]]:
    optional = st.none() | unicode()
    label = st.sampled_from(["no", "yes", "peut-être"])
    return st.lists(st.builds(Example, unicode(), label, optional, unicode(), optional), max_size=12)


@settings(max_examples=60, deadline=None)
@given(examples(), examples(), examples())
def test_any_text_survives_and_no_wording_or_group_is_twice_in_a_dataset(
    train: list[Example], validation: list[Example], test: list[Example]
) -> None:
    anchors = [Example(f"anchor {label}", label) for label in ("no", "yes", "peut-être")]
    held = [Example(f"held {part}", "no") for part in ("validation", "test")]
    given_rows = {"train": anchors + train, "validation": held[:1] + validation, "test": held[1:] + test}
    with tempfile.TemporaryDirectory() as root:
        folder = write(Path(root), given_rows)
        read = {split: dataset.read(folder, split) for split in SPLITS}
        lost = dropped(folder)
    every = [fold(row.text) for split in SPLITS for row in read[split]]
    assert len(every) == len(set(every))
    assert len(every) + sum(lost.values()) == sum(map(len, given_rows.values()))
    held_texts: set[str] = set()
    held_groups: set[str | None] = set()
    for split in reversed(SPLITS):
        first, torn = first_of_each(given_rows[split])
        expected = {
            wording: row
            for wording, row in first.items()
            if wording not in torn | held_texts and (not row.group or row.group not in held_groups)
        }
        assert {fold(row.text): row for row in read[split]} == expected
        held_texts |= set(expected)
        held_groups |= {row.group for row in read[split]}


def first_of_each(rows: Iterable[Example]) -> tuple[dict[str, Example], set[str]]:
    """The first row of each wording, and the wordings that come with several labels."""
    found: dict[str, Example] = {}
    torn = set()
    for row in rows:
        if row.text.strip() and found.setdefault(fold(row.text), row).label != row.label:
            torn.add(fold(row.text))
    return found, torn


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 7) | st.none(), st.booleans()), min_size=8, max_size=60),
    st.sets(st.sampled_from(("validation", "test"))),
)
def test_no_group_is_in_two_splits_whoever_cut_them(rows: list[tuple[int | None, bool]], cut: set[str]) -> None:
    """With feedback among the rows, which knows no group, and any of the held out splits given or cut here."""
    parts: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for n, (film, recent) in enumerate(rows):
        split = SPLITS[n % 3] if SPLITS[n % 3] not in cut else "train"
        group = None if film is None or recent else f"film {film}"
        parts[split].append(Example(f"text {n}", "no", group, "feedback" if recent else "base"))
    for n, split in enumerate(SPLITS):
        parts[split] += [Example(f"anchor {n} {m}", ("no", "yes")[m % 2]) for m in range(8 if split not in cut else 0)]
    with tempfile.TemporaryDirectory() as root:
        folder = write(Path(root), parts)
        read = {split: dataset.read(folder, split) for split in SPLITS}
        lost = dropped(folder)
    films = [{row.group for row in read[split]} - {None} for split in SPLITS]
    assert sum(map(len, films)) == len(set().union(*films))
    assert lost.keys() <= {"group_leaks"}
    assert sum(map(len, read.values())) + sum(lost.values()) == sum(map(len, parts.values()))
