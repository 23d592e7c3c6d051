"""The stack that trains on AWS Batch, resolved with its parameters and held to the service's model and the workflow."""

import re
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.validate import validate_parameters

from retrue import lake
from retrue.local import localize

PROJECT = Path(__file__).resolve().parents[2]
MAIN: dict[str, Any] = localize.read(PROJECT / "template.yaml")
TEMPLATE: dict[str, Any] = localize.read(PROJECT / "infra/training.yaml")
RESOURCES: dict[str, Any] = TEMPLATE["Resources"]
WORKFLOW: dict[str, Any] = yaml.safe_load((PROJECT / "infra/retrain.asl.yaml").read_text())
GIVEN = {"Environment": "dev", "BucketName": "lake", "ImageUri": "123456789012.dkr.ecr.eu-central-1/retrue-train:1"}
DEFAULTS = {name: str(value["Default"]) for name, value in TEMPLATE["Parameters"].items() if "Default" in value}
# What costs nothing while no machine runs; logs and models cost what their bytes cost.
FREE = {
    "AWS::EC2::VPC", "AWS::EC2::InternetGateway", "AWS::EC2::VPCGatewayAttachment", "AWS::EC2::RouteTable",
    "AWS::EC2::Route", "AWS::EC2::Subnet", "AWS::EC2::SubnetRouteTableAssociation", "AWS::EC2::VPCEndpoint",
    "AWS::EC2::SecurityGroup", "AWS::EC2::SecurityGroupIngress", "AWS::EC2::SecurityGroupEgress",
    "AWS::EC2::PlacementGroup", "AWS::EC2::LaunchTemplate", "AWS::IAM::Role", "AWS::IAM::InstanceProfile",
    "AWS::IAM::RolePolicy",
    "AWS::Logs::LogGroup", "AWS::Batch::ComputeEnvironment", "AWS::Batch::JobQueue", "AWS::Batch::JobDefinition",
}  # fmt: skip
# Actions that IAM knows no resource for.
WITHOUT_RESOURCE = {"ecs:DiscoverPollEndpoint", "ecr:GetAuthorizationToken"}


class Absent:
    """AWS::NoValue."""


def resolved(value: Any, given: dict[str, str]) -> Any:
    """A part of the template with these parameters; what other resources are called is a text with their name."""
    values = {**DEFAULTS, **GIVEN, **given}
    several = values["Nodes"] != "1"
    conditions = {
        "UsesSpot": values["Spot"] == "true",
        "UsesKey": values["KeyArn"] != "none",
        "HasSeveralNodes": several,
        "HasOneNode": not several,
    }

    def walk(part: Any) -> Any:
        match part:
            case {"Ref": "AWS::NoValue"}:
                return Absent
            case {"Ref": name}:
                return values.get(name, name)
            case {"Fn::GetAtt": [name, attribute]}:
                return f"{name}.{attribute}"
            case {"Fn::Sub": text}:
                return re.sub(r"\$\{([\w:]+)\}", lambda found: values.get(found[1], found[1]), text)
            case {"Fn::If": [name, yes, no]}:
                return walk(yes if conditions[name] else no)
            case dict():
                return {key: found for key, item in part.items() if (found := walk(item)) is not Absent}
            case list():
                return [walk(item) for item in part]
        return part

    return walk(value)


def camel(value: Any) -> Any:
    """CloudFormation writes PascalCase where the API of Batch writes camelCase; the names of log options are data."""
    if isinstance(value, dict):
        return {key[0].lower() + key[1:]: item if key == "Options" else camel(item) for key, item in value.items()}
    return [camel(item) for item in value] if isinstance(value, list) else value


def numbers(request: Any, shape: Any) -> Any:
    """A request with numbers where the API wants them, which CloudFormation makes of a parameter's text."""
    if shape.type_name == "structure" and isinstance(request, dict):
        return {key: numbers(item, shape.members[key]) for key, item in request.items()}
    if shape.type_name == "list" and isinstance(request, list):
        return [numbers(item, shape.member) for item in request]
    return int(request) if shape.type_name in {"integer", "long"} else request


def asked(name: str, operation: str, renamed: dict[str, str], **given: str) -> dict[str, Any]:
    """What Batch is asked for a resource; ParamValidationError where its model knows no such request."""
    model = boto3.client("batch", region_name="eu-central-1").meta.service_model.operation_model(operation)
    request = camel(resolved(RESOURCES[name]["Properties"], given))
    request = {renamed.get(key, key): item for key, item in request.items()}
    for key in ("replaceComputeEnvironment", "updatePolicy"):  # of later updates
        request.pop(key, None)
    resources = request.get("computeResources", {})
    resources.pop("updateToLatestImageVersion", None)
    found: dict[str, Any] = numbers(request, model.input_shape)
    validate_parameters(found, model.input_shape)
    return found


@pytest.mark.parametrize(("spot", "nodes"), [("true", "1"), ("false", "1"), ("false", "4")])
def test_batch_knows_machines_that_go_when_nothing_trains(spot: str, nodes: str) -> None:
    machines = asked("ComputeEnvironment", "CreateComputeEnvironment", {}, Spot=spot, Nodes=nodes)["computeResources"]
    assert machines["minvCpus"] == 0
    assert "desiredvCpus" not in machines
    assert machines["type"] == ("SPOT" if spot == "true" else "EC2")
    assert ("placementGroup" in machines) is (nodes != "1")
    assert len(machines["subnets"]) == (2 if nodes == "1" else 1)  # several nodes stay in one zone


