"""The statistics of a comparison: the median of paired ratios, an interval for it, and the verdict.

A pair measures the reference and the new version at the same time on the same machine, so that what disturbs one
disturbs the other. Their ratio is above 1 if the new version is better: throughput up, or time or memory down.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from math import comb

__all__ = ["MIN_PAIRS", "Interval", "Verdict", "interval", "judge", "ratio"]

#: Confidence of an interval.
_CONFIDENCE = 0.95
#: With fewer pairs even the interval from the smallest to the largest ratio has less confidence: 1 - 2 / 2**5 = 0.9375.
MIN_PAIRS = 6
_FALLEN_BELOW = 0.95
_RISEN_ABOVE = 1.05
_MAX_WIDTH = 0.2

#: The lower and the upper end.
Interval = tuple[float, float]


class Verdict(Enum):
    """What a comparison says about a row."""

    #: The new version is worse.
    FALLEN = "fallen"
    #: The interval is too wide to say anything.
    UNDECIDED = "undecided"
    HELD = "held"
    #: The new version is better.
    RISEN = "risen"


def ratio(reference: float, new: float, more_is_better: bool) -> float:
    """Return how many times better the new value is."""
    return new / reference if more_is_better else reference / new


def interval(ratios: Sequence[float]) -> Interval:
    """Return the 95 % confidence interval of the median.

    The interval between the k-th smallest and the k-th largest of n values contains the median with a probability that
    only k and n determine, for every distribution: 97.9 % for k = 2 and n = 10, 89.1 % for k = 3. The method
    interpolates between the two intervals around 95 %.

    Source: T. P. Hettmansperger, S. J. Sheather, "Confidence intervals based on interpolated order statistics",
    Statistics & Probability Letters 4 (1986), pages 75-79; as in ``scipy.stats.mstats.median_cihs``.

    Raises:
        ValueError: there are fewer than :data:`MIN_PAIRS` values.
    """
    count = len(ratios)
    if count < MIN_PAIRS:
        raise ValueError(f"an interval needs at least {MIN_PAIRS} values, not {count}")
    ordered = sorted(ratios)
    k = 1
    while _coverage(k + 1, count) >= _CONFIDENCE:
        k += 1
    outer, inner = _coverage(k, count), _coverage(k + 1, count)
    step = (outer - _CONFIDENCE) / (outer - inner)
    weight = (count - k) * step / (k + (count - 2 * k) * step)
    low = (1 - weight) * ordered[k - 1] + weight * ordered[k]
    high = (1 - weight) * ordered[-k] + weight * ordered[-k - 1]
    return low, high


def _coverage(k: int, count: int) -> float:
    """Return the probability that the median is between the k-th smallest and the k-th largest value."""
    return 1 - 2 * sum(comb(count, index) for index in range(k)) / 2.0**count


def judge(of: Interval) -> Verdict:
    """Return the verdict for an interval."""
    low, high = of
    if high < _FALLEN_BELOW:
        return Verdict.FALLEN
    if high - low > _MAX_WIDTH:
        return Verdict.UNDECIDED
    return Verdict.RISEN if low > _RISEN_ABOVE else Verdict.HELD
