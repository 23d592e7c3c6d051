"""The project's template, made fit for a machine with neither containers nor the services that the local cloud lacks.

Each image function becomes a process: the same handler, started by the same runtime client as in the image
(awslambdaric), from the project's own environment, with a copy of the code that the image would hold.
"""

import hashlib
import io
import json
import shlex
import sys
import zipfile
from pathlib import Path
from typing import Any

import yaml

from retrue.errors import StackError

BOOTSTRAP = """#!/bin/sh
export PYTHONPATH="$LAMBDA_TASK_ROOT${{PYTHONPATH:+:$PYTHONPATH}}"
cd "$LAMBDA_TASK_ROOT"
exec {python} -m awslambdaric "$_HANDLER"
"""
SHIPPED = (".py", ".j2")  # what the image's copy of the package is made of
ACTIVITY, TLS_ONLY = "TrainActivity", "BucketPolicy"
# The local cloud checks UpdateAlias against the permission to list aliases.
ALSO_ALLOWED = {"lambda:UpdateAlias": "lambda:ListAliases"}


class _Loader(yaml.SafeLoader):
    """Reads CloudFormation's short tags into their long forms."""


def _tag(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        value: Any = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        raise StackError(f"the tag !{suffix} on a mapping is not CloudFormation's")
    if suffix == "GetAtt" and isinstance(value, str):
        value = value.split(".", 1)
    return {suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}": value}


_Loader.add_multi_constructor("!", _tag)


def read(path: Path) -> dict[str, Any]:
    """A template as plain dictionaries."""
    template: dict[str, Any] = yaml.load(path.read_text(), _Loader)  # noqa: S506 - a subclass of SafeLoader
    return template


def packages(project: Path, template: dict[str, Any], python: str = sys.executable) -> dict[str, bytes]:
    """A zip for each function, byte for byte the same while its code is: {logical id: zip}."""
    return {
        name: _zip(project, Path(resource["Metadata"]["Dockerfile"]).parent, python)
        for name, resource in template["Resources"].items()
        if resource["Type"] == "AWS::Serverless::Function"
    }


def localize(
    project: Path, template: dict[str, Any], zips: dict[str, bytes], bucket: str, activity: str
) -> dict[str, Any]:
    """The template with functions as zips in a bucket, the workflow inline, and what the local cloud's IAM asks.

    Its CloudFormation knows no activities: the one that workers poll is made beside the stack, `activity` is its ARN.
    """
    local: dict[str, Any] = _replace(json.loads(json.dumps(template)), {"Ref": ACTIVITY}, activity)
    del local["Resources"][ACTIVITY]
    # It refuses whatever does not come over TLS, and the local cloud speaks plain HTTP on 127.0.0.1.
    del local["Resources"][TLS_ONLY]
    for name, resource in local["Resources"].items():
        properties = resource.get("Properties", {})
        if resource["Type"] == "AWS::Serverless::Function":
            resource.pop("Metadata")
            handler = properties.pop("ImageConfig")["Command"][0]
            properties.pop("PackageType")
            properties.pop("DeploymentPreference", None)
            code = {"Bucket": bucket, "Key": key(name, zips[name])}
            properties |= {"Runtime": "provided.al2023", "Handler": handler, "CodeUri": code}
            for policy in properties.get("Policies", ()):
                for statement in policy.get("Statement", ()):
                    actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
                    statement["Action"] = actions + [ALSO_ALLOWED[a] for a in actions if a in ALSO_ALLOWED]
        elif resource["Type"] == "AWS::Serverless::StateMachine":
            path = project / properties.pop("DefinitionUri")
            properties["Definition"] = unbatched(yaml.safe_load(path.read_text()))
    return local


def unbatched(definition: dict[str, Any]) -> dict[str, Any]:
    """A workflow whose Maps give each item as a batch of one: the local cloud knows no ItemBatcher."""
    for state in definition["States"].values():
        if batcher := state.pop("ItemBatcher", None):
            given = batcher["BatchInput"]
            state["ItemSelector"] = {"Items.$": "States.Array($$.Map.Item.Value)", "BatchInput": given}
    return definition


def _replace(value: Any, old: dict[str, str], new: str) -> Any:
    if value == old:
        return new
    if isinstance(value, dict):
        return {k: _replace(v, old, new) for k, v in value.items()}
    if isinstance(value, list):
        return [_replace(v, old, new) for v in value]
    return value


def key(name: str, body: bytes) -> str:
    """Where a package lies: its name changes with its content, which is what CloudFormation looks at."""
    return f"{name}-{hashlib.sha256(body).hexdigest()[:16]}.zip"


def _zip(project: Path, function: Path, python: str) -> bytes:
    files = {"bootstrap": BOOTSTRAP.format(python=shlex.quote(python)).encode()}
    for path in sorted((project / function).glob("*.py")):
        files[path.name] = path.read_bytes()
    for path in sorted((project / "src").rglob("*.*")):
        if path.suffix in SHIPPED:
            files[path.relative_to(project / "src").as_posix()] = path.read_bytes()
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            item = zipfile.ZipInfo(name)  # the fixed date of 1980, so that equal code gives an equal file
            item.external_attr = 0o755 << 16
            archive.writestr(item, content)
    return body.getvalue()
