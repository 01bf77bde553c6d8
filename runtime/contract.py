"""What a runtime must know of a model file; it travels inside the file.

In ONNX it is the metadata entry ``wnlb.contract``, in JSON.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from wnlb.runtime.conventions import FRAMEWORKS, Conventions, MaskRcnnConventions
from wnlb.runtime.errors import ContractError, WnlbError

METADATA_KEY = "wnlb.contract"
# Format 1 has no ``content``: what pads a frame is part of the picture. Format 3 is written for networks that are
# no Mask R-CNN, which older versions of wnlb do not know: masks of the frame, padding on all sides.
FORMATS = (1, 2, 3)
CONTENT = "content"
BATCH = "batch"  # what the first axis is called in files that take several numbers of frames
MASK_SIZE = 28
FRAME_SHARE = 4  # masks of the frame have a quarter of the input's height and width

RESIZES = ("fit", "stretch")
# "bilinear" is of 2 x 2 pixels (OpenCV); "antialiased" of all that a pixel of the input covers (Pillow's bilinear).
INTERPOLATIONS = ("bilinear", "nearest", "antialiased")
MASKS = ("box", "frame", "none")
PADDINGS = ("corner", "centre")
TARGETS = ("gpu", "cpu")


@dataclass(frozen=True)
class Contract:
    """Input, preparation, outputs and origin of a model file.

    The input ``image`` is uint8 RGB ``[batch, height, width, 3]``; mean and std are applied inside. The input
    ``content`` is int32 ``[batch, 2]``, height and width of the picture, which lies at the image's left top, or with
    ``padding == "centre"`` in its middle, (H - height) // 2 rows from its top: all else is zero for the network (114 of
    255 for ultralytics'), whatever its pixels are. 0 0 is no picture. Mask R-CNN clips boxes to the picture. Files of
    format 1 have no ``content``.
    The outputs are ``boxes [N, D, 4]`` (float32, x1 y1 x2 y2 in input pixels), ``scores [N, D]``
    (float32, descending, 0 in padded rows), ``labels [N, D]`` (int32, 1..C, 0 in padded rows), ``masks
    [N, D, 28, 28]`` (float32 probabilities inside the box; absent where ``masks == "none"``) and
    ``count [N]`` (int32, rows that are detections). With ``masks == "frame"`` they are ``[N, D, H/4, W/4]`` of the
    input's pixels, above 0 where the mask is: logits, or probabilities less 0.5; float32, or float16 in files of other
    precisions than "fp32". Rows from ``count`` on may hold anything.
    N is ``batch``, or in a file with ``min_batch`` any number from there to ``batch``.
    """

    batch: int  # frames of a run, at most
    height: int  # input pixels
    width: int  # input pixels
    class_names: tuple[str, ...]  # label 1 is the first
    detections: int  # D
    score_threshold: float
    nms_threshold: float | None  # None: nothing is suppressed by the overlap of boxes
    rpn_nms_threshold: float | None  # this and the next two are of Mask R-CNN alone, and else None
    pre_nms_top_n: int | None  # anchors per pyramid level that enter NMS
    post_nms_top_n: int | None  # proposals per image
    candidates: int  # that enter the last NMS: (proposal, class) pairs, anchors, (cell, class) pairs
    nms_rounds: int | None  # None with ``nms_threshold``
    min_batch: int | None = None  # the fewest frames of a run, where their number may differ; None: always ``batch``
    mask_rows: int | None = None  # of the detections, the best that have a mask, zero in the others; None: all
    framework: str = "torchvision"  # whose conventions hold, see ``wnlb.runtime.conventions``
    resize: str = "fit"  # fit (keep the aspect ratio, pad) or stretch
    padding: str = "corner"  # right and bottom, or "centre": on all sides
    # px that a resized frame has at most, where the input holds as many: long and short edge of "fit", width and height
    # of "stretch"; None: what the input holds
    scale: tuple[int, int] | None = None
    interpolation: str = "bilinear"
    pad_rgb: tuple[int, int, int] = (124, 116, 104)  # beside the picture; Mask R-CNN sees it in format 1 alone
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of RGB in 0..1
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    masks: str = "box"
    precision: str = "fp32"
    # Mean linear luminance, 0 to 1, of the darkest and the brightest picture that INT8 was calibrated on.
    calibrated_luminance: tuple[float, float] | None = None
    target: str = "gpu"  # what the file is made for; "cpu": ONNX Runtime alone
    attention: dict[str, str] = field(default_factory=dict)  # level -> mode and form, "embedded/standard"
    opset: int = 0
    tool_version: str = ""
    checkpoint_sha256: str = ""
    checkpoint_weights: str = ""  # which of its sets of weights, "model_ema"; "" where it has one
    checkpoint_settings: dict[str, Any] = field(default_factory=dict)  # what weights do not tell
    input_name: str = "image"
    layout: str = "NHWC"
    color: str = "RGB"
    format: int | None = None  # None: 2, or where there are no proposals 3

    def __post_init__(self) -> None:
        self._check_family()
        for name, kind in (("class_names", str), ("pad_rgb", int), ("mean", (int, float)), ("std", (int, float))):
            value = getattr(self, name)
            fits = isinstance(value, (list, tuple)) and all(isinstance(item, kind) for item in value)
            fits = fits and (len(value) >= 1 if kind is str else len(value) == 3)
            _check(fits, name, value, "a list of at least one name" if kind is str else "three numbers")
            object.__setattr__(self, name, tuple(value))
        _check(min(self.pad_rgb) >= 0 and max(self.pad_rgb) <= 255, "pad_rgb", self.pad_rgb, "numbers from 0 to 255")
        for name in ("batch", "detections", "candidates"):
            value = getattr(self, name)
            _check(type(value) is int and value >= 1, name, value, "a whole number from 1 up")
        if self.min_batch is not None:
            fits = type(self.min_batch) is int and 1 <= self.min_batch < self.batch
            _check(fits, "min_batch", self.min_batch, f"a whole number from 1 up, below the batch of {self.batch}")
        if self.mask_rows is not None:
            fits = type(self.mask_rows) is int and 1 <= self.mask_rows < self.detections
            _check(fits, "mask_rows", self.mask_rows, f"a whole number from 1 up, below {self.detections} detections")
        for name in ("height", "width"):
            value = getattr(self, name)
            fits = type(value) is int and value >= 64 and value % 32 == 0
            _check(fits, name, value, "a multiple of 32 from 64 up")
        _check(_is_share(self.score_threshold), "score_threshold", self.score_threshold, "a number from 0 to 1")
        if self.scale is not None:
            fits = isinstance(self.scale, (list, tuple)) and len(self.scale) == 2
            fits = fits and all(type(side) is int and side >= 1 for side in self.scale)
            _check(fits, "scale", self.scale, "two whole numbers from 1 up")
            object.__setattr__(self, "scale", tuple(self.scale))
        if self.calibrated_luminance is not None:
            value = self.calibrated_luminance
            fits = isinstance(value, (list, tuple)) and len(value) == 2
            fits = fits and all(isinstance(bound, (int, float)) for bound in value) and 0 <= value[0] <= value[1] <= 1
            _check(fits, "calibrated_luminance", value, "two ascending numbers from 0 to 1")
            object.__setattr__(self, "calibrated_luminance", tuple(value))
        settings = self.checkpoint_settings
        _check(isinstance(settings, dict), "checkpoint_settings", settings, "an object")
        _check(self.resize in RESIZES, "resize", self.resize, " or ".join(RESIZES))
        _check(self.interpolation in INTERPOLATIONS, "interpolation", self.interpolation, " or ".join(INTERPOLATIONS))
        _check(self.padding in PADDINGS, "padding", self.padding, " or ".join(PADDINGS))
        _check(self.masks in MASKS, "masks", self.masks, " or ".join(MASKS))
        _check(self.masks in (self.conventions.masks, "none"), "masks", self.masks, f"{self.conventions.masks} or none")
        _check(self.target in TARGETS, "target", self.target, " or ".join(TARGETS))
        _check(isinstance(self.attention, dict), "attention", self.attention, "an object of level to form")
        forms = [*self.attention, *self.attention.values()]
        _check(all(isinstance(form, str) for form in forms), "attention", self.attention, "an object of level to form")
        for name in ("input_name", "precision", "tool_version", "checkpoint_sha256", "checkpoint_weights"):
            _check(isinstance(getattr(self, name), str), name, getattr(self, name), "text")
        _check(type(self.opset) is int, "opset", self.opset, "a whole number")
        for name in ("mean", "std"):
            value = getattr(self, name)
            _check(all(abs(item) < 1e6 for item in value) and 0 not in self.std, name, value, "three numbers")
        _check(self.input_name != CONTENT, "input_name", self.input_name, f"a name other than {CONTENT}")
        _check(self.layout == "NHWC" and self.color == "RGB", "layout", f"{self.layout} {self.color}", "NHWC RGB")

    def _check_family(self) -> None:
        """That the entries of Mask R-CNN are there where it is one, and that the format knows what the file has."""
        _check(self.framework in FRAMEWORKS, "framework", self.framework, " or ".join(FRAMEWORKS))
        proposes = isinstance(self.conventions, MaskRcnnConventions)
        suppresses = proposes or self.nms_threshold is not None
        for name, used in (("nms_threshold", suppresses), ("rpn_nms_threshold", proposes)):
            value = getattr(self, name)
            _check(_is_share(value) if used else value is None, name, value, "a number from 0 to 1" if used else "none")
        for name, used in (("pre_nms_top_n", proposes), ("post_nms_top_n", proposes), ("nms_rounds", suppresses)):
            value = getattr(self, name)
            fits = type(value) is int and value >= 1 if used else value is None
            _check(fits, name, value, "a whole number from 1 up" if used else "none")
        fits = not proposes or self.padding == "corner"
        _check(fits, "padding", self.padding, f"corner, as the graph of {self.framework} has it")
        if self.format is None:
            object.__setattr__(self, "format", 2 if proposes else 3)
        _check_format(self.format)
        _check(proposes or self.format == 3, "format", self.format, f"3, the first that knows {self.framework}")

    @property
    def conventions(self) -> Conventions:
        """How the framework computes that the weights were trained in."""
        return FRAMEWORKS[self.framework]

    @property
    def batches(self) -> range:
        """The numbers of frames that a run may have."""
        return range(self.min_batch or self.batch, self.batch + 1)

    @property
    def batch_text(self) -> str:
        """``"4"``, or ``"1-8"``."""
        return str(self.batch) if self.min_batch is None else f"{self.min_batch}-{self.batch}"

    @property
    def axis(self) -> int | str:
        """The first dimension as the file states it: ``batch``, or its name where that may differ."""
        return self.batch if self.min_batch is None else BATCH

    def batch_for(self, frames: int) -> int:
        """Of how many frames a run is that holds so many. Raises WnlbError where no run does."""
        if not 1 <= frames <= self.batch:
            raise WnlbError(f"{frames} frames; expected 1 to {self.batch}, the batch of the model")
        return max(frames, self.batches.start)

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """``(N, H, W, 3)`` of the image, N the most."""
        return (self.batch, self.height, self.width, 3)

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Input name to shape, of the most frames, in the order of the file."""
        shapes: dict[str, tuple[int, ...]] = {self.input_name: self.input_shape}
        return shapes if self.format == 1 else {**shapes, CONTENT: (self.batch, 2)}

    @property
    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """Output name to shape, of the most frames, in the order of the file."""
        rows = (self.batch, self.detections)
        shapes: dict[str, tuple[int, ...]] = {"boxes": (*rows, 4), "scores": rows, "labels": rows}
        if self.masks == "box":
            shapes["masks"] = (*rows, MASK_SIZE, MASK_SIZE)
        elif self.masks == "frame":
            shapes["masks"] = (*rows, self.height // FRAME_SHARE, self.width // FRAME_SHARE)
        return {**shapes, "count": (self.batch,)}

    def stated(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int | str, ...]]:
        """``input_shapes`` or ``output_shapes`` as the file states them, the first dimension being ``axis``."""
        return {name: (self.axis, *shape[1:]) for name, shape in shapes.items()}

    @property
    def types(self) -> dict[str, str]:
        """Input or output name to its type, by NumPy's name."""
        known = {self.input_name: "uint8", CONTENT: "int32", "labels": "int32", "count": "int32"}
        if self.masks == "frame" and self.precision != "fp32":
            known["masks"] = "float16"
        return {name: known.get(name, "float32") for name in (*self.input_shapes, *self.output_shapes)}

    def to_json(self) -> str:
        """Without what older versions do not know: what there is none of, and before format 3 ``padding``."""
        values = dataclasses.asdict(self)
        for name in ("min_batch", "mask_rows", "calibrated_luminance"):
            if values[name] is None:
                del values[name]
        if self.format != 3:
            del values["padding"]
        return json.dumps(values, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Contract:
        """Raises ContractError for text that is not a contract of one of ``FORMATS``."""
        try:
            values: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ContractError(f"contract is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ContractError(f"contract is a JSON {type(values).__name__}; expected an object")
        _check_format(values.get("format"))
        unknown = sorted(set(values) - {item.name for item in dataclasses.fields(cls)})
        if unknown:
            raise ContractError(f"contract has unknown entries {', '.join(unknown)}; export the model again")
        try:
            return cls(**values)
        except TypeError as error:
            raise ContractError(f"contract does not fit: {error}; export the model again") from error


def _check_format(value: object) -> None:
    expected = f"{', '.join(map(str, FORMATS))}; use the wnlb version that wrote the file"
    _check(type(value) is int and value in FORMATS, "format", value, expected)


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= 1


def _check(fits: bool, name: str, got: object, expected: str) -> None:
    if not fits:
        raise ContractError(f"contract: {name} is {got!r}; expected {expected}")
