"""Which outputs of an ONNX file are those of a SOLOv2's head, and in what arrangement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from wnlb.export.adopt.families.body import stated_shapes
from wnlb.export.onnx_file.attention_nodes import Wiring
from wnlb.runtime.contract import FRAME_SHARE
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.onnx_file import described

LEVELS = 5
GRIDS = (40, 36, 24, 16, 12)  # of mmdetection's configurations, for files that do not show them
EXPECTED = (
    "the outputs of a SOLOv2's head: mask features [N, E, H/4, W/4], and of each of five grids kernels [N, E, g, g] "
    "and scores [N, classes, g, g], or with the channels last, or of all cells [N, cells, E] and [N, cells, classes]"
)
_AXES = {"NCHW": (1, 2, 3), "NHWC": (3, 1, 2)}  # channels, height, width
_WEIGHTED = ("Conv", "Gemm", "MatMul")
Dims = list[int | None]


@dataclass(frozen=True)
class Part:
    """Kernels, or scores, among the outputs.

    Attributes:
        names: of each grid, or one of all cells.
        channels: E, or the classes.
        layout: "NCHW", "NHWC"; of all cells "NSC", or "SC" for one image.
    """

    names: tuple[str, ...]
    channels: int
    layout: str

    def arranged(self, outputs: Mapping[str, NDArray]) -> NDArray[np.float32]:
        """``[N, S, channels]``, grid after grid and row by row."""
        found = [outputs[name] for name in self.names]
        if self.layout == "SC":
            return found[0][None]
        if self.layout == "NSC":
            return found[0]
        if self.layout == "NCHW":
            found = [value.transpose(0, 2, 3, 1) for value in found]
        return np.concatenate([value.reshape(len(value), -1, self.channels) for value in found], 1)

    def nodes(self, grids: Sequence[int], made: str) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
        """The same as nodes of a graph, and their constants; they make ``made``."""
        nodes, constants, rows = [], [], []
        counts = [grid * grid for grid in grids] if len(self.names) > 1 else [sum(grid * grid for grid in grids)]
        for i, (name, count) in enumerate(zip(self.names, counts, strict=True)):
            shape = f"{made}.shape{i}"
            sizes = {"NCHW": [0, self.channels, count], "SC": [1, count, self.channels]}
            constants.append(
                numpy_helper.from_array(np.array(sizes.get(self.layout, [0, count, self.channels]), np.int64), shape)
            )
            rows.append(f"{made}.{i}")
            flat = f"{rows[-1]}.flat" if self.layout == "NCHW" else rows[-1]
            nodes.append(helper.make_node("Reshape", [name, shape], [flat]))
            if self.layout == "NCHW":
                nodes.append(helper.make_node("Transpose", [flat], [rows[-1]], perm=[0, 2, 1]))
        nodes.append(helper.make_node("Concat", rows, [made], axis=1))
        return nodes, constants


@dataclass(frozen=True)
class Heads:
    """The outputs of a file, of which scores are probabilities or logits."""

    kernels: Part
    scores: Part
    features: str
    grids: tuple[int, ...]  # P2 .. P6
    logits: bool

    KERNELS, SCORES, FEATURES = "solov2.kernels", "solov2.scores", "solov2.features"
    OUTPUTS = (KERNELS, SCORES, FEATURES)

    @property
    def classes(self) -> int:
        return self.scores.channels

    @property
    def channels(self) -> int:
        """E, of kernels and features."""
        return self.kernels.channels

    def arranged(self, outputs: Mapping[str, NDArray]) -> tuple[NDArray, NDArray, NDArray]:
        """Kernels ``[N, S, E]``, probabilities ``[N, S, C]`` and features, of what the file gave."""
        scores = self.scores.arranged(outputs)
        if self.logits:
            scores = (1 / (1 + np.exp(-scores.astype(np.float64)))).astype(np.float32)
        return self.kernels.arranged(outputs), scores, outputs[self.features]


def gathered(model: onnx.ModelProto, heads: Heads) -> onnx.ModelProto:
    """A copy with ``Heads.OUTPUTS`` as its outputs: what ``Heads.arranged`` gives."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    logits = f"{heads.SCORES}.logits" if heads.logits else heads.SCORES
    for part, made in ((heads.kernels, heads.KERNELS), (heads.scores, logits)):
        nodes, constants = part.nodes(heads.grids, made)
        graph.node.extend(nodes)
        graph.initializer.extend(constants)
    if heads.logits:
        graph.node.append(helper.make_node("Sigmoid", [logits], [heads.SCORES]))
    graph.node.append(helper.make_node("Identity", [heads.features], [heads.FEATURES]))
    ranks = ((heads.KERNELS, 3), (heads.SCORES, 3), (heads.FEATURES, 4))
    del graph.output[:]
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name, rank in ranks)
    return copy


