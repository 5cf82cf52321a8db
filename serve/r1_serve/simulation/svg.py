"""Line plots as SVG text: enough for a report that is one file and needs nothing from a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM, LINE = 640, 300, 64, 16, 16, 44, 15
COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#475569")


def plot(
    series: Mapping[str, Points], *, x: str, y: str, log_x: bool = False, log_y: bool = False, marks: bool = False
) -> str:
    """``series`` by name; ``x`` and ``y`` are the axes' titles. Points that a logarithmic axis cannot show are left
    out."""
    kept = {
        name: [p for p in points if (p[0] > 0 or not log_x) and (p[1] > 0 or not log_y)]
        for name, points in series.items()
    }
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return "<p>nothing to plot</p>"
    xs, ys = zip(*(p for points in kept.values() for p in points), strict=True)
    across = _Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT, log_x)
    up = _Axis(min(ys) if log_y else 0.0, max(ys), HEIGHT - BOTTOM, TOP, log_y)
    above = LINE * len(kept) if len(kept) > 1 else 0  # the names, over the plot
    box = f"0 {-above} {WIDTH} {HEIGHT + above}"
    parts = [f'<svg viewBox="{box}" role="img" aria-label="{escape(y)} over {escape(x)}">']
    for value in up.ticks():
        at = up(value)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_label(value)}</text>')
    for value in across.ticks():
        at = across(value)
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_label(value)}</text>')
    for index, (name, points) in enumerate(kept.items()):
        colour = COLOURS[index % len(COLOURS)]
        line = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        if marks:
            parts += [f'<circle cx="{across(a):.1f}" cy="{up(b):.1f}" r="3" fill="{colour}"/>' for a, b in points]
        if len(kept) > 1:
            at = LINE * (index + 1) - above
            parts.append(f'<text x="{LEFT}" y="{at}" style="fill:{colour}">{escape(name)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x)}</text>')
    turn = f"translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)"
    parts.append(f'<text transform="{turn}" text-anchor="middle">{escape(y)}</text></svg>')
    return "".join(parts)


class _Axis:
    def __init__(self, low: float, high: float, start: float, end: float, log: bool) -> None:
        self.log = log
        self.low, self.high = (math.log10(low), math.log10(high)) if log else (low, high)
        if self.high <= self.low:
            self.high = self.low + 1.0
        self._start, self._scale = start, (end - start) / (self.high - self.low)

    def __call__(self, value: float) -> float:
        return self._start + ((math.log10(value) if self.log else value) - self.low) * self._scale

    def ticks(self) -> list[float]:
        if self.log:
            return [10.0**e for e in range(math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9) + 1)]
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
        first = math.ceil(self.low / step)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _label(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e4 else f"{value:.4g}"
