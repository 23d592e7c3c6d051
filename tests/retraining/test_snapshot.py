"""What a retraining learns from, on a cloud that lives in this process."""

import hashlib
from pathlib import Path
from typing import Any

import boto3
import pyarrow.parquet
import pytest
from botocore.validate import validate_parameters

from retrue import dataset
from retrue.dataset import Example
from retrue.errors import BadDataset, NotFound, WrongSetting
from retrue.intake import Intake
from retrue.lake import Lake
from retrue.records import Label, iso, new_id
from retrue.settings import Steps
from retrue.snapshot import is_test, joined, pairs
from retrue.snapshot import snapshot as take
from retrue.wording import fold

NOW = 1_767_259_800_000  # 2026-01-01T09:30Z
HOUR = 3_600_000
SETTINGS = Steps(
    bucket="retrue-test", environment="test", model_parameter="/retrue/test/model", state_machine_arn="arn:retrain"
)
REQUEST = {"reason": "the texts drifted"}


def base_of(store: Lake, tmp_path: Path) -> tuple[str, dict[str, list[Example]]]:
    """A small base set in the lake and in use; its id and its rows."""

    def rows(split: str, count: int) -> list[Example]:
        return [Example(f"{split} review {n}", ("negative", "positive")[n % 2], group=f"g{n}") for n in range(count)]

    splits = {"train": rows("train", 30), "validation": rows("validation", 10), "test": rows("test", 10)}
    folder = dataset.write(tmp_path / "base", splits, name="reviews", source="a test", notice="made up")
    store.upload_folder(folder, f"datasets/{folder.name}/")
    store.put("datasets/current", folder.name.encode() + b"\n")
    return folder.name, {split: dataset.read(folder, split) for split in dataset.SPLITS}


def told(text: str | None, label: str, hours_ago: float = 1.0, id: str = "") -> Label:
    ms = NOW - round(hours_ago * HOUR)
    id = id or new_id(ms, hashlib.sha256(f"{text} {label}".encode()).digest())
    return Label(id, iso(ms), label, "m1", "positive", {"negative": 0.25, "positive": 0.75}, "http", text)


