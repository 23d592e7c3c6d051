"""Candidate and champion on the same rows, with small real models."""

import io
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from retrue import artifact, dataset, evaluation
from retrue.classifier import Classifier
from retrue.dataset import Example
from retrue.errors import ModelRefused
from retrue.lake import Lake
from retrue.settings import Steps

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


def evaluate(store: Lake, data: Path, candidate: Path, champion: Path | None = None, most: int = 150) -> dict[str, Any]:
    """What the gate says of a candidate; the answer must be able to travel as JSON."""
    store.upload_folder(data, f"datasets/{data.name}/")
    uri = artifact.NONE
    if champion is not None:
        uri = store.uri(f"models/{artifact.identity(champion)}/")
        store.upload_folder(champion, f"models/{artifact.identity(champion)}/")
    settings = Steps(**{**vars(SETTINGS), "maximum_test_rows": most})
    found = evaluation.evaluate(store, settings, uri, packed(store, candidate), data.name, FEEDBACK)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
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


def test_the_same_model_again_is_not_promoted(lake: Lake, tiny_model: Path, tiny_dataset: Path) -> None:
    found = evaluate(lake, tiny_dataset, tiny_model, champion=tiny_model)
    assert not found["promote"]
    assert found["evidence"]["comparisons"]["all rows"]["gained"] == 0
    assert "is not shown better" in found["reason"]


def test_the_better_of_two_models_wins_whichever_serves(
    lake: Lake, tiny_model: Path, contrary: Path, tiny_dataset: Path
) -> None:
    better = evaluate(lake, tiny_dataset, tiny_model, champion=contrary)
    worse = evaluate(lake, tiny_dataset, contrary, champion=tiny_model)
    assert (better["promote"], worse["promote"]) == (True, False)
    assert better["model"] != worse["model"]
    assert "is better on all rows" in better["reason"]
    assert "is worse on the base rows" in worse["reason"]


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
    # And of the base rows few are left, on which it cannot be shown to be worse.
    data = dataset.write(tmp_path, {**splits, "test": [*splits["test"][:3], *turned]}, name="turned", source="a test")
    found = evaluate(lake, data, contrary, champion=tiny_model, most=100)
    assert found["evidence"]["rows"] == 103
    assert found["evidence"]["comparisons"]["recent rows"]["gained"] == 100
    assert found["promote"]


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
        evaluation.evaluate(lake, SETTINGS, artifact.NONE, "s3://elsewhere/runs/model.tar.gz", tiny_dataset.name, {})


def test_an_altered_champion_does_not_judge(lake: Lake, tiny_model: Path, contrary: Path, tiny_dataset: Path) -> None:
    evaluate(lake, tiny_dataset, tiny_model)
    champion = lake.uri(f"models/{artifact.identity(contrary)}/")
    lake.upload_folder(contrary, f"models/{artifact.identity(contrary)}/")
    lake.put(f"models/{artifact.identity(contrary)}/{artifact.TOKENIZER}", b"{}")
    with pytest.raises(ModelRefused, match=r"tokenizer\.json"):
        evaluation.evaluate(lake, SETTINGS, champion, packed(lake, tiny_model), tiny_dataset.name, {})
