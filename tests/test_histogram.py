"""Histograms: every observation is in the one bucket that it belongs to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from repeater.histogram import SECONDS, Histogram

values = st.floats(min_value=0, max_value=100, allow_nan=False) | st.sampled_from(SECONDS)


@given(st.lists(st.tuples(values, st.integers(1, 9))))
def test_buckets_hold_what_they_say(observed: list[tuple[float, int]]) -> None:
    """A bucket holds what is above the bound before and up to its own; nothing is lost."""
    histogram = Histogram(SECONDS)
    for value, times in observed:
        histogram.observe(value, times)
    seen = histogram.statistics()
    bounds = (float("-inf"), *seen.bounds, float("inf"))
    for low, high, count in zip(bounds, bounds[1:], seen.counts, strict=False):
        assert count == sum(times for value, times in observed if low < value <= high)
    assert seen.count == sum(times for _, times in observed)
    assert abs(seen.total - sum(value * times for value, times in observed)) < 1e-6


def test_snapshot_stays_as_it_is() -> None:
    """What is observed later is not in a snapshot made before."""
    histogram = Histogram([1.0])
    before = histogram.statistics()
    histogram.observe(0.5)
    assert before.counts == (0, 0)
    assert histogram.statistics().counts == (1, 0)
