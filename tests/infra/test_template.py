"""The template, held to the code that runs in it."""

import ast
import dataclasses
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retrue import settings
from retrue.local import localize
from retrue.telemetry import DIMENSION, NAMESPACE, Metric

PROJECT = Path(__file__).resolve().parents[2]
TEMPLATE: dict[str, Any] = localize.read(PROJECT / "template.yaml")
RESOURCES: dict[str, Any] = TEMPLATE["Resources"]
SHAPES = {
    "PredictFunction": settings.Predict,
    "BatchFunction": settings.Batch,
    "MonitorFunction": settings.Monitor,
    "StepsFunction": settings.Steps,
    "ReleaseFunction": settings.Release,
}
# Read by libraries rather than by retrue.settings.
OF_LIBRARIES = {"ORT_DISABLE_TELEMETRY", "POWERTOOLS_LOG_LEVEL"}
# What a key's own policy calls * is that key.
BUT_KEYS = {name: resource for name, resource in RESOURCES.items() if resource["Type"] != "AWS::KMS::Key"}
# Actions that IAM knows no resource for.
WITHOUT_RESOURCE = {
    "batch:DescribeJobs": "lists jobs by id, and IAM has no resource type for it",
    "cloudwatch:GetMetricData": "reads metrics by name, and IAM has no resource type for it",
    "ecr:GetAuthorizationToken": "one token for the whole registry",
    "logs:CreateLogDelivery": "a state machine's log is delivered by the account, not by a resource",
    "logs:DeleteLogDelivery": "as above",
    "logs:DescribeLogGroups": "as above",
    "logs:DescribeResourcePolicies": "as above",
    "logs:GetLogDelivery": "as above",
    "logs:ListLogDeliveries": "as above",
    "logs:PutResourcePolicy": "as above",
    "logs:UpdateLogDelivery": "as above",
}
ASYNCHRONOUS = {"EventBridgeRule", "Schedule", "ScheduleV2", "S3", "SNS"}
# The rules of the functions' events.
MADE_BY_SAM = {"BatchFunctionDropped", "MonitorFunctionSchedule", "RetrainRequested"}


def of_type(kind: str) -> dict[str, Any]:
    return {name: resource["Properties"] for name, resource in RESOURCES.items() if resource["Type"] == kind}


FUNCTIONS = of_type("AWS::Serverless::Function")
ALARMS = of_type("AWS::CloudWatch::Alarm")


