"""Four small charts as inline SVG: bars, intervals, lines, stacked columns.

In: labels and numbers. Out: markup that takes its colours from the page, so that light and dark both read well.
Every chart carries its numbers in its alternative text, and every label is escaped here.
Trade-off: no plotting library: it would bring its own colours and a second of start-up for rectangles and lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup, escape

Format = Callable[[float], str]
_W = 500  # about the width of half a page, so that type comes out at its own size
_LABEL = 132


def bars(title: str, rows: Sequence[tuple[str, float, bool]], form: Format) -> Markup:
    """Horizontal bars from zero: (label, value >= 0, emphasised)."""
    top = max((v for _, v, _ in rows), default=0) or 1
    room, height = _W - _LABEL - 76, 24
    out = []
    for i, (label, value, strong) in enumerate(rows):
        y, w = i * height, max(room * value / top, 1)
        out.append(_text(_LABEL - 10, y + 15, _short(label), "end", "lab strong" if strong else "lab"))
        out.append(Markup('<rect class="{}" x="{}" y="{}" width="{:.1f}" height="14" rx="1.5"/>').format(
            "s0" if strong else "mute", _LABEL, y + 4, w))  # fmt: skip
        out.append(_text(_LABEL + w + 7, y + 15, form(value), "start", "num strong" if strong else "num"))
    return _svg(title, "; ".join(f"{a} {form(v)}" for a, v, _ in rows), out, len(rows) * height + 2)


def intervals(title: str, rows: Sequence[tuple[str, float, float, float]], form: Format) -> Markup:
    """Differences with their intervals about a zero line: (label, value, lo, hi)."""
    lo, hi = min(0.0, *(r[2] for r in rows)), max(0.0, *(r[3] for r in rows))
    left, right, height = _LABEL, _W - 184, 28
    span = (hi - lo) or 1

    def x(value: float) -> float:
        return left + (value - lo) / span * (right - left)

    total = len(rows) * height + 4
    out = [Markup('<line class="zero" x1="{0:.1f}" x2="{0:.1f}" y1="0" y2="{1}"/>').format(x(0), total - 4)]
    for i, (label, value, low, high) in enumerate(rows):
        y = i * height + 14
        tone = "good" if low > 0 else "bad" if high < 0 else "even"
        out.append(_text(_LABEL - 10, y + 4, _short(label), "end", "lab"))
        out.append(Markup('<line class="whisker {}" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>').format(
            tone, x(low), x(high), y, y))  # fmt: skip
        out.append(Markup('<circle class="dot {}" cx="{:.1f}" cy="{}" r="4.5"/>').format(tone, x(value), y))
        out.append(_text(right + 12, y + 4, f"{form(value)}  [{form(low)}, {form(high)}]", "start", "num"))
    alt = "; ".join(f"{a} {form(v)}, interval {form(low)} to {form(high)}" for a, v, low, high in rows)
    return _svg(title, alt, out, total)


def lines(
    title: str,
    labels: Sequence[str],
    series: Sequence[tuple[str, Sequence[float | None]]],
    form: Format,
    tick_form: Format,
    *,
    from_zero: bool = True,
) -> Markup:
    """One line a series over shared x labels; None leaves a gap."""
    known = [v for _, values in series for v in values if v is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    low = min(low, 0.0) if from_zero else low
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    left, right, up, down, height = 52, _W - 22, 8, 158, 182
    n = len(labels)

    def x(i: int) -> float:
        return (left + right) / 2 if n < 2 else left + i * (right - left) / (n - 1)

    def y(value: float) -> float:
        return down - (value - low) / ((high - low) or 1) * (down - up)

    out = []
    for tick in ticks:
        out.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
            left, right, y(tick), y(tick)))  # fmt: skip
        out.append(_text(left - 8, y(tick) + 4, tick_form(tick), "end", "num"))
    out += _x_labels(labels, x, height - 8)
    for s, (_, values) in enumerate(series):
        path, pen = [], "M"
        for i, value in enumerate(values):
            if value is None:
                pen = "M"
                continue
            path.append(f"{pen}{x(i):.1f} {y(value):.1f}")
            pen = "L"
        out.append(Markup('<path class="line l{}" d="{}"/>').format(s, " ".join(path)))
        if n <= 40:
            for i, value in enumerate(values):
                if value is not None:
                    out.append(Markup('<circle class="s{}" cx="{:.1f}" cy="{:.1f}" r="2.6"><title>{}</title></circle>')
                               .format(s, x(i), y(value), f"{labels[i]}: {form(value)}"))  # fmt: skip
    said = []
    for name, values in series:
        have = [v for v in values if v is not None]
        if have:
            said.append(f"{name}: first {form(have[0])}, last {form(have[-1])}, "
                        f"least {form(min(have))}, most {form(max(have))}")  # fmt: skip
    return _svg(title, f"{labels[0]} to {labels[-1]}. " + "; ".join(said) if labels else "", out, height)


def columns(title: str, labels: Sequence[str], series: Sequence[tuple[str, Sequence[float]]], form: Format) -> Markup:
    """Stacked columns of shares, one column a label; the values of a column add up to one."""
    left, right, up, down, height = 52, _W - 22, 8, 128, 152
    step = (right - left) / max(len(labels), 1)
    width = min(step * 0.72, 44)

    def x(i: int) -> float:
        return left + (i + 0.5) * step

    out = []
    for tick in (0.0, 0.5, 1.0):
        y = down - tick * (down - up)
        out.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(left, right, y, y))
        out.append(_text(left - 8, y + 4, f"{tick:.0%}", "end", "num"))
    for i, label in enumerate(labels):
        base = float(down)
        for s, (name, values) in enumerate(series):
            tall = values[i] * (down - up)
            base -= tall
            out.append(Markup('<rect class="s{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                              "<title>{}</title></rect>").format(
                s, x(i) - width / 2, base, width, tall, f"{label}: {name} {form(values[i])}"))  # fmt: skip
    out += _x_labels(labels, x, height - 8)
    alt = "; ".join(f"{name} {form(values[-1])} on {labels[-1]}" for name, values in series) if labels else ""
    return _svg(title, alt, out, height)


def _svg(title: str, alt: str, parts: Sequence[Markup], height: float) -> Markup:
    return Markup('<svg class="chart" role="img" aria-label="{0}" viewBox="0 0 {1} {2}">{3}</svg>').format(
        f"{title}. {alt}", _W, f"{height:.0f}", Markup("").join(parts)
    )


def _text(x: float, y: float, text: str, anchor: str, css: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        css, x, y, anchor, escape(text)
    )


def _x_labels(labels: Sequence[str], x: Callable[[int], float], y: float) -> list[Markup]:
    every = max(1, math.ceil(len(labels) / 7))
    shown = [i for i in range(len(labels)) if (len(labels) - 1 - i) % every == 0]
    return [_text(x(i), y, labels[i], "middle", "num") for i in shown]


def _short(label: str, most: int = 20) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that cover `[low, high]`."""
    span = next(s for s in (high - low, abs(high), 1.0) if s > 1e-10)  # labels have twelve places
    step = 10 ** math.floor(math.log10(span / 4))
    step = next(step * m for m in (1, 2, 2.5, 5, 10) if span / (step * m) <= 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]
