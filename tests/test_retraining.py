"""The steps of the retraining workflow, on a small real model and a cloud that lives in this process."""

import hashlib
import io
import json
import re
import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
from botocore.validate import validate_parameters
from moto import mock_aws

from retrue import artifact, dataset, retraining
from retrue.classifier import Classifier
from retrue.dataset import Example
from retrue.errors import BadDataset, ModelRefused, NotFound, ReleaseRefused, StackError, WrongSetting
from retrue.lake import Lake
from retrue.records import Label, LedgerEntry, iso, new_id
from retrue.release import Release, serving_model
from retrue.settings import Steps

BUCKET, PARAMETER = "retrue-test", "/retrue/test/model"
NOW = 1_767_259_800_000  # 2026-01-01T09:30Z
HOUR = 3_600_000
SETTINGS = Steps(bucket=BUCKET, environment="test", model_parameter=PARAMETER, state_machine_arn="arn:retrain")
REQUEST = {"reason": "the texts drifted"}
EXECUTION = "arn:aws:states:eu-central-1:123456789012:execution:retrue-test-retrain:" + "0f1e2d3c-" * 9


@pytest.fixture(scope="module")
def clients() -> dict[str, Any]:
    return {name: boto3.client(name) for name in ("s3", "ssm", "iam", "lambda")}


@pytest.fixture
def cloud() -> Iterator[None]:
    with mock_aws(config={"lambda": {"use_docker": False}}):
        yield


@pytest.fixture
def lake(cloud: None, clients: dict[str, Any]) -> Lake:
    where = {"LocationConstraint": "eu-central-1"}
    clients["s3"].create_bucket(Bucket=BUCKET, CreateBucketConfiguration=where)
    return Lake(BUCKET, clients["s3"])


