"""Settings come from the environment, once, into a frozen dataclass: one shape for each function."""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from retrue.errors import WrongSetting

Shape = TypeVar("Shape")
NO_BUCKET = "none"  # what BUCKET says where nothing is kept
MEMORY_VARIABLE = "AWS_LAMBDA_FUNCTION_MEMORY_SIZE"
MEGABYTES_OF_ONE_CPU = 1_769  # Lambda gives CPU in the measure of memory
TRUE, FALSE = ("true", "1", "yes"), ("false", "0", "no", "")


def read(shape: type[Shape], environ: Mapping[str, str]) -> Shape:
    """Fill a dataclass from variables named as its fields in upper case; every wrong one is named in a single error."""
    values: dict[str, Any] = {}
    wrong: list[str] = []
    hints = typing.get_type_hints(shape)
    for field in dataclasses.fields(shape):  # type: ignore[arg-type]
        name = field.name.upper()
        text = environ.get(name)
        if text is None:
            if field.default is dataclasses.MISSING:
                wrong.append(f"{name} is not set")
            continue
        try:
            values[field.name] = parse(hints[field.name], text)
        except ValueError:
            wrong.append(f"{name} is not {NAMES[hints[field.name]]}")
    if wrong:
        raise WrongSetting("; ".join(wrong))
    return shape(**values)


def threads(environ: Mapping[str, str]) -> int:
    """How many threads a text is worth: one for each whole CPU that the function's memory pays for, and one elsewhere.

    More would wait for each other in the share of a CPU that Lambda grants.
    """
    return max(1, int(environ.get(MEMORY_VARIABLE, "0")) // MEGABYTES_OF_ONE_CPU)


def parse(kind: type, text: str) -> Any:
    """A text as a value of one of the types in NAMES; ValueError where it is none."""
    return _PARSERS[kind](text)


def _boolean(text: str) -> bool:
    lowered = text.lower()
    if lowered not in TRUE + FALSE:
        raise ValueError(text)
    return lowered in TRUE


_PARSERS: dict[Any, Callable[[str], Any]] = {str: str, int: int, float: float, bool: _boolean}
NAMES: dict[Any, str] = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Predict:
    """Settings of the predict function; `model_uri` names the one model folder that a published version serves.

    `capture_rate` is the share of predictions whose records are kept, `signing_key` that of the models it serves.
    `explain_runs` bounds how often the model is run to explain one text.
    """

    bucket: str
    environment: str
    model_uri: str = "none"
    signing_key: str = ""
    keep_text: bool = False
    capture_rate: float = 1.0
    max_inputs: int = 64
    max_characters: int = 50_000
    explain_runs: int = 128


@dataclass(frozen=True)
class Serve:
    """Settings of the predict function behind a socket of its own (functions/predict/server.py).

    `serve_queue` requests are inside at most, of which one runs and the others are read or wait. One may be inside for
    `serve_seconds`, and its body may have `serve_megabytes`.
    """

    serve_queue: int = 32
    serve_seconds: float = 29.0
    serve_megabytes: float = 6.0


@dataclass(frozen=True)
class Batch:
    """Settings of the batch function; `model_parameter` is the SSM parameter that names the serving model.

    A file of more than `file_megabytes` goes through the workflow `scoring_arn`, of which `at_once` parts run side by
    side. `capture_rate` is the share of predictions whose records are kept, `signing_key` that of the models it serves.
    """

    bucket: str
    environment: str
    model_parameter: str
    scoring_arn: str
    file_megabytes: float = 5.0
    at_once: int = 10
    signing_key: str = ""
    keep_text: bool = False
    capture_rate: float = 1.0
    max_characters: int = 50_000
    reserve_seconds: float = 60.0


@dataclass(frozen=True)
class Monitor:
    """Settings of the monitor function.

    `window_rows` texts are judged at most and `minimum_rows` at least. A false alarm comes once in `run_length` checks
    for drift and once in `label_run_length` labels for accuracy, or later. `mode` is "automatic", or "suggest" where a
    person has the last word.
    """

    bucket: str
    environment: str
    model_parameter: str
    event_bus: str = "default"
    window_rows: int = 500
    minimum_rows: int = 50
    run_length: float = 8_760.0
    label_run_length: float = 10_000.0
    label_days: int = 30
    minimum_labels: int = 100
    tolerated_drop: float = 0.03
    mode: str = "automatic"
    cooldown_hours: float = 120.0
    backstop_days: float = 30.0
    labels_wanted: int = 200
    drift_retrains_at_once: bool = False


@dataclass(frozen=True)
class Steps:
    """Settings of the retraining workflow's data steps, `gate_…` those of the gate's rules.

    `search_trials`, `search_hours` (of machines) and `search_cost` bound a search, `search_at_once` its trainings side
    by side. The cost counts in the currency of `price_per_hour`; 0 is no bound and no price. `train_instance`,
    `train_nodes` and `train_spot` say which machines train, `train_wait_seconds` how long a spot training may wait.
    """

    bucket: str
    environment: str
    model_parameter: str
    state_machine_arn: str
    mlflow_tracking_uri: str = ""
    signing_key: str = ""
    encoder: str = "minilm-l6-distilbert"
    train_backend: str = "worker"
    train_seconds: int = 86_400
    train_instance: str = "ml.g5.xlarge"
    train_nodes: int = 1
    train_spot: bool = True
    train_wait_seconds: int = 14_400
    train_settings: str = ""
    search_trials: int = 16
    search_at_once: int = 4
    search_hours: float = 24.0
    search_cost: float = 0.0
    price_per_hour: float = 0.0
    feedback_days: int = 365
    maximum_test_rows: int = 5_000
    gate_metric: str = "accuracy"
    gate_alpha: float = 0.05
    gate_margin: float = 0.01
    gate_slice_margin: float = 0.05
    gate_latency_factor: float = 1.5
    gate_size_factor: float = 1.5
    gate_floor_accuracy: float = 0.0
    gate_floor_f1: float = 0.0


@dataclass(frozen=True)
class Release:
    """Settings of the steps that may touch what serves.

    A new version answers `canary_share` of the traffic for `canary_minutes`; the others are retrue.canary.Bounds.
    """

    bucket: str
    environment: str
    model_parameter: str
    function: str
    alias: str = "live"
    canary_share: float = 0.1
    canary_minutes: float = 10.0
    canary_failures: float = 0.01
    canary_slowdown: float = 2.0
    canary_distance: float = 0.2
    canary_agreement: float = 0.5
