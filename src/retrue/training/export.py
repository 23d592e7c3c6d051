"""From a checkpoint to a sealed model folder: the graph that ships is chosen, calibrated, measured and described."""

import importlib.metadata
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer

from retrue import artifact, corpus, drift, metrics
from retrue import dataset as datasets
from retrue.artifact import Card
from retrue.classifier import Classifier, Scored
from retrue.dataset import Example
from retrue.records import iso
from retrue.training import batches, page, pictures, ranges, tokens
from retrue.training import graph as graphs
from retrue.training.encoder import FACTS as ENCODER
from retrue.training.finetune import Progress, Result, silent
from retrue.training.learner import quiet
from retrue.training.tokens import Tokens

AGREEMENT = 0.985  # share of compared rows that int8 must label as fp32 does
TOLERATED_LOSS = 0.005  # of accuracy on them
EVALUATED = 2_500  # rows of a split that are scored at most
SPANNED = 500  # training rows at most, whose main directions the drift residual leaves out and whose ranges scale int8
CHOOSING = 200  # other training rows, by which the smoothing is chosen
SMOOTHINGS = (0.0, 0.7, 0.8, 0.9)  # shares that are tried
USUAL = 0.8  # where there is nothing to choose by
BUDGET = 4_096  # padded tokens of a pass over them
READ = 256  # tokens of a text that an untrained encoder reads
COMPARED = 2_000  # rows that are scored by both graphs at most
UNTOLD = ("encoder", "notice", "settings", "labels", "seconds", "paused")  # of a Result: the card has them elsewhere
PACKAGES = ("torch", "transformers", "onnx", "onnxruntime", "tokenizers", "numpy")


