"""One HTML page of a comparison: figures, inner tensors, and pictures side by side. Works offline."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.calibration.accuracy.score import Evaluation
from wnlb.calibration.comparison.compare import DRIFT, DetectionError, TapReport

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #2f6fb0; --bad: #d9822b; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.bar { display: inline-block; height: .7rem; background: var(--bar); vertical-align: middle; margin-right: .5rem; }
.bad { background: var(--bad); } .note { opacity: .75; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: .5rem; margin: 1rem 0; }
figure { margin: 0; } img { width: 100%; border-radius: 4px; } figcaption { font-size: .85rem; opacity: .8; }
"""


@dataclass(frozen=True)
class Shown:
    """One picture as each model sees it."""

    name: str
    overlays: tuple[NDArray[np.uint8], ...]  # BGR, one for each model
    counts: tuple[int, ...]  # detections that score 0.5 or more


def page(
    evaluations: Sequence[Evaluation],
    truth: str,
    agreements: Sequence[tuple[int, int, int]],
    errors: Sequence[DetectionError],
    taps: dict[str, TapReport],
    shown: Sequence[Shown],
) -> str:
    """The page. The first evaluation is the reference; ``agreements`` and ``errors`` are the others' with it."""
    names = [evaluation.model for evaluation in evaluations]
    head = evaluations[0].overall
    parts = [f"<h1>{_text(' against '.join([', '.join(names[1:]), names[0]]))}</h1>"]
    what = "the labels" if truth == "labels" else f"what {names[0]} finds with a score of 0.5 or more"
    parts.append(f"<p>{head.images} pictures, {head.objects} objects; AP in percent, against {_text(what)}.</p>")
    parts.append(_accuracy(evaluations, agreements, errors))
    parts += ["<h2>By darkness</h2>", "<p class=note>mask / box AP by mean linear luminance of the picture</p>"]
    parts.append(_darkness(evaluations))
    if taps:
        parts += ["<h2>Inside the network</h2>", _taps(taps)]
    parts.append("<h2>Where they differ most</h2>")
    parts.append("<p>Every detection has its partner on every picture.</p>" if not shown else "")
    for picture in shown:
        figures = "".join(
            f"<figure><img alt='{_text(picture.name)} by {_text(name)}' src='{_jpeg(overlay)}'>"
            f"<figcaption>{_text(name)}: {count} found</figcaption></figure>"
            for name, overlay, count in zip(names, picture.overlays, picture.counts, strict=True)
        )
        parts.append(f"<h3>{_text(picture.name)}</h3><div class=pictures>{figures}</div>")
    body = "\n".join(parts)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>wnlb compare</title><style>{_STYLE}</style><body>\n{body}\n</body></html>\n"
    )


def _accuracy(
    evaluations: Sequence[Evaluation],
    agreements: Sequence[tuple[int, int, int]],
    errors: Sequence[DetectionError],
) -> str:
    rows = []
    for evaluation, same, error in zip(evaluations, [None, *agreements], [None, *errors], strict=True):
        a = evaluation.overall
        agree = "" if same is None else f"{same[0]} of {same[1]} and {same[2]}"
        figures = (a.mask_ap, a.mask_ap50, a.mask_ap75, a.box_ap, a.box_ap50, a.box_ap75)
        apart = (
            ["", ""]
            if error is None
            else [f"{error.box:.2f}", "-" if error.mask_iou is None else f"{error.mask_iou:.3f}"]
        )
        rows.append([evaluation.model, *map(_figure, figures), agree, *apart])
    columns = ("detections that agree", "boxes differ by px", "IoU of masks")
    return _table(["model", "mask AP", "AP50", "AP75", "box AP", "AP50", "AP75", *columns], rows)


def _darkness(evaluations: Sequence[Evaluation]) -> str:
    rows = []
    for key, first in evaluations[0].by_darkness.items():
        own = [evaluation.by_darkness[key] for evaluation in evaluations]
        rows.append([key, str(first.images), *(f"{_figure(a.mask_ap)} / {_figure(a.box_ap)}" for a in own)])
    return _table(["luminance", "pictures", *(evaluation.model for evaluation in evaluations)], rows)


def _taps(taps: dict[str, TapReport]) -> str:
    parts = [
        f"<p class=note>Root mean square error of each tensor against the reference's root mean square; "
        f"drifted above {DRIFT:g}.</p>"
    ]
    for name, report in taps.items():
        first = report.first_drift()
        same, total = report.proposals
        parts.append(f"<h3>{_text(name)}: {f'{_text(first)} drifts first' if first else 'nothing drifts'}</h3>")
        rows = []
        for error in report.errors:
            width = 14 * min(error.relative / (3 * DRIFT), 1)
            kind = "bar bad" if error.relative > DRIFT else "bar"
            rows.append(
                f"<tr><td>{_text(error.tap)}</td><td style='text-align:left'>"
                f"<span class='{kind}' style='width:{width:.2f}rem'></span>{error.relative:.4f}</td>"
                f"<td>{error.largest:.3g}</td></tr>"
            )
        parts.append(f"<table><tr><th>tensor<th>relative error<th>largest difference</tr>{''.join(rows)}</table>")
        if total:
            parts.append(f"<p>{same} of the reference's {total} best proposals are there (IoU of 0.9 or more).</p>")
    return "\n".join(parts)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _figure(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1f}"


def _text(value: str) -> str:
    return html.escape(value, quote=True)


def _jpeg(picture: NDArray[np.uint8]) -> str:
    scale = min(640 / max(picture.shape[:2]), 1)
    if scale < 1:
        size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
