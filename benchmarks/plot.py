"""Charts as SVG: strips, a dot for each time that was measured and a bar at the median; and curves over steps."""

import math
import statistics
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

_LEFT, _WIDTH, _ROW, _TOP, _HEIGHT = 430, 460, 34, 46, 260
_COLOURS = ("#3b75af", "#c03d3e", "#519e3e", "#8d69b8")


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
    return _chart(parts, width=_LEFT + _WIDTH + 40, height=bottom + 32)


def curves(title: str, kinds: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """The chart of shares, from 0 to 1, by step: all curves of a kind in its colour, and their mean drawn thick."""
    left, bottom, steps = 60, _TOP + _HEIGHT, max(len(curve) for every in kinds.values() for curve in every)
    right = left + _WIDTH

    def line(curve: Sequence[float], look: str) -> str:
        at = ((left + _WIDTH * step / max(steps - 1, 1), bottom - _HEIGHT * share) for step, share in enumerate(curve))
        return f"<polyline points='{' '.join(f'{x:.1f},{y:.1f}' for x, y in at)}' fill='none' {look}/>"

    parts = [_text(16, 22, title, "start"), _text(right, bottom + 20, f"step {steps}", "end")]
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = bottom - _HEIGHT * share
        parts.append(f"<line x1='{left}' x2='{right}' y1='{y}' y2='{y}' stroke='#ddd'/>")
        parts.append(_text(left - 8, y + 4, f"{share:g}", "end"))
    for row, ((kind, every), colour) in enumerate(zip(kinds.items(), _COLOURS, strict=False)):
        mean = [statistics.fmean(values) for values in zip(*every, strict=True)]
        parts += [line(curve, f"stroke='{colour}' stroke-opacity='0.45'") for curve in every]
        parts.append(line(mean, f"stroke='{colour}' stroke-width='3'"))
        parts.append(f"<rect x='{right + 16}' y='{_TOP + 22 * row}' width='12' height='12' fill='{colour}'/>")
        parts.append(_text(right + 36, _TOP + 11 + 22 * row, kind, "start"))
    return _chart(parts, width=right + 220, height=bottom + 40)


def _chart(parts: Sequence[str], *, width: int, height: int) -> str:
    size = f"width='{width}' height='{height}'"
    head = f"<svg xmlns='http://www.w3.org/2000/svg' {size} font-family='sans-serif' font-size='13'>"
    return "\n".join([head, "<rect width='100%' height='100%' fill='white'/>", *parts, "</svg>\n"])


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f"<text x='{x}' y='{y}' text-anchor='{anchor}'>{escape(text)}</text>"


def _named(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