def export(
    checkpoint: Path, dataset: Path, result: Result, out: Path, *, created: str, progress: Progress = silent
) -> Path:
    """Write the sealed model folder `out` from what `finetune` left in `checkpoint`.

    `created` is the time of the card. Raises TrainingFailed when the graph does not compute what torch computes.
    """
    began = time.monotonic()
    out.mkdir(parents=True)
    manifest = datasets.read_manifest(dataset)
    test, validation = (_sample(datasets.read(dataset, split)) for split in ("test", "validation"))
    with quiet():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint, attn_implementation="eager")
    graph = graphs.Graph(model.eval()).eval()
    shutil.copyfile(checkpoint / "tokenizer.json", out / artifact.TOKENIZER)
    blank = Card(
        labels=result.labels,
        created=created,
        encoder=result.encoder,
        precision="fp32",
        max_tokens=int(result.settings["max_tokens"]),
        temperature=1.0,
        dataset=manifest.id,
        metrics={},
        settings=result.settings,
        run={},
        cut=str(result.settings["cut"]),
        layer=graph.layer,
        notice=result.notice,
        data={name: value for name, value in asdict(manifest).items() if name not in ("id", "labels")},
    )

    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        progress(0.0, "exporting the graph")
        texts = [row.text for row in _sample(datasets.read(dataset, "train"), SPANNED + CHOOSING)]
        every = max(2, len(texts) // CHOOSING)
        choosing, spanned = texts[::every], [text for number, text in enumerate(texts) if number % every]
        tokenizer = Tokenizer.from_file(str(out / artifact.TOKENIZER))
        read = tokens.write(Path(scratch, "tokens"), tokenizer, spanned, blank.max_tokens, blank.cut)
        graph.fit(_means(graph, read))
        full, small = Path(scratch, "fp32"), Path(scratch, "int8")
        for folder in (full, small):
            folder.mkdir()
            shutil.copyfile(out / artifact.TOKENIZER, folder / artifact.TOKENIZER)
            (folder / artifact.CARD).write_text(blank.to_json())
        graphs.write(graph, full / artifact.MODEL)
        graphs.prove(graph, full / artifact.MODEL)
        progress(0.1, "quantising")
        smoothing = _quantise(graph, ranges.measure(graph.model, _passes(graph, read)), full, small, choosing)
        progress(0.3, "comparing int8 with fp32")
        # Test rows first: nothing was chosen by them yet. The validation rows chose the checkpoint by what fp32
        # answered, so they flatter fp32, and stand in only where there are too few test rows.
        rows = [*test, *validation]
        classifiers = {folder: Classifier(folder) for folder in (full, small)}
        by_both = {folder: _score(classifier, rows[:COMPARED]) for folder, classifier in classifiers.items()}
        moved = graphs.moved(graph, small / artifact.MODEL)
        comparison = compare([row.label for row in rows[:COMPARED]], by_both[full], by_both[small], moved)
        comparison["smoothing"] = smoothing
        chosen = small if comparison["shipped"] else full
        progress(0.7, "scoring the other held-out rows")
        answers = by_both[chosen] + _score(classifiers[chosen], rows[COMPARED:])
        for name in (artifact.MODEL, artifact.WEIGHTS):
            shutil.move(chosen / name, out / name)

    progress(0.9, "calibrating and measuring")
    temperature = metrics.fit_temperature(
        _logits(answers[len(test) :]), np.array([result.labels.index(row.label) for row in validation])
    )
    reference = drift.register(
        drift.columns(
            np.array([answer.projection for answer in answers]),
            np.array([answer.tokens for answer in answers]),
            np.array([answer.pieces for answer in answers]),
            np.array([answer.symbols for answer in answers]),
            metrics.softmax(_logits(answers) / temperature),
        ),
        made_by=artifact.bound(
            {name: artifact.sha256(out / name) for name in (artifact.MODEL, artifact.WEIGHTS, artifact.TOKENIZER)},
            blank.max_tokens,
            blank.cut,
        ),
        groups=[row.group for row in rows],
    )
    (out / artifact.REFERENCE).write_bytes(reference.to_bytes())
    measured = _measure(result.labels, test, answers[: len(test)], temperature)
    measured["validation"] = _quality(result.labels, validation, answers[len(test) :])
    measured["int8"] = comparison
    run = {
        **{name: value for name, value in asdict(result).items() if name not in UNTOLD},
        "train_seconds": result.seconds,
        "seed": result.settings["seed"],
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "export_seconds": round(time.monotonic() - began, 3),
    }
    card = replace(blank, precision=chosen.name, temperature=temperature, metrics=measured, run=run)
    (out / artifact.CARD).write_text(card.to_json())
    (out / artifact.GOLDEN).write_text(json.dumps(_golden(out), indent=1))
    (out / artifact.PAGE).write_text(page.render(card))
    pictures.draw(card, out)
    artifact.seal(out)
    progress(1.0, f"{card.precision} model, {measured['test']['accuracy']:.1%} of {len(test)} test rows right")
    return out


def reader(encoder: Path, out: Path) -> None:
    """Write a folder that reads texts as a model's does, from an encoder that nobody trained.

    It classifies nothing, so it is not sealed. What the drift residual leaves out are the main directions of synthetic
    texts, which are part of no comparison.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with quiet():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(encoder, attn_implementation="eager")
    graph = graphs.Graph(model.eval()).eval()
    texts = [row.text for name in corpus.DOMAINS for row in corpus.generate(seed=0, rows=SPANNED // 2, domain=name)]
    facts = json.loads((encoder / ENCODER).read_text())
    most = min(READ, model.config.max_position_embeddings)
    card = Card(
        labels=list(model.config.id2label.values()),
        created=iso(0),
        encoder=facts["name"],
        precision="int8",
        max_tokens=most,
        temperature=1.0,
        dataset="",
        metrics={},
        settings={},
        run={},
        layer=graph.layer,
        notice=facts["notice"],
    )
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        made = Path(scratch, "reader")
        made.mkdir()
        shutil.copyfile(encoder / "tokenizer.json", made / artifact.TOKENIZER)
        tokenizer = Tokenizer.from_file(str(made / artifact.TOKENIZER))
        read = tokens.write(Path(scratch, "tokens"), tokenizer, texts, most, card.cut)
        graph.fit(_means(graph, read))
        graphs.write(graph, made / artifact.MODEL)
        graphs.prove(graph, made / artifact.MODEL)
        graphs.write(graph, made / artifact.MODEL, ranges.measure(graph.model, _passes(graph, read)), USUAL)
        (made / artifact.CARD).write_text(card.to_json())
        made.rename(out)


def compare(truth: Sequence[str], full: Sequence[Scored], small: Sequence[Scored], moved: float) -> dict[str, Any]:
    """Whether the int8 graph may ship, and the numbers that say so, from what both graphs answer row by row.

    `moved` is how far a logit moves at most where other texts run beside its own.
    """
    labels = [[answer.label for answer in answers] for answers in (full, small)]
    right = [sum(label == true for label, true in zip(own, truth, strict=True)) for own in labels]
    agreement = sum(a == b for a, b in zip(*labels, strict=True)) / len(truth)
    loss = (right[0] - right[1]) / len(truth)
    shipped = agreement >= AGREEMENT and loss <= TOLERATED_LOSS and moved <= graphs.TOLERANCE
    reason = (
        f"int8 labels {agreement:.2%} of {len(truth)} held-out rows as fp32 does (at least {AGREEMENT:.1%} wanted) "
        f"and loses {loss:.2%} of accuracy (at most {TOLERATED_LOSS:.1%} allowed), and a text in company moves its "
        f"logits by {moved:.2g} (at most {graphs.TOLERANCE:g} allowed), so "
        f"{'int8' if shipped else 'fp32'} is shipped"
    )
    found = {"rows": len(truth), "agreement": agreement, "accuracy_loss": loss, "moved_in_company": moved}
    return {"shipped": shipped, **found, "reason": reason}


def _measure(
    labels: list[str], rows: Sequence[Example], answers: Sequence[Scored], temperature: float
) -> dict[str, Any]:
    """What the shipped graph gets right on the test rows, where, and how far its scores can be believed."""
    truth = np.array([labels.index(row.label) for row in rows])
    right = np.array([answer.label == row.label for answer, row in zip(answers, rows, strict=True)])
    raw, calibrated = (metrics.softmax(_logits(answers) / scale) for scale in (1.0, temperature))
    parts = {
        "length": metrics.terciles([len(row.text) for row in rows], "characters"),
        "label": metrics.groups([row.label for row in rows]),
        "source": metrics.groups([row.source for row in rows]),
    }
    return {
        "test": _quality(labels, rows, answers),
        "slices": [asdict(part) for part in metrics.slices(right, parts)],
        "truncated": float(np.mean([answer.truncated for answer in answers])),
        # On rows to which the temperature was not fitted.
        "calibration_error_before": metrics.calibration_error(raw, truth),
        "calibration_error": metrics.calibration_error(calibrated, truth),
        "reliability_before": [asdict(bin) for bin in metrics.reliability(raw, truth)],
        "reliability": [asdict(bin) for bin in metrics.reliability(calibrated, truth)],
    }


def _score(classifier: Classifier, rows: Sequence[Example]) -> list[Scored]:
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(classifier.score, [row.text for row in rows]))


def _quantise(graph: graphs.Graph, found: ranges.Ranges, full: Path, small: Path, texts: Sequence[str]) -> float:
    """Write the int8 graph whose scores on these texts are nearest to those of the fp32 one; its smoothing."""
    exact = _scores(full, texts)
    apart = {}
    for share in SMOOTHINGS:
        graphs.write(graph, small / artifact.MODEL, found, share)
        apart[share] = float(np.abs(_scores(small, texts) - exact).mean())
    best = min(apart, key=lambda share: apart[share])
    graphs.write(graph, small / artifact.MODEL, found, best)
    return best


def _scores(folder: Path, texts: Sequence[str]) -> NDArray[np.float64]:
    return np.array([list(answer.scores.values()) for answer in Classifier(folder).score_many(texts)])


def _passes(graph: graphs.Graph, texts: Tokens) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Texts as padded ids and their mask, shortest last."""
    for part in batches.passes(np.arange(len(texts)), texts.lengths, BUDGET):
        ids, mask = batches.padded(texts, part, graph.model.config.pad_token_id, torch.device("cpu"))
        yield ids, torch.ones_like(ids) if mask is None else mask


def _means(graph: graphs.Graph, texts: Tokens) -> torch.Tensor:
    """What the graph's middle layer is in the mean over each text, shortest texts last (texts, width)."""
    with torch.no_grad():
        return torch.cat([graph.answer(ids, mask)[1] for ids, mask in _passes(graph, texts)])


def _logits(answers: Sequence[Scored]) -> NDArray[np.float32]:
    return np.array([answer.logits for answer in answers])


def _quality(labels: list[str], rows: Sequence[Example], answers: Sequence[Scored]) -> dict[str, Any]:
    found = metrics.quality([row.label for row in rows], [answer.label for answer in answers], labels)
    macro, each = metrics.f1_intervals(found.confusion, seed=0)
    intervals = {label: [one.low, one.high] for label, one in zip(labels, each, strict=True)}
    return {**asdict(found), "f1_macro_interval": [macro.low, macro.high], "f1_intervals": intervals}


def _golden(folder: Path) -> list[dict[str, Any]]:
    """Texts that belong to nobody, and what a healthy copy of this model answers."""
    classifier = Classifier(folder)
    texts = [row.text for domain in ("films", "kitchen") for row in corpus.generate(seed=0, rows=4, domain=domain)]
    return [{"text": text, "scores": classifier.score(text).scores} for text in texts]


def _sample(rows: list[Example], most: int = EVALUATED) -> list[Example]:
    if len(rows) <= most:
        return rows
    chosen = np.random.default_rng(0).permutation(len(rows))[:most]
    return [rows[i] for i in sorted(chosen)]
