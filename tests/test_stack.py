"""One deployed stack from outside: on a cloud that lives in this process, and on real HTTP to this machine."""

import io
import json
import re
import socket
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import boto3
import pytest
from botocore.response import StreamingBody
from botocore.stub import Stubber
from moto import mock_aws

from retrue.errors import BadInput, StackError
from retrue.lake import Lake
from retrue.stack import Session, Stack

URI = "s3://retrue-test-lake/models/0123456789ab/"
MACHINE = {"DefinitionString": "{}", "RoleArn": "arn:aws:iam::123456789012:role/retrain"}
POINTER = {"Name": "/retrue/test/model", "Type": "String", "Value": URI}
RESOURCES = {
    "Bucket": {"Type": "AWS::S3::Bucket", "Properties": {"BucketName": "retrue-test-lake"}},
    "Pointer": {"Type": "AWS::SSM::Parameter", "Properties": POINTER},
    "Machine": {"Type": "AWS::StepFunctions::StateMachine", "Properties": MACHINE},
}
OUTPUTS = {
    "ApiUrl": "https://abc.execute-api.eu-central-1.amazonaws.com/test",
    "ApiId": "abc",
    "ApiAuth": "key",
    "BucketName": {"Ref": "Bucket"},
    "StateMachineArn": {"Ref": "Machine"},
    "PredictFunctionName": "predict",
    "MonitorFunctionName": "monitor",
    "ModelParameterName": {"Ref": "Pointer"},
    "EnvironmentName": "test",
}


