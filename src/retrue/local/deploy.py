"""Puts the project's template on the local cloud through CloudFormation, as a deployment to AWS would."""

import contextlib
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError, WaiterError

from retrue.artifact import NONE
from retrue.errors import StackError
from retrue.local import localize
from retrue.local.home import ENVIRONMENT, STACK, Home
from retrue.stack import Session, Stack

PACKAGES = "retrue-local-packages"
ACTIVITY = f"{STACK}-train"
PARAMETER = f"/retrue/{ENVIRONMENT}/model"
POLL = {"Delay": 1, "MaxAttempts": 180}


def deploy(
    home: Home, session: Session, project: Path, parameters: dict[str, str], tell: Callable[[str], None]
) -> None:
    """Create or update the stack; nothing is done where neither code nor template nor parameters changed."""
    template = localize.read(project / "template.yaml")
    zips = localize.packages(project, template)
    ssm, s3, cloudformation = (session.client(name) for name in ("ssm", "s3", "cloudformation"))
    with contextlib.suppress(ssm.exceptions.ParameterAlreadyExists):
        ssm.put_parameter(Name=PARAMETER, Value=NONE, Type="String", Overwrite=False)
    s3.create_bucket(Bucket=PACKAGES)
    for name, body in zips.items():
        s3.put_object(Bucket=PACKAGES, Key=localize.key(name, body), Body=body)

    activity = _activity(session.client("stepfunctions"))
    document = json.dumps(localize.localize(project, template, zips, PACKAGES, activity)).encode()
    s3.put_object(Bucket=PACKAGES, Key=localize.key(STACK, document), Body=document)
    values = {
        "Environment": ENVIRONMENT,
        "ServingModel": PARAMETER,
        "KeepText": "true",
        "MlflowTrackingUri": home.mlflow,
        "CanaryMinutes": "0",  # the local cloud gives an alias's weights no traffic
        **parameters,
    }
    exists = _exists(cloudformation)
    tell(f"{'updating' if exists else 'creating'} the stack {STACK}")
    change = f"deploy-{secrets.token_hex(4)}"
    cloudformation.create_change_set(
        StackName=STACK,
        ChangeSetName=change,
        ChangeSetType="UPDATE" if exists else "CREATE",
        TemplateURL=f"{session.endpoint}/{PACKAGES}/{localize.key(STACK, document)}",  # it is too long to be sent along
        Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in values.items()],
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_NAMED_IAM", "CAPABILITY_AUTO_EXPAND"],
    )
    try:
        cloudformation.get_waiter("change_set_create_complete").wait(
            StackName=STACK, ChangeSetName=change, WaiterConfig=POLL
        )
    except WaiterError:
        found = cloudformation.describe_change_set(StackName=STACK, ChangeSetName=change)
        cloudformation.delete_change_set(StackName=STACK, ChangeSetName=change)
        reason = found.get("StatusReason", "")
        if "No updates" in reason or "didn't contain changes" in reason:
            tell("nothing changed")
            return
        raise StackError(f"CloudFormation refused the template: {reason}") from None
    cloudformation.execute_change_set(StackName=STACK, ChangeSetName=change)
    waiter = cloudformation.get_waiter("stack_update_complete" if exists else "stack_create_complete")
    try:
        waiter.wait(StackName=STACK, WaiterConfig=POLL)
    except WaiterError:
        raise StackError(f"the stack was not deployed: {_first_failure(cloudformation)}") from None
    _gateway_responses(session, template["Resources"]["Api"]["Properties"], Stack(session, STACK).outputs["ApiId"])


def _gateway_responses(session: Session, api: dict[str, Any], id: str) -> None:
    """Give the API the template's own error answers: the local cloud leaves them out when it reads SAM's document."""
    client = session.client("apigateway")
    for kind, response in api["GatewayResponses"].items():
        headers = response["ResponseParameters"]["Headers"]
        status = {"statusCode": str(response["StatusCode"])} if "StatusCode" in response else {}
        client.put_gateway_response(
            restApiId=id,
            responseType=kind,
            responseParameters={f"gatewayresponse.header.{name}": value for name, value in headers.items()},
            responseTemplates=response["ResponseTemplates"],
            **status,
        )
    client.create_deployment(restApiId=id, stageName=ENVIRONMENT)


def _activity(stepfunctions: Any) -> str:
    """The ARN of the queue that workers poll, made where it is not there yet."""
    found = _activities(stepfunctions)
    return found[0] if found else str(stepfunctions.create_activity(name=ACTIVITY)["activityArn"])


def recover(session: Session) -> None:
    """Undo what a restart of the local cloud breaks: it forgets the queue of an activity, and runs nothing on."""
    client = session.client("stepfunctions")
    for page in client.get_paginator("list_state_machines").paginate():
        for machine in page["stateMachines"]:
            arn = machine["stateMachineArn"]
            for execution in client.list_executions(stateMachineArn=arn, statusFilter="RUNNING")["executions"]:
                client.stop_execution(executionArn=execution["executionArn"], error="LocalCloudRestarted")
    for arn in _activities(client):
        client.delete_activity(activityArn=arn)
        client.create_activity(name=ACTIVITY)


def _activities(stepfunctions: Any) -> list[str]:
    pages = stepfunctions.get_paginator("list_activities").paginate()
    return [a["activityArn"] for page in pages for a in page["activities"] if a["name"] == ACTIVITY]


def _exists(cloudformation: Any) -> bool:
    try:
        stack = cloudformation.describe_stacks(StackName=STACK)["Stacks"][0]
    except ClientError:
        return False
    if stack["StackStatus"] in ("ROLLBACK_COMPLETE", "CREATE_FAILED", "REVIEW_IN_PROGRESS"):
        cloudformation.delete_stack(StackName=STACK)
        cloudformation.get_waiter("stack_delete_complete").wait(StackName=STACK, WaiterConfig=POLL)
        return False
    return True


def _first_failure(cloudformation: Any) -> str:
    events = cloudformation.describe_stack_events(StackName=STACK)["StackEvents"]
    failed = [e for e in events if e["ResourceStatus"].endswith("FAILED")]
    if not failed:
        return "see the log of the local cloud"
    return f"{failed[-1]['LogicalResourceId']}: {failed[-1].get('ResourceStatusReason', 'no reason given')}"
