"""Each way in which callers prove themselves, over real HTTP to the project's own template on a local cloud."""

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrue.errors import BadInput, StackError
from retrue.local import machine
from retrue.local.home import STACK, Home, session, stop
from retrue.stack import Stack

PROJECT = Path(__file__).resolve().parents[2]
PASSWORD = "Correct-horse-1"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    home = Home(tmp_path_factory.mktemp("callers"))
    try:
        deploy(home)
        yield home
    finally:
        stop(home)


def deploy(home: Home, **parameters: str) -> Stack:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return machine.up(home, PROJECT, PROJECT / ".venv-cloud/bin/python", port, parameters, print)


def unproven(stack: Stack, **headers: str) -> int:
    """The status of a request without a proof of who sends it, but with these headers."""
    request = urllib.request.Request(f"{stack.api_url}/v1/health", headers=headers)
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=30)
    with raised.value:
        return raised.value.code


def test_a_signed_request_comes_through_and_no_other(here: Home) -> None:
    stack = deploy(here, ApiAuth="iam")
    assert stack.status()["api_key"] is None
    with pytest.raises(StackError, match="no model is serving yet"):
        stack.http("GET", "/v1/health")
    assert unproven(stack) == 404  # the gateway calls a request without a signature a path that is not there
    stranger = Stack(session(here.endpoint or ""), STACK)
    vars(stranger)["session"] = type(stack.session)(here.endpoint, region="us-east-1", access_key="x", secret_key="y")
    vars(stranger)["outputs"] = stack.outputs
    with pytest.raises(BadInput):
        stranger.http("GET", "/v1/health")


def test_a_token_of_the_user_pool_comes_through_and_no_other(here: Home) -> None:
    pools = session(here.endpoint or "").client("cognito-idp")
    pool = pools.create_user_pool(PoolName="people")["UserPool"]
    flows = ["ALLOW_USER_PASSWORD_AUTH"]
    client = pools.create_user_pool_client(UserPoolId=pool["Id"], ClientName="tests", ExplicitAuthFlows=flows)
    pools.admin_create_user(UserPoolId=pool["Id"], Username="ann", MessageAction="SUPPRESS")
    pools.admin_set_user_password(UserPoolId=pool["Id"], Username="ann", Password=PASSWORD, Permanent=True)
    tokens = pools.initiate_auth(
        ClientId=client["UserPoolClient"]["ClientId"],
        AuthFlow="USER_PASSWORD_AUTH",
        AuthParameters={"USERNAME": "ann", "PASSWORD": PASSWORD},
    )["AuthenticationResult"]
    stack = deploy(here, ApiAuth="jwt", JwtUserPool=pool["Arn"])
    assert unproven(stack) == unproven(stack, authorization="a.b.c") == 401
    ann = Stack(session(here.endpoint or "", tokens["IdToken"]), STACK)
    with pytest.raises(StackError, match="no model is serving yet"):
        ann.http("GET", "/v1/health")


def test_tokens_without_a_user_pool_are_not_deployed(here: Home) -> None:
    with pytest.raises(Exception, match="ApiAuth=jwt needs the ARN of a Cognito user pool"):
        deploy(here, ApiAuth="jwt", JwtUserPool="")


def test_a_deployment_goes_back_to_its_key(here: Home) -> None:
    stack = deploy(here, ApiAuth="key")
    assert unproven(stack) == 403
    assert unproven(stack, **{"x-api-key": "wrong"}) == 403
    with pytest.raises(StackError, match="no model is serving yet"):
        stack.http("GET", "/v1/health")
