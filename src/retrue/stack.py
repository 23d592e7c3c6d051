"""One deployed stack as the command line sees it: its outputs, its key, and its HTTP interface."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import boto3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from retrue.errors import BadInput, StackError
from retrue.lake import Lake
from retrue.release import Release, serving_model
from retrue.workflow import Workflow

HTTP_SECONDS = 60


@dataclass(frozen=True)
class Session:
    """Clients for one cloud: AWS, found as boto3 finds it, or the one at `endpoint`.

    `token` is what an API asks for whose callers prove themselves with tokens.
    """

    endpoint: str | None = None
    profile: str | None = None
    region: str | None = None
    access_key: str | None = None
    secret_key: str | None = None
    token: str | None = None

    def client(self, service: str) -> Any:
        # A local cloud has no virtual hosts for buckets; a check or a step may take minutes to answer.
        style = {"s3": {"addressing_style": "path"}} if self.endpoint else {}
        config = Config(read_timeout=330, retries={"mode": "standard"}, **style)
        return self._boto3().client(service, endpoint_url=self.endpoint, config=config)

    def signature(self, method: str, url: str, headers: dict[str, str], body: bytes | None) -> dict[str, str]:
        """The headers that sign a request to an API; StackError where there is nobody to sign as."""
        session = self._boto3()
        credentials = session.get_credentials()
        if credentials is None:
            raise StackError("the API asks for signed requests, and there are no AWS credentials to sign with")
        request = AWSRequest(method, url, headers, body)
        SigV4Auth(credentials.get_frozen_credentials(), "execute-api", session.region_name).add_auth(request)
        return dict(request.headers)

    def _boto3(self) -> Any:
        return boto3.Session(
            profile_name=self.profile,
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )


class Stack:
    """Everything that a command needs to know about one deployment, asked for once."""

    def __init__(self, session: Session, name: str) -> None:
        self.session, self.name = session, name

    @cached_property
    def outputs(self) -> dict[str, str]:
        """What the template says about itself; StackError where there is no such stack."""
        try:
            found = self.session.client("cloudformation").describe_stacks(StackName=self.name)["Stacks"][0]
        except ClientError as error:
            raise StackError(f"there is no stack {self.name}: {error.response['Error']['Message']}") from None
        except BotoCoreError as error:
            raise StackError(f"the stack {self.name} cannot be reached: {error}") from None
        if "Outputs" not in found:
            raise StackError(f"the stack {self.name} is not deployed yet ({found['StackStatus']})")
        return {output["OutputKey"]: output["OutputValue"] for output in found["Outputs"]}

    @cached_property
    def api_url(self) -> str:
        if self.session.endpoint:
            return f"{self.session.endpoint}/_aws/execute-api/{self.outputs['ApiId']}/{self.outputs['EnvironmentName']}"
        return self.outputs["ApiUrl"]

    @cached_property
    def api_key(self) -> str | None:
        """The key of the API, or None where callers prove themselves in another way."""
        if self.outputs["ApiAuth"] != "key":
            return None
        client = self.session.client("apigateway")
        return str(client.get_api_key(apiKey=self.outputs["ApiKeyId"], includeValue=True)["value"])

    @cached_property
    def lake(self) -> Lake:
        return Lake(self.outputs["BucketName"], self.session.client("s3"))

    @cached_property
    def release(self) -> Release:
        clients = self.session.client("lambda"), self.session.client("ssm")
        return Release(self.outputs["PredictFunctionName"], "live", self.outputs["ModelParameterName"], *clients)

    @cached_property
    def workflow(self) -> Workflow:
        return Workflow(self.outputs["StateMachineArn"], self.session.client("stepfunctions"))

    def serving(self) -> str:
        """The URI of the serving model, or "none"."""
        return serving_model(self.outputs["ModelParameterName"], self.session.client("ssm"))

    def status(self) -> dict[str, Any]:
        """The facts that `retrue status` tells."""
        version = self.release.live_version()
        uri = self.release.model_of(version)
        return {
            "stack": self.name,
            "api_url": self.api_url,
            "api_auth": self.outputs["ApiAuth"],
            "api_key": self.api_key,
            "endpoint_url": self.session.endpoint,
            "bucket": self.outputs["BucketName"],
            "state_machine_arn": self.outputs["StateMachineArn"],
            "function": self.outputs["PredictFunctionName"],
            "alias": "live",
            "alias_version": version,
            "model_version": uri.rstrip("/").rsplit("/", 1)[-1],
            "retraining": self.workflow.oldest_running(),
        }

    def check(self, request: bool) -> dict[str, Any]:
        """Let the monitor look now; its report."""
        answer = self.session.client("lambda").invoke(
            FunctionName=self.outputs["MonitorFunctionName"], Payload=json.dumps({"request": request}).encode()
        )
        report: dict[str, Any] = json.loads(answer["Payload"].read())
        if "FunctionError" in answer:
            raise StackError(f"the monitor failed: {report.get('errorMessage', 'see its log')}")
        return report

    def crown(self, model: str) -> None:
        """Let MLflow's alias `champion` follow to a model that serves now."""
        name, step = self.outputs["StepsFunctionName"], {"step": "crown", "model": model}
        answer = self.session.client("lambda").invoke(FunctionName=name, Payload=json.dumps(step).encode())
        if "FunctionError" in answer:
            error = json.loads(answer["Payload"].read()).get("errorMessage", "see the log of the steps")
            raise StackError(f"model {model} serves, but MLflow's alias champion did not follow: {error}")

    def _proven(self, method: str, url: str, headers: dict[str, str], body: bytes | None) -> dict[str, str]:
        """The headers of a request with what the API takes as proof of who sends it."""
        if self.outputs["ApiAuth"] == "iam":
            return self.session.signature(method, url, headers, body)
        if self.outputs["ApiAuth"] == "jwt":
            if self.session.token is None:
                raise StackError("the API asks for a token of its user pool: set RETRUE_TOKEN or give --token")
            return {**headers, "authorization": self.session.token}
        return {**headers, "x-api-key": str(self.api_key)}

    def http(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One request to the HTTP interface; BadInput or StackError with the problem's own words."""
        url, data = self.api_url + path, None if body is None else json.dumps(body).encode()
        headers = self._proven(method, url, {"content-type": "application/json"}, data)
        # The address comes from the stack's own outputs.
        request = urllib.request.Request(url, method=method, data=data, headers=headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=HTTP_SECONDS) as answer:  # noqa: S310
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            problem = _problem(error)
            raise (BadInput if 400 <= error.code < 500 else StackError)(problem) from None
        except OSError as error:  # URLError before the request is sent, others while the answer is awaited
            raise StackError(f"the API cannot be reached: {getattr(error, 'reason', error)}") from None


def _problem(error: urllib.error.HTTPError) -> str:
    try:
        problem = json.loads(error.read())
    except ValueError:
        return f"HTTP {error.code}"
    reasons = "; ".join(f"{item['at']}: {item['reason']}" for item in problem.get("errors", ()))
    return f"{problem.get('title', error.code)}: {reasons or problem.get('detail', problem.get('message', ''))}"
