"""Evidently's ways to judge embeddings with their own thresholds; "model" is what it takes by default."""

import sys

import pandas as pd
import protocol
from evidently.metrics.embeddings import DistanceDriftMethod, ModelDriftMethod, RatioDriftMethod

WAYS = {"model": ModelDriftMethod, "ratio": RatioDriftMethod, "distance": DistanceDriftMethod}


def prepare(reference, _):
    method, known = WAYS[sys.argv[2]](), pd.DataFrame(reference)
    # It writes into the reference that it is given.
    return lambda texts: method(pd.DataFrame(texts), known.copy())[1]


if __name__ == "__main__":
    protocol.answer(prepare)
