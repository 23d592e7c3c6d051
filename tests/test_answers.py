"""Predictions, labels and the model that gives them, on an S3 that lives in this process."""

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from retrue import answers, artifact
from retrue.answers import Answers
from retrue.classifier import Classifier
from retrue.errors import BadInput, ModelRefused, NoLake, NoModel, NotFound, TooLarge, UnknownLabel
from retrue.intake import Intake
from retrue.lake import CAPTURE, FEEDBACK, Lake
from retrue.metrics import softmax
from retrue.records import Job, Prediction, id_ms, iso, kept, new_id
from retrue.settings import Predict
from retrue.signature import Signer

NOW = 1_767_259_800_125
TEXTS = ["A quiet film, and not bad at all.", "Far too long, and dull from start to end."]


@pytest.fixture(scope="module")
def classifier(tiny_model: Path) -> Classifier:
    return Classifier.open(tiny_model)


@pytest.fixture
def lake() -> Iterator[Lake]:
    with mock_aws():
        client = boto3.client("s3")
        where = {"LocationConstraint": client.meta.region_name}
        client.create_bucket(Bucket="lake", CreateBucketConfiguration=where)
        yield Lake("lake", client)


def made(classifier: Classifier, lake: Lake, **settings: object) -> Answers:
    return Answers(classifier, lake, Predict("lake", "test", **settings))  # type: ignore[arg-type]


def test_answers_come_in_the_order_of_the_texts(classifier: Classifier, lake: Lake) -> None:
    found = made(classifier, lake).predict(TEXTS, NOW, os.urandom)
    assert [one.scores for one in found] == [classifier.score(text).scores for text in TEXTS]
    assert {(one.model, one.time, one.source, id_ms(one.id)) for one in found} == {
        (classifier.model, iso(NOW), "http", NOW)
    }


def test_scores_that_are_given_and_kept_are_calibrated(classifier: Classifier, lake: Lake) -> None:
    temperature = classifier.card.temperature
    assert abs(temperature - 1) > 0.01  # or nothing is shown
    (found,) = made(classifier, lake).predict(TEXTS[:1], NOW, os.urandom)
    calibrated = softmax(classifier.score(TEXTS[0]).logits / temperature)
    assert list(found.scores.values()) == pytest.approx(calibrated.tolist())
    assert found.score == pytest.approx(calibrated.max())
    assert lake.find_prediction(found.id).scores == found.scores


def test_every_answer_lies_in_the_lake_when_it_is_given(classifier: Classifier, lake: Lake) -> None:
    found = made(classifier, lake).predict(TEXTS, NOW, os.urandom)
    assert len(list(lake.keys(CAPTURE))) == 1
    for text, one in zip(TEXTS, found, strict=True):
        kept = lake.find_prediction(one.id)
        assert kept == one
        assert kept.text is None
        assert kept.projection == pytest.approx(classifier.score(text).projection.tolist(), abs=1e-6)


def test_texts_are_kept_only_where_the_deployment_says_so(classifier: Classifier, lake: Lake) -> None:
    found = made(classifier, lake, keep_text=True).predict(TEXTS, NOW, os.urandom)
    assert [lake.find_prediction(one.id).text for one in found] == TEXTS


def test_a_share_is_kept_where_the_deployment_says_so(classifier: Classifier, lake: Lake) -> None:
    ours = made(classifier, lake, capture_rate=0.5)
    draw = random.Random(0)
    found = [one for n in range(6) for one in ours.predict(TEXTS, NOW + n, draw.randbytes)]
    expected = [kept(one.id, 0.5) for one in found]
    assert {True, False} == set(expected)
    for one, is_kept in zip(found, expected, strict=True):
        if is_kept:
            assert lake.find_prediction(one.id) == one
            ours.feedback(one.id, "positive", NOW)
        else:
            with pytest.raises(NotFound, match=r"no record of this prediction was kept: 50 % are"):
                ours.feedback(one.id, "positive", NOW)
    assert len(list(lake.newest_labels(NOW, hours=1))) == sum(expected)


def test_an_answer_of_which_nothing_is_kept_writes_nothing(classifier: Classifier, lake: Lake) -> None:
    assert len(made(classifier, lake, capture_rate=0.001).predict(TEXTS, NOW, lambda n: bytes([255] * n))) == 2
    assert list(lake.keys("")) == []


def test_nothing_is_answered_where_nothing_can_be_kept(classifier: Classifier, lake: Lake) -> None:
    lake.s3.delete_bucket(Bucket="lake")
    with pytest.raises(lake.s3.exceptions.NoSuchBucket):
        made(classifier, lake).predict(TEXTS, NOW, os.urandom)


