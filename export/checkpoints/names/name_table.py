"""Weights of another framework under torchvision's names: how a table of names is applied.

A table has a row for each kind of layer: what the framework calls it, what torchvision calls it, and what has to be
done to the numbers. The names of weights are those of their layer and ``weight``, ``bias`` and so on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wnlb.runtime.errors import CheckpointError

NORM_EPS = 1e-5  # torch.nn.BatchNorm2d, mmcv's and detectron2's norms
Values = dict[str, Tensor]  # of one layer: {"weight": ..., "bias": ...}
Convert = Callable[[Values, int], Values]  # values, classes without background -> values


def unchanged(values: Values, classes: int) -> Values:
    """As they are."""
    return values


def background_first(values: Values, classes: int) -> Values:
    """Rows of C classes and the background behind them: torchvision has it before them."""
    return {name: torch.cat([value[-1:], value[:-1]]) for name, value in values.items()}


def box_rows(values: Values, classes: int) -> Values:
    """Four rows for each class, or four for all of them: torchvision has four more, before them, for the background."""
    return {name: torch.cat([_zeros(value, 4), _for_each(value, 4, classes)]) for name, value in values.items()}


def mask_rows(values: Values, classes: int) -> Values:
    """A row for each class, or one for all of them: torchvision has one more, before them, for the background."""
    return {name: torch.cat([_zeros(value, 1), _for_each(value, 1, classes)]) for name, value in values.items()}


def whole_norm(values: Values, classes: int) -> Values:
    """A norm; where only scale and shift are stored, as old detectron2 files have it, they are all it does.

    The variance is 1 then and not 1 - eps (detectron2/layers/batch_norm.py, ``_load_from_state_dict``).
    """
    scale = values.get("weight")
    if scale is None or "running_var" in values:
        return values
    return {**values, "running_mean": torch.zeros_like(scale), "running_var": torch.ones_like(scale)}


@dataclass(frozen=True)
class Row:
    """One kind of layer.

    Attributes:
        pattern: regular expression of all of its path in the framework.
        path: in torchvision's Mask R-CNN, with the groups of ``pattern``; "" where it has none and is left out.
        convert: what becomes of its numbers.
        folded: a batch norm that goes into the convolution at ``path``.
    """

    pattern: str
    path: str
    convert: Convert = unchanged
    folded: bool = False


# Layers without which a part of a Mask R-CNN is not there, under torchvision's names.
MASK_RCNN_PARTS = {
    "backbone.body.conv1": "stem",
    "backbone.fpn.inner_blocks.0.0": "FPN",
    "rpn.head.conv.0.0": "RPN",
    "rpn.head.cls_logits": "RPN",
    "rpn.head.bbox_pred": "RPN",
    "roi_heads.mask_head.0.0": "mask head",
    "roi_heads.mask_predictor.conv5_mask": "mask head",
    "roi_heads.mask_predictor.mask_fcn_logits": "mask head",
}


@dataclass(frozen=True)
class NameTable:
    """All names of one network in one framework.

    Attributes:
        framework: its name, for messages.
        rows: tried one after another.
        refused: regular expressions of weights, and what they belong to, which is not supported.
        block_homes: where non-local blocks may lie, and where that is in torchvision's; "" where names do not tell.
        scores: the layer with a row for each class and one for the background; "" where there is none.
        prepare: what is done to the weights under the framework's names before.
        network: what it is called.
        parts: layers without which a part is not there, under the new names.
    """

    framework: str
    rows: tuple[Row, ...]
    refused: tuple[tuple[str, str], ...]
    block_homes: tuple[tuple[str, str], ...]
    scores: str = ""
    prepare: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
    network: str = "Mask R-CNN"
    parts: Mapping[str, str] = field(default_factory=lambda: MASK_RCNN_PARTS)


def renamed(state: Mapping[str, Tensor], table: NameTable, source: str) -> dict[str, Tensor]:
    """The weights under torchvision's names, without non-local blocks.

    The box head of two linear layers is ``fc6`` and ``fc7``; any other is numbered as in torchvision's
    ``FastRCNNConvFCHead`` without norms: ``0.0`` ... for convolutions, the linear layers behind them.

    Raises:
        CheckpointError: some are of no layer of the table, or do not have the shape that they need.
    """
    for pattern, what in table.refused:
        found = next((name for name in state if re.search(pattern, name)), None)
        if found:
            raise CheckpointError(f"checkpoint {source} has {found}, of {what}, which is not supported")
    layers: dict[str, Values] = {}
    for name, value in state.items():
        path, _, kind = name.rpartition(".")
        layers.setdefault(path, {})[kind] = value
    classes = _classes(layers, table, source) if table.scores else 0
    made: dict[str, Values] = {}
    norms: dict[str, Values] = {}
    unknown: list[str] = []
    for path, values in layers.items():
        row = next((row for row in table.rows if re.fullmatch(row.pattern, path)), None)
        if row is None:
            unknown += [f"{path}.{kind}" for kind in values]
        elif row.path:
            into = norms if row.folded else made
            into[re.sub(row.pattern, row.path, path)] = _converted(row, values, classes, path, source)
    if unknown:
        listed = ", ".join(unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        raise CheckpointError(
            f"checkpoint {source} has weights that belong to no {table.network} of {table.framework}: {listed}. "
            "Rename or drop them with --key-map"
        )
    for path, norm in norms.items():
        made[path] = _folded(made.get(path, {}), norm, path, source)
    made = {_box_head_path(path, made): values for path, values in made.items()}
    return {f"{path}.{kind}": value for path, values in made.items() for kind, value in values.items()}


def _classes(layers: Mapping[str, Values], table: NameTable, source: str) -> int:
    scores = layers.get(table.scores, {}).get("weight")
    if scores is None or scores.dim() != 2 or scores.shape[0] < 2:
        shape = "is missing" if scores is None else f"has the shape {list(scores.shape)}"
        raise CheckpointError(
            f"checkpoint {source}: {table.scores}.weight {shape}; expected [classes and background, inputs]: a Mask "
            f"R-CNN of {table.framework}"
        )
    return scores.shape[0] - 1


def _converted(row: Row, values: Values, classes: int, path: str, source: str) -> Values:
    try:
        return row.convert(values, classes)
    except ValueError as error:
        raise CheckpointError(f"checkpoint {source}: {path} {error}") from error


def _for_each(value: Tensor, rows: int, classes: int) -> Tensor:
    """``rows`` for each class. Raises ValueError where there are others."""
    if value.shape[:1] == (rows * classes,):
        return value
    if value.shape[:1] == (rows,):
        return torch.cat([value] * classes)
    raise ValueError(
        f"has the shape {list(value.shape)}; expected {rows * classes} rows for {classes} classes, or {rows}"
    )


def _zeros(value: Tensor, rows: int) -> Tensor:
    return value.new_zeros((rows, *value.shape[1:]))


def _folded(layer: Values, norm: Values, path: str, source: str) -> Values:
    """A convolution with the batch norm behind it: w' = w s, b' = (b - mean) s + shift, s = scale / sqrt(var + eps)."""
    names = ("weight", "bias", "running_mean", "running_var")
    if "weight" not in layer or any(name not in norm for name in names):
        raise CheckpointError(
            f"checkpoint {source}: the norm behind {path} is not whole, or there is nothing before it"
        )
    weight = layer["weight"].double()
    scale, shift, mean, variance = (norm[name].double() for name in names)
    if scale.shape != weight.shape[:1]:
        raise CheckpointError(
            f"checkpoint {source}: the norm behind {path} has {scale.numel()} channels; expected {weight.shape[0]}"
        )
    factor = scale / (variance + NORM_EPS).sqrt()
    bias = layer["bias"].double() if "bias" in layer else torch.zeros_like(mean)
    return {
        "weight": (weight * factor.reshape(-1, *[1] * (weight.dim() - 1))).float(),
        "bias": ((bias - mean) * factor + shift).float(),
    }


def _box_head_path(path: str, layers: Mapping[str, Values]) -> str:
    """The tables number convolutions (``box_head.conv0``) and linear layers (``box_head.fc0``) by themselves."""
    found = re.fullmatch(r"roi_heads\.box_head\.(conv|fc)(\d+)", path)
    if not found:
        return path
    kind, i = found[1], int(found[2])
    count = {each: sum(name.startswith(f"roi_heads.box_head.{each}") for name in layers) for each in ("conv", "fc")}
    if count == {"conv": 0, "fc": 2}:
        return f"roi_heads.box_head.fc{6 + i}"
    return f"roi_heads.box_head.{i}.0" if kind == "conv" else f"roi_heads.box_head.{count['conv'] + 1 + 2 * i}"
