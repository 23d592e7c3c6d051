"""CTranslate2's encoder at int8; it knows no classifier, so the head is numpy's."""

import shutil
from pathlib import Path

import ctranslate2
import engine
import numpy as np
import serving

HEAD = ("pre_classifier.weight", "pre_classifier.bias", "classifier.weight", "classifier.bias")


def make(checkpoint: Path, folder: Path) -> None:
    """FOLDER with the encoder, and the head in head.npz."""
    from ctranslate2.converters import TransformersConverter
    from safetensors.numpy import load_file

    TransformersConverter(str(checkpoint)).convert(str(folder), quantization="int8")
    weights = load_file(checkpoint / "model.safetensors")
    np.savez(folder / "head.npz", **{name: weights[name] for name in HEAD})
    shutil.copyfile(checkpoint / "tokenizer.json", folder / "tokenizer.json")


def load(folder: Path, _: str, threads: int) -> serving.Served:
    encoder = ctranslate2.Encoder(str(folder), compute_type="int8", intra_threads=threads, inter_threads=1)
    with np.load(folder / "head.npz") as archive:
        first, first_bias, last, last_bias = (archive[name] for name in HEAD)

    def run(ids, mask):
        texts = [row[:length] for row, length in zip(ids.tolist(), mask.sum(axis=1).tolist(), strict=True)]
        hidden = np.array(encoder.forward_batch(texts).last_hidden_state)[:, 0]
        return np.maximum(hidden @ first.T + first_bias, 0) @ last.T + last_bias

    return engine.served(folder, run)


if __name__ == "__main__":
    serving.answer(load, make)
