"""What the lake asks of S3, asked of the local cloud with no more permissions than the monitor has."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError

from retrue.intake import Intake
from retrue.lake import CAPTURE, LABELLED, PREDICTIONS, Lake
from retrue.local import cloud
from retrue.local.home import Home, session
from retrue.records import Prediction, iso, new_id

PROJECT = Path(__file__).resolve().parents[2]
NOW = 1_767_259_800_000  # 2026-01-01T09:30Z
MAY = {
    "s3:ListBucket": ["arn:aws:s3:::lake"],
    "s3:GetObject": [f"arn:aws:s3:::lake/{folder}*" for folder in (CAPTURE, PREDICTIONS, "reports/")],
    "s3:PutObject": [f"arn:aws:s3:::lake/{folder}*" for folder in (CAPTURE, PREDICTIONS, "reports/")],
    "s3:DeleteObject": [f"arn:aws:s3:::lake/{CAPTURE}*"],
}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = Home(tmp_path_factory.mktemp("storage"))
    process = cloud.start(home, PROJECT / ".venv-cloud/bin/python", port)
    try:
        owner = session(f"http://127.0.0.1:{port}")
        owner.client("s3").create_bucket(Bucket="lake")
        iam = owner.client("iam")
        iam.create_user(UserName="monitor")
        statements = [{"Effect": "Allow", "Action": action, "Resource": where} for action, where in MAY.items()]
        document = json.dumps({"Version": "2012-10-17", "Statement": statements})
        iam.put_user_policy(UserName="monitor", PolicyName="monitor", PolicyDocument=document)
        key = iam.create_access_key(UserName="monitor")["AccessKey"]
        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            aws_access_key_id=key["AccessKeyId"],
            aws_secret_access_key=key["SecretAccessKey"],
            aws_session_token=None,
        )
        yield Lake("lake", client)
    finally:
        process.terminate()
        process.wait(30)


def test_a_queue_is_batched_and_emptied(lake: Lake) -> None:
    made = [
        Prediction(new_id(NOW + n, os.urandom(10)), iso(NOW + n), "m1", "a", 0.5, {"a": 0.5}, 7, False, [0.5], "http")
        for n in range(20)
    ]
    for one in made:
        lake.write_predictions([one])
    with Intake(lake, Prediction) as found:
        assert list(found) == made
        found.commit()
    assert list(lake.keys(CAPTURE)) == []
    assert lake.find_prediction(made[7].id) == made[7]


def test_batched_records_may_not_be_deleted(lake: Lake) -> None:
    lake.put(f"{PREDICTIONS}x", b"")
    with pytest.raises(ClientError, match="AccessDenied"):
        lake.delete([f"{PREDICTIONS}x"])
    with pytest.raises(ClientError, match="AccessDenied"):
        lake.put(f"{LABELLED}x", b"")


def test_of_two_writers_of_one_document_the_later_is_told(lake: Lake) -> None:
    assert lake.get_versioned("reports/state.json") == (None, None)
    assert lake.put_json_if("reports/state.json", {"checks": 1}, None)
    assert not lake.put_json_if("reports/state.json", {"checks": 1}, None)
    value, version = lake.get_versioned("reports/state.json")
    assert value == {"checks": 1}
    assert lake.put_json_if("reports/state.json", {"checks": 2}, version)
    assert not lake.put_json_if("reports/state.json", {"checks": 2}, version)
    assert not lake.put_json_if("reports/nothing.json", {}, version)