def heads_of(
    model: onnx.ModelProto, path: Path, told_grids: tuple[int, ...] | None
) -> tuple[Heads, int | None, int | None, int | None] | None:
    """What a file has of ``EXPECTED``, with height, width and images of its input, None where they are open.

    Args:
        told_grids: for files that do not show them.

    Returns:
        None where its outputs are something else.

    Raises:
        WnlbError: they are nearly that; says what does not fit.
    """
    inputs = [value for value in model.graph.input if value.name not in {t.name for t in model.graph.initializer}]
    shapes = stated_shapes(model) if len(model.graph.output) in (3, 2 * LEVELS + 1) else {}
    ranks = sorted(map(len, shapes.values()))
    by_level = ranks == [4] * (2 * LEVELS + 1)
    _refuse_chosen({value.name for value in model.graph.output}, path)
    if not by_level and ranks not in ([2, 2, 4], [3, 3, 4]):
        return None

    def refusal(reason: str) -> WnlbError:
        interface = ", ".join(f"{value.name} {described(value)}" for value in (*inputs, *model.graph.output))
        return WnlbError(f"{path} has {interface}: {reason}; expected float32 [N, 3, H, W], and {EXPECTED}")

    shape = _dims(inputs[0]) if len(inputs) == 1 else []
    if len(shape) != 4 or shape[1] != 3 or inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise refusal("its input is another")
    batch, _, height, width = shape
    side = [own and own // FRAME_SHARE for own in (height, width)]
    fitting = [name for name, dims in shapes.items() if len(dims) == 4 and all(map(_may_be, dims[2:], side))]
    if by_level and not (height and width):
        fitting = [name for name in fitting if not all(shapes[name][2:])] or fitting
    if not fitting:
        raise refusal("none of its outputs has a quarter of the input's height and width")
    features = fitting[-1]  # a grid may have that size as well; the features come last in all scripts
    channels = shapes.pop(features)[1]
    if not channels:
        raise refusal(f"{features} leaves its channels open")
    chosen = _by_level if by_level else _of_all_cells
    kernels, scores, grids = chosen(shapes, channels, told_grids, refusal)
    return Heads(kernels, scores, features, grids, _are_logits(model, scores.names)), height, width, batch


def _refuse_chosen(names: set[str], path: Path) -> None:
    if {"masks", "labels"} <= names and names & {"dets", "scores"}:
        raise WnlbError(
            f"{path} gives {', '.join(sorted(names))}: it chooses its detections itself, as mmdeploy's files do, which "
            "take one class of a cell; expected the outputs of the network: export model.backbone, model.neck and "
            "model.mask_head.forward, or give the checkpoint to 'wnlb export'"
        )


def _by_level(shapes: dict[str, Dims], channels: int, told: Any, refusal: Any) -> tuple[Part, Part, tuple[int, ...]]:
    """Kernels, scores and grids of outputs of each grid."""
    kernels = next(
        (
            names
            for layout in _AXES
            if len(names := _named([n for n, dims in shapes.items() if _sides(dims, layout)[0] == channels])) == LEVELS
        ),
        None,
    )
    if kernels is None:
        raise refusal(
            f"{LEVELS} outputs should have square grids and the {channels} channels of the features, the kernels; "
            "where there are as many classes, their names must hold 'kernel'"
        )
    kernel, kernel_grids = _part(kernels, shapes, refusal)
    score, score_grids = _part([name for name in shapes if name not in kernels], shapes, refusal)
    if kernel_grids != score_grids:
        raise refusal(f"kernels are of the grids {kernel_grids}, scores of {score_grids}")
    return kernel, score, kernel_grids


def _part(names: Sequence[str], shapes: dict[str, Dims], refusal: Any) -> tuple[Part, tuple[int, ...]]:
    """What outputs of each grid are, and their grids."""
    for layout in _AXES:
        channels, grids = zip(*(_sides(shapes[name], layout) for name in names), strict=True)
        if all(grids) and None not in channels and len(set(channels)) == 1:
            return Part(tuple(names), channels[0], layout), grids
    raise refusal(f"{', '.join(names)} are of no {LEVELS} square grids with as many channels each")


def _sides(dims: Dims, layout: str) -> tuple[Any, Any]:
    """Channels and grid of an output; None where it is not square."""
    channel, height, width = (dims[axis] for axis in _AXES[layout])
    return (channel, height) if height == width else (None, None)


def _of_all_cells(
    shapes: dict[str, Dims], channels: int, told: tuple[int, ...] | None, refusal: Any
) -> tuple[Part, Part, tuple[int, ...]]:
    """Kernels, scores and grids of outputs of all cells."""
    kernels = _named([name for name, dims in shapes.items() if dims[-1] == channels], 1)
    (cells, *others), grids = {dims[-2] for dims in shapes.values()}, told or GRIDS
    counts = {name: dims[-1] for name, dims in shapes.items()}
    if len(kernels) != 1 or others or None in counts.values():
        raise refusal(
            f"one output should have as many channels as the features, {channels}; where there are as many classes, "
            "its name must hold 'kernel'"
        )
    if cells != sum(grid * grid for grid in grids):
        raise refusal(
            f"{cells} cells are not those of the grids {', '.join(map(str, grids))}; say which: "
            "--set grids=[40,36,24,16,12]"
        )
    layout = "NSC" if len(shapes[kernels[0]]) == 3 else "SC"
    parts = [Part((name,), counts[name] or 0, layout) for name in (*kernels, *(n for n in shapes if n not in kernels))]
    return parts[0], parts[1], grids


def _named(names: list[str], count: int = LEVELS) -> list[str]:
    """Those of kernels, where more than ``count`` have the channels of kernels."""
    return names if len(names) <= count else [name for name in names if "kernel" in name.lower()]


def _are_logits(model: onnx.ModelProto, names: Sequence[str]) -> bool:
    """Whether no Sigmoid lies between these outputs and the last layers with weights before them."""
    makers, left = Wiring(model).makers, list(names)
    while left:
        node = makers.get(left.pop())
        if node is not None and node.op_type == "Sigmoid":
            return False
        if node is not None and node.op_type not in _WEIGHTED:
            left += node.input
    return True


def _may_be(found: int | None, expected: int | None) -> bool:
    return found is None or expected is None or found == expected


def _dims(value: Any) -> Dims:
    """None where a size is open."""
    return [dim.dim_value or None for dim in value.type.tensor_type.shape.dim]
