"""The API's entry point, with API Gateway's events, a real model, and an S3 that lives in this process."""

import base64
import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from retrue import artifact
from retrue.lake import CAPTURE, FEEDBACK, Lake
from retrue.records import Job, id_ms, new_id

ROOT = Path(__file__).parents[2]
EVENTS, FOLDER = ROOT / "tests" / "events", ROOT / "functions" / "predict"
SECRET = "Mellifluous aardvarks audited my pension on a Tuesday."
HEAVY = ("torch", "transformers", "scipy", "sklearn", "mlflow", "pandas", "onnx")
CONTEXT = SimpleNamespace(
    function_name="predict",
    memory_limit_in_mb=1769,
    invoked_function_arn="arn:aws:lambda:eu-central-1:000000000000:function:predict",
    aws_request_id="9d1e1f2a-0000-4000-8000-000000000000",
    function_version="7",
)

Reply = tuple[int, dict[str, Any], dict[str, str]]


def event(name: str, body: Any = None, **changes: Any) -> dict[str, Any]:
    """An event from its file, with another body where one is given: text as it is, anything else as JSON."""
    found: dict[str, Any] = json.loads((EVENTS / f"api-{name}.json").read_text())
    if body is not None:
        found["body"] = body if isinstance(body, str) else json.dumps(body)
    return {**found, **changes}


def headed(name: str, content_type: str | None, body: Any = None, **changes: Any) -> dict[str, Any]:
    found = event(name, body, **changes)
    found["headers"].pop("Content-Type")
    if content_type is not None:
        found["headers"]["content-type"] = content_type
    return found


@pytest.fixture
def log(api: ModuleType) -> Iterator[io.StringIO]:
    """What the function logs, and what any other logger says."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    api.logger.registered_handler.setStream(stream)
    logging.getLogger().addHandler(handler)
    yield stream
    logging.getLogger().removeHandler(handler)


@pytest.fixture
def ask(api: ModuleType, log: io.StringIO) -> Callable[[dict[str, Any]], Reply]:
    def asked(sent: dict[str, Any]) -> Reply:
        got = api.handler(sent, CONTEXT)
        json.dumps(got)
        return got["statusCode"], json.loads(got["body"]), {k: v[0] for k, v in got["multiValueHeaders"].items()}

    return asked


Ask = Callable[[dict[str, Any]], Reply]


def lines(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines() if line.startswith("{")]


def assert_problem(reply: Reply, status: int, slug: str) -> dict[str, Any]:
    got, body, headers = reply
    assert (got, body["status"], body["type"]) == (status, status, f"urn:retrue:problem:{slug}")
    assert headers["Content-Type"] == "application/problem+json"
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == "5b0d3c1e-8f2a-4c57-9d1e-1f2a3b4c5d6e"
    assert set(body) <= {"type", "title", "status", "detail", "request_id", "errors"}
    return body


def test_one_text_and_many_get_answers_of_one_shape(model: str, ask: Ask) -> None:
    one, many = ask(event("predict-one")), ask(event("predict-many"))
    assert one[0] == many[0] == 200
    assert (len(one[1]["predictions"]), len(many[1]["predictions"])) == (1, 2)
    for _, body, headers in (one, many):
        assert set(body) == {"model", "predictions"}
        assert body["model"] == headers["x-retrue-model"] == model
        assert headers["Content-Type"] == "application/json"
        for answer in body["predictions"]:
            assert set(answer) == {"id", "label", "score", "scores", "tokens", "truncated", "model"}
            assert id_ms(answer["id"]) is not None
            assert answer["model"] == model
            assert answer["scores"][answer["label"]] == answer["score"]


def classify(text: Any, **parameters: Any) -> dict[str, Any]:
    """An event as Hugging Face's clients cause it."""
    path = "/v1/text-classification"
    body = {"inputs": text, "parameters": parameters}
    return event("predict-one", body, path=path, resource=path)


def explain(text: Any, **more: Any) -> dict[str, Any]:
    return event("predict-one", {"inputs": text, **more}, path="/v1/explain", resource="/v1/explain")