@pytest.fixture
def release(cloud: None, clients: dict[str, Any]) -> Release:
    """The predict function, whose version 1 serves no model yet."""
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("app.py", "def handler(event, context): return event")
    role = clients["iam"].create_role(RoleName="predict", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    shape: dict[str, Any] = {"Runtime": "python3.11", "Handler": "app.handler", "Role": role}
    clients["lambda"].create_function(FunctionName="predict", Code={"ZipFile": code.getvalue()}, **shape)
    clients["lambda"].publish_version(FunctionName="predict")
    clients["lambda"].create_alias(FunctionName="predict", Name="live", FunctionVersion="1")
    clients["ssm"].put_parameter(Name=PARAMETER, Value="none", Type="String")
    return Release("predict", "live", PARAMETER, clients["lambda"], clients["ssm"])


@pytest.fixture(scope="module")
def classifier(tiny_model: Path) -> Classifier:
    return Classifier.open(tiny_model)


@pytest.fixture(scope="module")
def contrary(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model that says the opposite of the tiny one."""
    folder = tmp_path_factory.mktemp("contrary") / "model"
    shutil.copytree(tiny_model, folder)
    card = json.loads((folder / artifact.CARD).read_text())
    (folder / artifact.CARD).write_text(json.dumps({**card, "labels": card["labels"][::-1]}))
    artifact.seal(folder)
    return folder


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
    return retraining.snapshot(store, chosen, "retrue-1", {**REQUEST, **(request or {})}, NOW)


def snapped(store: Lake, tmp_path: Path, **settings: Any) -> dict[str, list[Example]]:
    """The rows of the dataset that a snapshot makes."""
    id = snapshot(store, **settings)["dataset"]
    store.download_folder(f"datasets/{id}/", tmp_path / id)
    return {split: dataset.read(tmp_path / id, split) for split in dataset.SPLITS}


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
    found = retraining.evaluate(store, settings, uri, packed(store, candidate), data.name)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def answer(*values: Any) -> None:
    """What the next versions that are asked will answer."""
    body = {"results": [json.dumps(value) for value in values], "region": "eu-central-1"}
    said = requests.post("http://motoapi.amazonaws.com/moto-api/static/lambda-simple/response", json=body, timeout=10)
    assert said.status_code == 201


def served(store: Lake, release: Release, model: str, minute: int, reason: str = "better") -> str:
    """Publish and promote a model; its version."""
    store.put(f"models/{model}/{artifact.MANIFEST}", b"{}")
    version: str = retraining.publish(store, release, model, f"run-{minute}")["version"]
    candidate = {"model": model, "reason": reason, "evidence": {"rows": 40}}
    retraining.promote(store, release, f"run-{minute}", REQUEST, candidate, version, NOW + minute)
    return version


def back(store: Lake, release: Release, minute: int, version: str | None = None) -> LedgerEntry:
    return retraining.roll_back(store, release, "complaints", NOW + minute, version)


def serving(release: Release) -> tuple[str, str | None]:
    """The version that answers, and the model that the pointer names."""
    return release.live_version(), serving_model(PARAMETER, release.ssm).rstrip("/").rsplit("/", 1)[-1]


# begin
@pytest.mark.parametrize("execution", [EXECUTION, "arn:x", EXECUTION.upper() + ":ü_/."])
def test_a_run_has_a_name_that_sagemaker_takes(execution: str) -> None:
    run = retraining.begin(execution, None, REQUEST)["run"]
    assert re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", run)
    assert retraining.begin(execution, "arn:other", {})["run"] == run
    assert retraining.begin(execution + "2", None, {})["run"] != run


@pytest.mark.parametrize(("oldest", "alone"), [(None, True), (EXECUTION, True), (EXECUTION + "2", False)])
def test_only_the_oldest_execution_goes_on(oldest: str | None, alone: bool) -> None:
    assert retraining.begin(EXECUTION, oldest, REQUEST)["alone"] is alone


def test_a_request_keeps_what_it_says_and_always_has_a_reason() -> None:
    request = {"reason": "drift", "settings": {"epochs": "1"}}
    assert retraining.begin(EXECUTION, None, request)["request"] == request
    assert retraining.begin(EXECUTION, None, {"model": "m"})["request"] == {"reason": "no reason given", "model": "m"}


# snapshot
def test_without_feedback_the_base_set_is_used_as_it_is(lake: Lake, tmp_path: Path) -> None:
    base, _ = base_of(lake, tmp_path)
    before = list(lake.keys(""))
    found = snapshot(lake, train_backend="sagemaker", train_seconds=3_600)
    assert (found["dataset"], found["backend"]) == (base, "sagemaker")
    assert list(lake.keys("")) == before
    job = found["job"]
    assert job["TrainingJobName"] == "retrue-1"
    assert job["HyperParameters"] == {"encoder_name": "minilm-l6-distilbert"}
    assert job["StoppingCondition"] == {"MaxRuntimeInSeconds": 3_600}
    assert job["OutputDataConfig"] == {"S3OutputPath": "s3://retrue-test/runs/"}
    channels = {c["ChannelName"]: c["DataSource"]["S3DataSource"]["S3Uri"] for c in job["InputDataConfig"]}
    assert channels == {
        "dataset": f"s3://retrue-test/datasets/{base}/",
        "encoder": "s3://retrue-test/encoders/minilm-l6-distilbert/",
    }


def test_the_job_is_one_that_sagemaker_takes(lake: Lake, tmp_path: Path) -> None:
    base_of(lake, tmp_path)
    job = snapshot(lake, {"settings": {"epochs": 2, "learning_rate": 1e-4}})["job"]
    # What the workflow's state adds to it.
    rest = {
        "AlgorithmSpecification": {"TrainingImage": "image", "TrainingInputMode": "File"},
        "ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 50},
        "RoleArn": "arn:aws:iam::123456789012:role/retrue-test-train",
    }
    model = boto3.client("sagemaker").meta.service_model.operation_model("CreateTrainingJob")
    validate_parameters({**job, **rest}, model.input_shape)


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
    assert fresh["test"] == {text for text in texts if retraining.is_test(text)}
    assert not fresh["validation"]
    assert snapshot(lake) == found  # the same feedback makes the same dataset


def test_what_was_said_last_about_a_prediction_counts(lake: Lake, tmp_path: Path) -> None:
    base_of(lake, tmp_path)
    id = new_id(NOW - 9 * HOUR, bytes(10))
    for label, hours in (("positive", 3), ("negative", 2), ("positive", 5)):
        lake.write_labels([told("a plain film", label, hours, id)])
    merged = snapped(lake, tmp_path)
    assert [row.label for rows in merged.values() for row in rows if row.text == "a plain film"] == ["negative"]


def test_what_was_said_last_about_a_text_counts_when_it_was_asked_several_times(lake: Lake, tmp_path: Path) -> None:
    base_of(lake, tmp_path)
    for number, (label, hours) in enumerate((("positive", 3), ("negative", 2), ("positive", 5))):
        lake.write_labels([told("a plain film", label, hours, new_id(NOW - 9 * HOUR, bytes([number] * 10)))])
    merged = snapped(lake, tmp_path)
    assert [row.label for rows in merged.values() for row in rows if row.text == "a plain film"] == ["negative"]


@pytest.mark.parametrize("split", dataset.SPLITS)
def test_a_correction_of_a_base_text_counts_and_leaves_it_in_its_split(lake: Lake, tmp_path: Path, split: str) -> None:
    _, rows = base_of(lake, tmp_path)
    other = {"negative": "positive", "positive": "negative"}
    # Of all rows of the split, so that both sides of the hash are among them.
    lake.write_labels([told(row.text, other[row.label]) for row in rows[split]])
    merged = snapped(lake, tmp_path)
    assert {row.text: row.label for row in merged[split]} == {row.text: other[row.label] for row in rows[split]}
    for rest in set(dataset.SPLITS) - {split}:
        assert merged[rest] == rows[rest]


def test_texts_not_kept_unknown_labels_and_old_labels_are_left_out(lake: Lake, tmp_path: Path) -> None:
    base_of(lake, tmp_path)
    changed = new_id(NOW - 9 * HOUR, bytes(10))
    lake.write_labels([told(None, "negative"), told("", "negative"), told("odd", "neutral"), told(" \n", "negative")])
    lake.write_labels([told("old", "negative", hours_ago=24 * 31)])
    lake.write_labels([told("retold", "negative", 8, changed)])
    lake.write_labels([told("retold", "neutral", 7, changed)])
    merged = snapped(lake, tmp_path, feedback_days=30)
    assert not [row for rows in merged.values() for row in rows if row.source == "feedback"]
    older = snapped(lake, tmp_path, feedback_days=60)
    assert [row.text for rows in older.values() for row in rows if row.source == "feedback"] == ["old"]


def test_a_quarter_of_the_labelled_texts_judges_and_is_never_trained_on(lake: Lake, tmp_path: Path) -> None:
    base_of(lake, tmp_path)
    texts = [f"text {n} of many" for n in range(800)]
    lake.write_labels([told(text, "positive", 3) for text in texts[:400]])
    first = snapped(lake, tmp_path)
    # Later: more texts, and the old ones predicted and labelled once more.
    lake.write_labels([told(text, "negative", 1) for text in texts])
    second = snapped(lake, tmp_path)
    sides = [{split: {row.text for row in rows} for split, rows in found.items()} for found in (first, second)]
    assert sides[0]["test"] <= sides[1]["test"]
    assert sides[0]["train"] <= sides[1]["train"]
    assert not sides[1]["train"] & sides[1]["test"]
    assert 0.2 < len(sides[1]["test"] & set(texts)) / 800 < 0.3


def test_a_request_may_choose_dataset_and_settings(lake: Lake, tmp_path: Path) -> None:
    base, _ = base_of(lake, tmp_path)
    lake.put("datasets/current", b"another")
    request = {"dataset": base, "settings": {"epochs": 3, "max_tokens": "96"}}
    found = snapshot(lake, request, train_settings="epochs=1, batch_size = 8", encoder="tiny")
    assert found["dataset"] == base
    chosen = found["job"]["HyperParameters"]
    assert chosen == {"encoder_name": "tiny", "epochs": "3", "batch_size": "8", "max_tokens": "96"}


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
    assert retraining.pairs(text) == found


@pytest.mark.parametrize("text", ["epochs", "epochs=2,max_tokens", "=2", "epochs:2"])
def test_training_settings_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(WrongSetting, match="TRAIN_SETTINGS is not like name=value,name=value"):
        retraining.pairs(text)


# evaluate
def test_a_first_candidate_is_promoted_and_its_folder_is_in_the_lake(
    lake: Lake, tiny_model: Path, tiny_dataset: Path, classifier: Classifier, tmp_path: Path
) -> None:
    found = evaluate(lake, tiny_dataset, tiny_model)
    assert (found["model"], found["promote"]) == (classifier.model, True)
    assert found["reason"].startswith("there is no champion, and the candidate's accuracy of ")
    assert (found["evidence"]["rows"], found["evidence"]["dataset"]) == (150, tiny_dataset.name)
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
    chosen = retraining.sample([*feedback, *base], 10)
    assert Counter(row.source for row in chosen) == {"base": 10, "feedback": 10}
    assert retraining.sample([*reversed(base), *feedback], 10) == chosen
    assert set(chosen) <= set(retraining.sample([*base, *feedback], 15))
    assert sorted(row.text for row in retraining.sample(base, 5_000)) == sorted(row.text for row in base)


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
        retraining.unpack(lake, lake.uri("runs/r/model.tar.gz"), tmp_path / "in")
    assert not list(tmp_path.rglob("evil"))


def test_a_model_in_another_bucket_is_refused(lake: Lake, tiny_dataset: Path) -> None:
    with pytest.raises(ModelRefused, match="to another bucket: check its OutputDataConfig"):
        retraining.evaluate(lake, SETTINGS, artifact.NONE, "s3://elsewhere/runs/model.tar.gz", tiny_dataset.name)


def test_an_altered_champion_does_not_judge(lake: Lake, tiny_model: Path, contrary: Path, tiny_dataset: Path) -> None:
    evaluate(lake, tiny_dataset, tiny_model)
    champion = lake.uri(f"models/{artifact.identity(contrary)}/")
    lake.upload_folder(contrary, f"models/{artifact.identity(contrary)}/")
    lake.put(f"models/{artifact.identity(contrary)}/{artifact.TOKENIZER}", b"{}")
    with pytest.raises(ModelRefused, match=r"tokenizer\.json"):
        retraining.evaluate(lake, SETTINGS, champion, packed(lake, tiny_model), tiny_dataset.name)


# publish and validate
def test_a_model_is_published_from_its_own_folder(lake: Lake, release: Release) -> None:
    lake.put(f"models/aaa/{artifact.MANIFEST}", b"{}")
    version = retraining.publish(lake, release, "aaa", "run-1")["version"]
    assert release.model_of(version) == "s3://retrue-test/models/aaa/"
    described = release.client.get_function_configuration(FunctionName="predict", Qualifier=version)
    assert described["Description"] == "model aaa, run run-1"
    assert serving(release) == ("1", "none")


@pytest.mark.parametrize("model", ["gone", "", "aaa/../aaa", "aaa/", "half"])
def test_only_a_whole_model_in_the_lake_can_be_published(lake: Lake, release: Release, model: str) -> None:
    lake.put(f"models/aaa/{artifact.MANIFEST}", b"{}")
    lake.put(f"models/half/{artifact.MODEL}", b"")
    with pytest.raises(NotFound, match="`retrue ledger` lists those that served"):
        retraining.publish(lake, release, model, "run-1")


def probed(classifier: Classifier, texts: Sequence[str]) -> dict[str, Any]:
    return {"model": classifier.model, "scores": [classifier.score(text).scores for text in texts]}


@pytest.fixture
def golden(lake: Lake, release: Release, tiny_model: Path, classifier: Classifier) -> list[str]:
    """The golden texts of a model that is published as version 2."""
    lake.upload_folder(tiny_model, f"models/{classifier.model}/")
    assert retraining.publish(lake, release, classifier.model, "run-1") == {"version": "2"}
    return [item["text"] for item in json.loads((tiny_model / artifact.GOLDEN).read_text())]


def test_a_version_that_answers_as_its_model_must_is_valid(
    lake: Lake, release: Release, classifier: Classifier, golden: list[str]
) -> None:
    answer(probed(classifier, golden))
    assert retraining.validate(lake, release, classifier.model, "2")["worst"] < 1e-6


def test_small_differences_of_another_machine_are_tolerated(
    lake: Lake, release: Release, classifier: Classifier, golden: list[str]
) -> None:
    said = probed(classifier, golden)
    said["scores"][-1]["negative"] += 9e-4
    answer(said)
    assert retraining.validate(lake, release, classifier.model, "2")["worst"] == pytest.approx(9e-4)


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize(("change", "told"), [(0.002, "0.0020"), (-0.3, "0.3000"), (float("nan"), "inf")])
def test_other_scores_are_refused(
    lake: Lake, release: Release, classifier: Classifier, golden: list[str], place: int, change: float, told: str
) -> None:
    said = probed(classifier, golden)
    said["scores"][place]["positive"] += change
    answer(said)
    with pytest.raises(ReleaseRefused) as raised:
        retraining.validate(lake, release, classifier.model, "2")
    assert str(raised.value) == f"version 2 differs from its model's golden scores by {told}"


def test_a_version_that_serves_another_model_is_refused(
    lake: Lake, release: Release, classifier: Classifier, golden: list[str]
) -> None:
    answer({**probed(classifier, golden), "model": "ffffffffffff"})
    with pytest.raises(ReleaseRefused, match=f"serves model ffffffffffff where {classifier.model} was expected"):
        retraining.validate(lake, release, classifier.model, "2")


# the ledger
def test_a_promotion_moves_everything_and_is_written_down(lake: Lake, release: Release) -> None:
    first = served(lake, release, "aaa", 1)
    second = served(lake, release, "bbb", 2, "fewer errors")
    assert serving(release) == (second, "bbb")
    assert lake.ledger() == [
        LedgerEntry(
            time=iso(NOW + 1),
            action="promoted",
            model="aaa",
            version=first,
            previous_version="1",
            reason="the texts drifted: better",
            run="run-1",
            evidence={"rows": 40},
        ),
        LedgerEntry(
            time=iso(NOW + 2),
            action="promoted",
            model="bbb",
            version=second,
            previous_model="aaa",
            previous_version=first,
            reason="the texts drifted: fewer errors",
            run="run-2",
            evidence={"rows": 40},
        ),
    ]


def test_a_rejection_is_written_down_and_moves_nothing(lake: Lake, release: Release) -> None:
    first = served(lake, release, "aaa", 1)
    candidate = {"model": "bbb", "promote": False, "reason": "not better", "evidence": {"rows": 9}}
    entry = retraining.reject(lake, release, "run-2", REQUEST, candidate, NOW + 2)
    assert serving(release) == (first, "aaa")
    assert lake.ledger()[1:] == [entry]
    assert entry == LedgerEntry(
        time=iso(NOW + 2),
        action="rejected",
        model="bbb",
        reason="the texts drifted: not better",
        previous_version=first,
        run="run-2",
        evidence={"rows": 9},
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            {"Error": "BadDataset", "Cause": '{"errorMessage": "no dataset", "errorType": "BadDataset"}'},
            "BadDataset: no dataset",
        ),
        ({"Error": "States.Timeout", "Cause": "it took too long"}, "States.Timeout: it took too long"),
        ({"Error": "TrainingFailed", "Cause": "x" * 5_000 + "end"}, "TrainingFailed: " + "x" * 1_997 + "end"),
        ({"Error": "Odd", "Cause": '["a list"]'}, 'Odd: ["a list"]'),
        ({"Error": "Odd", "Cause": '{"FailureReason": "no room"}'}, 'Odd: {"FailureReason": "no room"}'),
        ({"Error": "States.HeartbeatTimeout"}, "States.HeartbeatTimeout: "),
        ({}, "error: "),
    ],
)
def test_a_failure_is_written_down_with_its_own_words(
    lake: Lake, release: Release, error: dict[str, Any], reason: str
) -> None:
    entry = retraining.fail(lake, release, EXECUTION, error, NOW)
    assert lake.ledger() == [entry]
    assert (entry.action, entry.model, entry.reason, entry.previous_version) == ("failed", None, reason, "1")
    assert entry.run == retraining.begin(EXECUTION, None, {})["run"]
    assert serving(release) == ("1", "none")


# rolling back
def test_rolling_back_moves_everything_and_is_written_down(lake: Lake, release: Release) -> None:
    first, second = served(lake, release, "aaa", 1), served(lake, release, "bbb", 2)
    entry = back(lake, release, 3)
    assert serving(release) == (first, "aaa")
    assert lake.ledger()[2:] == [entry]
    assert entry == LedgerEntry(
        time=iso(NOW + 3),
        action="rolled-back",
        model="aaa",
        version=first,
        previous_model="bbb",
        previous_version=second,
        reason="complaints",
    )


def test_rolling_back_again_goes_further_back_and_never_to_what_was_left(lake: Lake, release: Release) -> None:
    versions = [served(lake, release, model, n) for n, model in enumerate(("aaa", "bbb", "ccc"))]
    assert [back(lake, release, 10 + n).version for n in range(2)] == [versions[1], versions[0]]
    with pytest.raises(StackError, match="no version with a model that served before this one"):
        back(lake, release, 20)
    assert serving(release) == (versions[0], "aaa")
    assert len(lake.ledger()) == 5


def test_after_a_rollback_a_new_promotion_goes_back_to_what_it_replaced(lake: Lake, release: Release) -> None:
    first = served(lake, release, "aaa", 1)
    served(lake, release, "bbb", 2)
    back(lake, release, 3)
    third, fourth = served(lake, release, "ccc", 4), served(lake, release, "ddd", 5)
    assert [back(lake, release, 6).version, back(lake, release, 7).version] == [third, first]
    assert fourth not in {third, first}


def test_a_rollback_to_a_named_version_skips_those_between(lake: Lake, release: Release) -> None:
    versions = [served(lake, release, model, n) for n, model in enumerate(("aaa", "bbb", "ccc", "ddd"))]
    assert back(lake, release, 10, versions[1]).model == "bbb"
    assert back(lake, release, 11).version == versions[0]


def test_a_version_that_was_left_can_be_named_and_what_was_left_for_it_stays_left(lake: Lake, release: Release) -> None:
    versions = [served(lake, release, model, n) for n, model in enumerate(("aaa", "bbb", "ccc"))]
    assert back(lake, release, 10).version == versions[1]
    assert back(lake, release, 11, versions[2]).model == "ccc"
    assert back(lake, release, 12).version == versions[0]


def test_a_promotion_that_was_retried_counts_once(lake: Lake, release: Release) -> None:
    first, second = served(lake, release, "aaa", 1), served(lake, release, "bbb", 2)
    retraining.promote(lake, release, "run-2", REQUEST, {"model": "bbb", "reason": "better"}, second, NOW + 3)
    assert back(lake, release, 4).version == first


def test_rejections_and_failures_between_change_no_way_back(lake: Lake, release: Release) -> None:
    first = served(lake, release, "aaa", 1)
    served(lake, release, "bbb", 2)
    retraining.reject(lake, release, "run-3", REQUEST, {"model": "ccc", "reason": "worse"}, NOW + 3)
    retraining.fail(lake, release, EXECUTION, {}, NOW + 4)
    assert back(lake, release, 5).version == first


def test_an_alias_that_was_moved_by_hand_goes_back_to_what_the_ledger_knows(lake: Lake, release: Release) -> None:
    first, second = served(lake, release, "aaa", 1), served(lake, release, "bbb", 2)
    lake.put(f"models/ccc/{artifact.MANIFEST}", b"{}")
    unknown = retraining.publish(lake, release, "ccc", "by hand")["version"]
    release.move(unknown, "s3://retrue-test/models/ccc/")
    assert back(lake, release, 3).version == second
    assert back(lake, release, 4).version == first


def test_what_was_moved_by_hand_is_the_way_back_from_what_replaced_it(lake: Lake, release: Release) -> None:
    first, _ = served(lake, release, "aaa", 1), served(lake, release, "bbb", 2)
    release.move(first, "s3://retrue-test/models/aaa/")
    served(lake, release, "ccc", 3)
    assert back(lake, release, 4).version == first
    with pytest.raises(StackError, match="no version with a model"):
        back(lake, release, 5)


def test_before_the_second_promotion_there_is_nothing_to_go_back_to(lake: Lake, release: Release) -> None:
    with pytest.raises(StackError, match="no version with a model"):
        back(lake, release, 1)
    first = served(lake, release, "aaa", 2)
    with pytest.raises(StackError, match="no version with a model"):
        back(lake, release, 3)
    assert serving(release) == (first, "aaa")


def test_the_version_that_serves_is_no_way_back(lake: Lake, release: Release) -> None:
    first = served(lake, release, "aaa", 1)
    with pytest.raises(StackError, match=f"version {first} serves already"):
        back(lake, release, 2, first)


def test_a_version_without_a_model_is_no_way_back(lake: Lake, release: Release) -> None:
    first = served(lake, release, "aaa", 1)
    with pytest.raises(StackError, match="version 1 carries no model"):
        back(lake, release, 2, "1")
    assert serving(release) == (first, "aaa")
    assert [entry.action for entry in lake.ledger()] == ["promoted"]
