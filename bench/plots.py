"""Plots as SVG, written without dependencies."""

import math
from xml.sax.saxutils import escape

COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea")
WIDTH, LEFT, RIGHT = 760, 170, 90


def _document(title, height, parts):
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="16" y="24" font-size="15" font-weight="bold">{escape(title)}</text>',
        *parts, "</svg>", "",
    ])


def _text(x, y, text, anchor="start"):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1, y1, x2, y2, colour="#d1d5db", width=1):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def _ticks(top):
    """Returns at most nine round values from 0 up to `top` or slightly above."""
    step = next(step for step in (factor * 10.0 ** power for power in range(-3, 9) for factor in (1, 2, 5))
                if top / step <= 8)
    return [step * number for number in range(math.ceil(top / step) + 1)]


def bars(title, unit, rows):
    """Returns horizontal bars from zero, one for each (name, summary), with whiskers between the quartiles."""
    top = max(row["p75"] for _, row in rows)
    ticks = [tick for tick in _ticks(top) if tick <= top * 1.05]
    scale = (WIDTH - LEFT - RIGHT) / max(top, ticks[-1])
    bottom = 48 + 28 * len(rows)
    parts = []
    for tick in ticks:
        x = LEFT + tick * scale
        parts += [_line(x, 40, x, bottom), _text(x, bottom + 18, f"{tick:g}", "middle")]
    parts.append(_text(WIDTH - 16, bottom + 18, unit, "end"))
    for number, (name, row) in enumerate(rows):
        y = 48 + 28 * number
        colour = COLOURS[0] if name.startswith("pyro") else "#9ca3af"
        end, low, high = (LEFT + row[key] * scale for key in ("median", "p25", "p75"))
        parts += [
            _text(LEFT - 10, y + 14, name, "end"),
            f'<rect x="{LEFT}" y="{y}" width="{end - LEFT:.1f}" height="18" fill="{colour}"/>',
            _line(low, y + 9, high, y + 9, "#111827", 2),
            _text(max(end, high) + 8, y + 14, f"{row['median']:.0f}"),
        ]
    return _document(title, bottom + 34, parts)


def lines(title, x_name, y_name, series, limit=None):
    """Returns one line for each entry of `series`, a dictionary of lists of (x, summary).

    The x values are evenly spaced. `limit` is drawn as a horizontal line.
    """
    xs = sorted({x for points in series.values() for x, _ in points})
    top = max([row["p75"] for points in series.values() for _, row in points] + [limit or 0])
    ticks = _ticks(top)
    left, right, upper, lower = 70, WIDTH - 30, 60, 320

    def place(x, value):
        across = xs.index(x) / max(1, len(xs) - 1)
        return left + 40 + across * (right - left - 80), lower - value / ticks[-1] * (lower - upper)

    parts = [_text(16, 48, y_name), _text(right, lower + 40, x_name, "end")]
    for tick in ticks:
        _, y = place(xs[0], tick)
        parts += [_line(left, y, right, y), _text(left - 8, y + 4, f"{tick:g}", "end")]
    for x in xs:
        parts.append(_text(place(x, 0)[0], lower + 18, f"{x:g}", "middle"))
    if limit:
        _, y = place(xs[0], limit)
        parts += [_line(left, y, right, y, "#dc2626", 2), _text(left + 6, y - 6, f"target {limit:.0f}")]
    for number, (name, points) in enumerate(series.items()):
        colour = COLOURS[number]
        corners = [place(x, row["median"]) for x, row in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for (x, row), (column, y) in zip(points, corners):
            parts.append(f'<circle cx="{column:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
            parts.append(_line(column, place(x, row["p25"])[1], column, place(x, row["p75"])[1], colour, 2))
        if len(series) > 1:
            at = left + 170 * number
            parts += [_line(at, 356, at + 24, 356, colour, 3), _text(at + 30, 360, name)]
    return _document(title, 374, parts)