def test_the_door_for_hugging_face_gives_a_list_of_labels_for_each_text(model: str, ask: Ask, lake: Lake) -> None:
    texts = ["A dull film.", SECRET]
    expected = [each["scores"] for each in ask(event("predict-one", {"inputs": texts}))[1]["predictions"]]
    status, body, headers = ask(classify(texts))
    assert (status, headers["x-retrue-model"]) == (200, model)
    assert [{each["label"]: each["score"] for each in labels} for labels in body] == expected
    assert [[set(each) for each in labels] for labels in body] == [[{"label", "score"}] * 2] * 2
    assert all(labels == sorted(labels, key=lambda each: -each["score"]) for labels in body)
    ids = headers["x-retrue-predictions"].split(",")
    assert [lake.find_prediction(id).scores for id in ids] == expected
    (one,) = ask(classify(texts[0]))[1]
    assert one == body[0]


@pytest.mark.parametrize(("most", "labels"), [(1, 1), (2, 2), (5, 2), (None, 2)])
def test_no_more_labels_are_given_than_were_asked_for(model: str, ask: Ask, most: int | None, labels: int) -> None:
    body = ask(classify("A dull film.", top_k=most, function_to_apply="softmax"))[1]
    assert [len(each) for each in body] == [labels]
    assert body[0] == ask(classify("A dull film."))[1][0][:labels]


@pytest.mark.parametrize(
    ("parameters", "at", "reason"),
    [
        ({"top_k": 0}, "/parameters/top_k", "is too small"),
        ({"top_k": "2"}, "/parameters/top_k", "must be a whole number"),
        ({"top_k": True}, "/parameters/top_k", "must be a whole number"),
        ({"function_to_apply": "sigmoid"}, "/parameters/function_to_apply", "must be softmax"),
        ({"function_to_apply": SECRET}, "/parameters/function_to_apply", "must be softmax"),
        ({"truncation": True}, "/parameters", "has a key that is not known here"),
        ({SECRET: 1}, "/parameters", "has a key that is not known here"),
    ],
)
def test_a_parameter_that_is_not_there_is_a_422_that_says_which(
    model: str, ask: Ask, parameters: dict[str, Any], at: str, reason: str
) -> None:
    problem = assert_problem(ask(classify("A dull film.", **parameters)), 422, "invalid")
    (error,) = problem["errors"]
    assert error["at"] == at
    assert error["reason"].startswith(reason)
    assert SECRET not in json.dumps(problem)


