"""Which model serves: versions of the predict function, its alias, and the one SSM parameter that holds the truth.

A published version names one immutable model folder in its environment (MODEL_URI), so a version that once served
can serve again at any time. The alias moves first and the parameter after it; if the second fails the first is undone.
"""

import json
import math
from datetime import UTC, datetime
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from retrue.artifact import NONE
from retrue.errors import AliasMoved, ReleaseRefused
from retrue.telemetry import DIMENSION, NAMESPACE, VERSION, Metric

SETTINGS = ("CodeSha256", "Environment", "MemorySize", "Timeout", "EphemeralStorage", "Role", "ImageConfigResponse")


class Release:
    """Publishes, asks and moves versions of one function behind one alias."""

    def __init__(
        self,
        function: str,
        alias: str,
        parameter: str,
        lambda_client: Any = None,
        ssm: Any = None,
        cloudwatch: Any = None,
    ) -> None:
        self.function, self.alias, self.parameter = function, alias, parameter
        self.client = lambda_client if lambda_client is not None else boto3.client("lambda")
        self.ssm = ssm if ssm is not None else boto3.client("ssm")
        self.cloudwatch = cloudwatch  # made when calls are counted, which few do

    def publish(self, model_uri: str, description: str) -> str:
        """Publish a version that serves this model with the newest code, and wait until it can be called.

        The unpublished function is left as it was: a deployment publishes it too, and must not serve a candidate.
        """
        config = self.client.get_function_configuration(FunctionName=self.function)
        before = config.get("Environment", {}).get("Variables", {})
        try:
            self._set({**before, "MODEL_URI": model_uri})
            version: str = self.client.publish_version(FunctionName=self.function, Description=description)["Version"]
        finally:
            self._set(before)
        self.client.get_waiter("published_version_active").wait(FunctionName=self.function, Qualifier=version)
        return version

    def _set(self, variables: dict[str, str]) -> None:
        self.client.update_function_configuration(FunctionName=self.function, Environment={"Variables": variables})
        self.client.get_waiter("function_updated_v2").wait(FunctionName=self.function)

    def ask(self, version: str, payload: dict[str, Any]) -> Any:
        """Invoke one version directly and return its answer; ReleaseRefused where it fails."""
        answer = self.client.invoke(FunctionName=self.function, Qualifier=version, Payload=json.dumps(payload).encode())
        body = json.loads(answer["Payload"].read())
        if "FunctionError" in answer:
            kind = body.get("errorType", "an error") if isinstance(body, dict) else "an error"
            raise ReleaseRefused(f"version {version} answered golden inputs with {kind}: see the function's log")
        return body

    def live_version(self) -> str:
        """The version behind the alias."""
        version: str = self.client.get_alias(FunctionName=self.function, Name=self.alias)["FunctionVersion"]
        return version

    def model_of(self, version: str) -> str:
        """The model URI that a version carries, or "none"."""
        config = self.client.get_function_configuration(FunctionName=self.function, Qualifier=version)
        uri: str = config.get("Environment", {}).get("Variables", {}).get("MODEL_URI", NONE)
        return uri

    def alike(self, version: str, other: str) -> bool:
        """Whether two versions have the same code and settings, but for the model; False where one is gone."""
        try:
            found = [
                self.client.get_function_configuration(FunctionName=self.function, Qualifier=one)
                for one in (version, other)
            ]
        except self.client.exceptions.ResourceNotFoundException:
            return False
        for config in found:
            config.get("Environment", {}).get("Variables", {}).pop("MODEL_URI", None)
        first, second = ({key: config.get(key) for key in SETTINGS} for config in found)
        return first == second

    def share(self, version: str, weight: float) -> None:
        """Let a version answer a share of what the alias is asked."""
        self._route(self.live_version(), {version: weight})

    def settle(self) -> None:
        """Let the version behind the alias answer everything again."""
        self._route(self.live_version(), {})

    def move(self, version: str, model_uri: str) -> str:
        """Move the alias, then the pointer; the version that served before. Both move or neither.

        AliasMoved where somebody else moves the alias at the same time.
        """
        alias = self.client.get_alias(FunctionName=self.function, Name=self.alias)
        before: str = alias["FunctionVersion"]
        try:
            self._route(version, {}, RevisionId=alias["RevisionId"])
        except self.client.exceptions.PreconditionFailedException:
            raise AliasMoved("the alias was moved at the same moment") from None
        try:
            self.ssm.put_parameter(Name=self.parameter, Value=model_uri, Type="String", Overwrite=True)
        except (ClientError, BotoCoreError):
            self._route(before, {})
            raise
        return before

    def _route(self, version: str, weights: dict[str, float], **more: str) -> None:
        self.client.update_alias(
            FunctionName=self.function,
            Name=self.alias,
            FunctionVersion=version,
            RoutingConfig={"AdditionalVersionWeights": weights},
            **more,
        )

    def calls(self, environment: str, version: str, since: int, until: int) -> tuple[int, int, float | None]:
        """What CloudWatch counted of a version behind the alias between two times in milliseconds.

        Calls, failed ones, and the 95th percentile of durations in milliseconds where there is one. An answer
        of 5xx is a failure too, of which Lambda knows nothing: the function tells it by a metric of its own.
        """
        behind = {
            "FunctionName": self.function,
            "Resource": f"{self.function}:{self.alias}",
            "ExecutedVersion": version,
        }
        told = {DIMENSION: environment, VERSION: version}
        # One period for a percentile, which cannot be made from those of parts.
        whole = 60 * max(1, math.ceil((until - since) / 60_000))
        wanted = [
            ("calls", "AWS/Lambda", "Invocations", behind, "Sum", 60),
            ("errors", "AWS/Lambda", "Errors", behind, "Sum", 60),
            ("duration", "AWS/Lambda", "Duration", behind, "p95", whole),
            ("failed", NAMESPACE, Metric.FAILED_REQUESTS.value, told, "Sum", 60),
        ]
        queries = [
            {
                "Id": id,
                "MetricStat": {
                    "Metric": {
                        "Namespace": namespace,
                        "MetricName": name,
                        "Dimensions": [{"Name": key, "Value": value} for key, value in dimensions.items()],
                    },
                    "Period": period,
                    "Stat": stat,
                },
            }
            for id, namespace, name, dimensions, stat, period in wanted
        ]
        start, end = (datetime.fromtimestamp(ms / 1000, UTC) for ms in (since, until))
        client = self.cloudwatch if self.cloudwatch is not None else boto3.client("cloudwatch")
        pages = client.get_paginator("get_metric_data").paginate(
            MetricDataQueries=queries, StartTime=start, EndTime=end
        )
        values: dict[str, list[float]] = {id: [] for id, *_ in wanted}
        for page in pages:
            for result in page["MetricDataResults"]:
                values[result["Id"]] += result["Values"]
        failed = sum(values["errors"]) + sum(values["failed"])
        return round(sum(values["calls"])), round(failed), max(values["duration"], default=None)


def serving_model(parameter: str, ssm: Any = None) -> str:
    """The URI of the serving model's folder, or "none" before the first promotion."""
    client = ssm if ssm is not None else boto3.client("ssm")
    value: str = client.get_parameter(Name=parameter)["Parameter"]["Value"]
    return value
