"""Estimates: from how often each task was solved to pass@k with its interval."""

from collections.abc import Sequence
from math import comb, sqrt

Z = 1.96
"Of a 95 % interval."


def pass_at(k: int, solved: int, of: int) -> float:
    """The chance that at least one of k attempts solves the task; unbiased, k ≤ of.

    Source: Chen et al. 2021, Evaluating Large Language Models Trained on Code, eq. 1.
    """
    return 1.0 - comb(of - solved, k) / comb(of, k)


def mean_with_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over tasks of values in [0, 1], and Wilson's interval of a share of so many.

    Attempts at one task are not independent, so tasks count and not attempts; values between 0 and 1 vary less than
    zeros and ones do, so the interval is wide enough for them too.
    """
    count, mean = len(values), sum(values) / len(values)
    centre = (mean + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = Z / (1 + Z * Z / count) * sqrt(mean * (1 - mean) / count + Z * Z / (4 * count * count))
    return mean, max(0.0, centre - half), min(1.0, centre + half)