def test_ids_of_more_texts_than_a_header_holds_are_left_out(
    model: str, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    monkeypatch.setenv("MAX_INPUTS", "65")
    assert len(ask(classify(["fine"] * 64))[2]["x-retrue-predictions"].split(",")) == 64
    assert "x-retrue-predictions" not in ask(classify(["fine"] * 65))[2]


def test_an_explanation_names_words_with_their_places_and_keeps_nothing(model: str, ask: Ask, lake: Lake) -> None:
    text = "A dull, dull film 👎"
    status, body, headers = ask(explain(text))
    assert (status, body["model"], headers["x-retrue-model"]) == (200, model, model)
    assert [part["text"] for part in body["words"]] == ["A", "dull", ",", "dull", "film", "👎"]
    assert all(text[part["start"] : part["end"]] == part["text"] for part in body["words"])
    said = ask(event("predict-one", {"inputs": text}))[1]["predictions"][0]
    without = ask(event("predict-one", {"inputs": "A dull, dull film "}))[1]["predictions"][0]
    assert (body["label"], body["score"]) == (said["label"], said["score"])
    assert body["words"][-1]["weight"] == pytest.approx(said["score"] - without["scores"][said["label"]])
    assert (body["spans"], body["bounded"], body["runs"]) == ([], False, 7)
    assert len(list(lake.keys(CAPTURE))) == 2  # of the two predictions


def test_an_explanation_of_a_long_text_is_bounded_and_says_so(
    model: str, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    monkeypatch.setenv("EXPLAIN_RUNS", "20")
    for runs, most in ((None, 20), (9, 9)):
        body = ask(explain("word " * 9_000, runs=runs))[1]
        assert body["runs"] <= most
        assert body["bounded"]
        assert body["spans"]
    problem = assert_problem(ask(explain("word", runs=21)), 422, "invalid")
    assert "21 runs of the model are more than the 20" in problem["detail"]


@pytest.mark.parametrize(
    ("sent", "status", "slug"),
    [
        (explain(["a", "b"]), 422, "invalid"),
        (explain("fine", runs=7), 422, "invalid"),
        (explain("fine", runs="9"), 422, "invalid"),
        (explain(" "), 422, "invalid"),
        (explain("a" * 50_001), 413, "too-large"),
    ],
)
def test_what_cannot_be_explained_is_a_problem(
    model: str, ask: Ask, sent: dict[str, Any], status: int, slug: str
) -> None:
    assert_problem(ask(sent), status, slug)


@pytest.mark.usefixtures("lake")
def test_without_a_lake_nothing_is_kept_and_feedback_says_so(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    monkeypatch.setenv("BUCKET", "none")
    monkeypatch.setenv("MODEL_URI", tiny_model.as_uri())
    answer = ask(event("predict-one"))[1]["predictions"][0]
    for sent in (event("feedback", {"id": answer["id"], "label": answer["label"]}), event("job")):
        problem = assert_problem(ask(sent), 404, "no-lake")
        assert problem["detail"].startswith("nothing is kept here, as there is no lake: name a bucket (BUCKET)")


def test_a_text_is_answered_alike_alone_and_in_company(model: str, ask: Ask) -> None:
    alone = ask(event("predict-one", {"inputs": SECRET}))[1]["predictions"][0]
    company = ask(event("predict-one", {"inputs": ["Dull.", SECRET]}))[1]["predictions"][1]
    assert alone["scores"] == company["scores"]


def test_an_answer_is_kept_without_its_text(model: str, ask: Ask, lake: Lake) -> None:
    answer = ask(event("predict-one", {"inputs": SECRET}))[1]["predictions"][0]
    kept = lake.find_prediction(answer["id"])
    assert (kept.label, kept.scores, kept.text) == (answer["label"], answer["scores"], None)


def test_texts_are_kept_where_the_deployment_keeps_them(
    model: str, monkeypatch: pytest.MonkeyPatch, ask: Ask, lake: Lake
) -> None:
    monkeypatch.setenv("KEEP_TEXT", "true")
    answer = ask(event("predict-one", {"inputs": SECRET}))[1]["predictions"][0]
    assert lake.find_prediction(answer["id"]).text == SECRET


def test_feedback_for_what_was_not_kept_says_how_much_is(
    model: str, monkeypatch: pytest.MonkeyPatch, ask: Ask, lake: Lake
) -> None:
    monkeypatch.setenv("CAPTURE_RATE", "0")
    answer = ask(event("predict-one"))[1]["predictions"][0]
    assert list(lake.keys(CAPTURE)) == []
    problem = assert_problem(ask(event("feedback", {"id": answer["id"], "label": "positive"})), 404, "not-found")
    assert problem["detail"].startswith("no record of this prediction was kept: 0 % are")


@pytest.mark.parametrize("content_type", [None, "application/json", "application/json; charset=UTF-8"])
def test_json_is_read_with_and_without_its_name(model: str, ask: Ask, content_type: str | None) -> None:
    assert ask(headed("predict-one", content_type))[0] == 200


def test_a_body_in_base64_is_read(model: str, ask: Ask) -> None:
    body = base64.b64encode(json.dumps({"inputs": "schön"}, ensure_ascii=False).encode()).decode()
    assert ask(event("predict-one", body, isBase64Encoded=True))[0] == 200


@pytest.mark.parametrize(
    "sent",
    [
        event("predict-one", f'{{"inputs": "{SECRET}'),
        event("predict-one", SECRET),
        event("predict-one", ""),
        {**event("predict-one"), "body": None},
        event("predict-one", '{"inputs": ' + "[" * 100_000),
        event("predict-one", '{"inputs": ' + "9" * 5_000 + "}"),
        event("predict-one", base64.b64encode(b'{"inputs": "\xff\xfe"}').decode(), isBase64Encoded=True),
        event("predict-one", "no base64!", isBase64Encoded=True),
    ],
    ids=["cut short", "no JSON", "empty", "none", "too deep", "too many digits", "not UTF-8", "not base64"],
)
def test_a_body_that_cannot_be_read_is_a_400(model: str, ask: Ask, sent: dict[str, Any]) -> None:
    assert_problem(ask(sent), 400, "malformed")


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/json; charset=latin-1"],
)
def test_another_media_type_is_a_415(model: str, ask: Ask, content_type: str) -> None:
    assert_problem(ask(headed("predict-one", content_type)), 415, "media-type")


@pytest.mark.parametrize(
    ("body", "at", "reason"),
    [
        ({}, "/inputs", "is required"),
        ({"inputs": None}, "/inputs", "must be a text or a list of texts"),
        ({"inputs": 7}, "/inputs", "must be a text or a list of texts"),
        ({"inputs": {SECRET: SECRET}}, "/inputs", "must be a text or a list of texts"),
        ({"inputs": []}, "/inputs", "must hold at least one text"),
        ({"inputs": ["fine", 7, [SECRET]]}, "/inputs/1", "must be a text"),
        ({"inputs": "fine", SECRET: 1}, "", "has a key that is not known here"),
        ([{"inputs": SECRET}], "", "must be a JSON object"),
        (f'"{SECRET}"', "", "must be a JSON object"),
    ],
)
def test_a_body_of_another_shape_is_a_422_that_says_where(
    model: str, ask: Ask, body: Any, at: str, reason: str
) -> None:
    problem = assert_problem(ask(event("predict-one", body)), 422, "invalid")
    assert {"at": at, "reason": reason} in problem["errors"]


@pytest.mark.parametrize(("text", "reason"), [(" \n", "is blank"), ("half a \ud83d letter", "is not valid Unicode")])
def test_a_text_without_sense_is_a_422_that_says_which(model: str, ask: Ask, text: str, reason: str) -> None:
    problem = assert_problem(ask(event("predict-one", {"inputs": ["fine", text]})), 422, "invalid")
    assert f"text 2 {reason}" in problem["detail"]


def test_too_many_texts_are_a_413(model: str, ask: Ask) -> None:
    problem = assert_problem(ask(event("predict-one", {"inputs": [SECRET] * 65})), 413, "too-large")
    assert "65 texts are more than the 64" in problem["detail"]


def test_a_text_that_is_too_long_is_a_413(model: str, ask: Ask) -> None:
    problem = assert_problem(ask(event("predict-one", {"inputs": "a" * 50_001})), 413, "too-large")
    assert "50001 characters" in problem["detail"]


@pytest.mark.parametrize(
    "sent",
    [event("nowhere"), event("predict-one", httpMethod="DELETE"), event("health", httpMethod="PUT")],
    ids=["path", "method", "other method"],
)
def test_a_path_or_method_that_is_not_there_is_a_404(model: str, ask: Ask, sent: dict[str, Any]) -> None:
    assert_problem(ask(sent), 404, "not-found")


@pytest.mark.parametrize(
    "sent",
    [event("predict-one"), event("feedback"), event("model"), event("health"), classify("fine"), explain("fine")],
)
def test_without_a_model_the_answer_is_a_503(ask: Ask, sent: dict[str, Any]) -> None:
    problem = assert_problem(ask(sent), 503, "no-model")
    assert "retrue retrain" in problem["detail"]


def test_a_model_that_was_altered_is_a_503_whose_reason_is_in_the_log(
    model: str, lake: Lake, ask: Ask, log: io.StringIO
) -> None:
    lake.put(f"models/{model}/{artifact.GOLDEN}", b"[]")
    problem = assert_problem(ask(event("predict-one")), 503, "model-refused")
    assert "golden" not in problem["detail"]
    assert "golden.json" in log.getvalue()


def test_an_answer_that_cannot_be_kept_is_a_500_and_not_given(
    model: str, lake: Lake, ask: Ask, log: io.StringIO
) -> None:
    assert ask(event("health"))[0] == 200
    for key in lake.keys(""):
        lake.s3.delete_object(Bucket="lake", Key=key)
    lake.s3.delete_bucket(Bucket="lake")
    reply = ask(event("predict-one", {"inputs": SECRET}))
    problem = assert_problem(reply, 500, "internal")
    assert "x-retrue-model" not in reply[2]
    assert "bucket" not in json.dumps(problem).lower()
    assert "NoSuchBucket" in log.getvalue()


def test_a_defect_is_a_500_whose_log_has_the_place_and_not_the_text(
    model: str, api: ModuleType, ask: Ask, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(texts: list[str]) -> None:
        raise ValueError(f"cannot make sense of {texts!r}")

    monkeypatch.setattr(api.serving().classifier, "score_many", defect)
    problem = assert_problem(ask(event("predict-one", {"inputs": SECRET})), 500, "internal")
    failed = next(line for line in lines(log) if line["message"] == "failed")
    assert failed["kind"] == "ValueError"
    assert "in defect" in failed["stack"][-1]
    assert SECRET not in log.getvalue() + json.dumps(problem)


def test_wrong_settings_are_a_500_whose_log_names_them(
    ask: Ask, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_INPUTS", "many")
    problem = assert_problem(ask(event("health")), 500, "internal")
    assert "MAX_INPUTS" not in json.dumps(problem)
    assert "MAX_INPUTS is not a whole number" in log.getvalue()


@pytest.mark.parametrize(
    "sent",
    [
        event("predict-one", {"inputs": SECRET}),
        event("predict-one", {"inputs": [SECRET, 7]}),
        event("predict-one", {"inputs": [SECRET, " "]}),
        event("predict-one", {"inputs": [SECRET * 1_000]}),
        event("predict-one", {"inputs": [SECRET] * 65}),
        event("predict-one", {"inputs": {SECRET: SECRET}}),
        event("predict-one", {"inputs": "fine", SECRET: SECRET}),
        event("predict-one", {SECRET: SECRET}),
        event("predict-one", [{"inputs": SECRET}]),
        event("predict-one", f'{{"inputs": "{SECRET}'),
        event("predict-one", f"{SECRET}=1"),
        headed("predict-one", "application/x-www-form-urlencoded", f"inputs={SECRET}"),
        headed("predict-one", f"text/{SECRET}", {"inputs": SECRET}),
        headed("predict-one", f"multipart/form-data; boundary={SECRET}", SECRET),
        classify([SECRET, 7]),
        classify("fine", top_k=SECRET),
        classify("fine", **{SECRET: SECRET}),
        explain([SECRET]),
        explain(SECRET * 1_000),
        explain("fine", runs=SECRET),
        event("feedback", {"id": SECRET, "label": "positive"}),
        event("feedback", {"id": SECRET, "label": SECRET}),
        event("feedback", {"id": [SECRET], "label": "positive"}),
        event("feedback", {"id": "x", "label": "positive", SECRET: SECRET}),
        event("job", path=f"/v1/jobs/{SECRET}"),
        event("nowhere", path=f"/v1/{SECRET}"),
    ],
)
def test_nothing_that_a_caller_sends_comes_back_or_is_logged(
    model: str, ask: Ask, log: io.StringIO, capsys: pytest.CaptureFixture[str], sent: dict[str, Any]
) -> None:
    logging.getLogger().setLevel(logging.INFO)
    status, body, headers = ask(sent)
    printed = capsys.readouterr()
    told = json.dumps(body) + json.dumps(headers) + log.getvalue() + printed.out + printed.err
    for word in ("Mellifluous", "aardvarks", "pension"):
        assert word not in told
    assert '"message":"request"' in log.getvalue()
    assert (status == 200) == (sent == event("predict-one", {"inputs": SECRET}))


def test_each_request_is_one_line_with_its_facts(model: str, ask: Ask, log: io.StringIO) -> None:
    ask(event("predict-many"))
    ask(event("health"))
    ask(event("predict-one", {"inputs": 7}))
    first, second, third = lines(log)
    assert (first["route"], first["status"], first["inputs"], first["model"]) == ("POST /v1/predict", 200, 2, model)
    assert first["tokens"] > 4
    assert first["ms"] > 0
    assert (second["route"], second["status"]) == ("GET /v1/health", 200)
    assert (third["route"], third["status"]) == ("POST /v1/predict", 422)
    assert "inputs" not in second
    assert "inputs" not in third


def test_feedback_is_kept_with_what_the_model_had_said(model: str, ask: Ask, lake: Lake) -> None:
    answer = ask(event("predict-one"))[1]["predictions"][0]
    other = next(label for label in answer["scores"] if label != answer["label"])
    status, body, _ = ask(event("feedback", {"id": answer["id"], "label": other}))
    assert status == 200
    assert (body["id"], body["label"], body["predicted"], body["model"]) == (
        answer["id"],
        other,
        answer["label"],
        model,
    )
    assert len(list(lake.keys(FEEDBACK))) == 1


@pytest.mark.parametrize(
    "id", ["", "nonsense", new_id(1_767_259_800_000, bytes(10)), "ffffffff-ffff-7fff-bfff-ffffffffffff"]
)
def test_feedback_for_an_unknown_id_is_a_404(model: str, ask: Ask, id: str) -> None:
    assert_problem(ask(event("feedback", {"id": id, "label": "positive"})), 404, "not-found")


def test_feedback_with_an_unknown_label_is_a_422_that_lists_the_labels(model: str, ask: Ask) -> None:
    answer = ask(event("predict-one"))[1]["predictions"][0]
    problem = assert_problem(ask(event("feedback", {"id": answer["id"], "label": "great"})), 422, "unknown-label")
    assert "negative or positive" in problem["detail"]


def test_feedback_without_its_fields_is_a_422(model: str, ask: Ask) -> None:
    problem = assert_problem(ask(event("feedback", {"label": 1})), 422, "invalid")
    assert problem["errors"] == [
        {"at": "/id", "reason": "is required"},
        {"at": "/label", "reason": "must be a text"},
    ]


def test_the_model_route_gives_the_card(model: str, ask: Ask, tiny_model: Path) -> None:
    status, body, _ = ask(event("model"))
    card = json.loads((tiny_model / artifact.CARD).read_text())
    assert (status, body["model"]) == (200, model)
    assert {name: body["card"][name] for name in card} == card


def test_health_names_the_model(model: str, ask: Ask) -> None:
    assert ask(event("health"))[:2] == (200, {"status": "ok", "model": model})


def test_a_job_is_told_even_before_there_is_a_model(ask: Ask, lake: Lake) -> None:
    id = event("job")["pathParameters"]["id"]
    assert_problem(ask(event("job")), 404, "not-found")
    job = Job(id, "predict", "s3://lake/incoming/a.csv", "running", "2026-01-01T09:30:00.000Z", rows=7)
    lake.write_job(job)
    assert ask(event("job"))[:2] == (200, json.loads(job.to_json()))


def test_a_probe_is_answered_and_nothing_is_kept(model: str, api: ModuleType, lake: Lake, tiny_model: Path) -> None:
    golden = json.loads((tiny_model / artifact.GOLDEN).read_text())
    answer = api.handler({"probe": [item["text"] for item in golden]}, CONTEXT)
    assert answer["model"] == model
    for scores, item in zip(answer["scores"], golden, strict=True):
        assert scores == pytest.approx(item["scores"], abs=1e-4)
    assert list(lake.keys(CAPTURE)) == []


def test_importing_the_app_loads_nothing(model: str, api: ModuleType) -> None:
    assert api.serving.cache_info().currsize == api.deployment.cache_info().currsize == 0


@pytest.mark.parametrize("loads", [True, False])
def test_inside_lambda_the_import_loads_the_model_that_there_is(
    model: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, loads: bool
) -> None:
    monkeypatch.setenv("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:9001")
    if not loads:
        monkeypatch.setenv("MODEL_URI", artifact.NONE)
    assert request.getfixturevalue("api").serving.cache_info().currsize == loads


@pytest.mark.parametrize(("megabytes", "threads"), [("1769", 1), ("3538", 2)])
def test_a_text_gets_the_cpus_that_the_memory_pays_for(
    model: str, api: ModuleType, monkeypatch: pytest.MonkeyPatch, megabytes: str, threads: int
) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", megabytes)
    options = api.serving().classifier._session.get_session_options()
    assert options.intra_op_num_threads == threads


def test_the_function_needs_neither_torch_nor_scipy() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import app; print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_openapi_document_is_that_of_the_code() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "openapi.py", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_openapi_document_names_every_answer_that_a_route_gives() -> None:
    document = json.loads((ROOT / "docs" / "openapi.json").read_text())
    assert document["openapi"].startswith("3.1")
    assert document["components"]["securitySchemes"]["api_key"] == {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
    }
    answers = {
        f"{method.upper()} {path}": set(operation["responses"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    everywhere = {"200", "401", "403", "429", "500"}
    assert answers == {
        "POST /v1/predict": everywhere | {"400", "413", "415", "422", "503"},
        "POST /v1/text-classification": everywhere | {"400", "413", "415", "422", "503"},
        "POST /v1/explain": everywhere | {"400", "413", "415", "422", "503"},
        "POST /v1/feedback": everywhere | {"400", "404", "415", "422", "503"},
        "GET /v1/model": everywhere | {"503"},
        "GET /v1/health": everywhere | {"503"},
        "GET /v1/jobs/{id}": everywhere | {"404"},
    }
