"""What a runtime tells Prometheus: how full it is, who waits, and what became of starts and how long they took.

Text format 0.0.4: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

from skyrl_stack.records import Load

CONTENT_TYPE = "text/plain; version=0.0.4"
_BOUNDS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
Result = Literal["started", "full", "failed"]


@dataclass
class Histogram:
    """Durations, counted by bounds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(_BOUNDS_S) + 1))
    sum_s: float = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[sum(seconds > bound for bound in _BOUNDS_S)] += 1
        self.sum_s += seconds

    def lines(self, name: str, meaning: str) -> Iterator[str]:
        yield from _head(name, "histogram", meaning)
        bounds = [*(f"{bound:g}" for bound in _BOUNDS_S), "+Inf"]
        for bound, count in zip(bounds, accumulate(self.counts), strict=True):
            yield f'{name}_bucket{{le="{bound}"}} {count}'
        yield f"{name}_sum {self.sum_s:.6f}"
        yield f"{name}_count {sum(self.counts)}"


@dataclass
class Metrics:
    """Counted since the server started, which has been started again `restarts` times."""

    restarts: int = 0
    starts: Counter[Result] = field(default_factory=Counter)
    waited: Histogram = field(default_factory=Histogram)
    "For a place."
    took: Histogram = field(default_factory=Histogram)
    "From its place to its first shell."

    def text(self, load: Load, oldest_wait_s: float) -> str:
        """All of it, with how full the runtime is now."""
        return "\n".join([*self._lines(load, oldest_wait_s), ""])

    def _lines(self, load: Load, oldest_wait_s: float) -> Iterator[str]:
        for name, value, meaning in (
            ("skyrl_sandboxes_capacity", load.capacity, "Sandboxes that may be alive at once."),
            ("skyrl_sandboxes_alive", load.alive, "Sandboxes alive or being started."),
            ("skyrl_starts_waiting", load.waiting, "Starts that wait for a place."),
            (
                "skyrl_starts_oldest_wait_seconds",
                round(oldest_wait_s, 3),
                "How long the first in the queue has waited.",
            ),
        ):
            yield from _head(name, "gauge", meaning)
            yield f"{name} {value}"
        yield from _head("skyrl_server_restarts_total", "counter", "Deaths of the server that its sandboxes outlived.")
        yield f"skyrl_server_restarts_total {self.restarts}"
        yield from _head("skyrl_starts_total", "counter", "Starts, by what became of them.")
        for result in ("started", "full", "failed"):
            yield f'skyrl_starts_total{{result="{result}"}} {self.starts[result]}'
        yield from self.waited.lines("skyrl_start_wait_seconds", "How long starts waited for a place.")
        yield from self.took.lines("skyrl_start_seconds", "How long sandboxes took to start, from their place on.")


def _head(name: str, kind: str, meaning: str) -> Iterator[str]:
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} {kind}"
