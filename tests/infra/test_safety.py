"""The template as a reviewer reads it: who may call, what is encrypted, what is kept of failures, what is logged."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retrue import lake, settings
from retrue.local import localize

PROJECT = Path(__file__).resolve().parents[2]
TEXT = (PROJECT / "template.yaml").read_text()
TEMPLATE: dict[str, Any] = localize.read(PROJECT / "template.yaml")
RESOURCES: dict[str, Any] = TEMPLATE["Resources"]
PARAMETERS: dict[str, Any] = TEMPLATE["Parameters"]
KEY = {"Fn::GetAtt": ["Key", "Arn"]}
NOTHING = {"Ref": "AWS::NoValue"}
QUEUE = {"Fn::GetAtt": ["DeadLetters", "Arn"]}
# Lambda answers these at once and works on by itself, so nobody is there to hear of a failure.
UNHEARD = {"EventBridgeRule", "Schedule"}
WRITES = {"s3:PutObject", "s3:GetObject", "s3:DeleteObject"}


def of_type(kind: str) -> dict[str, Any]:
    return {name: resource["Properties"] for name, resource in RESOURCES.items() if resource["Type"] == kind}


FUNCTIONS = of_type("AWS::Serverless::Function")
API = RESOURCES["Api"]["Properties"]
EVENTS = [
    (f"{name}{event}", body)
    for name, resource in RESOURCES.items()
    if resource["Type"].startswith("AWS::Serverless::")
    for event, body in resource["Properties"].get("Events", {}).items()
]


def inside(value: Any) -> Iterator[dict[str, Any]]:
    """Every dictionary in a value."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from inside(item)


def resolved(value: Any, conditions: dict[str, bool]) -> Any:
    """A value as CloudFormation would see it where these conditions hold; what it leaves out is None."""
    if isinstance(value, dict) and "Fn::If" in value:
        name, then, otherwise = value["Fn::If"]
        return resolved(then if conditions[name] else otherwise, conditions)
    if value == NOTHING:
        return None
    if isinstance(value, dict):
        return {key: resolved(item, conditions) for key, item in value.items()}
    return [resolved(item, conditions) for item in value] if isinstance(value, list) else value


def actions(value: Any) -> set[str]:
    """Every action that is allowed somewhere in a value."""
    allowing = [item["Action"] for item in inside(value) if item.get("Effect") == "Allow"]
    return {action for item in allowing for action in (item if isinstance(item, list) else [item])}


