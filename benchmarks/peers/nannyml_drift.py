"""NannyML's ways with their own thresholds: the reconstruction error of the embedding, or each of its main components.

Its default for a single column is the Jensen-Shannon distance; an alarm is that of any of 32 columns.
"""

import sys

import numpy as np
import pandas as pd
import protocol
from nannyml import DataReconstructionDriftCalculator, UnivariateDriftCalculator

COMPONENTS = 32


def prepare(reference, n):
    """A calculator fitted to chunks as large as the windows: its thresholds are three deviations of theirs."""
    way = sys.argv[2]
    centre, turn = np.zeros(reference.shape[1]), np.eye(reference.shape[1])
    if way != "reconstruction":
        centre = reference.mean(axis=0)
        turn = np.linalg.eigh(np.cov(reference.T))[1][:, -COMPONENTS:]

    def frame(texts):
        values = (texts - centre) @ turn
        return pd.DataFrame(values, columns=[f"c{column}" for column in range(values.shape[1])])

    known = frame(reference)
    if way == "reconstruction":
        calculator = DataReconstructionDriftCalculator(column_names=[*known], chunk_size=n)
    else:
        calculator = UnivariateDriftCalculator(column_names=[*known], chunk_size=n, continuous_methods=[way])
    calculator.fit(known)

    def judge(texts):
        told = calculator.calculate(frame(texts)).filter(period="analysis").to_df()
        return told.loc[:, told.columns.get_level_values(-1) == "alert"].to_numpy(dtype=bool).any()

    return judge


if __name__ == "__main__":
    protocol.answer(prepare)
