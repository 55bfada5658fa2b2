"""The report as one page that needs nothing else: plots are inline SVG, no script, no address."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

from active_restore.report.digest import LANES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from active_restore.report.digest import Report

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 900, 220, 84, 24
_COLOURS = {"demand": "#d1495b", "predicted": "#edae49", "background": "#30638e"}
_THROTTLE = {"disk": "#e0703f", "processor": "#d9b44a", "memory": "#8b6bb1", "demand": "#d1495b"}
_STYLE = """
:root{--ink:#1d2733;--soft:#66727f;--line:#e3e7eb;--card:#fff;--page:#f5f7f9;color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--ink:#dde3e9;--soft:#93a0ad;--line:#313a44;--card:#1e242b;--page:#14181d}}
body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:var(--ink);background:var(--page)}
h1{font-size:1.5em;margin-bottom:.2em;overflow-wrap:anywhere}h2{font-size:1.05em;margin:0 0 .4em}
section,.facts div{background:var(--card);border:1px solid var(--line);border-radius:8px}
section{padding:1em 1.2em;margin:1em 0;overflow-x:auto}p{color:var(--soft);margin:.3em 0}
.facts{display:flex;flex-wrap:wrap;gap:.6em;margin:1.2em 0}.facts div{padding:.5em .9em;flex:1 0 auto}
.facts b{display:block;font-size:1.15em;font-variant-numeric:tabular-nums}.facts span{color:var(--soft);font-size:.85em}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
td,th{padding:.3em 1em .3em 0;text-align:left;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:500;font-size:.85em}tr:last-child td{border-bottom:0}td{overflow-wrap:anywhere}
svg{width:100%;height:auto}svg text{font-size:12px;fill:var(--soft)}svg .grid{stroke:var(--line)}
code{overflow-wrap:anywhere}.key span{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin:0 .35em 0 1em}
.key span:first-child{margin-left:0}
"""


def escape(text: str) -> str:
    """As HTML; what cannot be printed is shown as a replacement character."""
    return html.escape("".join(one if one.isprintable() else "\ufffd" for one in text))


def page(report: Report) -> str:
    """The whole document."""
    title = f"Restore of {report.target}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>from {escape(report.source)}, snapshot <code>{escape(report.snapshot)}</code></p>",
        _tiles(facts(report)),
        _section("Bytes by lane", _key(_COLOURS), _lanes(report)),
        _section("Rate, and to whom the background yielded", _key(_THROTTLE), _throttle(report)),
        _section(
            "Waits", "<p>Each point is a task that waited for a file; the height is how long (logarithmic).</p>", _waits(report)
        ),
        _section("Units", "<p>Usable: when a unit had waited for the last time.</p>", _units(report)),
        _section("Predictions", _predictions(report)),
        _section("Longest waits", _longest(report)),
        _section("Notes", _table(("at", "what"), [(f"{at_s:.1f} s", text) for at_s, text in report.notes])),
    ]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return head + "\n".join(parts) + "</html>\n"


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{title}</h2>{''.join(parts)}</section>"


def _tiles(pairs: Iterable[tuple[str, str]]) -> str:
    tiles = (f"<div><span>{escape(name)}</span><b>{escape(value)}</b></div>" for name, value in pairs)
    return f'<div class="facts">{"".join(tiles)}</div>'


def _units(report: Report) -> str:
    units = sorted(report.units.values(), key=lambda unit: -unit.waited_ms)
    return _table(
        ("unit", "faults", "waited", "first", "usable"),
        [
            (unit.name, f"{unit.faults:,}", f"{unit.waited_ms:,.1f} ms", f"{unit.first_s:.2f} s", f"{unit.last_s:.2f} s")
            for unit in units
        ],
    )


def _predictions(report: Report) -> str:
    names = ("made", "hit", "late", "wasted", "dropped")
    return _table(
        ("kind", "made", "in time", "late", "unused", "not allowed"),
        [(kind, *(f"{found[name]:,}" for name in names)) for kind, found in sorted(report.predictions.items())],
    )


def _longest(report: Report) -> str:
    return _table(
        ("at", "waited", "who", "for"),
        [
            (f"{wait.at_s:.2f} s", f"{wait.waited_ms:,.1f} ms", f"{wait.comm} {wait.unit}".strip(), wait.path)
            for wait in report.longest()
        ],
    )


def facts(report: Report) -> list[tuple[str, str]]:
    """What there is to say in a few lines."""
    waited_s = sum(wait.waited_ms for wait in report.waits) / 1000
    found = [
        ("files", f"{report.files:,}"),
        ("bytes", f"{report.bytes:,}"),
        ("ready", _seconds(report.ready_s)),
        ("done", _seconds(report.done_s)),
        ("faults", f"{report.faults:,}"),
        ("waited in all", f"{waited_s:.3f} s"),
        ("refused", f"{report.refused:,}"),
    ]
    if (ranges := report.ranges).files:
        wanted = f"{ranges.bytes_wanted:,} of {ranges.bytes:,} bytes came because tasks wanted them"
        found.append(("by range", f"{ranges.files:,} files, {wanted}"))
    if report.agents > 1:
        found.append(("agents", f"{report.agents}: it was interrupted and went on"))
    if report.left_out:
        found.append(("left out", f"{report.left_out:,} events that the logbook had no room for"))
    return found


def _seconds(value: float | None) -> str:
    return "not yet" if value is None else f"after {value:.2f} s"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    if not body:
        return "<p>None.</p>"
    top = "<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>" if head else ""
    return f"<table>{top}{body}</table>"


def _key(colours: dict[str, str]) -> str:
    spans = "".join(f'<span style="background:{colour}"></span>{name}' for name, colour in colours.items())
    return f'<p class="key">{spans}</p>'


def _round_step(least: float) -> float:
    """The next of 1, 2, 5, 10, 20, ..."""
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= least * 0.999)


class _Axes:
    """From seconds and shares (0 to 1) to points of a plot."""

    def __init__(self, report: Report) -> None:
        last = [sample.at_s for sample in report.samples[-1:]] + [wait.at_s for wait in report.waits[-1:]]
        self._span = max([report.done_s or 0.0, *last, 0.001])

    def x(self, at_s: float) -> float:
        return round(_LEFT + at_s / self._span * (_WIDTH - _LEFT), 1)

    @staticmethod
    def y(share: float) -> float:
        return round((_HEIGHT - _BOTTOM) * (1 - share), 1)

    def draw(self, inner: str, labels: Sequence[tuple[float, str]], report: Report) -> str:
        texts = [
            f'<text x="{_LEFT - 6}" y="{self.y(share) + 12}" text-anchor="end">{escape(text)}</text>' for share, text in labels
        ]
        grid = [
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{self.y(at)}" y2="{self.y(at)}"/>'
            for at, _ in (*labels, (0, ""))
        ]
        step_s = _round_step(self._span / 6)
        for number in range(int(self._span / step_s) + 1):
            at_s = number * step_s
            anchor = "start" if not number else "end" if self.x(at_s) > _WIDTH - 20 else "middle"
            texts.append(f'<text x="{self.x(at_s)}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{at_s:g} s</text>')
        if report.ready_s is not None:
            x = self.x(report.ready_s)
            texts.append(f'<line x1="{x}" x2="{x}" y1="0" y2="{self.y(0)}" stroke="#2a9d8f" stroke-dasharray="4 3"/>')
            texts.append(f'<text x="{x + 4}" y="12">ready</text>')
        return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(grid)}{inner}{"".join(texts)}</svg>'


def _lanes(report: Report) -> str:
    axes = _Axes(report)
    most = max([sum(sample.lanes.values()) for sample in report.samples], default=0) or 1
    below = [0.0] * len(report.samples)
    areas = []
    for lane in LANES:
        above = [base + sample.lanes[lane] / most for base, sample in zip(below, report.samples, strict=True)]
        forth = [f"{axes.x(sample.at_s)},{axes.y(share)}" for sample, share in zip(report.samples, above, strict=True)]
        back = [f"{axes.x(sample.at_s)},{axes.y(share)}" for sample, share in zip(report.samples, below, strict=True)]
        areas.append(f'<polygon fill="{_COLOURS[lane]}" points="{" ".join(forth + back[::-1])}"/>')
        below = above
    return axes.draw("".join(areas), [(1.0, f"{most / 1e6:,.1f} MB"), (0.5, f"{most / 2e6:,.1f} MB")], report)


def _throttle(report: Report) -> str:
    axes = _Axes(report)
    most = max([sample.rate_bytes_per_s for sample in report.samples], default=0.0) or 1.0
    bands = []
    for sample, after in zip(report.samples, report.samples[1:], strict=False):
        if sample.throttle in _THROTTLE:
            x, width = axes.x(sample.at_s), axes.x(after.at_s) - axes.x(sample.at_s)
            colour = _THROTTLE[sample.throttle]
            bands.append(f'<rect x="{x}" y="0" width="{width:.1f}" height="{axes.y(0)}" fill="{colour}" fill-opacity=".25"/>')
    points = " ".join(f"{axes.x(sample.at_s)},{axes.y(sample.rate_bytes_per_s / most)}" for sample in report.samples)
    line = f'<polyline fill="none" stroke="{_COLOURS["background"]}" stroke-width="1.5" points="{points}"/>'
    return axes.draw("".join(bands) + line, [(1.0, f"{most / 1e6:,.1f} MB/s")], report)


def _waits(report: Report) -> str:
    axes = _Axes(report)
    # From 0.01 ms to the longest.
    decades = max(math.ceil(math.log10(max([wait.waited_ms for wait in report.waits], default=1.0) + 1e-9)) + 2, 1)
    points = []
    for wait in report.waits:
        share = min(max((math.log10(max(wait.waited_ms, 0.01)) + 2) / decades, 0.0), 1.0)
        colour = _COLOURS["demand"]
        points.append(f'<circle cx="{axes.x(wait.at_s)}" cy="{axes.y(share)}" r="2" fill="{colour}" fill-opacity=".6"/>')
    labels = [(step / decades, f"{10 ** (step - 2):g} ms") for step in range(1, decades + 1)]
    return axes.draw("".join(points), labels, report)