# who may call
@pytest.mark.parametrize(
    ("mode", "scheme", "proof"),
    [
        ("key", "api_key", {"type": "apiKey", "name": "x-api-key", "in": "header"}),
        ("iam", "sigv4", {"x-amazon-apigateway-authtype": "awsSigv4"}),
        ("jwt", "jwt", {"x-amazon-apigateway-authtype": "cognito_user_pools"}),
    ],
)
@pytest.mark.parametrize("scoped", [False, True])
def test_no_route_is_open_in_any_mode(mode: str, scheme: str, proof: dict[str, str], scoped: bool) -> None:
    conditions = {"UsesIam": mode == "iam", "UsesJwt": mode == "jwt", "HasScope": scoped}
    document = resolved(API["DefinitionBody"], conditions)
    (found,) = document["components"]["securitySchemes"].items()
    assert found[0] == scheme
    assert proof.items() <= found[1].items()
    routes = {
        (path, method): operation["security"]
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    events = FUNCTIONS["PredictFunction"]["Events"].values()
    assert set(routes) == {(event["Properties"]["Path"], event["Properties"]["Method"]) for event in events}
    scopes = [{"Ref": "JwtScope"}] if mode == "jwt" and scoped else []
    assert all(security == [{scheme: scopes}] for security in routes.values())


def test_each_mode_has_its_condition_and_none_is_open() -> None:
    modes = PARAMETERS["ApiAuth"]["AllowedValues"]
    conditions = {f"Uses{mode.capitalize()}": {"Fn::Equals": [{"Ref": "ApiAuth"}, mode]} for mode in modes}
    assert conditions.items() <= TEMPLATE["Conditions"].items()
    assert modes == ["key", "iam", "jwt"]
    assert PARAMETERS["ApiAuth"]["Default"] == "key"


def test_tokens_without_a_user_pool_are_refused_before_anything_is_made() -> None:
    rule = TEMPLATE["Rules"]["TokensNeedAUserPool"]
    assert rule["RuleCondition"] == {"Fn::Equals": [{"Ref": "ApiAuth"}, "jwt"]}
    assert rule["Assertions"][0]["Assert"] == {"Fn::Not": [{"Fn::Equals": [{"Ref": "JwtUserPool"}, ""]}]}


def test_every_request_is_throttled_and_a_key_by_its_plan_too() -> None:
    (all_routes,) = API["MethodSettings"]
    assert (all_routes["HttpMethod"], all_routes["ResourcePath"]) == ("*", "/*")
    limits = {"ThrottlingRateLimit": {"Ref": "ApiRate"}, "ThrottlingBurstLimit": {"Ref": "ApiBurst"}}
    assert limits.items() <= all_routes.items()
    plan = RESOURCES["UsagePlan"]["Properties"]
    assert plan["Throttle"] == {"RateLimit": {"Ref": "ApiRate"}, "BurstLimit": {"Ref": "ApiBurst"}}
    assert plan["ApiStages"] == [{"ApiId": {"Ref": "Api"}, "Stage": {"Ref": "Api.Stage"}}]
    assert RESOURCES["UsagePlanKey"]["Properties"]["UsagePlanId"] == {"Ref": "UsagePlan"}
    assert {RESOURCES[name]["Condition"] for name in ("ApiKey", "UsagePlan", "UsagePlanKey")} == {"UsesKey"}


def test_the_size_of_a_request_is_limited_as_in_the_program_unless_told_otherwise() -> None:
    for name, shape in (("PredictFunction", settings.Predict), ("BatchFunction", settings.Batch)):
        given = FUNCTIONS[name]["Environment"]["Variables"]
        for variable in {"MAX_INPUTS", "MAX_CHARACTERS"} & {field.upper() for field in vars(shape)["__annotations__"]}:
            assert PARAMETERS[given[variable]["Ref"]]["Default"] == getattr(shape, variable.lower()), name
    assert "REQUEST_TOO_LARGE" in API["GatewayResponses"]


def test_the_firewall_judges_no_body_by_its_size_or_its_words() -> None:
    rules = {rule["Name"]: rule for rule in RESOURCES["Firewall"]["Properties"]["Rules"]}
    common = rules["common"]["Statement"]["ManagedRuleGroupStatement"]
    counted = {rule["Name"] for rule in common["RuleActionOverrides"] if rule["ActionToUse"] == {"Count": {}}}
    # The rules of that group that look at bodies, as AWS documents them.
    assert counted == {
        "SizeRestrictions_BODY",
        "CrossSiteScripting_BODY",
        "GenericLFI_BODY",
        "GenericRFI_BODY",
        "EC2MetaDataSSRF_BODY",
    }
    assert not [item for item in inside(RESOURCES["Firewall"]) if "SizeConstraintStatement" in item]
    assert rules["too-many"]["Action"] == {"Block": {}}
    assert rules["too-many"]["Statement"]["RateBasedStatement"]["Limit"] == {"Ref": "WafRate"}


def test_the_firewall_stands_before_the_stage_and_keeps_no_samples_of_requests() -> None:
    before = RESOURCES["FirewallBeforeTheApi"]
    assert before["Properties"]["ResourceArn"]["Fn::Sub"].endswith("/restapis/${Api}/stages/${Api.Stage}")
    assert before["Condition"] == RESOURCES["Firewall"]["Condition"] == "UsesWaf"
    seen = [
        item["SampledRequestsEnabled"] for item in inside(RESOURCES["Firewall"]) if "SampledRequestsEnabled" in item
    ]
    assert len(seen) == 1 + len(RESOURCES["Firewall"]["Properties"]["Rules"])
    assert not any(seen)


@pytest.mark.parametrize(("name", "parameter"), [("Predict", "PredictConcurrency"), ("Batch", "BatchConcurrency")])
def test_what_the_world_can_start_can_be_turned_off(name: str, parameter: str) -> None:
    limit = FUNCTIONS[f"{name}Function"]["ReservedConcurrentExecutions"]
    assert resolved(limit, {f"Limits{name}": True}) == {"Ref": parameter}
    assert resolved(limit, {f"Limits{name}": False}) is None
    assert re.fullmatch(PARAMETERS[parameter]["AllowedPattern"], "0")


# what is kept of failures
@pytest.mark.parametrize(("name", "event"), [(name, event) for name, event in EVENTS if event["Type"] in UNHEARD])
def test_an_event_that_reaches_nobody_is_kept(name: str, event: dict[str, Any]) -> None:
    assert event["Properties"]["DeadLetterConfig"] == {"Arn": QUEUE}
    allowing = RESOURCES["DeadLettersPolicy"]["Properties"]["PolicyDocument"]["Statement"][0]
    assert {"Fn::GetAtt": [name, "Arn"]} in allowing["Condition"]["ArnEquals"]["aws:SourceArn"]


@pytest.mark.parametrize("name", of_type("AWS::Events::Rule"))
def test_a_rule_keeps_what_it_could_not_deliver(name: str) -> None:
    assert [target["DeadLetterConfig"] for target in RESOURCES[name]["Properties"]["Targets"]] == [{"Arn": QUEUE}]
    allowing = RESOURCES["DeadLettersPolicy"]["Properties"]["PolicyDocument"]["Statement"][0]
    assert {"Fn::GetAtt": [name, "Arn"]} in allowing["Condition"]["ArnEquals"]["aws:SourceArn"]


def test_only_these_rules_may_put_events_into_the_queue() -> None:
    allowing, denying = RESOURCES["DeadLettersPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    rules = {name for name, event in EVENTS if event["Type"] in UNHEARD} | set(of_type("AWS::Events::Rule"))
    assert {arn["Fn::GetAtt"][0] for arn in allowing["Condition"]["ArnEquals"]["aws:SourceArn"]} == rules
    assert (allowing["Principal"], allowing["Action"]) == ({"Service": "events.amazonaws.com"}, "sqs:SendMessage")
    assert denying["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


@pytest.mark.parametrize("name", of_type("AWS::SQS::Queue"))
def test_a_queue_has_an_alarm_on_its_depth(name: str) -> None:
    dimension = [{"Name": "QueueName", "Value": {"Fn::GetAtt": [name, "QueueName"]}}]
    (alarm,) = [alarm for alarm in of_type("AWS::CloudWatch::Alarm").values() if alarm["Dimensions"] == dimension]
    assert (alarm["MetricName"], alarm["Threshold"]) == ("ApproximateNumberOfMessagesVisible", 1)


# what is logged
def logs(name: str) -> dict[str, Any]:
    """The log group that a function or a state machine writes to."""
    properties = RESOURCES[name]["Properties"]
    if RESOURCES[name]["Type"] == "AWS::Serverless::Function":
        group = properties["LoggingConfig"]["LogGroup"]["Ref"]
    else:
        (to,) = properties["Logging"]["Destinations"]
        group = to["CloudWatchLogsLogGroup"]["LogGroupArn"]["Fn::GetAtt"][0]
    found: dict[str, Any] = RESOURCES[group]["Properties"]
    return found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_logs_where_lambda_would_look_for_it(name: str) -> None:
    function = FUNCTIONS[name]["FunctionName"]["Fn::Sub"]
    assert logs(name)["LogGroupName"] == {"Fn::Sub": f"/aws/lambda/{function}"}


def test_every_log_group_is_used_and_forgets() -> None:
    groups = of_type("AWS::Logs::LogGroup")
    machines = of_type("AWS::Serverless::StateMachine")
    used = [logs(name)["LogGroupName"]["Fn::Sub"] for name in [*FUNCTIONS, *machines]]
    used.append(
        RESOURCES[API["AccessLogSetting"]["DestinationArn"]["Fn::GetAtt"][0]]["Properties"]["LogGroupName"]["Fn::Sub"]
    )
    assert sorted(used) == sorted(group["LogGroupName"]["Fn::Sub"] for group in groups.values())
    assert all(group["RetentionInDays"] == {"Ref": "LogDays"} for group in groups.values())


def test_no_log_outside_the_functions_can_hold_a_text_or_a_secret() -> None:
    (all_routes,) = API["MethodSettings"]
    assert all_routes["DataTraceEnabled"] is False
    assert all_routes["LoggingLevel"] == "OFF"
    written = json.loads(API["AccessLogSetting"]["Format"])
    # None of these is anything that a caller sends.
    assert set(written.values()) == {
        "$context.requestId",
        "$context.requestTime",
        "$context.httpMethod",
        "$context.resourcePath",
        "$context.status",
        "$context.error.responseType",
        "$context.responseLength",
        "$context.responseLatency",
        "$context.integrationLatency",
    }
    for machine in of_type("AWS::Serverless::StateMachine").values():
        assert machine["Logging"]["IncludeExecutionData"] is False
        assert machine["Logging"]["Level"] != "OFF"


# encryption
def test_a_key_of_the_deployment_encrypts_all_that_holds_data() -> None:
    own, none = {"UsesCustomerKey": True}, {"UsesCustomerKey": False}
    bucket = RESOURCES["Bucket"]["Properties"]["BucketEncryption"]["ServerSideEncryptionConfiguration"][0]
    queue, topic = RESOURCES["DeadLetters"]["Properties"], RESOURCES["Topic"]["Properties"]
    assert resolved(bucket, own) == {
        "ServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": KEY},
        "BucketKeyEnabled": True,
    }
    assert resolved(bucket, none)["ServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    assert resolved(queue, own)["KmsMasterKeyId"] == resolved(topic, own)["KmsMasterKeyId"] == {"Ref": "Key"}
    assert (resolved(queue, own)["SqsManagedSseEnabled"], resolved(queue, none)["SqsManagedSseEnabled"]) == (
        False,
        True,
    )
    for group in of_type("AWS::Logs::LogGroup").values():
        assert resolved(group["KmsKeyId"], own) == KEY
        assert resolved(group["KmsKeyId"], none) is None


def grant(name: str) -> dict[str, Any]:
    """The statement with which a role may use the key."""
    (statement,) = [item for item in inside(RESOURCES[name]) if item.get("Sid") == "UseTheKey"]
    return statement


SERVICES = {"s3": WRITES, "sqs": {"sqs:SendMessage"}, "sns": {"sns:Publish"}}


@pytest.mark.parametrize(
    "name",
    [name for name, resource in RESOURCES.items() if resource["Type"].startswith("AWS::Serverless::F")]
    + ["Retrain", "Scoring"],
)
def test_a_role_may_use_the_key_through_the_services_that_it_uses_and_no_other(name: str) -> None:
    statement = grant(name)
    assert statement["Resource"] == KEY
    assert set(statement["Action"]) == {"kms:Decrypt", "kms:GenerateDataKey"}
    through = {item["Fn::Sub"].partition(".")[0] for item in statement["Condition"]["StringEquals"]["kms:ViaService"]}
    assert through == {service for service, uses in SERVICES.items() if uses & actions(RESOURCES[name])}


def test_training_in_the_cloud_may_use_the_key() -> None:
    policy = RESOURCES["TrainKeyPolicy"]
    assert policy["Properties"]["RoleName"] == {"Ref": "TrainRole"}
    both = TEMPLATE["Conditions"][policy["Condition"]]["Fn::And"]
    assert both == [{"Condition": RESOURCES["TrainRole"]["Condition"]}, {"Condition": RESOURCES["Key"]["Condition"]}]
    assert grant("TrainKeyPolicy")["Resource"] == KEY


def test_the_key_belongs_to_the_account_rotates_and_serves_what_writes_without_a_role() -> None:
    key = RESOURCES["Key"]["Properties"]
    assert key["EnableKeyRotation"] is True
    statements = {item["Sid"]: item for item in key["KeyPolicy"]["Statement"]}
    assert statements["TheAccountsPoliciesDecide"]["Principal"]["AWS"]["Fn::Sub"].endswith("${AWS::AccountId}:root")
    publishers = set(RESOURCES["TopicPolicy"]["Properties"]["PolicyDocument"]["Statement"][0]["Principal"]["Service"])
    served = {
        service
        for item in statements.values()
        if "kms:GenerateDataKey" in item["Action"] and isinstance(item["Principal"]["Service"], str | list)
        for service in (
            [item["Principal"]["Service"]]
            if isinstance(item["Principal"]["Service"], str)
            else item["Principal"]["Service"]
        )
    }
    assert served == publishers
    # EventBridge sends neither its account nor its rule along to a key, so a condition would refuse it silently.
    assert "Condition" not in statements["EventsToTheTopicAndTheQueue"]
    logs_of = statements["LogsOfThisDeployment"]["Condition"]["ArnLike"]["kms:EncryptionContext:aws:logs:arn"][
        "Fn::Sub"
    ]
    assert logs_of.endswith(":log-group:*retrue-${Environment}*")


# what stays
def test_deleting_the_stack_leaves_the_data_what_opens_it_and_what_the_account_needs() -> None:
    kept = {name for name, resource in RESOURCES.items() if resource.get("DeletionPolicy") == "Retain"}
    assert kept == {"Bucket", "BucketPolicy", "Key", "ApiLogsAccount", "ApiLogsWriter"}
    assert {RESOURCES[name]["UpdateReplacePolicy"] for name in kept} == {"Retain"}
    readme = (PROJECT / "README.md").read_text()
    cleaning = " ".join(readme.partition("**Cleaning up.**")[2].partition("\n## ")[0].split())
    for words in ("the bucket and its policy", "the KMS key", "the role with which API Gateway writes logs"):
        assert words in cleaning


def test_every_place_that_holds_records_of_people_forgets_them() -> None:
    rules = RESOURCES["Bucket"]["Properties"]["LifecycleConfiguration"]["Rules"]
    expiring = {rule["Prefix"] for rule in rules if "ExpirationInDays" in rule}
    assert {lake.CAPTURE, lake.FEEDBACK, lake.PREDICTIONS, lake.LABELLED} <= expiring
    assert [rule for rule in rules if "AbortIncompleteMultipartUpload" in rule]


def test_what_the_security_checker_is_told_to_skip_has_a_reason_beside_it() -> None:
    skips = re.findall(r"# checkov:skip=(\S+?):(.*)", TEXT)
    assert len(skips) == TEXT.count("checkov:skip")
    assert all(re.fullmatch(r"CKV2?_AWS_\d+", check) and len(reason) > 30 for check, reason in skips)
