"""The Wasserstein distance of all embedding values in one heap, which needs a threshold from somewhere."""

import numpy as np
import protocol
from scipy.stats import wasserstein_distance


def prepare(reference, _):
    flat = np.sort(reference.ravel())  # it sorts again, but faster
    return lambda texts: wasserstein_distance(flat, texts.ravel())


if __name__ == "__main__":
    protocol.answer(prepare)
