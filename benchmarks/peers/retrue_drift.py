"""Ours, as the monitor calls it: the reference is the sketch that ships with a model."""

import protocol

from retrue import drift


def prepare(sketch, _):
    reference = drift.Reference.from_bytes(sketch.tobytes())
    return lambda texts: drift.check(reference, texts).p


if __name__ == "__main__":
    protocol.answer(prepare)
