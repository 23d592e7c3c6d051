"""Python runs this first in every function of the tests' local stack: each call to AWS leaves a line in a file."""

import json
import os

if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:
    from botocore.client import BaseClient

    make = BaseClient._make_api_call

    def told(client, operation, parameters):
        line = {
            "function": os.environ["AWS_LAMBDA_FUNCTION_NAME"],
            "service": client.meta.service_model.service_name,
            "operation": operation,
            "keys": [parameters["Key"]] if "Key" in parameters else [],
        }
        if operation == "DeleteObjects":
            line["keys"] = [one["Key"] for one in parameters["Delete"]["Objects"]]
        with open(os.environ["RETRUE_CALLS"], "a") as file:  # noqa: PTH123 - one write, so that lines stay whole
            file.write(json.dumps(line) + "\n")
        return make(client, operation, parameters)

    BaseClient._make_api_call = told
