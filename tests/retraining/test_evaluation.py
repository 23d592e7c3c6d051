"""Candidate and champion on the same rows, with small real models."""

import io
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import boto3
import pytest

from retrue import artifact, dataset, evaluation
from retrue.classifier import Classifier
from retrue.dataset import Example
from retrue.errors import ModelRefused
from retrue.gate import Rules
from retrue.lake import Lake
from retrue.records import Trigger
from retrue.settings import Steps
from retrue.signature import Signer

SETTINGS = Steps(
    bucket="retrue-test", environment="test", model_parameter="/retrue/test/model", state_machine_arn="arn:retrain"
)
FEEDBACK = {"rows": 12, "conflicts": 3}


def packed(store: Lake, model: Path, key: str = "runs/retrue-1/output/model.tar.gz") -> str:
    """A model folder as a training job leaves it; its URI."""
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w:gz", compresslevel=1) as archive:
        for path in sorted(model.iterdir()):
            archive.add(path, path.name)
    store.put(key, body.getvalue())
    return store.uri(key)


def evaluate(
    store: Lake, data: Path, candidate: Path, champion: Path | None = None, trigger: Trigger = "person", **other: Any
) -> dict[str, Any]:
    """What the gate says of a candidate; the answer must be able to travel as JSON through the workflow's state."""
    store.upload_folder(data, f"datasets/{data.name}/")
    uri = artifact.NONE
    if champion is not None:
        uri = store.uri(f"models/{artifact.identity(champion)}/")
        store.upload_folder(champion, f"models/{artifact.identity(champion)}/")
    settings = Steps(**{**vars(SETTINGS), "maximum_test_rows": 150, **other})
    found = evaluation.evaluate(store, settings, uri, packed(store, candidate), data.name, trigger, FEEDBACK)
    document = json.dumps(found, allow_nan=False)
    assert json.loads(document) == found
    assert len(document) < 20_000  # of the 256 kB that the state may have
    return found


def test_a_first_candidate_is_promoted_and_its_folder_is_in_the_lake(
    lake: Lake, tiny_model: Path, tiny_dataset: Path, classifier: Classifier, tmp_path: Path
) -> None:
    found = evaluate(lake, tiny_dataset, tiny_model)
    assert (found["model"], found["promote"]) == (classifier.model, True)
    assert found["reason"].startswith("there is no champion, and the candidate's accuracy of ")
    assert (found["evidence"]["rows"], found["evidence"]["dataset"]) == (150, tiny_dataset.name)
    assert found["evidence"]["feedback"] == FEEDBACK
    lake.download_folder(f"models/{classifier.model}/", tmp_path / "model")
    assert artifact.verify(tmp_path / "model") == classifier.model


def test_with_a_key_the_candidate_is_signed(lake: Lake, tiny_model: Path, tiny_dataset: Path) -> None:
    key = boto3.client("kms").create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["Arn"]
    model = evaluate(lake, tiny_dataset, tiny_model, signing_key=key)["model"]
    manifest, signature = (lake.get(f"models/{model}/{name}") for name in (artifact.MANIFEST, artifact.SIGNATURE))
    Signer(key).check(manifest, signature)
    with pytest.raises(ModelRefused, match="not signed by this deployment's key"):
        Signer(key).check(manifest + b" ", signature)


def test_the_same_model_again_is_not_promoted(lake: Lake, tiny_model: Path, tiny_dataset: Path) -> None:
    found = evaluate(lake, tiny_dataset, tiny_model, champion=tiny_model)
    assert not found["promote"]
    assert found["evidence"]["comparisons"]["all rows"]["gained"] == 0
    assert found["reasons"][0].startswith("the candidate is not shown better; it comes nearest on all rows: ")
    # Not even the same model can be shown to lose less than a point on 150 rows.
    assert found["reasons"][1].endswith("for which about 381 such rows are needed")
    assert found["reason"] == "; ".join(found["reasons"])


