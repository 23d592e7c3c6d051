"""A cloud that lives in this process, with a lake and a predict function, and models that disagree."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from retrue.classifier import Classifier
from retrue.lake import Lake
from retrue.release import Release

BUCKET, PARAMETER = "retrue-test", "/retrue/test/model"


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
