"""What the API takes and gives, as pydantic models: they check requests and write the OpenAPI document."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from aws_lambda_powertools.event_handler import Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, RootModel, StrictInt

from retrue import explanation, records
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


class Parameters(BaseModel):
    """What Hugging Face's clients may ask for."""

    model_config = ConfigDict(extra="forbid")
    top_k: Annotated[StrictInt, Field(ge=1)] | None = Field(
        default=None, description="Most labels a text; all unless given."
    )
    function_to_apply: Literal["softmax"] | None = None


class Texts(Inputs):
    """One text or several, as Hugging Face's clients send them."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"inputs": "Great fun.", "parameters": {"top_k": 1}}]}
    )
    parameters: Parameters = Parameters()


class Guess(BaseModel):
    """One label, and how probable it is."""

    label: str = Field(examples=["positive"])
    score: float = Field(examples=[0.97])


class Guesses(RootModel[list[list[Guess]]]):
    """For each text its labels, the most probable first; one text gives a list of one."""

    @classmethod
    def of(cls, answers: Sequence[records.Prediction], most: int | None) -> "Guesses":
        ranked = [sorted(answer.scores.items(), key=lambda pair: -pair[1])[:most] for answer in answers]
        return cls([[Guess(label=label, score=score) for label, score in each] for each in ranked])


class Question(BaseModel):
    """One text to explain; `runs` bounds how often the model is run for it."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"inputs": "Great fun, if too long."}]})
    inputs: str
    runs: Annotated[StrictInt, Field(ge=explanation.LEAST_RUNS)] | None = Field(
        default=None,
        description="Most runs of the model; as many as this deployment allows unless given.",
        examples=[64],
    )


class Part(BaseModel):
    """A part of the text, and what the answer's probability loses without it."""

    start: int = Field(description="First character, counted in Unicode code points from 0.", examples=[6])
    end: int = Field(description="The character behind the last.", examples=[9])
    text: str = Field(examples=["fun"])
    weight: float = Field(description="Negative where it speaks against the answer.", examples=[0.31])


class Explanation(BaseModel):
    """Which words moved the score, in the order of the text."""

    model: str = Field(examples=[EXAMPLE_MODEL])
    label: str = Field(examples=["positive"])
    score: float = Field(description="The calibrated probability of the label.", examples=[0.97])
    words: list[Part] = Field(description="Words that were left out one by one.")
    spans: list[Part] = Field(description="Stretches that were only left out as a whole, as the runs were used up.")
    bounded: bool = Field(description="Whether there are such stretches.", examples=[False])
    runs: int = Field(description="How often the model was run.", examples=[6])

    @classmethod
    def of(cls, model: str, text: str, told: explanation.Explanation) -> "Explanation":
        words, spans = (
            [Part(start=p.start, end=p.end, text=text[p.start : p.end], weight=p.weight) for p in parts]
            for parts in (told.words, told.spans)
        )
        return cls(
            model=model,
            label=told.label,
            score=told.score,
            words=words,
            spans=spans,
            bounded=told.bounded,
            runs=told.runs,
        )


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