def test_the_better_of_two_models_wins_whichever_serves(
    lake: Lake, tiny_model: Path, contrary: Path, tiny_dataset: Path
) -> None:
    better = evaluate(lake, tiny_dataset, tiny_model, champion=contrary)
    worse = evaluate(lake, tiny_dataset, contrary, champion=tiny_model)
    assert (better["promote"], worse["promote"]) == (True, False)
    assert better["model"] != worse["model"]
    assert "is better on all rows" in better["reason"]
    assert "is worse on the frozen rows" in worse["reasons"][0]
    # Of many reasons the ledger's sentence has the first ones.
    assert len(worse["reasons"]) > 4
    assert worse["reason"].endswith(f"; {worse['reasons'][2]}; and {len(worse['reasons']) - 3} more")


def test_both_models_are_measured_and_cost_the_same_where_they_are_the_same(
    lake: Lake, tiny_model: Path, contrary: Path, tiny_dataset: Path
) -> None:
    evidence = evaluate(lake, tiny_dataset, tiny_model, champion=contrary)["evidence"]
    ours, theirs = evidence["candidate"], evidence["champion"]
    size = artifact.size(tiny_model)
    assert (ours["size"], theirs["size"]) == (size, size)
    # One and the same graph; the turns that they take keep the rest of the machine out of it.
    assert 0.67 < ours["milliseconds"] / theirs["milliseconds"] < 1.5
    assert ours["accuracy"] == pytest.approx(1 - theirs["accuracy"], abs=1e-5)


def test_what_a_model_shows_is_what_it_answers_row_by_row(classifier: Classifier, tiny_dataset: Path) -> None:
    rows = dataset.read(tiny_dataset, "test")[:20]
    rows[3:6] = [Example(row.text, row.label, source="feedback") for row in rows[3:6]]
    (shown,) = evaluation.showings([classifier], [7], rows)
    answers = [classifier.score(row.text) for row in rows]
    assert [shown.labels[column] for column in shown.predicted] == [answer.label for answer in answers]
    assert [shown.labels[column] for column in shown.truth] == [row.label for row in rows]
    assert shown.scores.tolist() == [[answer.scores[label] for label in shown.labels] for answer in answers]
    assert shown.tokens.tolist() == [answer.tokens for answer in answers]
    assert shown.recent.tolist() == [3 <= number < 6 for number in range(20)]
    assert (shown.size, shown.milliseconds > 0) == (7, True)