def inside(value: Any) -> Iterator[dict[str, Any]]:
    """Every dictionary in a value."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from inside(item)


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def references(value: Any) -> set[str]:
    """The names that Ref, GetAtt and Sub mention, without pseudo parameters."""
    found: set[str] = set()
    for item in inside(value):
        if isinstance(item.get("Ref"), str):
            found.add(item["Ref"].split(".")[0])
        if "Fn::GetAtt" in item:
            found.add(item["Fn::GetAtt"][0])
        if "Fn::Sub" in item:
            found |= {name.split(".")[0] for name in re.findall(r"\$\{([^!}]+)\}", item["Fn::Sub"])}
    return {name for name in found if not name.startswith("AWS::")}


def allowed(value: Any) -> list[tuple[str, list[str], list[Any]]]:
    """Allowing statements as (sid, actions, resources)."""
    return [
        (item.get("Sid", ""), listed(item["Action"]), listed(item["Resource"]))
        for item in inside(value)
        if item.get("Effect") == "Allow" and "Resource" in item
    ]


def test_every_function_is_known_here() -> None:
    assert set(FUNCTIONS) == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_variables_are_fields_of_the_settings_and_none_that_is_required_is_missing(name: str) -> None:
    everywhere = TEMPLATE["Globals"]["Function"]["Environment"]["Variables"]
    given = set(everywhere) | set(FUNCTIONS[name]["Environment"]["Variables"])
    fields = {field.name.upper(): field.default is dataclasses.MISSING for field in dataclasses.fields(SHAPES[name])}
    assert given - OF_LIBRARIES <= set(fields)
    assert {field for field, required in fields.items() if required} <= given


@pytest.mark.parametrize("name", SHAPES)
def test_fixed_values_and_defaults_of_parameters_can_be_read(name: str) -> None:
    everywhere = TEMPLATE["Globals"]["Function"]["Environment"]["Variables"]
    defaults = {key: str(value["Default"]) for key, value in TEMPLATE["Parameters"].items()}
    environ = {
        key: defaults.get(value["Ref"], "a name") if isinstance(value, dict) and "Ref" in value else str(value)
        for key, value in {**everywhere, **FUNCTIONS[name]["Environment"]["Variables"]}.items()
    }
    assert settings.read(SHAPES[name], environ).environment == defaults["Environment"]


def test_the_gate_has_the_same_defaults_in_the_template_as_in_the_program() -> None:
    from retrue import evaluation, gate

    given = FUNCTIONS["StepsFunction"]["Environment"]["Variables"]
    rules = {name: value["Ref"] for name, value in given.items() if name.startswith("GATE_")}
    assert set(rules) == {name.upper() for name in vars(settings.Steps) if name.startswith("gate_")}
    for name, parameter in rules.items():
        assert parameter.upper() == name.replace("_", "")
    fixed = {"BUCKET": "b", "ENVIRONMENT": "dev", "MODEL_PARAMETER": "/p", "STATE_MACHINE_ARN": "arn:machine"}
    defaults = {name: str(TEMPLATE["Parameters"][parameter]["Default"]) for name, parameter in rules.items()}
    assert evaluation.rules(settings.read(settings.Steps, fixed | defaults), "person") == gate.Rules()
    assert TEMPLATE["Parameters"]["GateMetric"]["AllowedValues"] == list(gate.METRICS)


def test_the_monitor_has_the_same_defaults_in_the_template_as_in_the_program() -> None:
    from retrue import detector, health

    given = FUNCTIONS["MonitorFunction"]["Environment"]["Variables"]
    names = [name for name, value in given.items() if isinstance(value, dict) and "Ref" in value]
    defaults = {name: str(TEMPLATE["Parameters"][given[name]["Ref"]]["Default"]) for name in names}
    fixed = {"BUCKET": "b", "ENVIRONMENT": "dev", "MODEL_PARAMETER": "/p"}
    found = settings.read(settings.Monitor, fixed | defaults)
    assert found == settings.Monitor("b", "dev", "/p")
    assert (found.run_length, found.label_run_length) == (detector.CHECKS, detector.LABELS)
    assert TEMPLATE["Parameters"]["RetrainMode"]["AllowedValues"] == list(health.MODES)
    policy = health.Policy()
    assert {name: getattr(found, name) for name in vars(policy)} == vars(policy)


def test_only_a_request_retrains_and_people_are_told_of_the_rest() -> None:
    from retrue import watch, workflow

    events = RESOURCES["Retrain"]["Properties"]["Events"]
    assert [event["Properties"]["Pattern"]["detail-type"] for event in events.values()] == [[workflow.REQUESTED]]
    told = RESOURCES["TellPeople"]["Properties"]["EventPattern"]["detail-type"]
    assert {workflow.REQUESTED, *told} == set(watch.TELLS.values())


@pytest.mark.parametrize("name", SHAPES)
def test_the_handler_is_a_function_of_the_app(name: str) -> None:
    module, _, function = FUNCTIONS[name]["ImageConfig"]["Command"][0].partition(".")
    path = PROJECT / Path(RESOURCES[name]["Metadata"]["Dockerfile"]).parent / f"{module}.py"
    defined = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    assert function in defined


@pytest.mark.parametrize("name", SHAPES)
def test_the_image_is_built_from_the_project_folder(name: str) -> None:
    metadata = RESOURCES[name]["Metadata"]
    assert metadata["DockerContext"] == "."
    assert (PROJECT / metadata["Dockerfile"]).is_file()
    assert FUNCTIONS[name]["PackageType"] == "Image"


@pytest.mark.parametrize("name", SHAPES)
def test_a_function_that_nobody_waits_for_keeps_what_failed(name: str) -> None:
    properties = FUNCTIONS[name]
    if ASYNCHRONOUS.isdisjoint(event["Type"] for event in properties.get("Events", {}).values()):
        assert "EventInvokeConfig" not in properties, "nobody invokes it asynchronously"
        return
    failed = properties["EventInvokeConfig"]["DestinationConfig"]["OnFailure"]
    assert failed["Type"] == "SQS"
    queue, _ = failed["Destination"]["Fn::GetAtt"]
    assert RESOURCES[queue]["Type"] == "AWS::SQS::Queue"
    may_send = [resources for _, actions, resources in allowed(properties["Policies"]) if "sqs:SendMessage" in actions]
    assert may_send == [[failed["Destination"]]]


def test_the_batch_function_hears_of_the_folders_that_its_jobs_come_from() -> None:
    from retrue.lake import INCOMING, LABELS

    pattern = FUNCTIONS["BatchFunction"]["Events"]["Dropped"]["Properties"]["Pattern"]
    assert {key["prefix"] for key in pattern["detail"]["object"]["key"]} == {INCOMING, LABELS}
    notifications = RESOURCES["Bucket"]["Properties"]["NotificationConfiguration"]
    assert notifications["EventBridgeConfiguration"]["EventBridgeEnabled"] is True


def test_the_workflow_hears_the_event_that_the_program_sends() -> None:
    from retrue.workflow import REQUESTED, SOURCE

    pattern = RESOURCES["Retrain"]["Properties"]["Events"]["Requested"]["Properties"]["Pattern"]
    assert (pattern["source"], pattern["detail-type"]) == ([SOURCE], [REQUESTED])
    assert pattern["detail"] == {"environment": [{"Ref": "Environment"}]}


@pytest.mark.parametrize("name", [name for name, alarm in ALARMS.items() if alarm["Namespace"] == NAMESPACE])
def test_an_alarm_watches_a_metric_that_is_published(name: str) -> None:
    alarm = ALARMS[name]
    assert alarm["MetricName"] in {metric.value for metric in Metric}
    assert alarm["Dimensions"] == [{"Name": DIMENSION, "Value": {"Ref": "Environment"}}]


@pytest.mark.parametrize("name", ALARMS)
def test_an_alarm_tells_somebody_and_says_what_it_means(name: str) -> None:
    alarm = ALARMS[name]
    assert alarm["AlarmActions"] == [{"Ref": "Topic"}]
    assert len(alarm["AlarmDescription"]) > 40
    assert "TreatMissingData" in alarm


def test_a_missing_heartbeat_is_an_alarm() -> None:
    alarm = ALARMS["HeartbeatAlarm"]
    assert alarm["MetricName"] == Metric.HEARTBEAT
    assert alarm["TreatMissingData"] == "breaching"
    assert (alarm["ComparisonOperator"], alarm["Threshold"], alarm["Statistic"]) == ("LessThanThreshold", 1, "Sum")


def test_no_statement_allows_everything() -> None:
    statements = allowed(BUT_KEYS)
    assert len(statements) > 20
    assert not [item for item in inside(RESOURCES) if {"NotAction", "NotResource"} & set(item)]
    for sid, actions, resources in statements:
        assert not [action for action in actions if "*" in action], sid
        if "*" in resources:
            assert set(actions) <= set(WITHOUT_RESOURCE), sid


def test_the_list_of_actions_without_a_resource_holds_no_more_than_is_used() -> None:
    used = {action for _, actions, resources in allowed(BUT_KEYS) if "*" in resources for action in actions}
    assert used == set(WITHOUT_RESOURCE)


def test_only_the_release_may_touch_what_serves() -> None:
    touching = {"lambda:UpdateAlias", "lambda:PublishVersion", "lambda:UpdateFunctionConfiguration", "ssm:PutParameter"}
    for name, resource in RESOURCES.items():
        found = {action for _, actions, _ in allowed(resource) for action in actions} & touching
        assert found == (touching if name == "ReleaseFunction" else set()), name


def test_a_parameter_of_what_serves_makes_a_new_version_when_it_changes() -> None:
    """The alias serves a version, which keeps the values that it was published with."""
    predict = dict(FUNCTIONS["PredictFunction"])
    described = predict.pop("VersionDescription")
    # What belongs to the function and not to its versions.
    for name in ("Events", "Policies", "ReservedConcurrentExecutions"):
        del predict[name]
    held = [predict, TEMPLATE["Globals"]["Function"]]
    conditions = [TEMPLATE["Conditions"][item["Fn::If"][0]] for item in inside(held) if "Fn::If" in item]
    # The name of all resources, and the model, which belongs to the workflow.
    fixed = {"Environment", "ServingModel"}
    assert references([*held, *conditions]) & TEMPLATE["Parameters"].keys() - fixed == references(described)


def test_what_a_function_may_read_and_write_are_folders_of_the_lake() -> None:
    from retrue import lake

    folders = {value for name, value in vars(lake).items() if name.isupper() and isinstance(value, str)}
    for sid, actions, resources in allowed(RESOURCES):
        if {"s3:GetObject", "s3:PutObject", "s3:DeleteObject"} & set(actions):
            for resource in resources:
                folder, _, _ = resource["Fn::Sub"].removeprefix("${Bucket.Arn}/").partition("*")
                assert any(folder.startswith(known) for known in folders), sid


def folders(function: str, action: str) -> set[str]:
    """The folders of the lake in which a function may do something."""
    statements = allowed(FUNCTIONS[function]["Policies"])
    found = {resource["Fn::Sub"] for _, actions, resources in statements if action in actions for resource in resources}
    return {name.removeprefix("${Bucket.Arn}/").removesuffix("*") for name in found}


def test_nothing_is_deleted_but_by_the_monitor_what_it_has_batched() -> None:
    from retrue.intake import PLACES

    queues, batched = ({place[side] for place in PLACES.values()} for side in (0, 1))
    may_delete = {
        name for name in FUNCTIONS if any("Delete" in action for _, a, _ in allowed(FUNCTIONS[name]) for action in a)
    }
    assert may_delete == {"MonitorFunction"}
    assert folders("MonitorFunction", "s3:DeleteObject") == queues
    assert folders("MonitorFunction", "s3:PutObject") == batched | {"reports/"}
    assert queues | batched <= folders("MonitorFunction", "s3:GetObject")


@pytest.mark.parametrize("name", ["PredictFunction", "BatchFunction"])
def test_a_prediction_is_found_whether_it_is_batched_or_not(name: str) -> None:
    assert {"capture/", "predictions/"} <= folders(name, "s3:GetObject")
    assert {"capture/", "feedback/"} <= folders(name, "s3:PutObject")
    assert "predictions/" not in folders(name, "s3:PutObject")


def test_a_snapshot_reads_labels_whether_they_are_batched_or_not() -> None:
    assert {"feedback/", "labelled/"} <= folders("StepsFunction", "s3:GetObject")


def test_records_are_kept_for_as_long_as_they_are_asked_for() -> None:
    from retrue.intake import PLACES

    rules = RESOURCES["Bucket"]["Properties"]["LifecycleConfiguration"]["Rules"]
    assert all(rule["Status"] == "Enabled" for rule in rules)
    expiring = {rule["Prefix"]: rule for rule in rules if "ExpirationInDays" in rule}
    parts = expiring.pop("parts/")  # needed for as long as a workflow runs, and they hold texts
    assert (parts["ExpirationInDays"], parts.pop("NoncurrentVersionExpiration")) == (7, {"NoncurrentDays": 1})
    assert set(expiring) == {folder for places in PLACES.values() for folder in places}
    assert min(rule["ExpirationInDays"] for rule in expiring.values()) > settings.Steps.feedback_days
    # A queue that was emptied must leave nothing behind: neither what was deleted, nor the marks that it was.
    emptied = {queue for queue, _ in PLACES.values()}
    assert {prefix for prefix, rule in expiring.items() if "NoncurrentVersionExpiration" in rule} == emptied
    assert {rule["Prefix"] for rule in rules if rule.get("ExpiredObjectDeleteMarker")} == emptied


@pytest.mark.parametrize("name", ["PredictFunction", "BatchFunction"])
def test_a_share_is_kept_as_the_program_does_unless_told_otherwise(name: str) -> None:
    assert FUNCTIONS[name]["Environment"]["Variables"]["CAPTURE_RATE"] == {"Ref": "CaptureRate"}
    assert TEMPLATE["Parameters"]["CaptureRate"]["Default"] == SHAPES[name].capture_rate == 1


def test_the_bucket_is_private_encrypted_and_versioned() -> None:
    bucket = RESOURCES["Bucket"]["Properties"]
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert len(bucket["PublicAccessBlockConfiguration"]) == 4
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    (rule,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert rule["ServerSideEncryptionByDefault"]["SSEAlgorithm"] == {"Fn::If": ["UsesCustomerKey", "aws:kms", "AES256"]}
    assert RESOURCES["Bucket"]["DeletionPolicy"] == RESOURCES["Bucket"]["UpdateReplacePolicy"] == "Retain"


def test_the_bucket_refuses_connections_that_are_not_encrypted() -> None:
    (statement,) = RESOURCES["BucketPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    assert (statement["Effect"], statement["Principal"], statement["Action"]) == ("Deny", "*", "s3:*")
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_every_route_belongs_to_the_one_api() -> None:
    for name, properties in FUNCTIONS.items():
        for event in properties.get("Events", {}).values():
            if event["Type"] == "Api":
                assert event["Properties"]["RestApiId"] == {"Ref": "Api"}, name
                assert "Auth" not in event["Properties"], name


def test_the_routes_are_those_of_the_app() -> None:
    tree = ast.parse((PROJECT / "functions/predict/app.py").read_text())
    served = {
        (call.func.attr, str(ast.literal_eval(call.args[0])).replace("<", "{").replace(">", "}"))
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        for call in node.decorator_list
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in {"get", "post"}
    }
    events = FUNCTIONS["PredictFunction"]["Events"].values()
    assert {(event["Properties"]["Method"], event["Properties"]["Path"]) for event in events} == served


def test_the_api_waits_as_long_as_the_function_may_take() -> None:
    assert FUNCTIONS["PredictFunction"]["Timeout"] <= 29  # the most that API Gateway waits


@pytest.mark.parametrize("name", TEMPLATE["Parameters"])
def test_a_parameter_says_what_it_is_for_and_is_used(name: str) -> None:
    parameter = TEMPLATE["Parameters"][name]
    assert len(parameter["Description"]) > 20
    assert "Default" in parameter
    assert name in references([RESOURCES, TEMPLATE["Conditions"], TEMPLATE["Globals"]])


@pytest.mark.parametrize("name", TEMPLATE["Parameters"])
def test_a_parameter_takes_no_value_that_cannot_work(name: str) -> None:
    parameter = TEMPLATE["Parameters"][name]
    default = parameter["Default"]
    if "AllowedValues" in parameter:
        assert default in parameter["AllowedValues"]
    elif parameter["Type"] == "Number":
        assert parameter["MinValue"] <= default <= parameter["MaxValue"]
    elif parameter["Type"] == "String":
        assert re.fullmatch(parameter["AllowedPattern"], default)
    else:
        assert parameter["Type"] == "AWS::SSM::Parameter::Value<String>", "CloudFormation looks whether it exists"


def test_every_name_that_is_referred_to_exists() -> None:
    known = set(TEMPLATE["Parameters"]) | set(RESOURCES) | MADE_BY_SAM
    # What ${…} means in the gateway's own templates and in the workflow is not CloudFormation's.
    assert references([RESOURCES, TEMPLATE["Outputs"], TEMPLATE["Globals"]]) <= known


def test_every_condition_is_used_and_exists() -> None:
    used = {item["Condition"] for item in RESOURCES.values() if "Condition" in item}
    used |= {item["Condition"] for item in TEMPLATE["Outputs"].values() if "Condition" in item}
    used |= {item["Fn::If"][0] for item in inside(RESOURCES) if "Fn::If" in item}
    used |= {item["Condition"] for item in inside(TEMPLATE["Conditions"]) if "Condition" in item}
    assert used == set(TEMPLATE["Conditions"])


def test_the_outputs_are_those_that_the_program_reads() -> None:
    read: set[str] = set()
    for path in (PROJECT / "src/retrue").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Subscript)
                and isinstance(node.value, ast.Attribute)
                and node.value.attr == "outputs"
                and isinstance(node.slice, ast.Constant)
            ):
                read.add(str(node.slice.value))
    assert {"BucketName", "ApiUrl", "ActivityArn"} <= read
    assert read <= set(TEMPLATE["Outputs"])


def test_the_outputs_that_the_readme_names_are_there() -> None:
    deploying = (PROJECT / "README.md").read_text().partition("## Deploying to AWS")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([A-Z][A-Za-z]+)`", deploying)) - set(TEMPLATE["Parameters"])
    assert {"ApiUrl", "BucketName", "DashboardUrl", "DeadLettersUrl"} <= named <= set(TEMPLATE["Outputs"])


@pytest.mark.parametrize("name", TEMPLATE["Outputs"])
def test_an_output_says_what_it_is(name: str) -> None:
    assert len(TEMPLATE["Outputs"][name]["Description"]) > 10


GUIDE = (PROJECT / "docs/deploy.md").read_text()


def test_the_guide_to_deploying_names_every_setting_and_no_other() -> None:
    named = {word for word, _ in re.findall(r"`([A-Z][A-Za-z0-9]+)(=[a-z]+)?`", GUIDE)}
    assert named <= set(TEMPLATE["Parameters"]) | set(TEMPLATE["Outputs"])
    assert {name for name in TEMPLATE["Parameters"] if not name.startswith("Train")} <= named


CONFIG = tomllib.loads((PROJECT / "samconfig.toml").read_text())
ENVIRONMENTS = {name: table["deploy"]["parameters"] for name, table in CONFIG.items() if name != "version"}


def overrides(name: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in ENVIRONMENTS[name]["parameter_overrides"].split())


def test_production_keeps_no_text_and_asks_before_it_deploys() -> None:
    assert overrides("prod")["KeepText"] == "false"
    assert ENVIRONMENTS["prod"]["confirm_changeset"] is True
    assert TEMPLATE["Parameters"]["KeepText"]["Default"] == "false"


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_deployment_names_parameters_of_the_template_and_a_pointer_of_its_own(name: str) -> None:
    given = overrides(name)
    assert set(given) <= set(TEMPLATE["Parameters"])
    assert re.fullmatch(TEMPLATE["Parameters"]["Environment"]["AllowedPattern"], given["Environment"])
    pointer = FUNCTIONS["BatchFunction"]["Environment"]["Variables"]["MODEL_PARAMETER"]["Fn::Sub"]
    assert given["ServingModel"] == pointer.replace("${Environment}", given["Environment"])
    assert ENVIRONMENTS[name]["stack_name"] == f"retrue-{given['Environment']}"


def test_the_guide_tells_how_the_environments_differ() -> None:
    rows = {
        cells[0]: cells[1:]
        for cells in (
            [cell.strip() for cell in line.strip("|").split("|")] for line in GUIDE.splitlines() if "|" in line
        )
    }
    assert rows[""] == list(ENVIRONMENTS) == ["dev", "staging", "prod"]
    assert rows["texts of predictions are kept"] == [
        {"true": "yes", "false": "no"}[overrides(name)["KeepText"]] for name in ENVIRONMENTS
    ]
    assert rows["logs are kept for"] == [f"{overrides(name)['LogDays']} days" for name in ENVIRONMENTS]
    asks = [ENVIRONMENTS[name].get("confirm_changeset", False) for name in ENVIRONMENTS]
    assert rows["asks before it changes anything"] == ["yes" if one else "no" for one in asks]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_environment_gives_only_values_that_the_template_takes(name: str) -> None:
    for parameter, value in overrides(name).items():
        rule = TEMPLATE["Parameters"][parameter]
        assert value in [str(one) for one in rule.get("AllowedValues", [value])]
        assert re.fullmatch(rule.get("AllowedPattern", ".*"), value)
