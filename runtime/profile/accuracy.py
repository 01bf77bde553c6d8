"""How accurate a model is beside its latency, by ``wnlb evaluate``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.onnx_file import read_model
from wnlb.runtime.profile.making import Maker
from wnlb.runtime.profile.variants import Variant
from wnlb.runtime.profile.worker import How

PICTURES = 32  # for agreement with FP32


@dataclass(frozen=True)
class Truth:
    """What detections are held against: labels of pictures, or what the FP32 file finds on pictures."""

    images: str
    annotations: Path | None = None


def accuracy_of(variant: Variant, truth: Truth, how: How, maker: Maker) -> dict[str, Any] | None:
    """The row's ``accuracy``; None where there is nothing to hold it against.

    Entries: ``truth`` (labels or reference), ``images``, ``objects``, ``box_ap`` and ``mask_ap`` in percent (None
    without masks or objects), ``by_darkness``: the same four figures by bin of luminance.

    Raises:
        WnlbError: it cannot be measured; the reason.
    """
    against = truth.annotations or variant.reference
    if variant.path is None or against is None:
        return None
    # What a server holds may have changed since, under the same name.
    source: Path | str = variant.path if isinstance(variant.path, Path) else f"{variant.path} {time.time_ns()}"
    words: list[str | Path] = ["evaluate", str(variant.path), "--images", truth.images, "--json"]
    words += ["--annotations", against] if truth.annotations else ["--baseline", against, "--count", str(PICTURES)]
    words += ["--device", how.device, "--threads", str(how.threads)]
    told = maker.tell(f"{variant.name.replace('/', '_')}.accuracy.json", words, [source, against, truth.images])
    model = told["models"][0]
    bins = {name: _figures(figures) for name, figures in model["by_darkness"].items()}
    return {"truth": told["truth"], **_figures(model["overall"]), "by_darkness": bins}


def _figures(accuracy: dict[str, Any]) -> dict[str, Any]:
    return {key: accuracy[key] for key in ("images", "objects", "box_ap", "mask_ap")}


def give_references(variants: Sequence[Variant]) -> None:
    """Files that were given, not made, have the first FP32 one among them as their reference."""
    reference = next((variant.onnx for variant in variants if variant.onnx and _is_fp32(variant.onnx)), None)
    for variant in variants:
        variant.reference = variant.reference or reference


def _is_fp32(path: Path) -> bool:
    try:
        return read_model(path)[1].precision == "fp32"
    except (WnlbError, ModuleNotFoundError):  # not ours, or no onnx to read it with
        return False
