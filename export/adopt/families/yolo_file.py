"""YOLO-seg files as ultralytics exports them: what one says of itself, and what it is framed by."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from wnlb.export.adopt.families.foreign import ForeignFile
from wnlb.export.adopt.families.parts import Block, name_by_part
from wnlb.export.adopt.families.solov2_heads import EXPECTED
from wnlb.export.adopt.families.yolo_parts import YoloNetwork
from wnlb.export.graph.yolo import PADDING, YoloCounts, YoloInput, YoloOutput
from wnlb.export.options import ExportOptions
from wnlb.export.references.yolo import YoloSettings, yolo_detections, yolo_input
from wnlb.runtime.contract import FRAME_SHARE
from wnlb.runtime.conventions import ULTRALYTICS
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.onnx_file import described

# What ultralytics predicts with (cfg/default.yaml).
SCORE_THRESHOLD, NMS_THRESHOLD, DETECTIONS = 0.25, 0.7, 300
_STRIDES = (8, 16, 32)  # of the maps that anchors stand on, px
_EXPECTED = (
    "expected a YOLO-seg file of ultralytics: one input, float32 [N, 3, H, W], and two outputs, predictions "
    f"[N, 4 + classes + M, anchors] and prototypes [N, M, H/4, W/4]; or {EXPECTED}"
)


@dataclass(frozen=True)
class YoloFile(ForeignFile):
    """A YOLOv8-seg or YOLO11-seg file; see ``ForeignFile``.

    Attributes:
        class_names: from its metadata, or ``class 1`` ...
        told: what its metadata say, by name.
    """

    told: dict[str, Any]
    framework = ULTRALYTICS.framework

    @property
    def outputs(self) -> tuple[str, str]:
        """Names of predictions and prototypes."""
        predictions, prototypes = _by_rank(self.model)
        return predictions.name, prototypes.name

    @property
    def title(self) -> str:
        kind = str(self.told.get("description", "YOLO-seg file")).strip()
        version = f" (ultralytics {self.told['version']})" if "version" in self.told else ""
        return f"{kind}{version}, {len(self.class_names)} classes"

    @property
    def licence(self) -> str:
        return str(self.told.get("license", ""))

    def entries(self, options: ExportOptions) -> dict[str, Any]:
        return {
            "framework": self.framework,
            "detections": options.detections or DETECTIONS,
            "score_threshold": SCORE_THRESHOLD if options.score_threshold is None else options.score_threshold,
            "nms_threshold": NMS_THRESHOLD if options.nms_threshold is None else options.nms_threshold,
            "nms_rounds": options.nms_rounds,
            "resize": options.resize or "fit",
            "interpolation": options.interpolation or "bilinear",
            "padding": "centre",
            "pad_rgb": (PADDING,) * 3,
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
        }

    def input_graph(self, height: int, width: int) -> nn.Module:
        return YoloInput(height, width)

    def output_graph(self, options: ExportOptions) -> YoloOutput:
        entries = self.entries(options)
        counts = {name: entries[name] for name in ("detections", "score_threshold", "nms_threshold", "nms_rounds")}
        masks = options.masks != "none"
        return YoloOutput(
            YoloCounts(len(self.class_names), options.candidates, target=options.target, masks=masks, **counts)
        )

    def name_parts(self, body: onnx.ModelProto) -> list[Block]:
        return name_by_part(YoloNetwork(body, self.outputs[1]))

    def reference_input(self, image: NDArray[np.uint8], content: NDArray[np.int32]) -> NDArray[np.float32]:
        return yolo_input(image, content)

    def given(self, outputs: Mapping[str, NDArray]) -> tuple[NDArray, ...]:
        return tuple(outputs[name] for name in self.outputs)

    def reference(
        self, outputs: Sequence[NDArray], content: tuple[int, int], threshold: float, options: ExportOptions
    ) -> dict[str, NDArray]:
        entries = self.entries(options)
        settings = YoloSettings(len(self.class_names), threshold, entries["nms_threshold"], entries["detections"])
        predictions, prototypes = outputs
        return yolo_detections(predictions, prototypes, settings)

    def least_score(self, threshold: float, options: ExportOptions) -> float:
        return threshold


def read_yolo(model: onnx.ModelProto, path: Path, class_names: tuple[str, ...] = ()) -> YoloFile:
    """What a file is that has the interface of a YOLO-seg network.

    Args:
        class_names: in the place of those that it tells.

    Raises:
        WnlbError: it is something else; says what, and what to do.
    """
    told = {entry.key: entry.value for entry in model.metadata_props}
    told |= {name: _literal(told[name]) for name in ("names", "imgsz", "args", "end2end", "stride") if name in told}
    task = told.get("task", "segment")
    if task != "segment":
        raise WnlbError(
            f"{path} is a YOLO file for the task {task!r}; expected 'segment': export a -seg model, which has masks"
        )
    arguments = told.get("args") if isinstance(told.get("args"), dict) else {}
    if told.get("end2end") is True or (isinstance(arguments, dict) and arguments.get("nms")):
        raise WnlbError(
            f"{path} chooses its detections itself (end2end or nms); expected one that leaves them to whoever runs it: "
            "export it with end2end=False and nms=False"
        )
    inputs = [value for value in model.graph.input if value.name not in {t.name for t in model.graph.initializer}]
    interface = ", ".join(f"{value.name} {described(value)}" for value in (*inputs, *model.graph.output))
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        half = " (export it without half=True)" if any("float16" in described(value) for value in inputs) else ""
        raise WnlbError(f"{path} has {interface}; {_EXPECTED}{half}")
    shape = _dims(inputs[0])
    predictions, prototypes = _by_rank(model)
    if len(shape) != 4 or shape[1] != 3 or predictions is None or prototypes is None:
        raise WnlbError(f"{path} has {interface}; {_EXPECTED}")
    names = class_names or _names(told.get("names"))
    rows, coefficients = _dims(predictions)[1], _dims(prototypes)[1]
    rows, coefficients = rows or _rows(model), coefficients or _rows(model, 1)
    classes = (rows or 0) - 4 - (coefficients or 0)
    if not names and classes > 0:
        names = tuple(f"class {i + 1}" for i in range(classes))
    if not rows or not coefficients or classes < 1 or len(names) != classes:
        raise WnlbError(
            f"{path} has {rows or '?'} numbers an anchor and {coefficients or '?'} prototypes, and {len(names)} class "
            "names; expected 4 + classes + prototypes: give the names with --classes"
        )
    told_size = told.get("imgsz")
    size = [shape[2], shape[3]]
    if isinstance(told_size, list) and len(told_size) == 2 and all(isinstance(side, int) for side in told_size):
        size = [own or side for own, side in zip(size, told_size, strict=True)]
    file = YoloFile(model, names, size[0], size[1], bool(shape[2] and shape[3]), shape[0], told)
    _check_anchors(file, path)
    return file


def _check_anchors(file: YoloFile, path: Path) -> None:
    """That there is one for each position of the maps, where all is stated."""
    predictions, prototypes = _by_rank(file.model)
    stated, shape = _dims(predictions)[2], _dims(prototypes)
    if not file.height or not file.width or not stated:
        return
    expected = sum((file.height // stride) * (file.width // stride) for stride in _STRIDES)
    sides = (shape[2], shape[3])
    if stated != expected or sides != (file.height // FRAME_SHARE, file.width // FRAME_SHARE):
        raise WnlbError(
            f"{path} has {stated} anchors and prototypes of {sides[0]}x{sides[1]} for an input of "
            f"{file.height}x{file.width}; expected {expected}, of maps with strides {', '.join(map(str, _STRIDES))}, "
            f"and prototypes of a quarter of the input"
        )


def _by_rank(model: onnx.ModelProto) -> tuple[Any, Any]:
    """The output with three axes and the one with four; None for one that is not there once."""
    if len(model.graph.output) != 2:
        return None, None
    by_rank = {len(_dims(value)): value for value in model.graph.output}
    return by_rank.get(3), by_rank.get(4)


def _dims(value: Any) -> list[int | None]:
    """None where a size is open."""
    return [dim.dim_value or None for dim in value.type.tensor_type.shape.dim]


def _rows(model: onnx.ModelProto, output: int = 0) -> int | None:
    """Numbers an anchor, or prototypes, of a file that does not state them: by shape inference."""
    from onnx import shape_inference

    inferred = onnx.ModelProto()
    inferred.CopyFrom(model)
    for value in inferred.graph.output:
        value.type.tensor_type.ClearField("shape")
    by_rank = _by_rank(shape_inference.infer_shapes(inferred))
    return _dims(by_rank[output])[1] if by_rank[output] is not None else None


def _literal(text: str) -> Any:
    """A Python literal, as ultralytics writes it; the text itself where it is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _names(told: Any) -> tuple[str, ...]:
    """Of ``{0: "bicycle", 1: ...}``, or a list; empty for anything else."""
    if isinstance(told, dict) and sorted(told) == list(range(len(told))):
        return tuple(str(told[i]) for i in range(len(told)))
    return tuple(map(str, told)) if isinstance(told, (list, tuple)) else ()
