"""Writes docs/openapi.json from the code of the API; with --check it only says whether the document is stale."""

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aws_lambda_powertools.event_handler.openapi.models import APIKey

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "docs" / "openapi.json"
DESCRIPTION = (
    "Classifies texts, takes the truth about them, and tells which model serves. Errors are problem+json. A deployment "
    "may ask for a signature (AWS Signature Version 4) or for a token in the header authorization instead of a key."
)


def document() -> str:
    """The OpenAPI 3.1 document of the code as it is."""
    sys.path.insert(0, str(ROOT / "functions" / "predict"))
    from app import app

    found: dict[str, Any] = json.loads(
        app.get_openapi_json_schema(
            title="retrue",
            version=version("retrue"),
            description=DESCRIPTION,
            security_schemes={"api_key": APIKey.model_validate({"name": "x-api-key", "in": "header"})},
            security=[{"api_key": []}],
        )
    )
    for path in found["paths"].values():
        for operation in path.values():
            given = {status: answer for status, answer in operation["responses"].items() if not _default(answer)}
            operation["responses"] = dict(sorted(given.items()))
    found["components"]["schemas"] = _used(found)
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def _default(answer: dict[str, Any]) -> bool:
    """Whether Powertools documents this answer by itself: no route gives one of that shape."""
    return "HTTPValidationError" in json.dumps(answer)


def _used(found: dict[str, Any]) -> dict[str, Any]:
    """The schemas that something refers to."""
    schemas: dict[str, Any] = found["components"]["schemas"]
    wanted: set[str] = set()
    text = json.dumps(found["paths"])
    while more := {name for name in schemas if f'schemas/{name}"' in text} - wanted:
        wanted |= more
        text = json.dumps([schemas[name] for name in sorted(more)])
    return {name: schemas[name] for name in sorted(wanted)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the document is stale")
    check = parser.parse_args().check
    now = document()
    if not check:
        TARGET.write_text(now, encoding="utf-8")
        return 0
    if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == now:
        return 0
    sys.stderr.write("docs/openapi.json is stale: run `python docs/openapi.py`\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