@pytest.fixture(scope="module")
def deployed() -> Iterator[Stack]:
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("app.py", "def handler(event, context): return event")
    with mock_aws(config={"lambda": {"use_docker": False}}):
        role = boto3.client("iam").create_role(RoleName="predict", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
        client = boto3.client("lambda")
        shape: dict[str, Any] = {"Runtime": "python3.11", "Handler": "app.handler", "Role": role}
        shape["Environment"] = {"Variables": {"MODEL_URI": URI}}
        for name in ("predict", "monitor"):
            client.create_function(FunctionName=name, Code={"ZipFile": code.getvalue()}, **shape)
        client.publish_version(FunctionName="predict")
        client.create_alias(FunctionName="predict", Name="live", FunctionVersion="1")
        key = boto3.client("apigateway").create_api_key(name="key", value="k" * 24)["id"]
        outputs = {name: {"Value": value} for name, value in {**OUTPUTS, "ApiKeyId": key}.items()}
        template = json.dumps({"Resources": RESOURCES, "Outputs": outputs})
        boto3.client("cloudformation").create_stack(StackName="retrue-test", TemplateBody=template)
        yield Stack(Session(), "retrue-test")


def test_a_stack_tells_what_serves_and_how_to_reach_it(deployed: Stack) -> None:
    machine = deployed.outputs["StateMachineArn"]
    quiet = Stack(Session(region="eu-central-1"), "retrue-test")
    assert quiet.status() == {
        "stack": "retrue-test",
        "api_url": "https://abc.execute-api.eu-central-1.amazonaws.com/test",
        "api_auth": "key",
        "api_key": "k" * 24,
        "endpoint_url": None,
        "bucket": "retrue-test-lake",
        "state_machine_arn": machine,
        "function": "predict",
        "alias": "live",
        "alias_version": "1",
        "model_version": "0123456789ab",
        "retraining": None,
    }
    running = boto3.client("stepfunctions").start_execution(stateMachineArn=machine)["executionArn"]
    assert quiet.status()["retraining"] == running
    assert quiet.serving() == URI


def test_what_serves_is_what_the_alias_answers_with(deployed: Stack) -> None:
    ssm = boto3.client("ssm")
    ssm.put_parameter(Name="/retrue/test/model", Value="none", Overwrite=True)
    assert deployed.status()["model_version"] == "0123456789ab"
    assert deployed.serving() == "none"
    ssm.put_parameter(Name="/retrue/test/model", Value=URI, Overwrite=True)


def test_the_parts_of_a_stack_work_on_what_its_outputs_name(deployed: Stack) -> None:
    deployed.lake.put("jobs/one", b"two")
    assert Lake("retrue-test-lake").get("jobs/one") == b"two"
    version = deployed.release.publish(URI, "one")
    assert deployed.release.model_of(version) == URI


def test_the_monitor_is_asked_and_its_report_comes_back(deployed: Stack) -> None:
    # The function in this process answers with what it was sent.
    assert deployed.check(request=False) == {"request": False}
    assert deployed.check(request=True) == {"request": True}


def test_a_monitor_that_fails_is_an_error_with_its_reason(deployed: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    body = b'{"errorType": "WrongSetting", "errorMessage": "BUCKET is not set"}'
    answer = {"StatusCode": 200, "FunctionError": "Unhandled", "Payload": StreamingBody(io.BytesIO(body), len(body))}
    client = boto3.client("lambda")
    with Stubber(client) as stub:
        stub.add_response("invoke", answer, {"FunctionName": "monitor", "Payload": b'{"request": true}'})
        monkeypatch.setattr(Session, "client", lambda *_: client)
        with pytest.raises(StackError, match="the monitor failed: BUCKET is not set"):
            deployed.check(request=True)


def test_a_stack_that_is_not_there_is_named(deployed: Stack) -> None:
    with pytest.raises(StackError, match="there is no stack retrue-prod: "):
        _ = Stack(Session(), "retrue-prod").outputs


def test_a_stack_without_outputs_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    young = {
        "StackName": "young",
        "StackStatus": "CREATE_IN_PROGRESS",
        "CreationTime": datetime(2026, 1, 1, tzinfo=UTC),
    }
    client = boto3.client("cloudformation")
    with Stubber(client) as stub:
        stub.add_response("describe_stacks", {"Stacks": [young]}, {"StackName": "young"})
        monkeypatch.setattr(Session, "client", lambda *_: client)
        with pytest.raises(StackError, match=r"the stack young is not deployed yet \(CREATE_IN_PROGRESS\)"):
            _ = Stack(Session(), "young").outputs


@pytest.mark.parametrize("session", [Session(endpoint="http://127.0.0.1:1"), Session(profile="nobody")])
def test_a_cloud_that_cannot_be_reached_is_an_error_of_the_stack(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StackError, match="the stack retrue-test cannot be reached: "):
        _ = Stack(session, "retrue-test").outputs


def test_a_client_for_a_local_cloud_wants_no_virtual_hosts() -> None:
    local = Session(endpoint="http://127.0.0.1:4566", region="us-east-1", access_key="a", secret_key="b").client("s3")
    assert local.meta.endpoint_url == "http://127.0.0.1:4566"
    assert local.meta.region_name == "us-east-1"
    assert local.meta.config.s3 == {"addressing_style": "path"}
    assert Session().client("s3").meta.config.s3 is None


NAMED = {"ApiId": "abc", "ApiAuth": "key", "EnvironmentName": "test"}


class Api(BaseHTTPRequestHandler):
    """Answers each path as the table says, and keeps what it was asked."""

    protocol_version = "HTTP/1.1"
    answers: dict[str, tuple[int, bytes]]
    asked: list[tuple[str, str, dict[str, str], bytes]]

    def answer(self) -> None:
        path = self.path.removeprefix("/_aws/execute-api/abc/test")
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.asked.append((self.command, self.path, dict(self.headers), body))
        if path not in self.answers:
            self.close_connection = True  # without a word
            return
        status, said = self.answers[path]
        self.send_response(status)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_GET = do_POST = answer  # noqa: N815 - names that http.server asks for

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture
def api() -> Iterator[tuple[Stack, type[Api]]]:
    """A stack whose API is served on this machine."""
    handler = type("Handler", (Api,), {"answers": {}, "asked": []})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        stack = Stack(Session(endpoint=f"http://127.0.0.1:{server.server_port}"), "local")
        vars(stack).update(outputs=NAMED, api_key="secret")
        yield stack, handler
        server.shutdown()
        thread.join()


def test_a_request_carries_the_key_and_its_body(api: tuple[Stack, type[Api]]) -> None:
    stack, handler = api
    handler.answers = {"/v1/predict": (200, b'{"predictions": []}'), "/v1/health": (200, b'{"status": "ok"}')}
    assert stack.http("POST", "/v1/predict", {"inputs": ["sch\u00f6n"]}) == {"predictions": []}
    assert stack.http("GET", "/v1/health") == {"status": "ok"}
    (post, get) = handler.asked
    assert post[:2] == ("POST", "/_aws/execute-api/abc/test/v1/predict")
    headers = {name.lower(): value for name, value in post[2].items()}
    assert (headers["x-api-key"], headers["content-type"]) == ("secret", "application/json")
    assert json.loads(post[3]) == {"inputs": ["sch\u00f6n"]}
    assert (get[0], get[3]) == ("GET", b"")


def test_a_signed_request_is_signed_as_the_sender_for_the_api(api: tuple[Stack, type[Api]]) -> None:
    stack, handler = api
    vars(stack).update(outputs={**NAMED, "ApiAuth": "iam"})
    stack.session = replace(stack.session, region="eu-west-1", access_key="SENDER", secret_key="secret")
    handler.answers = {"/v1/predict": (200, b"{}")}
    stack.http("POST", "/v1/predict", {"inputs": "one"})
    ((_, _, sent, body),) = handler.asked
    headers = {name.lower(): value for name, value in sent.items()}
    assert "x-api-key" not in headers
    assert re.match(
        r"AWS4-HMAC-SHA256 Credential=SENDER/\d{8}/eu-west-1/execute-api/aws4_request, "
        r"SignedHeaders=content-type;host;x-amz-date, Signature=[0-9a-f]{64}$",
        headers["authorization"],
    )
    assert json.loads(body) == {"inputs": "one"}


def test_who_has_no_credentials_cannot_sign(api: tuple[Stack, type[Api]], monkeypatch: pytest.MonkeyPatch) -> None:
    stack, handler = api
    vars(stack).update(outputs={**NAMED, "ApiAuth": "iam"})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(StackError, match="there are no AWS credentials to sign with"):
        stack.http("GET", "/v1/health")
    assert handler.asked == []


def test_a_token_goes_along_and_without_one_nothing_is_asked(api: tuple[Stack, type[Api]]) -> None:
    stack, handler = api
    vars(stack).update(outputs={**NAMED, "ApiAuth": "jwt"})
    handler.answers = {"/v1/health": (200, b"{}")}
    with pytest.raises(StackError, match="the API asks for a token of its user pool"):
        stack.http("GET", "/v1/health")
    assert handler.asked == []
    stack.session = replace(stack.session, token="a.b.c")
    stack.http("GET", "/v1/health")
    assert {name.lower(): value for name, value in handler.asked[0][2].items()}["authorization"] == "a.b.c"


def test_there_is_no_key_where_callers_prove_themselves_otherwise() -> None:
    stack = Stack(Session(), "retrue-test")
    vars(stack).update(outputs={**NAMED, "ApiAuth": "iam"})
    assert stack.api_key is None


PROBLEM = {"title": "Unprocessable", "detail": "two things are wrong"}
ERRORS = [{"at": "inputs.0", "reason": "is blank"}, {"at": "inputs.1", "reason": "is too long"}]


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (422, PROBLEM, BadInput, "Unprocessable: two things are wrong"),
        (422, {**PROBLEM, "errors": ERRORS}, BadInput, "Unprocessable: inputs.0: is blank; inputs.1: is too long"),
        (403, {"message": "Forbidden"}, BadInput, "403: Forbidden"),
        (503, {"title": "No model", "detail": "nothing serves yet"}, StackError, "No model: nothing serves yet"),
        (502, {"message": "Internal server error"}, StackError, "502: Internal server error"),
        (504, "<html>Gateway Timeout</html>", StackError, "HTTP 504"),
        (500, "", StackError, "HTTP 500"),
    ],
)
def test_a_problem_is_told_in_its_own_words(
    api: tuple[Stack, type[Api]], status: int, body: Any, kind: type[Exception], words: str
) -> None:
    stack, handler = api
    handler.answers = {"/v1/predict": (status, (body if isinstance(body, str) else json.dumps(body)).encode())}
    with pytest.raises(kind) as raised:
        stack.http("POST", "/v1/predict", {"inputs": "x"})
    assert (type(raised.value), str(raised.value)) == (kind, words)


def test_an_api_that_hangs_up_without_an_answer_cannot_be_reached(api: tuple[Stack, type[Api]]) -> None:
    with pytest.raises(StackError, match="the API cannot be reached: Remote end closed connection"):
        api[0].http("GET", "/v1/nowhere")


def test_an_api_that_does_not_answer_in_time_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrue.stack.HTTP_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        stack = Stack(Session(endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}"), "local")
        vars(stack).update(outputs=NAMED, api_key="secret")
        with pytest.raises(StackError, match="the API cannot be reached: timed out"):
            stack.http("GET", "/v1/health")


def test_an_api_where_nobody_listens_cannot_be_reached() -> None:
    stack = Stack(Session(endpoint="http://127.0.0.1:1"), "local")
    vars(stack).update(outputs=NAMED, api_key="secret")
    with pytest.raises(StackError, match=r"the API cannot be reached: .*refused"):
        stack.http("GET", "/v1/health")
