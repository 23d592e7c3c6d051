"""Settings from an environment."""

import dataclasses

import pytest

from retrue import settings
from retrue.errors import WrongSetting

SHAPES = [settings.Predict, settings.Batch, settings.Monitor, settings.Steps, settings.Release]
GOOD = {"BUCKET": "b", "ENVIRONMENT": "dev"}


def test_what_is_not_set_keeps_its_default() -> None:
    assert settings.read(settings.Predict, GOOD) == settings.Predict(bucket="b", environment="dev")


def test_values_have_the_types_of_their_fields() -> None:
    read = settings.read(settings.Predict, {**GOOD, "KEEP_TEXT": "true", "MAX_INPUTS": "3", "MODEL_URI": "s3://b/m/"})
    assert read == settings.Predict("b", "dev", model_uri="s3://b/m/", keep_text=True, max_inputs=3)
    monitor = {**GOOD, "MODEL_PARAMETER": "/p", "TOLERATED_DROP": "0.05"}
    assert settings.read(settings.Monitor, monitor).tolerated_drop == 0.05


@pytest.mark.parametrize(
    ("text", "meant"), [("TRUE", True), ("1", True), ("yes", True), ("False", False), ("0", False), ("", False)]
)
def test_a_switch_is_read_in_any_case(text: str, meant: bool) -> None:
    assert settings.read(settings.Predict, {**GOOD, "KEEP_TEXT": text}).keep_text is meant


def test_every_wrong_variable_is_named_in_one_error() -> None:
    with pytest.raises(WrongSetting) as caught:
        settings.read(settings.Predict, {"BUCKET": "b", "KEEP_TEXT": "perhaps", "MAX_INPUTS": "many"})
    assert str(caught.value) == (
        "ENVIRONMENT is not set; KEEP_TEXT is not true or false; MAX_INPUTS is not a whole number"
    )


def test_an_error_does_not_tell_the_value() -> None:
    with pytest.raises(WrongSetting) as caught:
        settings.read(settings.Monitor, {**GOOD, "MODEL_PARAMETER": "/p", "TOLERATED_DROP": "hunter2"})
    assert "hunter2" not in str(caught.value)
    assert "TOLERATED_DROP is not a number" in str(caught.value)


@pytest.mark.parametrize(
    ("megabytes", "threads"), [(None, 1), ("512", 1), ("1769", 1), ("3537", 1), ("3538", 2), ("10240", 5)]
)
def test_a_thread_for_each_whole_cpu_that_memory_pays_for(megabytes: str | None, threads: int) -> None:
    environ = {} if megabytes is None else {"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": megabytes}
    assert settings.threads(environ) == threads


@pytest.mark.parametrize("shape", SHAPES)
def test_every_field_of_every_shape_can_be_set(shape: type) -> None:
    samples = {str: "7", int: "7", float: "7", bool: "1"}
    fields = dataclasses.fields(shape)
    read = settings.read(shape, {field.name.upper(): samples[field.type] for field in fields})
    assert {getattr(read, field.name) for field in fields} <= {"7", 7, True}


@pytest.mark.parametrize("shape", SHAPES)
def test_an_empty_environment_is_refused(shape: type) -> None:
    with pytest.raises(WrongSetting, match="BUCKET is not set"):
        settings.read(shape, {})
