"""The template, made fit for a machine without containers."""

import io
import os
import zipfile
from pathlib import Path

import pytest

from retrue.local import localize

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def template() -> dict[str, object]:
    return localize.read(PROJECT / "template.yaml")


def test_short_tags_are_read_into_their_long_forms(tmp_path: Path) -> None:
    path = tmp_path / "template.yaml"
    path.write_text("a: !GetAtt Bucket.Arn\nb: !Ref Bucket\nc: !If [Has, !Sub '${A}-x', !Ref AWS::NoValue]\n")
    assert localize.read(path) == {
        "a": {"Fn::GetAtt": ["Bucket", "Arn"]},
        "b": {"Ref": "Bucket"},
        "c": {"Fn::If": ["Has", {"Fn::Sub": "${A}-x"}, {"Ref": "AWS::NoValue"}]},
    }


def test_every_image_function_becomes_a_process_with_the_same_handler(template: dict[str, object]) -> None:
    zips = localize.packages(PROJECT, template)
    local = localize.localize(PROJECT, template, zips, "packages", "arn:activity")
    functions = {k: v for k, v in local["Resources"].items() if v["Type"] == "AWS::Serverless::Function"}
    assert set(functions) == set(zips)
    for name, function in functions.items():
        properties = function["Properties"]
        wanted = template["Resources"][name]["Properties"]["ImageConfig"]["Command"][0]  # type: ignore[index]
        assert (properties["Handler"], properties["Runtime"]) == (wanted, "provided.al2023")
        assert properties["CodeUri"] == {"Bucket": "packages", "Key": localize.key(name, zips[name])}
        assert "PackageType" not in properties
        assert wanted.split(".")[0] + ".py" in zipfile.ZipFile(io.BytesIO(zips[name])).namelist()


def test_equal_code_gives_an_equal_package_and_other_code_another(template: dict[str, object], tmp_path: Path) -> None:
    assert localize.packages(PROJECT, template) == localize.packages(PROJECT, template)
    for part in ("src/retrue", "functions"):
        for path in (PROJECT / part).rglob("*.py"):
            copy = tmp_path / path.relative_to(PROJECT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    before = localize.packages(tmp_path, template)
    changed = tmp_path / "functions/batch/app.py"
    changed.write_text(changed.read_text() + "\n# changed\n")
    after = localize.packages(tmp_path, template)
    assert [name for name in before if before[name] != after[name]] == ["BatchFunction"]


def test_a_package_holds_every_file_of_the_program(template: dict[str, object]) -> None:
    held = set(zipfile.ZipFile(io.BytesIO(localize.packages(PROJECT, template)["MonitorFunction"])).namelist())
    root = PROJECT / "src"
    files = {path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path.relative_to(root).as_posix() for path in files} <= held | {"retrue/py.typed"}


def test_the_bootstrap_starts_the_runtime_client_of_the_image(template: dict[str, object]) -> None:
    body = localize.packages(PROJECT, template, python="/opt/my python/bin/python")["PredictFunction"]
    archive = zipfile.ZipFile(io.BytesIO(body))
    assert (
        archive.read("bootstrap").decode().endswith("exec '/opt/my python/bin/python' -m awslambdaric \"$_HANDLER\"\n")
    )
    assert archive.getinfo("bootstrap").external_attr >> 16 & os.X_OK


LACKING = {"AWS::Budgets::Budget", "AWS::WAFv2::WebACLAssociation", "AWS::StepFunctions::Activity"}


def test_what_the_local_cloud_does_not_know_is_left_out_or_made_only_when_asked_for(
    template: dict[str, object],
) -> None:
    local = localize.localize(PROJECT, template, localize.packages(PROJECT, template), "packages", "arn:activity")
    assert {resource["Type"] for resource in template["Resources"].values()} >= LACKING  # type: ignore[attr-defined]
    asked = {resource["Condition"] for resource in local["Resources"].values() if resource["Type"] in LACKING}
    # Each of these compares one parameter with a value that its default is not, and no local default changes that.
    assert asked == {"HasBudget", "UsesWaf"}
    parameters = template["Parameters"]  # type: ignore[index]
    assert (parameters["MonthlyBudget"]["Default"], parameters["Waf"]["Default"]) == (0, "false")
    assert local["Conditions"]["HasBudget"] == {"Fn::Not": [{"Fn::Equals": [{"Ref": "MonthlyBudget"}, 0]}]}
    assert local["Conditions"]["UsesWaf"] == {"Fn::Equals": [{"Ref": "Waf"}, "true"]}


def test_the_activity_is_named_from_outside_and_the_workflow_is_inline(template: dict[str, object]) -> None:
    local = localize.localize(PROJECT, template, localize.packages(PROJECT, template), "packages", "arn:activity")
    assert "TrainActivity" not in local["Resources"]
    workflow = local["Resources"]["Retrain"]["Properties"]
    assert workflow["DefinitionSubstitutions"]["TrainActivity"] == "arn:activity"
    assert workflow["Definition"]["StartAt"] == "Begin"
    assert local["Outputs"]["ActivityArn"]["Value"] == "arn:activity"
