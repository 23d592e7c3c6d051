"""What the API answers: predictions that are captured before they are given, and labels for them.

A flow: it joins one classifier and one lake, and knows neither HTTP nor the clock.
"""

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.request import url2pathname

from retrue import artifact, explanation, records
from retrue.classifier import Classifier
from retrue.errors import BadInput, ModelRefused, NoLake, NoModel, NotFound, TooLarge, UnknownLabel
from retrue.explanation import Explanation
from retrue.lake import Lake, split_uri
from retrue.records import Job, Label, Prediction
from retrue.settings import Predict
from retrue.signature import Signer

SOURCE = "http"
LOCAL = "file://"  # a model folder on this machine, in place of one in the lake
UNSIGNED = "the model is not signed: promote one that this deployment made"
SURROGATE = re.compile("[\ud800-\udfff]")  # JSON may escape half a pair, which no encoding can write


class Answers:
    """One serving model, and the lake that keeps what it said; without one nothing is kept."""

    def __init__(self, classifier: Classifier, lake: Lake | None, settings: Predict) -> None:
        self.classifier, self.lake, self.settings = classifier, lake, settings

    def predict(self, texts: Sequence[str], now_ms: int, entropy: Callable[[int], bytes]) -> list[Prediction]:
        """Classify texts and capture the answers in one object before anybody sees them, or the share that is kept.

        `entropy(n)` gives n random bytes, such as os.urandom. TooLarge or BadInput where the limits are not kept.
        """
        check(texts, self.settings.max_inputs, self.settings.max_characters)
        model, keep = self.classifier.model, self.settings.keep_text
        predictions = [
            found.record(records.new_id(now_ms, entropy(10)), model, SOURCE, text if keep else None)
            for text, found in zip(texts, self.classifier.score_many(texts), strict=True)
        ]
        kept = [one for one in predictions if records.kept(one.id, self.settings.capture_rate)]
        if kept and self.lake is not None:
            self.lake.write_predictions(kept)
        return predictions

    def explain(self, text: str, runs: int | None = None) -> Explanation:
        """Which words moved the score of a text, in at most `runs` runs of the model; nothing is captured."""
        check([text], 1, self.settings.max_characters)
        most = self.settings.explain_runs
        if runs is not None and runs > most:
            raise BadInput(f"{runs} runs of the model are more than the {most} that one explanation may take")
        return explanation.explain(self._scores, text, runs or most)

    def feedback(self, id: str, label: str, now_ms: int) -> Label:
        """Write down the truth about one prediction; NotFound or UnknownLabel."""
        lake, labels = known(self.lake), self.classifier.card.labels
        if label not in labels:
            raise UnknownLabel(f"the label is not one that the model knows: use {' or '.join(labels)}")
        try:
            found = lake.find_prediction(id)
        except NotFound:
            raise NotFound(records.why_missing(id, self.settings.capture_rate)) from None
        truth = found.truth(label, records.iso(now_ms), SOURCE)
        lake.write_labels([truth])
        return truth

    def probe(self, texts: Sequence[str]) -> dict[str, Any]:
        """Scores for texts that nobody asked about: the check of a new version, so nothing is captured."""
        return {"model": self.classifier.model, "scores": self._scores(texts)}

    def _scores(self, texts: Sequence[str]) -> list[dict[str, float]]:
        return [found.scores for found in self.classifier.score_many(texts)]


def check(texts: Sequence[str], max_inputs: int, max_characters: int) -> None:
    """Refuse no texts, too many, and texts that are too long, blank or broken; the message counts them from 1."""
    if not texts:
        raise BadInput("there is no text to classify: send at least one")
    if len(texts) > max_inputs:
        raise TooLarge(f"{len(texts)} texts are more than the {max_inputs} that one request may hold: send fewer")
    for number, text in enumerate(texts, 1):
        if len(text) > max_characters:
            raise TooLarge(f"text {number} has {len(text)} characters, more than {max_characters}: shorten it")
        if not text.strip():
            raise BadInput(f"text {number} is blank: send words")
        if SURROGATE.search(text):
            raise BadInput(f"text {number} is not valid Unicode: it holds half of a surrogate pair")


def known(lake: Lake | None) -> Lake:
    """The lake; NoLake where there is none."""
    if lake is None:
        raise NoLake("nothing is kept here, as there is no lake: name a bucket (BUCKET), and start again")
    return lake


def find_job(lake: Lake | None, id: str) -> Job:
    """One CSV job; NotFound, without the key that was looked for."""
    kept = known(lake)
    try:
        return kept.read_job(id)
    except NotFound:
        raise NotFound("there is no job with this id") from None


def fetch_model(lake: Lake | None, model_uri: str, root: Path, signing_key: str = "", threads: int = 1) -> Classifier:
    """Open the model at s3://bucket/models/<id>/, from `root`/<id> where an earlier call left it, or at file:///folder.

    NoModel where the URI is "none"; ModelRefused where the folder is missing, altered, another model's, or, with a
    signing key, not signed with it.
    """
    if model_uri == artifact.NONE:
        raise NoModel("no model is serving yet: run `retrue retrain`")
    signer = Signer(signing_key) if signing_key else None
    if model_uri.startswith(LOCAL):
        return _open_local(Path(url2pathname(model_uri.removeprefix(LOCAL))), signer, threads)
    bucket, prefix = split_uri(model_uri)
    if lake is None or bucket != lake.bucket:
        raise ModelRefused("the serving model lies in another bucket than this deployment's: promote one of its own")
    expected = prefix.rstrip("/").rpartition("/")[2]
    folder = root / expected
    if not folder.is_dir():
        _download(lake, f"{prefix.rstrip('/')}/", folder, signer)
    classifier = Classifier.open(folder, threads)
    if classifier.model != expected:
        raise ModelRefused(f"the folder of model {expected} holds model {classifier.model}: promote another one")
    return classifier


def _open_local(folder: Path, signer: Signer | None, threads: int) -> Classifier:
    if signer is not None:
        signature = folder / artifact.SIGNATURE
        if not signature.is_file():
            raise ModelRefused(UNSIGNED)
        signer.check((folder / artifact.MANIFEST).read_bytes(), signature.read_bytes())
    return Classifier.open(folder, threads)


def _download(lake: Lake, prefix: str, folder: Path, signer: Signer | None) -> None:
    """All or nothing: a download cut short, or not signed, must not pass for a model that is already there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as half:
        try:
            lake.download_folder(prefix, Path(half) / folder.name, artifact.SERVED)
        except NotFound:
            raise ModelRefused("the model that should serve is not in the lake: promote another one") from None
        if signer is not None:
            signer.check((Path(half) / folder.name / artifact.MANIFEST).read_bytes(), _signature(lake, prefix))
        try:
            (Path(half) / folder.name).rename(folder)
        except OSError:
            if not folder.is_dir():  # or else another process of this machine was first, with the same model
                raise


def _signature(lake: Lake, prefix: str) -> bytes:
    try:
        return lake.get(prefix + artifact.SIGNATURE)
    except NotFound:
        raise ModelRefused(UNSIGNED) from None
