"""Plots as self-contained SVG: no script, no network, every text escaped by the XML writer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 16, 56
COLOURS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#ca8a04", "#dc2626")


@dataclass(frozen=True)
class Span:
    """One bar on a time axis, in seconds."""

    name: str
    start: float
    end: float


def draw_bars(groups: Mapping[str, Mapping[str, float | None]], *, title: str, unit: str) -> str:
    """Return grouped bars: one group a key, one bar a series that has a value; the value is printed above its bar."""
    series = list(dict.fromkeys(name for values in groups.values() for name in values))
    top = _ceiling([value for values in groups.values() for value in values.values() if value is not None])
    canvas = _frame(title, top, unit)
    slot = (WIDTH - LEFT - RIGHT) / max(1, len(groups))
    bar = 0.8 * slot / max(1, len(series))
    for place, (group, values) in enumerate(groups.items()):
        _text(canvas, LEFT + (place + 0.5) * slot, HEIGHT - BOTTOM + 18, group)
        for number, name in enumerate(series):
            if (value := values.get(name)) is not None:
                _bar(canvas, LEFT + (place + 0.1) * slot + number * bar, bar, value, top, COLOURS[number % len(COLOURS)])
    return _finish(canvas, series)


def draw_lines(lines: Mapping[str, Sequence[tuple[int, float]]], ticks: Sequence[str], *, title: str, unit: str) -> str:
    """Return one line with dots a key over the numbered `ticks` of the x axis; points are (tick, value)."""
    top = _ceiling([value for points in lines.values() for _, value in points])
    canvas = _frame(title, top, unit)
    step = (WIDTH - LEFT - RIGHT) / max(1, len(ticks))
    every = max(1, len(ticks) // 10)
    for place in range(0, len(ticks), every):
        _text(canvas, LEFT + (place + 0.5) * step, HEIGHT - BOTTOM + 18, ticks[place])
    for number, points in enumerate(lines.values()):
        colour = COLOURS[number % len(COLOURS)]
        spots = [(LEFT + (place + 0.5) * step, _height(value, top)) for place, value in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        SubElement(canvas, "polyline", {"points": path, "fill": "none", "stroke": colour, "stroke-width": "2"})
        for x, y in spots:
            SubElement(canvas, "circle", {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "3.5", "fill": colour})
    return _finish(canvas, list(lines))


def draw_timeline(spans: Sequence[Span], marks: Mapping[str, float], *, title: str) -> str:
    """Return spans below each other on one axis of seconds, and a dashed line with its name for each mark."""
    row, left = 22, 190
    height = TOP + row * len(spans) + 62
    longest = max([span.end for span in spans] + list(marks.values()), default=1.0) or 1.0
    scale = (WIDTH - left - RIGHT) / longest
    canvas = _canvas(title, height)
    for place, span in enumerate(spans):
        y = TOP + 16 + place * row
        _text(canvas, left - 8, y + 13, span.name, anchor="end")
        width = max(1.5, (span.end - span.start) * scale)
        _rectangle(canvas, left + span.start * scale, y, width, row - 6, COLOURS[0])
    bottom = TOP + 16 + row * len(spans)
    _seconds_axis(canvas, left, bottom, longest, scale)
    for name, at in marks.items():
        x = left + at * scale
        _line(canvas, x, TOP + 8, x, bottom, COLOURS[1], dash="5 3")
        _text(canvas, x, TOP + 2, name, colour=COLOURS[1])
    return tostring(canvas, encoding="unicode")


def _seconds_axis(canvas: Element, left: float, y: float, longest: float, scale: float) -> None:
    _line(canvas, left, y, left + longest * scale, y, "currentColor")
    step = next((s for s in (1, 5, 10, 30, 60, 120, 300, 600) if longest / s <= 8), 1800)
    for at in range(0, int(longest) + 1, step):
        _text(canvas, left + at * scale, y + 18, f"{at} s")


def _canvas(title: str, height: float) -> Element:
    canvas = Element("svg", {"viewBox": f"0 0 {WIDTH} {height:g}", "role": "img", "aria-label": title, "font-size": "12"})
    canvas.set("xmlns", "http://www.w3.org/2000/svg")
    SubElement(canvas, "title").text = title
    return canvas


def _frame(title: str, top: float, unit: str) -> Element:
    canvas = _canvas(title, HEIGHT)
    for part in range(5):
        value = top * part / 4
        y = _height(value, top)
        _line(canvas, LEFT, y, WIDTH - RIGHT, y, "currentColor", opacity="1" if part == 0 else "0.15")
        _text(canvas, LEFT - 8, y + 4, f"{value:.3f}", anchor="end")
    _text(canvas, 14, (HEIGHT - BOTTOM + TOP) / 2, unit, turn=True)
    return canvas


def _finish(canvas: Element, names: Sequence[str]) -> str:
    """Add the legend and return the SVG text."""
    x = float(LEFT)
    for number, name in enumerate(names):
        _rectangle(canvas, x, HEIGHT - 20, 11, 11, COLOURS[number % len(COLOURS)])
        _text(canvas, x + 16, HEIGHT - 10, name, anchor="start")
        x += 40 + 6.6 * len(name)
    return tostring(canvas, encoding="unicode")


def _bar(canvas: Element, x: float, width: float, value: float, top: float, colour: str) -> None:
    y = _height(value, top)
    _rectangle(canvas, x, y, width * 0.92, HEIGHT - BOTTOM - y, colour)
    _text(canvas, x + width * 0.46, y - 4, f"{value:.3f}")


def _rectangle(canvas: Element, x: float, y: float, width: float, height: float, colour: str) -> None:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{width:.1f}", "height": f"{height:.1f}"}
    SubElement(canvas, "rect", {**place, "fill": colour, "rx": "2"})


def _line(
    canvas: Element, x1: float, y1: float, x2: float, y2: float, colour: str, *, opacity: str = "1", dash: str | None = None
) -> None:
    line = SubElement(canvas, "line", {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"})
    line.set("stroke", colour)
    line.set("stroke-opacity", opacity)
    if dash:
        line.set("stroke-dasharray", dash)


def _text(
    canvas: Element, x: float, y: float, text: str, *, anchor: str = "middle", colour: str = "currentColor", turn: bool = False
) -> None:
    element = SubElement(canvas, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "fill": colour})
    if turn:
        element.set("transform", f"rotate(-90 {x:.1f} {y:.1f})")
    element.text = text


def _height(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / top


def _ceiling(values: Sequence[float]) -> float:
    """Return the top of the axis: the next step above the largest value."""
    largest = max(values, default=0.0)
    steps = (0.02, 0.04, 0.08, 0.1, 0.12, 0.16, 0.2, 0.24, 0.28, 0.32, 0.4, 0.5, 0.6, 0.8, 1.0)
    return next((step for step in steps if largest * 1.08 <= step), largest * 1.1)
