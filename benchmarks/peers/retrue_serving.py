"""Ours, as the functions call it."""

from pathlib import Path

import numpy as np
import serving

from retrue.classifier import Classifier


def load(folder: Path, _: str, threads: int) -> serving.Served:
    classifier = Classifier.open(folder, threads)
    columns = {label: column for column, label in enumerate(classifier.card.labels)}
    several, bare = asked(classifier)
    return serving.Served(
        lambda text: columns[classifier.score(text).label],
        bare,
        lambda texts, _: [columns[said.label] for said in several(texts)],
    )


def asked(classifier):
    """The two things that depend on how the classifier is built: many texts at once, and token ids alone."""
    several = getattr(classifier, "score_many", lambda texts: map(classifier.score, texts))
    session = classifier._session
    outputs, inputs = [each.name for each in session.get_outputs()], {each.name for each in session.get_inputs()}

    def bare(ids):
        fed = {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}
        return session.run(outputs, {name: value for name, value in fed.items() if name in inputs})

    return several, bare


if __name__ == "__main__":
    serving.answer(load)
