"""Two files of texts compared on this machine, through a real encoder's graph and through the command line."""

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from retrue import comparison, corpus, drift
from retrue.classifier import Classifier
from retrue.errors import BadInput
from retrue.training import export

NOW = 1_700_000_000_000


@pytest.fixture(scope="module")
def reader(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    folder = tmp_path_factory.mktemp("readers") / "tiny"
    export.reader(tiny_encoder, folder)
    return Classifier(folder)


def write(path: Path, texts: Sequence[str], group: Callable[[int], str] | None = None) -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "film"] if group else ["text"])
        writer.writerows([text, group(number)] if group else [text] for number, text in enumerate(texts))
    return path


def reviews(seed: int, rows: int, domain: str = "films") -> list[str]:
    return [example.text for example in corpus.generate(seed=seed, rows=rows, domain=domain)]


def test_texts_of_the_same_kind_show_no_drift_and_those_of_another_do(reader: Classifier, tmp_path: Path) -> None:
    usual = comparison.read(write(tmp_path / "usual.csv", reviews(1, 300)))
    told: list[None] = []
    same, other = (
        comparison.compare(
            usual, comparison.Texts(texts, None, 0, 0), reader, NOW, trained=False, told=lambda: told.append(None)
        )
        for texts in (reviews(2, 120), reviews(2, 120, "kitchen"))
    )
    assert (same["drift"]["fired"], other["drift"]["fired"]) == (False, True)
    assert same["reasons"][0].startswith("no drift was found (p = ")
    assert other["reasons"][0].startswith("the texts have drifted, most of all in ")
    assert tuple(other["drift"]["distances"]) == drift.GROUPS[:-1]
    assert len(told) == 2 * 420


def test_a_trained_model_also_tells_how_its_answers_moved(tiny_model: Path, tmp_path: Path) -> None:
    classifier = Classifier.open(tiny_model)
    rows = corpus.generate(seed=3, rows=400, domain="films")
    usual = comparison.Texts([row.text for row in rows[:300]], None, 0, 0)
    good = comparison.Texts([row.text for row in rows[300:] if row.label == "positive"], None, 0, 0)
    found = comparison.compare(usual, good, classifier, NOW)["drift"]
    assert found["fired"]
    assert found["distances"]["margin"] > 2 * found["distances"]["length"]
    assert found["quantiles"]["margin"]["after"][2] > found["quantiles"]["margin"]["before"][2]


def test_what_cannot_be_read_is_counted_and_what_is_too_much_is_drawn_by_lot(tmp_path: Path) -> None:
    path = write(tmp_path / "new.csv.gz", [*reviews(1, 50), "  ", "x" * 60_000])
    whole = comparison.read(path)
    assert (len(whole.texts), whole.rejected, whole.skipped) == (50, 2, 0)
    part = comparison.read(path, most=30)
    assert (len(part.texts), part.rejected, part.skipped) == (30, 2, 20)
    assert part == comparison.read(path, most=30)
    assert set(part.texts) < set(whole.texts)


def test_groups_of_the_reference_are_kept_with_its_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "old.csv", reviews(1, 40), group=lambda number: f"film {number // 4}")
    found = comparison.read(path, "Film", most=20)
    place = {text: number for number, text in enumerate(reviews(1, 40))}
    assert found.groups == [f"film {place[text] // 4}" for text in found.texts]
    with pytest.raises(BadInput, match=r"old\.csv has no column `shop`: name one that it has"):
        comparison.read(path, "shop")


def test_too_few_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"few\.csv has 19 texts that can be read: give at least 20"):
        comparison.read(write(tmp_path / "few.csv", reviews(1, 19)))


def test_the_command_compares_two_files_with_a_model_folder_and_without_any_stack(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from retrue import cli

    old, new = (
        write(tmp_path / "old.csv", reviews(1, 200)),
        write(tmp_path / "new.csv", [*reviews(2, 99, "kitchen"), ""]),
    )
    page = tmp_path / "pages" / "report.html"
    words = ["--reference", old, "--current", new, "--model", tiny_model, "--out", page, "--most", "150"]
    monkeypatch.setattr("sys.argv", ["retrue", "--home", str(tmp_path / "home"), "monitor", *map(str, words), "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capfd.readouterr()
    assert ended.value.code in (0, None), said.err
    report = json.loads(said.out)
    assert (report["n"], report["drift"]["fired"], report["mode"]) == (99, True, "offline")
    assert "old.csv: 50 more rows are not read" in said.err
    assert "new.csv: 1 rows cannot be read" in said.err
    html = page.read_text("utf-8")
    assert html.startswith("<!DOCTYPE html>")
    assert "The texts have drifted" in html


def test_one_file_alone_is_no_comparison(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from retrue import cli

    old = write(tmp_path / "old.csv", reviews(1, 20))
    monkeypatch.setattr("sys.argv", ["retrue", "monitor", "--reference", str(old)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "both --reference and --current" in capfd.readouterr().err
