"""Prints the workflows as a template that holds their definitions.

cfn-lint knows the schema of definitions, and looks at none that lies in a file of its own.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

ACTIVITY = "arn:aws:states:us-east-1:123456789012:activity:train"  # has the form of every ARN that is asked for


def machine(path: Path) -> dict[str, Any]:
    """A state machine with the definition in a file."""
    source = path.read_text()
    properties = {
        "RoleArn": "arn:aws:iam::123456789012:role/retrain",
        "Definition": yaml.safe_load(source),
        "DefinitionSubstitutions": dict.fromkeys(re.findall(r"\$\{(\w+)\}", source), ACTIVITY),
    }
    return {"Type": "AWS::StepFunctions::StateMachine", "Properties": properties}


if __name__ == "__main__":
    found = sorted(Path(__file__).parent.glob("*.asl.yaml"))
    print(json.dumps({"Resources": {path.name.split(".")[0].title(): machine(path) for path in found}}, indent=1))  # noqa: T201
