"""A strip chart as SVG: for each thing that was measured a dot for each time, and a bar at the median."""

import math
import statistics
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

_LEFT, _WIDTH, _ROW, _TOP = 430, 460, 34, 46


def strips(title: str, samples: Mapping[str, Sequence[float]]) -> str:
    """The chart of `samples`, which are seconds, over decades."""
    every = [math.log10(seconds) for times in samples.values() for seconds in times]
    first, last = math.floor(min(every)), math.ceil(max(every))

    def x(seconds: float) -> float:
        return round(_LEFT + _WIDTH * (math.log10(seconds) - first) / (last - first), 1)

    bottom = _TOP + _ROW * len(samples)
    parts = [_text(16, 22, title, "start")]
    for decade in range(first, last + 1):
        place = x(10.0**decade)
        parts.append(f"<line x1='{place}' x2='{place}' y1='{_TOP}' y2='{bottom}' stroke='#ddd'/>")
        parts.append(_text(place, bottom + 18, _named(10.0**decade), "middle"))
    for row, (name, times) in enumerate(samples.items()):
        y, median = _TOP + _ROW * row + _ROW // 2, statistics.median(times)
        parts += [f"<circle cx='{x(each)}' cy='{y}' r='4' fill='#3b75af' fill-opacity='0.35'/>" for each in times]
        parts.append(f"<rect x='{x(median) - 1.5}' y='{y - 10}' width='3' height='20' fill='#c03d3e'/>")
        parts.append(_text(_LEFT - 12, y + 4, f"{name}: {_named(median)}", "end"))
    size = f"width='{_LEFT + _WIDTH + 40}' height='{bottom + 32}'"
    head = f"<svg xmlns='http://www.w3.org/2000/svg' {size} font-family='sans-serif' font-size='13'>"
    return "\n".join([head, "<rect width='100%' height='100%' fill='white'/>", *parts, "</svg>\n"])


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f"<text x='{x}' y='{y}' text-anchor='{anchor}'>{escape(text)}</text>"


def _named(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
