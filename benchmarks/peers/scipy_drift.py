"""The Wasserstein distance of all embedding values in one heap, which needs a threshold from somewhere."""

import protocol
from scipy.stats import wasserstein_distance


def prepare(reference, _):
    flat = reference.ravel()
    return lambda texts: wasserstein_distance(flat, texts.ravel())


if __name__ == "__main__":
    protocol.answer(prepare)
