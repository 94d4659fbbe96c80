"""Places in a runtime: first come, first served, until one's deadline; and what Prometheus is told of it."""

import asyncio
import re

import pytest

from skyrl_stack.records import Load
from skyrl_stack.runtime.metrics import Histogram, Metrics
from skyrl_stack.runtime.places import Places
from skyrl_stack.runtime.wire import Full


def test_places_are_given_in_order() -> None:
    async def run() -> list[int]:
        places, order = Places(1), list[int]()
        await places.take(1)

        async def start(number: int) -> None:
            await places.take(10)
            order.append(number)
            places.give_back()

        starts = [asyncio.create_task(start(number)) for number in range(20)]
        await asyncio.sleep(0)
        assert places.waiting == 20
        places.give_back()
        await asyncio.gather(*starts)
        assert (places.waiting, places.oldest_wait_s) == (0, 0)
        return order

    assert asyncio.run(run()) == list(range(20))


def test_who_gives_up_does_not_hold_the_others() -> None:
    async def run() -> None:
        places = Places(1)
        await places.take(1)
        impatient = asyncio.create_task(places.take(0.05))
        hanging_up = asyncio.create_task(places.take(10))
        patient = asyncio.create_task(places.take(10))
        with pytest.raises(Full, match=r"0\.05 s: runtime\.max_sandboxes = 1"):
            await impatient
        assert places.waiting == 2
        assert places.oldest_wait_s >= 0.04
        hanging_up.cancel()
        places.give_back()
        assert await patient >= 0.04

    asyncio.run(run())


def test_durations_are_counted_up_to_each_bound() -> None:
    histogram = Histogram()
    for seconds in (0.01, 0.05, 0.3, 1000):
        histogram.observe(seconds)
    lines = list(histogram.lines("x", "X."))
    assert 'x_bucket{le="0.05"} 2' in lines
    assert 'x_bucket{le="0.5"} 3' in lines
    assert 'x_bucket{le="+Inf"} 4' in lines
    assert lines[-2:] == ["x_sum 1000.360000", "x_count 4"]


def test_metrics_are_prometheus_text() -> None:
    text = Metrics().text(Load(capacity=4, alive=3, waiting=2), 1.5)
    assert "skyrl_starts_waiting 2\n" in text
    assert "skyrl_starts_oldest_wait_seconds 1.5\n" in text
    sample = re.compile(r'[a-z_]+(\{[a-z]+="[^"]+"\})? [0-9.]+|# (HELP|TYPE) [a-z_]+ .+')
    assert all(sample.fullmatch(line) for line in text.splitlines())
