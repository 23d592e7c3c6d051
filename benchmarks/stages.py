"""What each step of a start costs, as JSON: CPU milliseconds from the interpreter to the first answer.

Runs inside the predict image (sizing.py). What two steps need counts for the first of them.
"""

import json
import sys
import time
from pathlib import Path

spent = {"interpreter": time.process_time()}


def step(name: str) -> None:
    """All since the step before was this one's."""
    spent[name] = time.process_time() - sum(spent.values())


import numpy  # noqa: E402, F401

step("import numpy")
import onnxruntime  # noqa: E402, F401

step("import onnxruntime")
import tokenizers  # noqa: E402, F401

step("import tokenizers")
import boto3  # noqa: E402, F401

step("import boto3")
import aws_lambda_powertools.event_handler  # noqa: E402, F401
import pydantic  # noqa: E402, F401

step("import pydantic and powertools")
import app  # noqa: E402, F401

step("the handler with its routes")
from retrue import artifact  # noqa: E402
from retrue.classifier import Classifier  # noqa: E402
from retrue.lake import Lake  # noqa: E402

folder = Path("/tmp/models/one")  # noqa: S108 - of the container
Lake(sys.argv[1]).download_folder("models/one/", folder, artifact.SERVED)
step("model from S3, without TLS")
artifact.verify(folder)
step("check of the model's files")
classifier = Classifier(folder)
step("tokenizer and session")
classifier.score("film " * 126)
step("first answer, 128 tokens")
print(json.dumps({name: 1000 * value for name, value in spent.items()}))
