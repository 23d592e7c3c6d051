"""The API: an API Gateway event in, one call into retrue.answers, an answer out."""

import os
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response

import problems
from problems import documented
from retrue import answers, settings
from retrue.answers import Answers
from retrue.errors import RetrueError
from retrue.lake import Lake
from retrue.records import Job, Prediction
from retrue.telemetry import Metric, publish
from shapes import Explanation, Feedback, Guesses, Health, Inputs, Model, Predictions, Question, Texts, Truth, answer

MODEL_HEADER, IDS_HEADER = "x-retrue-model", "x-retrue-predictions"
MOST_IDS = 64  # in a header: API Gateway takes 10 kB of them all
MODEL_TOLD, IDS_TOLD = "The model that answered.", f"Ids of the predictions, for feedback, of {MOST_IDS} texts at most."
logger = Logger(service="predict")
app = APIGatewayRestResolver(enable_validation=True, debug=False)
problems.register(app, logger)


@cache
def deployment() -> tuple[settings.Predict, Lake | None]:
    read = settings.read(settings.Predict, os.environ)
    return read, None if read.bucket == settings.NO_BUCKET else Lake(read.bucket)


@cache
def serving() -> Answers:
    read, lake = deployment()
    folder = Path(tempfile.gettempdir()) / "models"
    threads = settings.threads(os.environ)
    return Answers(answers.fetch_model(lake, read.model_uri, folder, read.signing_key, threads), lake, read)


@app.post(
    "/v1/predict",
    summary="Classify one text or several",
    responses=documented(Predictions, 413, 503, body=True, headers={MODEL_HEADER: MODEL_TOLD}),
)
def predict(body: Inputs) -> Response[str]:
    found = predicted(body.inputs)
    return answer(Predictions.of(found[0].model, found).model_dump_json(), {MODEL_HEADER: found[0].model})


@app.post(
    "/v1/text-classification",
    summary="Classify as Hugging Face's clients ask for it",
    responses=documented(Guesses, 413, 503, body=True, headers={MODEL_HEADER: MODEL_TOLD, IDS_HEADER: IDS_TOLD}),
)
def classify(body: Texts) -> Response[str]:
    found = predicted(body.inputs)
    ids = {IDS_HEADER: ",".join(one.id for one in found)} if len(found) <= MOST_IDS else {}
    guesses = Guesses.of(found, body.parameters.top_k)
    return answer(guesses.model_dump_json(), {MODEL_HEADER: found[0].model, **ids})


def predicted(texts: list[str]) -> list[Prediction]:
    found = serving().predict(texts, time.time_ns() // 1_000_000, os.urandom)
    tokens = sum(prediction.tokens for prediction in found)
    logger.append_keys(model=found[0].model, inputs=len(found), tokens=tokens)
    return found


@app.post(
    "/v1/explain",
    summary="Tell which words moved a score",
    responses=documented(Explanation, 413, 503, body=True, headers={MODEL_HEADER: MODEL_TOLD}),
)
def explain(body: Question) -> Response[str]:
    told, model = serving().explain(body.inputs, body.runs), serving().classifier.model
    logger.append_keys(model=model, inputs=1, runs=told.runs)
    return answer(Explanation.of(model, body.inputs, told).model_dump_json(), {MODEL_HEADER: model})


@app.post("/v1/feedback", summary="Tell the truth about a prediction", responses=documented(Truth, 404, 503, body=True))
def feedback(body: Feedback) -> Response[str]:
    truth = serving().feedback(body.id, body.label, time.time_ns() // 1_000_000)
    return answer(Truth.model_validate(truth, from_attributes=True).model_dump_json())


@app.get("/v1/model", summary="The card of the model that serves", responses=documented(Model, 503))
def model() -> Response[str]:
    classifier = serving().classifier
    return answer(Model(model=classifier.model, card=classifier.card).model_dump_json())


@app.get("/v1/health", summary="Whether a model serves", responses=documented(Health, 503))
def health() -> Response[str]:
    return answer(Health(status="ok", model=serving().classifier.model).model_dump_json())


@app.get("/v1/jobs/<id>", summary="How far a CSV job is", responses=documented(Job, 404))
def job(id: str) -> Response[str]:
    return answer(answers.find_job(deployment()[1], id).to_json())


@logger.inject_lambda_context(clear_state=True, log_event=False)
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Answer a request, or {"probe": texts}, with which the release checks a new version before it serves."""
    if "probe" in event:
        return serving().probe(event["probe"])
    began = time.perf_counter()
    reply = problems.unreadable(event) or app.resolve(event, context)
    facts = {"status": reply["statusCode"], "ms": round(1000 * (time.perf_counter() - began), 1)}
    logger.info("request", extra={"route": f"{event['httpMethod']} {event['resource']}", **facts})
    if reply["statusCode"] >= 500 and "ENVIRONMENT" in os.environ:
        for version in ("", context.function_version):
            publish(os.environ["ENVIRONMENT"], {Metric.FAILED_REQUESTS: 1}, time.time_ns() // 1_000_000, version)
    return reply


if "AWS_LAMBDA_RUNTIME_API" in os.environ:  # the init phase has the CPU to load a model; a request tells what failed
    with suppress(RetrueError):
        serving()
