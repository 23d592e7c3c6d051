"""The predict function as Lambda finds it, with a real model, and an S3 that lives in this process."""

import importlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import boto3
import pytest
from moto import mock_aws

from retrue import artifact
from retrue.lake import Lake

PREDICT = Path(__file__).parents[2] / "functions" / "predict"
MODULES = ("app", "gateway", "problems", "server", "shapes")


@pytest.fixture
def lake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Lake]:
    monkeypatch.setenv("BUCKET", "lake")
    monkeypatch.setenv("ENVIRONMENT", "test")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with mock_aws():
        client = boto3.client("s3")
        where = {"LocationConstraint": client.meta.region_name}
        client.create_bucket(Bucket="lake", CreateBucketConfiguration=where)
        yield Lake("lake", client)


@pytest.fixture
def model(lake: Lake, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of the model that serves, from the lake."""
    id = artifact.identity(tiny_model)
    lake.upload_folder(tiny_model, f"models/{id}/")
    monkeypatch.setenv("MODEL_URI", lake.uri(f"models/{id}/"))
    return id


@pytest.fixture
def api(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A fresh app.py, found as Lambda finds it: with its own folder first in the path."""
    monkeypatch.syspath_prepend(str(PREDICT))
    for name in MODULES:
        sys.modules.pop(name, None)
    yield importlib.import_module("app")
    for name in MODULES:
        sys.modules.pop(name, None)
