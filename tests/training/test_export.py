"""The export as a whole: which graph ships, what the card says of it, and that it is true."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from retrue import artifact, corpus, dataset, drift, metrics
from retrue.classifier import Classifier, Scored
from retrue.dataset import Example
from retrue.training import export

CREATED = "2026-01-01T00:00:00.000Z"


def held_out(model: Path, folder: Path, split: str) -> tuple[list[Example], list[Scored]]:
    classifier = Classifier.open(model)
    rows = dataset.read(folder, split)
    return rows, [classifier.score(row.text) for row in rows]


def logits_and_truth(model: Path, folder: Path, split: str) -> tuple[Any, Any]:
    rows, answers = held_out(model, folder, split)
    labels = artifact.read_card(model).labels
    return np.array([answer.logits for answer in answers]), np.array([labels.index(row.label) for row in rows])


def answers(labels: list[str]) -> list[Scored]:
    nothing = np.zeros(2, np.float32)
    return [Scored(label, 1.0, {label: 1.0}, 3, False, nothing, nothing) for label in labels]


def test_an_exported_folder_is_whole_and_its_graph_has_learned(tiny_model: Path, tiny_dataset: Path) -> None:
    card = Classifier.open(tiny_model).card
    wanted = [*artifact.FILES, *artifact.REPORT, artifact.MANIFEST]
    assert sorted(path.name for path in tiny_model.iterdir()) == sorted(wanted)
    assert card.labels == ["negative", "positive"]
    assert (card.layer, card.max_tokens, card.created) == (1, 64, CREATED)
    assert card.metrics["validation"]["accuracy"] > 0.65
    manifest = dataset.read_manifest(tiny_dataset)
    assert card.dataset == manifest.id
    assert card.data["counts"] == manifest.counts
    assert card.data["synthetic"] is True


def test_the_card_tells_what_the_training_did(tiny_model: Path) -> None:
    run = artifact.read_card(tiny_model).run
    steps = [step for step, _ in run["losses"]]
    assert steps == sorted(set(steps))
    assert [entry["step"] for entry in run["history"]] == sorted(entry["step"] for entry in run["history"])
    assert run["metric"] == max(entry["accuracy"] for entry in run["history"])
    assert run["encoder_sha256"] == "0" * 64
    assert {"seed", "device", "train_seconds", "tokens_per_second", "padding", "peak_memory_mb", "code"} <= set(run)
    assert set(run["packages"]) == set(export.PACKAGES)


def test_the_card_tells_what_the_shipped_graph_really_scores(tiny_model: Path, tiny_dataset: Path) -> None:
    card = artifact.read_card(tiny_model)
    for split in ("validation", "test"):
        rows, scored = held_out(tiny_model, tiny_dataset, split)
        truth, predicted = [row.label for row in rows], [answer.label for answer in scored]
        found = metrics.quality(truth, predicted, card.labels)
        macro, each = metrics.f1_intervals(found.confusion, seed=0)
        assert card.metrics[split] == dataclasses.asdict(found) | {
            "f1_macro_interval": [macro.low, macro.high],
            "f1_intervals": {label: [one.low, one.high] for label, one in zip(card.labels, each, strict=True)},
        }


def test_the_slices_of_the_card_are_parts_of_the_test_rows(tiny_model: Path) -> None:
    card = artifact.read_card(tiny_model)
    test, by = card.metrics["test"], {}
    for part in card.metrics["slices"]:
        by.setdefault(part["by"], []).append(part)
    assert list(by) == ["length", "label"]  # all rows come from one source
    for parts in by.values():
        assert sum(part["n"] for part in parts) == test["n"]
        right = sum(part["n"] * part["accuracy"] for part in parts)
        assert right / test["n"] == pytest.approx(test["accuracy"])


def test_the_temperature_makes_the_validation_rows_likeliest(tiny_model: Path, tiny_dataset: Path) -> None:
    temperature = artifact.read_card(tiny_model).temperature
    logits, truth = logits_and_truth(tiny_model, tiny_dataset, "validation")

    def loss(temperature: float) -> float:
        return -float(np.log(metrics.softmax(logits / temperature)[np.arange(len(truth)), truth]).mean())

    assert loss(temperature) < min(loss(temperature * 1.1), loss(temperature / 1.1))


def test_calibration_is_measured_on_rows_that_the_temperature_never_saw(tiny_model: Path, tiny_dataset: Path) -> None:
    card = artifact.read_card(tiny_model)
    logits, truth = logits_and_truth(tiny_model, tiny_dataset, "test")
    calibrated = metrics.softmax(logits / card.temperature)
    assert card.metrics["calibration_error_before"] == metrics.calibration_error(metrics.softmax(logits), truth)
    assert card.metrics["calibration_error"] == metrics.calibration_error(calibrated, truth)
    assert card.metrics["reliability"] == [dataclasses.asdict(bin) for bin in metrics.reliability(calibrated, truth)]


def test_golden_answers_are_those_of_the_sealed_folder(tiny_model: Path) -> None:
    classifier = Classifier.open(tiny_model)
    golden = json.loads((tiny_model / artifact.GOLDEN).read_text())
    assert len(golden) == 8
    assert all(classifier.score(item["text"]).scores == item["scores"] for item in golden)


def test_held_out_texts_do_not_drift_from_the_reference_that_they_made(tiny_model: Path, tiny_dataset: Path) -> None:
    card, files = artifact.read_card(tiny_model), json.loads((tiny_model / artifact.MANIFEST).read_text())["files"]
    made_by = artifact.bound(files, card.max_tokens, card.cut)
    reference = drift.Reference.from_bytes((tiny_model / artifact.REFERENCE).read_bytes(), made_by)
    _, scored = held_out(tiny_model, tiny_dataset, "test")
    table = drift.columns(
        np.array([answer.projection for answer in scored]),
        np.array([answer.tokens for answer in scored]),
        np.array([answer.pieces for answer in scored]),
        np.array([answer.symbols for answer in scored]),
        np.array([list(answer.scores.values()) for answer in scored]),
    )
    assert reference.rows == 2 * len(scored)
    assert drift.check(reference, table).p > 1e-4
    assert drift.check(reference, table + 2 * table.std(axis=0)).p < 1e-6


def test_the_residual_is_small_on_training_texts_and_larger_on_strange_ones(
    tiny_model: Path, tiny_dataset: Path
) -> None:
    classifier = Classifier.open(tiny_model)
    known = [classifier.score(row.text).projection[-1] for row in dataset.read(tiny_dataset, "train")[:50]]
    strange = [classifier.score("0a9z " * n).projection[-1] for n in range(10, 15)]
    assert 0 < np.median(known) < min(strange)


def test_rows_of_a_group_stay_together_in_the_reference(
    three: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "AGREEMENT", 1.01)  # as in `three`, so that both are fp32
    rows = {split: dataset.read(three.dataset, split) for split in dataset.SPLITS}
    films = {
        split: [dataclasses.replace(row, group=f"{split} {row.label} {len(row.text) // 40}") for row in own]
        for split, own in rows.items()
    }
    data = dataset.write(tmp_path / "data", films, name="films", source="synthetic", synthetic=True)
    model = export.export(three.checkpoint, data, three.result, tmp_path / "model", created=CREATED)
    grouped, alone = (
        drift.Reference.from_bytes((folder / artifact.REFERENCE).read_bytes()) for folder in (model, three.model)
    )
    # The label goes with the group, so that the margin varies more from window to window.
    assert (grouped.mean[:, -1] > 1.2 * alone.mean[:, -1]).all()
    np.testing.assert_allclose(grouped.quantiles, alone.quantiles, atol=1e-5)


@pytest.mark.parametrize(
    ("lost", "gained", "other", "moved", "shipped"),
    [
        pytest.param(0, 0, 0, 0.0, True, id="equal"),
        pytest.param(1, 0, 2, 1e-4, True, id="at all limits"),
        pytest.param(0, 3, 0, 0.0, True, id="better"),
        pytest.param(2, 0, 0, 0.0, False, id="loses too much"),
        pytest.param(0, 0, 4, 0.0, False, id="agrees too little"),
        pytest.param(0, 4, 0, 0.0, False, id="better, but agrees too little"),
        pytest.param(0, 0, 0, 1.1e-4, False, id="depends on what runs beside it"),
    ],
)
def test_int8_ships_while_it_agrees_loses_little_and_says_the_same_in_company(
    lost: int, gained: int, other: int, moved: float, shipped: bool
) -> None:
    full = ["a"] * 100 + ["b"] * 100
    small = ["b"] * lost + ["a"] * (100 - lost + gained) + ["c"] * other + ["b"] * (100 - gained - other)
    found = export.compare(["a"] * 200, answers(full), answers(small), moved)
    assert found["shipped"] is shipped
    assert found["rows"] == 200
    assert found["agreement"] == 1 - (lost + gained + other) / 200
    assert found["accuracy_loss"] == (lost - gained) / 200
    assert found["moved_in_company"] == moved
    assert found["reason"].endswith(f"so {'int8' if shipped else 'fp32'} is shipped")


def test_the_test_rows_are_scored_by_both_graphs_and_no_row_twice_by_one(
    three: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "COMPARED", 20)
    asked: list[tuple[int, list[str]]] = []
    score = export._score

    def counting(classifier: Classifier, rows: list[Example]) -> list[Scored]:
        asked.append((id(classifier), [row.text for row in rows]))
        return score(classifier, rows)

    monkeypatch.setattr(export, "_score", counting)
    export.export(three.checkpoint, three.dataset, three.result, tmp_path / "model", created=CREATED)
    test, validation = ([row.text for row in dataset.read(three.dataset, split)] for split in ("test", "validation"))
    rows = [*test, *validation]
    assert [texts for _, texts in asked] == [rows[:20], rows[:20], rows[20:]]
    assert asked[0][0] != asked[1][0]


def test_fp32_ships_where_int8_was_refused_and_the_card_says_why(three: Any) -> None:
    card = Classifier.open(three.model).card
    assert card.precision == "fp32"
    assert not card.metrics["int8"]["shipped"]
    operators = {node.op_type for node in onnx.load(three.model / artifact.MODEL).graph.node}
    assert "MatMul" in operators
    assert "MatMulIntegerToFloat" not in operators
    page = (three.model / artifact.PAGE).read_text()
    assert "so fp32 is shipped" in page
    assert "shipped as one fp32 ONNX graph" in page


def test_more_than_two_classes_are_trained_exported_and_served(three: Any) -> None:
    text = corpus.generate(seed=3, rows=1, domain="kitchen")[0].text
    scored = Classifier.open(three.model).score(text)
    assert list(scored.scores) == ["kitchen", "negative", "positive"]
    assert sum(scored.scores.values()) == pytest.approx(1)
    assert scored.label == "kitchen"