def test_batch_knows_the_queue_and_gives_up_a_job_that_gets_no_machine() -> None:
    queue = asked("Queue", "CreateJobQueue", {})
    assert queue["computeEnvironmentOrder"] == [{"order": 1, "computeEnvironment": "ComputeEnvironment"}]
    actions = {action["reason"]: action["maxTimeSeconds"] for action in queue["jobStateTimeLimitActions"]}
    assert actions["CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY"] == int(DEFAULTS["WaitSeconds"])


def test_batch_knows_both_definitions_which_run_the_same_container() -> None:
    one = asked("JobDefinition", "RegisterJobDefinition", {})
    several = asked("NodesDefinition", "RegisterJobDefinition", {}, Nodes="4", Spot="false")
    (nodes,) = several["nodeProperties"]["nodeRangeProperties"]
    assert (several["nodeProperties"]["numNodes"], nodes["targetNodes"]) == (4, "0:")
    assert nodes["container"] == one["containerProperties"]
    assert one["timeout"] == several["timeout"] == {"attemptDurationSeconds": int(DEFAULTS["Seconds"])}
    wanted = {need["type"]: need["value"] for need in one["containerProperties"]["resourceRequirements"]}
    assert wanted["GPU"] == "1"


def test_only_a_machine_that_was_taken_away_begins_an_attempt_again() -> None:
    retry = asked("JobDefinition", "RegisterJobDefinition", {})["retryStrategy"]
    assert retry["attempts"] > 1
    assert [rule["action"] for rule in retry["evaluateOnExit"]] == ["RETRY", "EXIT"]
    assert retry["evaluateOnExit"][0]["onStatusReason"] == "Host EC2*"


def test_the_container_gets_the_parameter_that_the_workflow_gives() -> None:
    train = WORKFLOW["States"]["Train"]["ItemProcessor"]["States"]["TrainOnBatch"]
    (given,) = train["Parameters"]["Parameters"]
    command = asked("JobDefinition", "RegisterJobDefinition", {})["containerProperties"]["command"]
    assert command == [f"Ref::{given.removesuffix('.$')}"]


def test_nothing_costs_money_while_nothing_trains() -> None:
    assert {resource["Type"] for resource in RESOURCES.values()} <= FREE
    assert RESOURCES["LakeEndpoint"]["Properties"]["VpcEndpointType"] == "Gateway"  # those of other types cost


def test_spot_with_several_nodes_is_refused_before_anything_is_made() -> None:
    (rule,) = TEMPLATE["Rules"].values()
    assert rule["RuleCondition"] == {"Fn::Equals": [{"Ref": "Spot"}, "true"]}
    assert [one["Assert"] for one in rule["Assertions"]] == [{"Fn::Equals": [{"Ref": "Nodes"}, "1"]}]


def statements(role: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for policy in role["Policies"] for item in policy["PolicyDocument"]["Statement"]]


@pytest.mark.parametrize("name", ["MachineRole", "JobRole"])
def test_a_role_names_each_action_and_resource_with_its_reason(name: str) -> None:
    role = RESOURCES[name]["Properties"]
    assert "ManagedPolicyArns" not in role
    for statement in statements(role):
        assert len(statement["Sid"]) > 12
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert not [action for action in actions if "*" in action]
        assert (statement["Resource"] == "*") is bool(WITHOUT_RESOURCE & set(actions)), statement["Sid"]


def test_a_job_may_do_in_the_lake_what_sagemaker_may() -> None:
    of_batch = {item["Sid"]: item["Action"] for item in statements(RESOURCES["JobRole"]["Properties"])}
    mine = [item for item in statements(MAIN["Resources"]["TrainRole"]["Properties"]) if "s3:" in str(item["Action"])]
    assert sorted(of_batch.values()) == sorted(item["Action"] for item in mine)
    places = resolved(RESOURCES["JobRole"]["Properties"], {})["Policies"][0]["PolicyDocument"]["Statement"]
    read = next(item["Resource"] for item in places if item["Action"] == "s3:GetObject")
    assert {place.rpartition("lake/")[2] for place in read} == {
        f"{folder}*" for folder in (lake.DATASETS, lake.ENCODERS, lake.RUNS)
    }


def test_the_main_template_gives_every_parameter_that_has_its_own_default_there() -> None:
    given = MAIN["Resources"]["Training"]["Properties"]["Parameters"]
    assert set(TEMPLATE["Parameters"]) == set(given)
    for name, value in given.items():
        if "Ref" in value and name in DEFAULTS:
            own = MAIN["Parameters"][value["Ref"]]
            assert str(own["Default"]) == DEFAULTS[name]
            for bound in ("MinValue", "MaxValue"):
                assert own.get(bound) == TEMPLATE["Parameters"][name].get(bound), name
    assert MAIN["Parameters"]["TrainInstance"]["Default"] == f"ml.{DEFAULTS['Instance']}"
    assert MAIN["Resources"]["Training"]["Condition"] == "MakesQueue"


@pytest.mark.parametrize("name", TEMPLATE["Parameters"])
def test_a_parameter_says_what_it_is_for(name: str) -> None:
    assert len(TEMPLATE["Parameters"][name]["Description"]) > 20


def test_both_outputs_are_those_that_the_main_template_takes() -> None:
    taken = set(re.findall(r"Outputs\.(\w+)", (PROJECT / "template.yaml").read_text()))
    assert taken == set(TEMPLATE["Outputs"])
