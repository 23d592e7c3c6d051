"""What the API takes and gives, as pydantic models: they check requests and write the OpenAPI document."""

from collections.abc import Sequence
from typing import Annotated, Any

from aws_lambda_powertools.event_handler import Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from retrue import records
from retrue.artifact import Card

EXAMPLE_ID = "019ab5f2-6e5d-7c43-9a41-3f0b8d5c2e17"
EXAMPLE_MODEL = "3f9a1c04d7be"
EXAMPLE_SCORES = {"negative": 0.03, "positive": 0.97}


def _many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Inputs(BaseModel):
    """One text or several."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"inputs": "A quiet film that stays with you."}, {"inputs": ["Great fun.", "Too long."]}]
        },
    )
    inputs: Annotated[list[str], BeforeValidator(_many, json_schema_input_type=str | list[str]), Field(min_length=1)]


class Prediction(BaseModel):
    """The answer for one text."""

    id: str = Field(description="Name it in feedback. A UUIDv7.", examples=[EXAMPLE_ID])
    label: str = Field(examples=["positive"])
    score: float = Field(description="The calibrated probability of the label.", examples=[0.97])
    scores: dict[str, float] = Field(examples=[EXAMPLE_SCORES])
    tokens: int = Field(description="Tokens that the model read.", examples=[12])
    truncated: bool = Field(description="Whether the text was longer than the model reads.", examples=[False])
    model: str = Field(examples=[EXAMPLE_MODEL])


class Predictions(BaseModel):
    """Answers in the order of the texts; one text gives a list of one."""

    model: str = Field(examples=[EXAMPLE_MODEL])
    predictions: list[Prediction]

    @classmethod
    def of(cls, model: str, answers: Sequence[records.Prediction]) -> "Predictions":
        return cls(model=model, predictions=[Prediction.model_validate(a, from_attributes=True) for a in answers])


class Feedback(BaseModel):
    """The truth about one prediction."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"id": EXAMPLE_ID, "label": "negative"}]})
    id: str
    label: str


class Truth(BaseModel):
    """The label that was written down, beside what the model had said."""

    id: str = Field(examples=[EXAMPLE_ID])
    label: str = Field(examples=["negative"])
    predicted: str = Field(examples=["positive"])
    model: str = Field(examples=[EXAMPLE_MODEL])
    time: str = Field(examples=["2026-01-01T09:30:00.125Z"])


class Model(BaseModel):
    """The model that serves: its id and its card."""

    model: str = Field(examples=[EXAMPLE_MODEL])
    card: Card


class Health(BaseModel):
    """This deployment answers, with this model."""

    status: str = Field(examples=["ok"])
    model: str = Field(examples=[EXAMPLE_MODEL])


class Reason(BaseModel):
    """What is wrong with one part of a request: `at` is a JSON pointer into it."""

    model_config = ConfigDict(frozen=True)
    at: str = Field(examples=["/inputs/0"])
    reason: str = Field(examples=["must be a text"])


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str = Field(examples=["urn:retrue:problem:invalid"])
    title: str = Field(examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["The request is not what this path takes; errors say where."])
    request_id: str
    errors: list[Reason] | None = None


def answer(body: str, headers: dict[str, str] | None = None) -> Response[str]:
    """A good answer whose body is written already."""
    return Response(200, "application/json", body, headers)