def snapshot(store: Lake, request: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    chosen = Steps(**{**vars(SETTINGS), **settings})
    return take(store, chosen, "retrue-1", {**REQUEST, **(request or {})}, NOW)


def snapped(store: Lake, tmp_path: Path, **settings: Any) -> dict[str, list[Example]]:
    """The rows of the dataset that a snapshot makes."""
    id = snapshot(store, **settings)["dataset"]
    store.download_folder(f"datasets/{id}/", tmp_path / id)
    return {split: dataset.read(tmp_path / id, split) for split in dataset.SPLITS}


def test_without_feedback_the_base_set_is_used_as_it_is(lake: Lake, tmp_path: Path) -> None:
    base, _ = base_of(lake, tmp_path)
    before = list(lake.keys(""))
    found = snapshot(lake, train_backend="sagemaker", train_seconds=3_600)
    assert (found["dataset"], found["backend"]) == (base, "sagemaker")
    assert set(found["feedback"].values()) == {0}
    assert list(lake.keys("")) == before
    job = found["job"]
    assert job["TrainingJobName"] == "retrue-1"
    minutes = job["StoppingCondition"]["MaxRuntimeInSeconds"] / 60
    assert job["HyperParameters"] == {"encoder_name": "minilm-l6-distilbert", "minutes": str(minutes * 0.8)}
    assert job["EnableManagedSpotTraining"] is True
    assert job["StoppingCondition"] == {"MaxRuntimeInSeconds": 3_600, "MaxWaitTimeInSeconds": 18_000}
    assert job["ResourceConfig"]["InstanceCount"] == 1
    assert job["OutputDataConfig"] == {"S3OutputPath": "s3://retrue-test/runs/"}
    channels = {c["ChannelName"]: c["DataSource"]["S3DataSource"]["S3Uri"] for c in job["InputDataConfig"]}
    assert channels == {
        "dataset": f"s3://retrue-test/datasets/{base}/",
        "encoder": "s3://retrue-test/encoders/minilm-l6-distilbert/",
    }


def test_labels_are_learned_from_whether_they_are_batched_or_not(lake: Lake, tmp_path: Path) -> None:
    base_of(lake, tmp_path)
    one, other = told("a plain film", "negative", hours_ago=300), told("a fine film", "positive", hours_ago=299)
    for label in (one, other):
        lake.write_labels([label])
    with Intake(lake, Label) as found:
        assert list(found) == [one, other]
        found.commit()
    lake.write_labels([told("a fine film", "negative", hours_ago=1, id=other.id)])
    rows = [row for split in snapped(lake, tmp_path).values() for row in split]
    assert {row.text: row.label for row in rows if row.source == "feedback"} == {
        "a plain film": "negative",
        "a fine film": "negative",
    }


def test_the_job_is_one_that_sagemaker_takes(lake: Lake, tmp_path: Path) -> None:
    base_of(lake, tmp_path)
    job = snapshot(lake, {"settings": {"epochs": 2, "learning_rate": 1e-4}})["job"]
    # What the workflow's state adds to it.
    rest = {
        "AlgorithmSpecification": {"TrainingImage": "image", "TrainingInputMode": "File"},
        "RoleArn": "arn:aws:iam::123456789012:role/retrue-test-train",
    }
    model = boto3.client("sagemaker").meta.service_model.operation_model("CreateTrainingJob")
    validate_parameters({**job, **rest}, model.input_shape)


def test_on_demand_nothing_is_waited_for_and_as_many_nodes_train_as_are_asked_for(lake: Lake, tmp_path: Path) -> None:
    base_of(lake, tmp_path)
    job = snapshot(lake, train_spot=False, train_nodes=2, train_instance="ml.p4d.24xlarge", train_seconds=60)["job"]
    assert job["EnableManagedSpotTraining"] is False
    assert job["StoppingCondition"] == {"MaxRuntimeInSeconds": 60}
    assert job["ResourceConfig"] == {"InstanceType": "ml.p4d.24xlarge", "InstanceCount": 2, "VolumeSizeInGB": 50}
    # Every node gets the whole dataset and the encoder, and takes up the same checkpoint.
    for channel in job["InputDataConfig"]:
        assert channel["DataSource"]["S3DataSource"]["S3DataDistributionType"] == "FullyReplicated"


def test_labelled_texts_join_the_base_set(lake: Lake, tmp_path: Path) -> None:
    base, rows = base_of(lake, tmp_path)
    texts = [f"a text from production {n}" for n in range(40)]
    lake.write_labels([told(text, ("positive", "negative")[n % 2]) for n, text in enumerate(texts)])
    found = snapshot(lake)
    assert found["dataset"] != base
    lake.download_folder(f"datasets/{found['dataset']}/", tmp_path / "new")
    manifest = dataset.read_manifest(tmp_path / "new")
    assert manifest.id == found["dataset"]
    assert (manifest.name, manifest.notice, manifest.synthetic) == ("reviews", "made up", False)
    assert manifest.source == f"dataset {base} and 40 labelled texts from production"
    merged = {split: dataset.read(tmp_path / "new", split) for split in dataset.SPLITS}
    for split, held in rows.items():
        assert [row for row in merged[split] if row.source == "base"] == held
    fresh = {split: {row.text for row in merged[split] if row.source == "feedback"} for split in merged}
    assert fresh["train"] | fresh["test"] == set(texts)
    assert fresh["test"] == {text for text in texts if is_test(text)}
    assert not fresh["validation"]
    assert snapshot(lake) == found  # the same feedback makes the same dataset


def test_what_was_said_last_about_a_prediction_counts(lake: Lake, tmp_path: Path) -> None:
    base_of(lake, tmp_path)
    id = new_id(NOW - 9 * HOUR, bytes(10))
    for label, hours in (("positive", 3), ("negative", 2), ("positive", 5)):
        lake.write_labels([told("a plain film", label, hours, id)])
    merged = snapped(lake, tmp_path)
    assert [row.label for rows in merged.values() for row in rows if row.text == "a plain film"] == ["negative"]


def test_a_text_about_which_different_things_were_told_is_dropped_and_counted(lake: Lake, tmp_path: Path) -> None:
    _, rows = base_of(lake, tmp_path)
    torn = [("a plain film", "positive"), ("A plain film!", "negative"), ("a plain film", "positive")]
    torn += [("train review 1", "negative"), ("Train review 1.", "positive")]  # the base row stays as it is
    for number, (text, label) in enumerate([*torn, ("a fair film", "positive")]):
        lake.write_labels([told(text, label, 3, new_id(NOW - 9 * HOUR, bytes([number] * 10)))])
    found = snapshot(lake)
    counts = {"rows": 1, "replaced": 0, "without_text": 0, "unknown_labels": 0, "duplicates": 0, "conflicts": 5}
    assert found["feedback"] == counts
    lake.download_folder(f"datasets/{found['dataset']}/", tmp_path / "new")
    assert dataset.read_manifest(tmp_path / "new").dropped["conflicts"] == 5
    merged = {row.text for split in dataset.SPLITS for row in dataset.read(tmp_path / "new", split)}
    assert merged == {row.text for held in rows.values() for row in held} | {"a fair film"}


def test_of_near_duplicates_the_newest_stays_and_the_others_are_counted(lake: Lake, tmp_path: Path) -> None:
    base_of(lake, tmp_path)
    for text, hours in (("A fair film!", 3), ("a fair<br />film", 2), ("a FAIR film", 4)):
        lake.write_labels([told(text, "positive", hours)])
    found = snapshot(lake)
    assert (found["feedback"]["rows"], found["feedback"]["duplicates"]) == (1, 2)
    lake.download_folder(f"datasets/{found['dataset']}/", tmp_path / "new")
    read = [row for split in dataset.SPLITS for row in dataset.read(tmp_path / "new", split)]
    assert [row.text for row in read if row.source == "feedback"] == ["a fair<br />film"]
    assert dataset.read_manifest(tmp_path / "new").dropped["duplicates"] == 2


@pytest.mark.parametrize("split", dataset.SPLITS)
def test_a_correction_of_a_base_text_counts_and_leaves_it_in_its_split(lake: Lake, tmp_path: Path, split: str) -> None:
    _, rows = base_of(lake, tmp_path)
    other = {"negative": "positive", "positive": "negative"}
    # Of all rows of the split, so that both sides of the hash are among them; and told of near-copies.
    lake.write_labels([told(row.text.upper() + "!", other[row.label]) for row in rows[split]])
    merged = snapped(lake, tmp_path)
    assert {(row.text, row.label, row.group) for row in merged[split]} == {
        (row.text.upper() + "!", other[row.label], row.group) for row in rows[split]
    }
    for rest in set(dataset.SPLITS) - {split}:
        assert merged[rest] == rows[rest]
    assert snapshot(lake)["feedback"]["replaced"] == len(rows[split])


def test_texts_not_kept_unknown_labels_and_old_labels_are_left_out(lake: Lake, tmp_path: Path) -> None:
    base_of(lake, tmp_path)
    changed = new_id(NOW - 9 * HOUR, bytes(10))
    lake.write_labels([told(None, "negative"), told("", "negative"), told("odd", "neutral"), told(" \n", "negative")])
    lake.write_labels([told("old", "negative", hours_ago=24 * 31)])
    lake.write_labels([told("retold", "negative", 8, changed)])
    lake.write_labels([told("retold", "neutral", 7, changed)])
    counts = {"rows": 0, "replaced": 0, "without_text": 3, "unknown_labels": 2, "duplicates": 0, "conflicts": 0}
    assert snapshot(lake, feedback_days=30)["feedback"] == counts
    merged = snapped(lake, tmp_path, feedback_days=30)
    assert not [row for rows in merged.values() for row in rows if row.source == "feedback"]
    older = snapped(lake, tmp_path, feedback_days=60)
    assert [row.text for rows in older.values() for row in rows if row.source == "feedback"] == ["old"]


def test_a_quarter_of_the_labelled_texts_judges_and_is_never_trained_on(lake: Lake, tmp_path: Path) -> None:
    base_of(lake, tmp_path)
    texts = [f"text {n} of many" for n in range(800)]
    lake.write_labels([told(text, "positive", 3) for text in texts[:400]])
    first = snapped(lake, tmp_path)
    # Later: more texts, and near-copies of the old ones predicted and labelled.
    lake.write_labels([told(f"{text[0].upper()}{text[1:]}.", "positive", 1) for text in texts])
    second = snapped(lake, tmp_path)
    sides = [{split: {fold(row.text) for row in rows} for split, rows in found.items()} for found in (first, second)]
    assert sides[0]["test"] <= sides[1]["test"]
    assert sides[0]["train"] <= sides[1]["train"]
    assert not sides[1]["train"] & sides[1]["test"]
    assert 0.2 < len(sides[1]["test"] & set(texts)) / 800 < 0.3


def test_no_real_film_or_wording_is_parted_when_feedback_joins_real_reviews(real_data: Path, tmp_path: Path) -> None:
    columns = ["text", "label", "title_id"]
    if not set(columns) <= set(pyarrow.parquet.read_schema(real_data / "imdb_train.parquet").names):
        pytest.skip("imdb_train.parquet names no films: it lacks the column title_id")
    reviews = pyarrow.parquet.read_table(real_data / "imdb_train.parquet", columns=columns).slice(0, 3_000).to_pylist()
    names = ("negative", "positive")
    train = [Example(row["text"], names[row["label"]], row["title_id"]) for row in reviews]
    train += [Example(f"{row.text} Really.", row.label, row.group) for row in train if row.label == "negative"][:300]
    train += [Example(f"no film, row {n}", names[n % 2]) for n in range(100)]
    base = dataset.write(tmp_path, {"train": train}, name="imdb", source="aclImdb v1.0")
    found = {split: dataset.read(base, split) for split in dataset.SPLITS}
    where = {fold(row.text): split for split, rows in found.items() for row in rows}
    feedback = [Example(row.text.upper(), names[n % 2], source="feedback") for n, row in enumerate(train[::7])]
    feedback = list(dataset.settle([*feedback, *(Example(f"news {n}", names[n % 2]) for n in range(200))])[0].values())
    merged, replaced = joined(found, feedback)
    assert replaced > 300
    # As a snapshot does it, and as somebody does it who throws all rows together and has them cut anew.
    together = {"train": [row for rows in merged.values() for row in rows]}
    for splits in (merged, together):
        folder = dataset.write(tmp_path, splits, name="imdb", source="aclImdb v1.0")
        read = {split: dataset.read(folder, split) for split in dataset.SPLITS}
        films = [{row.group for row in rows} - {None} for rows in read.values()]
        assert sum(map(len, films)) == len(set().union(*films)) > 100
        wordings = [fold(row.text) for rows in read.values() for row in rows]
        assert len(wordings) == len(set(wordings)) == len(set(where) | {fold(row.text) for row in feedback})
        if splits is merged:
            assert all(where.get(fold(row.text), split) == split for split, rows in read.items() for row in rows)


def test_a_request_may_choose_dataset_and_settings(lake: Lake, tmp_path: Path) -> None:
    base, _ = base_of(lake, tmp_path)
    lake.put("datasets/current", b"another")
    request = {"dataset": base, "settings": {"epochs": 3, "max_tokens": "96"}}
    found = snapshot(lake, request, train_settings="epochs=1, batch_size = 8", encoder="tiny")
    assert found["dataset"] == base
    chosen = found["job"]["HyperParameters"]
    own = {"encoder_name": "tiny", "epochs": "3", "batch_size": "8", "max_tokens": "96"}
    assert chosen == own | {"minutes": "1152.0"}


def test_a_request_that_names_an_encoder_trains_from_that_one(lake: Lake, tmp_path: Path) -> None:
    base, _ = base_of(lake, tmp_path)
    request = {"dataset": base, "settings": {"encoder_name": "large"}}
    job = snapshot(lake, request, encoder="tiny")["job"]
    assert job["HyperParameters"]["encoder_name"] == "large"
    assert job["InputDataConfig"][1]["DataSource"]["S3DataSource"]["S3Uri"].endswith("/encoders/large/")


def test_without_a_dataset_in_use_the_error_says_how_to_choose_one(lake: Lake) -> None:
    with pytest.raises(BadDataset, match="no dataset is in use yet: run `retrue data"):
        snapshot(lake)


def test_a_dataset_that_is_not_there_is_named(lake: Lake) -> None:
    with pytest.raises(NotFound, match="s3://retrue-test/datasets/gone/"):
        snapshot(lake, {"dataset": "gone"})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        (" , ", {}),
        ("epochs=2", {"epochs": "2"}),
        (" epochs = 2 ,max_tokens=384,", {"epochs": "2", "max_tokens": "384"}),
        ("encoder_name=a=b", {"encoder_name": "a=b"}),
    ],
)
def test_training_settings_are_read_from_one_text(text: str, found: dict[str, str]) -> None:
    assert pairs(text) == found


@pytest.mark.parametrize("text", ["epochs", "epochs=2,max_tokens", "=2", "epochs:2"])
def test_training_settings_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(WrongSetting, match="TRAIN_SETTINGS is not like name=value,name=value"):
        pairs(text)
