"""Which model serves, on a Lambda and an SSM that live in this process."""

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, EndpointConnectionError
from botocore.response import StreamingBody
from botocore.stub import Stubber
from moto import mock_aws

from retrue.errors import ReleaseRefused
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
