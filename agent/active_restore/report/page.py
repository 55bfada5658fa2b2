"""The report as one page that needs nothing else: plots are inline SVG, no script, no address."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

from active_restore.report.digest import LANES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from active_restore.report.digest import Report

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 900, 220, 70, 24
_COLOURS = {"demand": "#d1495b", "predicted": "#edae49", "background": "#30638e"}
_THROTTLE = {"disk": "#e7c6c0", "processor": "#e6d9b8", "memory": "#d6c8e0", "demand": "#f3d6da"}
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222;background:#fff}
h1{font-size:1.4em}h2{font-size:1.1em;margin-top:2em}
table{border-collapse:collapse}td,th{padding:.15em .9em .15em 0;text-align:left}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}svg{width:100%;height:auto}svg text{font-size:12px;fill:#555}
code{overflow-wrap:anywhere}.key span{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 1em}
@media(prefers-color-scheme:dark){body{background:#181a1b;color:#ddd}svg text{fill:#aaa}}
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
        _table((), [(name, value) for name, value in facts(report)]),
        "<h2>Bytes by lane</h2>",
        _key(_COLOURS),
        _lanes(report),
        "<h2>Who the background yielded to</h2>",
        _key(_THROTTLE),
        _throttle(report),
        "<h2>Waits</h2><p>Each point is a task that waited for a file; the height is how long (logarithmic).</p>",
        _waits(report),
        "<h2>Units</h2><p>Usable: when a unit had waited for the last time.</p>",
        _table(
            ("unit", "faults", "waited", "first", "usable"),
            [
                (unit.name, f"{unit.faults:,}", f"{unit.waited_ms:,.1f} ms", f"{unit.first_s:.2f} s", f"{unit.last_s:.2f} s")
                for unit in sorted(report.units.values(), key=lambda unit: -unit.waited_ms)
            ],
        ),
        "<h2>Predictions</h2>",
        _table(
            ("kind", "made", "in time", "late", "unused", "not allowed"),
            [
                (kind, *(f"{found[name]:,}" for name in ("made", "hit", "late", "wasted", "dropped")))
                for kind, found in sorted(report.predictions.items())
            ],
        ),
        "<h2>Longest waits</h2>",
        _table(
            ("at", "waited", "who", "for"),
            [
                (f"{wait.at_s:.2f} s", f"{wait.waited_ms:,.1f} ms", f"{wait.comm} {wait.unit}".strip(), wait.path)
                for wait in report.longest()
            ],
        ),
        "<h2>Notes</h2>",
        _table(("at", "what"), [(f"{at_s:.1f} s", text) for at_s, text in report.notes]),
    ]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return head + "\n".join(parts) + "</html>\n"


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
        for part in range(5):
            at_s = self._span * part / 4
            anchor = "end" if part == 4 else "start"
            texts.append(f'<text x="{self.x(at_s)}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{at_s:.4g} s</text>')
        if report.ready_s is not None:
            x = self.x(report.ready_s)
            texts.append(f'<line x1="{x}" x2="{x}" y1="0" y2="{self.y(0)}" stroke="#2a9d8f" stroke-dasharray="4 3"/>')
        return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{inner}{"".join(texts)}</svg>'


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
    return axes.draw("".join(areas), [(1.0, f"{most / 1e6:,.4g} MB"), (0.5, f"{most / 2e6:,.4g} MB")], report)


def _throttle(report: Report) -> str:
    axes = _Axes(report)
    most = max([sample.rate_bytes_per_s for sample in report.samples], default=0.0) or 1.0
    bands = []
    for sample, after in zip(report.samples, report.samples[1:], strict=False):
        if sample.throttle in _THROTTLE:
            x, width = axes.x(sample.at_s), axes.x(after.at_s) - axes.x(sample.at_s)
            colour = _THROTTLE[sample.throttle]
            bands.append(f'<rect x="{x}" y="0" width="{width:.1f}" height="{axes.y(0)}" fill="{colour}"/>')
    points = " ".join(f"{axes.x(sample.at_s)},{axes.y(sample.rate_bytes_per_s / most)}" for sample in report.samples)
    line = f'<polyline fill="none" stroke="{_COLOURS["background"]}" stroke-width="1.5" points="{points}"/>'
    return axes.draw("".join(bands) + line, [(1.0, f"{most / 1e6:,.4g} MB/s")], report)


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
