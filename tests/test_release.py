"""Which model serves, on a Lambda and an SSM that live in this process."""

import io
import json
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, EndpointConnectionError, NoRegionError
from botocore.response import StreamingBody
from botocore.stub import Stubber
from moto import mock_aws

from retrue.errors import AliasMoved, ReleaseRefused
from retrue.release import Release, serving_model

PARAMETER = "/retrue/test/model"
BEFORE = {"BUCKET": "lake", "KEEP_TEXT": "true", "MODEL_URI": "none"}
FIRST, SECOND = "s3://lake/models/aaa/", "s3://lake/models/bbb/"


@pytest.fixture(scope="module")
def clients() -> dict[str, Any]:
    return {name: boto3.client(name) for name in ("iam", "lambda", "ssm")}


@pytest.fixture
def release(clients: dict[str, Any]) -> Iterator[Release]:
    """A function whose version 1 serves no model yet, behind the alias live."""
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("app.py", "def handler(event, context): return event")
    with mock_aws(config={"lambda": {"use_docker": False}}):
        role = clients["iam"].create_role(RoleName="predict", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
        client, ssm = clients["lambda"], clients["ssm"]
        client.create_function(
            FunctionName="predict",
            Runtime="python3.11",
            Handler="app.handler",
            Role=role,
            Code={"ZipFile": code.getvalue()},
            Environment={"Variables": BEFORE},
        )
        client.publish_version(FunctionName="predict")
        client.create_alias(FunctionName="predict", Name="live", FunctionVersion="1")
        ssm.put_parameter(Name=PARAMETER, Value="none", Type="String")
        yield Release("predict", "live", PARAMETER, client, ssm)


def variables(release: Release, version: str) -> dict[str, str]:
    found = release.client.get_function_configuration(FunctionName="predict", Qualifier=version)
    return dict(found["Environment"]["Variables"])


def answering(payload: Any, **more: Any) -> Release:
    """A release whose version 7 answers a probe so."""
    client = boto3.client("lambda")
    body = json.dumps(payload).encode()
    stub = Stubber(client)
    stub.add_response(
        "invoke",
        {"StatusCode": 200, "Payload": StreamingBody(io.BytesIO(body), len(body)), **more},
        {"FunctionName": "predict", "Qualifier": "7", "Payload": b'{"probe": ["a quokka film"]}'},
    )
    stub.activate()
    return Release("predict", "live", PARAMETER, client, object())


def test_a_published_version_carries_the_model_and_keeps_the_other_variables(release: Release) -> None:
    version = release.publish(FIRST, "model aaa, run r1")
    assert variables(release, version) == {**BEFORE, "MODEL_URI": FIRST}
    described = release.client.get_function_configuration(FunctionName="predict", Qualifier=version)
    assert described["Description"] == "model aaa, run r1"


def test_publishing_moves_nothing_and_alters_no_earlier_version(release: Release) -> None:
    first = release.publish(FIRST, "one")
    second = release.publish(SECOND, "two")
    assert [release.model_of(version) for version in ("1", first, second)] == ["none", FIRST, SECOND]
    assert release.live_version() == "1"
    assert serving_model(PARAMETER) == "none"


def test_the_unpublished_function_is_left_as_it_was(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    release.publish(FIRST, "one")
    assert variables(release, "$LATEST") == BEFORE

    def refuse(**_: Any) -> None:
        assert variables(release, "$LATEST")["MODEL_URI"] == SECOND
        raise ClientError({"Error": {"Code": "CodeStorageExceededException"}}, "PublishVersion")

    monkeypatch.setattr(release.client, "publish_version", refuse)
    with pytest.raises(ClientError, match="CodeStorageExceeded"):
        release.publish(SECOND, "two")
    assert variables(release, "$LATEST") == BEFORE


def test_a_function_without_variables_can_be_given_a_model(release: Release) -> None:
    release.client.update_function_configuration(FunctionName="predict", Environment={"Variables": {}})
    bare = release.client.publish_version(FunctionName="predict")["Version"]
    assert release.model_of(bare) == "none"
    assert variables(release, release.publish(FIRST, "one")) == {"MODEL_URI": FIRST}


def test_moving_tells_what_served_before_and_moves_alias_and_pointer(release: Release) -> None:
    first, second = release.publish(FIRST, "one"), release.publish(SECOND, "two")
    assert release.move(first, FIRST) == "1"
    assert (release.live_version(), serving_model(PARAMETER)) == (first, FIRST)
    assert release.move(second, SECOND) == first
    assert (release.live_version(), serving_model(PARAMETER, release.ssm)) == (second, SECOND)


def weights(release: Release) -> dict[str, float]:
    alias = release.client.get_alias(FunctionName="predict", Name="live")
    return dict(alias.get("RoutingConfig", {}).get("AdditionalVersionWeights", {}))


def test_a_share_of_the_traffic_is_given_and_taken_away(release: Release) -> None:
    version = release.publish(FIRST, "one")
    release.share(version, 0.1)
    assert (release.live_version(), weights(release)) == ("1", {version: 0.1})
    release.settle()
    assert (release.live_version(), weights(release)) == ("1", {})


def test_who_is_moved_to_answers_everything(release: Release) -> None:
    version = release.publish(FIRST, "one")
    release.share(version, 0.1)
    release.move(version, FIRST)
    assert (release.live_version(), weights(release)) == (version, {})


def test_an_alias_that_is_moved_at_the_same_moment_is_left_alone() -> None:
    client = boto3.client("lambda")
    with Stubber(client) as stub:
        stub.add_response(
            "get_alias", {"FunctionVersion": "1", "RevisionId": "r1"}, {"FunctionName": "predict", "Name": "live"}
        )
        stub.add_client_error(
            "update_alias",
            "PreconditionFailedException",
            expected_params={
                "FunctionName": "predict",
                "Name": "live",
                "FunctionVersion": "7",
                "RoutingConfig": {"AdditionalVersionWeights": {}},
                "RevisionId": "r1",
            },
        )
        with pytest.raises(AliasMoved):
            Release("predict", "live", PARAMETER, client, object()).move("7", FIRST)


def test_versions_are_alike_that_differ_in_the_model_only(release: Release) -> None:
    first, second = release.publish(FIRST, "one"), release.publish(SECOND, "two")
    assert release.alike(first, second)
    release.client.update_function_configuration(
        FunctionName="predict", Environment={"Variables": {**BEFORE, "KEEP_TEXT": "false"}}
    )
    third = release.publish(FIRST, "three")
    assert not release.alike(first, third)
    assert not release.alike("99", third)


def test_no_region_is_asked_for_where_the_clients_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a laptop without any configuration, whose local stack has clients of its own."""
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(NoRegionError):
        boto3.Session().client("cloudwatch")
    assert Release("predict", "live", PARAMETER, object(), object()).function == "predict"


def test_calls_are_those_of_a_version_behind_the_alias_and_5xx_are_failures() -> None:
    cloudwatch = boto3.client("cloudwatch")
    behind = [
        {"Name": "FunctionName", "Value": "predict"},
        {"Name": "Resource", "Value": "predict:live"},
        {"Name": "ExecutedVersion", "Value": "7"},
    ]
    told = [{"Name": "Environment", "Value": "prod"}, {"Name": "Version", "Value": "7"}]

    def query(id: str, namespace: str, name: str, dimensions: Any, stat: str, period: int = 60) -> dict[str, Any]:
        metric = {"Namespace": namespace, "MetricName": name, "Dimensions": dimensions}
        return {"Id": id, "MetricStat": {"Metric": metric, "Period": period, "Stat": stat}}

    asked = {
        "MetricDataQueries": [
            query("calls", "AWS/Lambda", "Invocations", behind, "Sum"),
            query("errors", "AWS/Lambda", "Errors", behind, "Sum"),
            query("duration", "AWS/Lambda", "Duration", behind, "p95", 180),
            query("failed", "retrue", "FailedRequests", told, "Sum"),
        ],
        "StartTime": datetime.fromtimestamp(1_767_259_800, UTC),
        "EndTime": datetime.fromtimestamp(1_767_259_950, UTC),
    }
    pages = [
        {"calls": [3.0, 4.0], "errors": [1.0], "duration": [42.5], "failed": []},
        {"calls": [5.0], "failed": [2.0]},
    ]
    with Stubber(cloudwatch) as stub:
        for number, page in enumerate(pages):
            results = [{"Id": id, "Values": values} for id, values in page.items()]
            more = {} if number else {"NextToken": "more"}
            stub.add_response(
                "get_metric_data",
                {"MetricDataResults": results, **more},
                asked | ({"NextToken": "more"} if number else {}),
            )
        release = Release("predict", "live", PARAMETER, object(), object(), cloudwatch)
        assert release.calls("prod", "7", 1_767_259_800_000, 1_767_259_950_000) == (12, 3, 42.5)
        stub.assert_no_pending_responses()


def test_the_alias_goes_back_when_the_pointer_may_not_be_written(release: Release) -> None:
    version = release.publish(FIRST, "one")
    refusing = boto3.client("ssm")
    with Stubber(refusing) as stub:
        stub.add_client_error("put_parameter", "AccessDeniedException")
        with pytest.raises(ClientError, match="AccessDenied"):
            Release("predict", "live", PARAMETER, release.client, refusing).move(version, FIRST)
    assert (release.live_version(), serving_model(PARAMETER)) == ("1", "none")


def test_the_alias_goes_back_when_the_pointer_cannot_be_reached(release: Release) -> None:
    version = release.publish(FIRST, "one")
    nowhere = boto3.client("ssm", endpoint_url="http://127.0.0.1:1", config=Config(retries={"max_attempts": 0}))
    with pytest.raises(EndpointConnectionError):
        Release("predict", "live", PARAMETER, release.client, nowhere).move(version, FIRST)
    assert (release.live_version(), serving_model(PARAMETER)) == ("1", "none")


def test_a_version_is_asked_by_its_number() -> None:
    answer = {"model": "aaa", "scores": [{"negative": 0.25, "positive": 0.75}]}
    assert answering(answer).ask("7", {"probe": ["a quokka film"]}) == answer


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        ({"errorType": "ModelRefused", "errorMessage": "could not read a quokka film"}, "ModelRefused"),
        ({"errorMessage": "RequestId: 1 Error: a quokka film"}, "an error"),
        ("a quokka film", "an error"),
    ],
)
def test_a_version_that_fails_is_refused_without_repeating_what_it_was_asked(payload: Any, kind: str) -> None:
    with pytest.raises(ReleaseRefused) as raised:
        answering(payload, FunctionError="Unhandled").ask("7", {"probe": ["a quokka film"]})
    assert f"version 7 answered golden inputs with {kind}: " in str(raised.value)
    assert "quokka" not in str(raised.value)
