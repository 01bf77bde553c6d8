"""What each setting of a checkpoint may be, and how values are shown in messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def shown(value: Any) -> str:
    """A value for a message, however large it is: at most 80 characters, in one line."""
    text = _repr(value, 3)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _repr(value: Any, depth: int) -> str:
    if isinstance(value, Mapping):
        inner = [f"{_repr(k, 0)}: {_repr(v, depth - 1)}" for k, v in list(value.items())[:6]] if depth else ["..."]
        return f"{{{', '.join(inner)}{', ...' if len(value) > 6 else ''}}}"
    if isinstance(value, (list, tuple)):
        inner = [_repr(item, depth - 1) for item in value[:6]] if depth else ["..."]
        return f"[{', '.join(inner)}{', ...' if len(value) > 6 else ''}]"
    if isinstance(value, str):
        return repr(value[:80])
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**20:
        return "a very large number"
    return repr(value)[:80] if isinstance(value, (int, float, bool, type(None))) else type(value).__name__


def is_number(value: Any) -> bool:
    """A finite number that is no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15


def is_count(value: Any) -> bool:
    """A whole number from 1 up."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 10**9


def _one_of(*allowed: Any) -> tuple[Callable[[Any], bool], str]:
    return lambda value: isinstance(value, type(allowed[0])) and value in allowed, " or ".join(map(str, allowed))


def _tuple_of(fits: Callable[[Any], bool], low: int, high: int = 100_000) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, tuple) and low <= len(value) <= high and all(map(fits, value))


def _positive(value: Any) -> bool:
    return is_number(value) and value > 0


def _same_count(value: Any) -> bool:
    levels = _tuple_of(_tuple_of(_positive, 1, 64), 5, 5)
    return levels(value) and len({len(level) for level in value}) == 1


_COUNT = (is_count, "a whole number from 1 up")
_SHARE = (lambda value: is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "framework": _one_of("mmdetection", "detectron2", "torchvision", "mmdetection-solov2"),
    "style": _one_of("pytorch", "caffe"),
    "channel_order": _one_of("rgb", "bgr"),
    "mean": (_tuple_of(is_number, 3, 3), "three numbers"),
    "std": (_tuple_of(_positive, 3, 3), "three numbers above 0"),
    "resize": _one_of("fit", "stretch"),
    "scale": (_tuple_of(is_count, 2, 2), "two whole numbers: long edge and short edge, in px"),
    "interpolation": _one_of("bilinear", "nearest", "antialiased"),
    "pad_divisor": _COUNT,
    "anchor_sizes": (_same_count, "five lists of sizes in px, for P2, P3, P4, P5 and P6"),
    "aspect_ratios": (_tuple_of(_positive, 1, 64), "a list of ratios of height to width"),
    "pre_nms_top_n": _COUNT,
    "post_nms_top_n": _COUNT,
    "rpn_nms_threshold": _SHARE,
    "score_threshold": _SHARE,
    "nms_threshold": _SHARE,
    "detections": _COUNT,
    "class_names": (_tuple_of(lambda value: isinstance(value, str), 0), "a list of names"),
    "norm_eps": (lambda value: is_number(value) and 0 <= value < 1, "a number from 0 to 1"),
    "adaptive_stride": _one_of(0, 1, 2),
    "block_mode": _one_of("embedded", "dot"),
    "non_local_scaled": _one_of(True, False),
    "backbone": (lambda value: isinstance(value, str), "a name"),
    "num_classes": (lambda value: value == 0 or is_count(value), "a whole number"),
    "grids": (_tuple_of(is_count, 5, 5), "five numbers of cells, for P2, P3, P4, P5 and P6"),
    "cell_strides": (_tuple_of(_positive, 5, 5), "five areas in cells of the mask, for P2, P3, P4, P5 and P6"),
    "norm_groups": _COUNT,
    "cell_threshold": _SHARE,
    "nms_candidates": _COUNT,
    "nms_sigma": (_positive, "a number above 0"),
    "head_layers": (
        lambda value: isinstance(value, tuple) and len(value) in (0, 3) and all(type(one) is int for one in value),
        "three whole numbers",
    ),
}
