"""Ours, as the functions call it."""

from pathlib import Path

import numpy as np
import serving

from retrue.classifier import OUTPUTS, Classifier


def load(folder: Path, _: str, threads: int) -> serving.Served:
    classifier = Classifier.open(folder, threads)
    columns = {label: column for column, label in enumerate(classifier.card.labels)}
    return serving.Served(
        lambda text: columns[classifier.score(text).label],
        lambda ids: classifier._session.run(OUTPUTS, {"input_ids": np.array([ids], np.int64)}),
        lambda texts, _: [columns[said.label] for said in classifier.score_many(texts)],
    )


if __name__ == "__main__":
    serving.answer(load)
