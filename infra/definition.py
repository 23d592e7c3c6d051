"""Prints the workflow as a template that holds its definition.

cfn-lint knows the schema of definitions, and looks at none that lies in a file of its own.
"""

import json
import re
from pathlib import Path

import yaml

SOURCE = (Path(__file__).parent / "retrain.asl.yaml").read_text()
ACTIVITY = "arn:aws:states:us-east-1:123456789012:activity:train"  # has the form of every ARN that is asked for

if __name__ == "__main__":
    properties = {
        "RoleArn": "arn:aws:iam::123456789012:role/retrain",
        "Definition": yaml.safe_load(SOURCE),
        "DefinitionSubstitutions": dict.fromkeys(re.findall(r"\$\{(\w+)\}", SOURCE), ACTIVITY),
    }
    retrain = {"Type": "AWS::StepFunctions::StateMachine", "Properties": properties}
    print(json.dumps({"Resources": {"Retrain": retrain}}, indent=1))  # noqa: T201
