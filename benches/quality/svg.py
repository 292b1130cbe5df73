"""Bars and curves as SVG, in the colours of `elektron report`, light or dark as the reader's page."""
import math
from html import escape

SERIES = [("2a78d6", "3987e5"), ("eb6834", "e0703f"), ("1baf7a", "1fa97a"), ("8a5bd0", "a08be8"),
          ("b98200", "cf9516"), ("d9488b", "df6a9f"), ("0e8f9e", "2aa7b5"), ("7a6a53", "a8967b")]
INKS = {"text": ("1d1d1b", "f2f1ec"), "faint": ("5c5b56", "b3b1a8"), "grid": ("e3e2db", "34332f"),
        "surface": ("fcfcfa", "191918")} | {f"r{i}": pair for i, pair in enumerate(SERIES)}

def stylesheet():
    rules = ["".join(f".l-{name}{{fill:none;stroke:#{pair[shade]}}}.f-{name}{{fill:#{pair[shade]}}}"
                     for name, pair in INKS.items()) for shade in (0, 1)]
    return f"<style>{rules[0]}@media (prefers-color-scheme:dark){{{rules[1]}}}</style>"

def text(x, y, words, ink="text", anchor="start", size=12, bold=False):
    weight = ' font-weight="600"' if bold else ""
    return (f'<text class="f-{ink}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" '
            f'font-size="{size}"{weight}>{escape(words)}</text>')

def line(points, ink, width=1.5, dashed=False):
    dash = ' stroke-dasharray="5 3"' if dashed else ""
    where = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="l-{ink}" stroke-width="{width}" stroke-linejoin="round"{dash} points="{where}"/>'

def sheet(width, height, shapes):
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" font-family="system-ui,DejaVu Sans,Verdana,sans-serif">'
            f'{stylesheet()}<rect class="f-surface" width="{width}" height="{height}"/>\n'
            + "\n".join(shapes) + "\n</svg>\n")

def ticks(low, high, count=5):
    """Round numbers within a range."""
    rough = (high - low) / count or 1.0
    power = 10 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]

def short(number):
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:g} {unit}"
    return f"{number:g}"

def bars(groups, title):
    """`groups`: [(heading, [(label, mean, deviation, number of its colour)])]; from zero, in percent."""
    width, row, at, shapes = 640, 24, 34, [text(16, 22, title, bold=True, size=14)]
    left, right = 268, 600
    for heading, entries in groups:
        at += 16
        shapes.append(text(16, at, heading, bold=True))
        high = max([mean + deviation for _, mean, deviation, _ in entries] + [1e-9])
        scale = lambda value: left + (right - left - 60) * value / high
        for label, mean, deviation, colour in entries:
            at += row
            shapes.append(text(left - 8, at, label, anchor="end"))
            shapes.append(f'<rect class="f-r{colour % len(SERIES)}" x="{left}" y="{at - 12}" '
                          f'width="{max(0, scale(mean) - left):.1f}" height="15"/>')
            middle, ends = at - 4.5, (scale(max(0, mean - deviation)), scale(mean + deviation))
            if deviation:
                shapes.append(line([(ends[0], middle), (ends[1], middle)], "text", 1.2))
            shapes.append(text(max(scale(mean), ends[1]) + 6, at, f"{mean:.1f} ± {deviation:.1f}", "faint"))
        at += 14
    return sheet(width, at + 12, shapes)

def curves(panels, title, labels):
    """`panels`: [(heading, {colour: [(x, y)]}, [(level, words)])]; `labels`: {colour: words}."""
    width, tall, at = 760, 250, 34
    shapes = [text(16, 22, title, bold=True, size=14)]
    x = 16
    for colour, words in labels.items():
        shapes.append(line([(x, at + 6), (x + 18, at + 6)], f"r{colour % len(SERIES)}", 3))
        shapes.append(text(x + 24, at + 10, words))
        x += 40 + 6.6 * len(words)
    at += 34
    for heading, series, levels in panels:
        points = [p for line_ in series.values() for p in line_]
        if not points:
            continue
        left, right, top, bottom = 64, width - 24, at + 14, at + tall - 40
        ys = [y for _, y in points] + [level for level, _ in levels]
        low, high, far = min(ys), max(ys), max(p[0] for p in points)
        low, high = (low - 0.05 * (high - low), high + 0.05 * (high - low)) if high > low else (low - 1, low + 1)
        place = lambda p: (left + (right - left) * p[0] / far, bottom - (bottom - top) * (p[1] - low) / (high - low))
        shapes.append(text(16, at + 4, heading, bold=True))
        for value in ticks(low, high):
            y = place((0, value))[1]
            shapes += [line([(left, y), (right, y)], "grid", 1), text(left - 6, y + 4, f"{value:g}", "faint", "end", 11)]
        for value in ticks(0, far):
            shapes.append(text(place((value, low))[0], bottom + 16, short(value), "faint", "middle", 11))
        shapes.append(text(right, bottom + 30, "tokens", "faint", "end", 11))
        for level, words in levels:
            y = place((0, level))[1]
            shapes += [line([(left, y), (right, y)], "faint", 1, dashed=True),
                       text(right, y - 4, words, "faint", "end", 11)]
        for colour, its in series.items():
            shapes.append(line([place(p) for p in its], f"r{colour % len(SERIES)}"))
        at += tall
    return sheet(width, at, shapes)