@pytest.mark.parametrize(
    ("texts", "error", "reason"),
    [
        ([], BadInput, "no text"),
        (["fine", " \t\n "], BadInput, "text 2 is blank"),
        (["a"] * 4, TooLarge, "4 texts are more than the 3"),
        (["a", "b" * 51], TooLarge, "text 2 has 51 characters, more than 50"),
    ],
)
def test_what_is_over_a_limit_is_refused_and_not_kept(
    classifier: Classifier, lake: Lake, texts: list[str], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        made(classifier, lake, max_inputs=3, max_characters=50).predict(texts, NOW, os.urandom)
    assert list(lake.keys(CAPTURE)) == []


def test_feedback_carries_the_facts_of_its_prediction(classifier: Classifier, lake: Lake) -> None:
    ours = made(classifier, lake, keep_text=True)
    one = ours.predict(TEXTS[:1], NOW, os.urandom)[0]
    other = next(label for label in one.scores if label != one.label)
    truth = ours.feedback(one.id, other, NOW + 5)
    assert (truth.id, truth.label, truth.predicted, truth.model) == (one.id, other, one.label, one.model)
    assert (truth.time, truth.scores, truth.text) == (iso(NOW + 5), one.scores, TEXTS[0])
    assert (truth.tokens, truth.source, truth.origin) == (one.tokens, "http", "http")
    assert list(lake.newest_labels(NOW + 5, hours=1)) == [truth]


def test_feedback_finds_a_prediction_that_was_batched_months_ago(classifier: Classifier, lake: Lake) -> None:
    ours = made(classifier, lake)
    first, second = ours.predict(TEXTS, NOW, os.urandom)
    with Intake(lake, Prediction) as found:
        assert len(list(found)) == 2
        found.commit()
    later = NOW + 100 * 24 * 3_600_000
    assert [ours.feedback(one.id, "positive", later).predicted for one in (first, second)] == [
        first.label,
        second.label,
    ]


def test_feedback_for_an_unknown_prediction_is_refused(classifier: Classifier, lake: Lake) -> None:
    with pytest.raises(NotFound):
        made(classifier, lake).feedback(new_id(NOW, os.urandom(10)), "positive", NOW)
    assert list(lake.keys(FEEDBACK)) == []


def test_feedback_with_an_unknown_label_lists_the_known_ones_and_not_the_given(
    classifier: Classifier, lake: Lake
) -> None:
    ours = made(classifier, lake)
    one = ours.predict(TEXTS[:1], NOW, os.urandom)[0]
    with pytest.raises(UnknownLabel, match="use negative or positive") as caught:
        ours.feedback(one.id, "wonderful", NOW)
    assert "wonderful" not in str(caught.value)
    assert list(lake.keys(FEEDBACK)) == []


def test_an_explanation_is_not_kept(classifier: Classifier, lake: Lake) -> None:
    found = made(classifier, lake).explain(TEXTS[0])
    said = classifier.score(TEXTS[0])
    assert (found.label, found.score) == (said.label, said.score)
    assert list(lake.keys("")) == []


def test_an_explanation_takes_no_more_runs_than_the_deployment_allows(classifier: Classifier, lake: Lake) -> None:
    ours = made(classifier, lake, explain_runs=10)
    assert ours.explain("word " * 50).runs <= 10
    assert ours.explain("word " * 50, 8).runs <= 8
    with pytest.raises(BadInput, match="11 runs of the model are more than the 10 that one explanation may take"):
        ours.explain(TEXTS[0], 11)


def test_without_a_lake_answers_are_given_and_nothing_is_known_of_them(classifier: Classifier) -> None:
    ours = Answers(classifier, None, Predict("none", "test"))
    (found,) = ours.predict(TEXTS[:1], NOW, os.urandom)
    assert found.scores == classifier.score(TEXTS[0]).scores
    for ask in (lambda: ours.feedback(found.id, "positive", NOW), lambda: answers.find_job(None, "0f1e2d")):
        with pytest.raises(NoLake, match=r"there is no lake: name a bucket \(BUCKET\)"):
            ask()


def test_a_probe_is_answered_and_not_kept(classifier: Classifier, lake: Lake) -> None:
    answer = made(classifier, lake, max_inputs=1).probe(TEXTS)
    assert answer == {"model": classifier.model, "scores": [classifier.score(text).scores for text in TEXTS]}
    assert list(lake.keys(CAPTURE)) == []


def test_a_job_is_found_and_a_missing_one_does_not_tell_the_bucket(lake: Lake) -> None:
    job = Job("0f1e2d", "predict", "s3://lake/incoming/a.csv", "running", iso(NOW))
    lake.write_job(job)
    assert answers.find_job(lake, "0f1e2d") == job
    with pytest.raises(NotFound) as caught:
        answers.find_job(lake, "3c4b5a")
    assert str(caught.value) == "there is no job with this id"


@pytest.fixture
def uri(lake: Lake, tiny_model: Path) -> str:
    prefix = f"models/{artifact.identity(tiny_model)}/"
    lake.upload_folder(tiny_model, prefix)
    return lake.uri(prefix)


def test_a_model_is_fetched_once(classifier: Classifier, lake: Lake, uri: str, tmp_path: Path) -> None:
    assert answers.fetch_model(lake, uri, tmp_path).model == classifier.model
    for key in lake.keys("models/"):
        lake.s3.delete_object(Bucket="lake", Key=key)
    assert answers.fetch_model(lake, uri, tmp_path).score(TEXTS[0]).scores == classifier.score(TEXTS[0]).scores
    assert [path.name for path in tmp_path.iterdir()] == [classifier.model]


def test_two_that_fetch_one_model_at_the_same_time_both_get_it(
    lake: Lake, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = Lake.download_folder

    def beaten(self: Lake, prefix: str, *more: Any) -> list[Path]:
        found = fetch(self, prefix, *more)
        with monkeypatch.context() as patched:
            patched.setattr(Lake, "download_folder", fetch)
            answers.fetch_model(lake, uri, tmp_path)
        return found

    monkeypatch.setattr(Lake, "download_folder", beaten)
    model = answers.fetch_model(lake, uri, tmp_path).model
    assert [path.name for path in tmp_path.iterdir()] == [model]


def test_what_is_for_people_is_not_fetched(lake: Lake, uri: str, tmp_path: Path) -> None:
    folder = tmp_path / answers.fetch_model(lake, uri, tmp_path).model
    assert sorted(path.name for path in folder.iterdir()) == sorted([*artifact.FILES, artifact.MANIFEST])
    assert len(list(lake.keys("models/"))) == len([*artifact.FILES, artifact.MANIFEST, *artifact.REPORT])


def test_before_the_first_promotion_there_is_no_model(lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(NoModel, match="retrue retrain"):
        answers.fetch_model(lake, artifact.NONE, tmp_path)


def test_a_model_that_is_not_in_the_lake_is_refused(lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="not in the lake"):
        answers.fetch_model(lake, "s3://lake/models/0123456789ab/", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_in_a_folder_needs_no_lake(classifier: Classifier, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a model & more"
    shutil.copytree(tiny_model, folder)
    assert answers.fetch_model(None, folder.as_uri(), tmp_path / "none").model == classifier.model
    (folder / artifact.GOLDEN).write_text("[]")
    with pytest.raises(ModelRefused, match=r"golden\.json"):
        answers.fetch_model(None, folder.as_uri(), tmp_path)
    with pytest.raises(ModelRefused, match=r"holds no manifest\.json"):
        answers.fetch_model(None, (tmp_path / "nothing").as_uri(), tmp_path)


def test_a_model_in_a_bucket_is_refused_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="another bucket"):
        answers.fetch_model(None, "s3://lake/models/0123456789ab/", tmp_path)


def test_a_model_of_another_bucket_is_refused(lake: Lake, uri: str, tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="another bucket"):
        answers.fetch_model(lake, uri.replace("s3://lake/", "s3://pond/"), tmp_path)


def test_a_model_that_was_altered_in_the_lake_is_refused(lake: Lake, uri: str, tmp_path: Path) -> None:
    key = f"{uri.removeprefix('s3://lake/')}{artifact.CARD}"
    lake.put(key, json.dumps({**json.loads(lake.get(key)), "temperature": 9}).encode())
    with pytest.raises(ModelRefused, match=r"card\.json"):
        answers.fetch_model(lake, uri, tmp_path)


@pytest.fixture
def key(lake: Lake) -> str:
    made = boto3.client("kms").create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")
    return str(made["KeyMetadata"]["Arn"])


def test_with_a_key_only_a_signed_model_is_served(
    lake: Lake, uri: str, key: str, tiny_model: Path, tmp_path: Path
) -> None:
    signature = uri.removeprefix("s3://lake/") + artifact.SIGNATURE
    with pytest.raises(ModelRefused, match="is not signed: promote one that this deployment made"):
        answers.fetch_model(lake, uri, tmp_path, key)
    other = boto3.client("kms").create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["Arn"]
    manifest = (tiny_model / artifact.MANIFEST).read_bytes()
    for wrong in (Signer(other).sign(manifest), Signer(key).sign(manifest + b" ")):
        lake.put(signature, wrong)
        with pytest.raises(ModelRefused, match="not signed by this deployment's key"):
            answers.fetch_model(lake, uri, tmp_path, key)
    assert list(tmp_path.iterdir()) == []
    lake.put(signature, Signer(key).sign(manifest))
    assert answers.fetch_model(lake, uri, tmp_path, key).model == artifact.identity(tiny_model)


def test_with_a_key_a_folder_has_to_be_signed_too(lake: Lake, key: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    with pytest.raises(ModelRefused, match="is not signed"):
        answers.fetch_model(None, folder.as_uri(), tmp_path, key)
    (folder / artifact.SIGNATURE).write_bytes(b"nonsense")
    with pytest.raises(ModelRefused, match="not signed by this deployment's key"):
        answers.fetch_model(None, folder.as_uri(), tmp_path, key)
    (folder / artifact.SIGNATURE).write_bytes(Signer(key).sign((folder / artifact.MANIFEST).read_bytes()))
    assert answers.fetch_model(None, folder.as_uri(), tmp_path, key).model == artifact.identity(tiny_model)


def test_a_whole_model_under_another_models_name_is_refused(lake: Lake, tiny_model: Path, tmp_path: Path) -> None:
    lake.upload_folder(tiny_model, "models/0123456789ab/")
    with pytest.raises(ModelRefused, match="holds model"):
        answers.fetch_model(lake, "s3://lake/models/0123456789ab/", tmp_path)