def test_a_label_that_only_one_model_knows_has_a_column_in_both(
    classifier: Classifier, tiny_model: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "renamed"
    shutil.copytree(tiny_model, folder)
    card = json.loads((folder / artifact.CARD).read_text())
    (folder / artifact.CARD).write_text(json.dumps({**card, "labels": ["bad", card["labels"][1]]}))
    artifact.seal(folder)
    rows = dataset.read(tiny_dataset, "test")[:10]
    ours, theirs = evaluation.showings([Classifier.open(folder), classifier], [1, 1], rows)
    assert ours.labels == theirs.labels == ["bad", "negative", "positive"]
    assert (ours.scores[:, 0] == theirs.scores[:, 1]).all()
    assert not ours.scores[:, 1].any()


def test_the_rules_are_those_of_the_deployment() -> None:
    assert evaluation.rules(SETTINGS, "person") == Rules()
    other = {"metric": "f1_macro", "alpha": 0.01, "margin": 0.02, "slice_margin": 0.1, "latency_factor": 3.0}
    other |= {"size_factor": 4.0, "floor_accuracy": 0.7, "floor_f1": 0.6}
    settings = Steps(**{**vars(SETTINGS), **{f"gate_{name}": value for name, value in other.items()}})
    assert evaluation.rules(settings, "drift") == Rules(trigger="drift", **other)
    named = {name.removeprefix("gate_") for name in vars(SETTINGS) if name.startswith("gate_")}
    assert named == set(other)


def test_a_wider_margin_of_the_deployment_reaches_the_gate(lake: Lake, tiny_model: Path, tiny_dataset: Path) -> None:
    (reason,) = evaluate(lake, tiny_dataset, tiny_model, champion=tiny_model, gate_margin=0.1)["reasons"]
    assert reason.startswith("the candidate is not shown better")


def test_feedback_that_only_judges_can_promote_a_candidate(
    lake: Lake, tiny_model: Path, contrary: Path, tiny_dataset: Path, classifier: Classifier, tmp_path: Path
) -> None:
    # The world turned: of what people label now, the contrary model is right.
    other = {"negative": "positive", "positive": "negative"}
    splits = {split: dataset.read(tiny_dataset, split) for split in dataset.SPLITS}
    turned = [
        Example(f"{row.text} {n}", other[classifier.score(f"{row.text} {n}").label], source="feedback")
        for n, row in enumerate(splits["train"][:200])
    ]
    # And of the base rows two are left, of which each model has one right.
    sides = {classifier.score(row.text).label == row.label: row for row in splits["test"]}
    test = [sides[True], sides[False], *turned]
    data = dataset.write(tmp_path, {**splits, "test": test}, name="turned", source="a test")
    options = {"maximum_test_rows": 100, "gate_margin": 0.95, "gate_slice_margin": 1.0}
    found = evaluate(lake, data, contrary, champion=tiny_model, trigger="drift", **options)
    assert found["evidence"]["rows"] == 102
    assert found["evidence"]["comparisons"]["recent rows"]["gained"] == 100
    assert found["evidence"]["rules"]["trigger"] == "drift"
    assert found["promote"], found["reasons"]


def test_rows_are_a_fixed_sample_with_as_many_labelled_as_base_ones() -> None:
    base = [Example(f"base {n}", "a") for n in range(50)]
    feedback = [Example(f"fresh {n}", "b", source="feedback") for n in range(20)]
    chosen = evaluation.sample([*feedback, *base], 10)
    assert Counter(row.source for row in chosen) == {"base": 10, "feedback": 10}
    assert evaluation.sample([*reversed(base), *feedback], 10) == chosen
    assert set(chosen) <= set(evaluation.sample([*base, *feedback], 15))
    assert sorted(row.text for row in evaluation.sample(base, 5_000)) == sorted(row.text for row in base)


def test_an_altered_model_is_refused_and_does_not_enter_the_lake(
    lake: Lake, tiny_model: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    altered = tmp_path / "altered"
    shutil.copytree(tiny_model, altered)
    (altered / artifact.CARD).write_text((altered / artifact.CARD).read_text().replace("int8", "int9"))
    with pytest.raises(ModelRefused, match=r"is not whole \(card.json\)"):
        evaluate(lake, tiny_dataset, altered)
    assert not list(lake.keys("models/"))


def test_a_training_that_left_no_model_is_refused(lake: Lake, tiny_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelRefused, match=r"holds no manifest\.json"):
        evaluate(lake, tiny_dataset, tmp_path / "empty")
    assert not list(lake.keys("models/"))


def test_an_archive_that_reaches_outside_its_folder_is_refused(lake: Lake, tmp_path: Path) -> None:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w:gz") as archive:
        member = tarfile.TarInfo("../evil")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    lake.put("runs/r/model.tar.gz", body.getvalue())
    with pytest.raises(tarfile.OutsideDestinationError):
        evaluation.unpack(lake, lake.uri("runs/r/model.tar.gz"), tmp_path / "in")
    assert not list(tmp_path.rglob("evil"))


def test_a_model_in_another_bucket_is_refused(lake: Lake, tiny_dataset: Path) -> None:
    with pytest.raises(ModelRefused, match="to another bucket: check its OutputDataConfig"):
        evaluation.evaluate(
            lake, SETTINGS, artifact.NONE, "s3://elsewhere/runs/model.tar.gz", tiny_dataset.name, "person", {}
        )


def test_an_altered_champion_does_not_judge(lake: Lake, tiny_model: Path, contrary: Path, tiny_dataset: Path) -> None:
    evaluate(lake, tiny_dataset, tiny_model)
    champion = lake.uri(f"models/{artifact.identity(contrary)}/")
    lake.upload_folder(contrary, f"models/{artifact.identity(contrary)}/")
    lake.put(f"models/{artifact.identity(contrary)}/{artifact.TOKENIZER}", b"{}")
    with pytest.raises(ModelRefused, match=r"tokenizer\.json"):
        evaluation.evaluate(lake, SETTINGS, champion, packed(lake, tiny_model), tiny_dataset.name, "person", {})
