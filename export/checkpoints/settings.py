"""What a checkpoint of another framework needs beside its weights, whoever tells it."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from wnlb.runtime.errors import CheckpointError

Triple = tuple[float, float, float]
NO_STYLE = ("resnet18", "resnet34")  # their residual units have no 1 x 1 convolution that could take the stride
# Parts that may be of a class of the user's own, with other layers.
OWN_HEADS = {f"{part}_type" for part in ("detector", "rpn_head", "roi_head", "bbox_head", "mask_head")}


@dataclass(frozen=True)
class DetectorSettings:
    """Everything that names and shapes of weights do not tell. None stands for what nothing tells: it is asked for.

    ``style`` is why nothing is guessed: both styles have the same names and shapes, and other detections.
    """

    framework: str  # "mmdetection", "detectron2" or "torchvision"
    style: str | None = None  # "pytorch": a unit's 3 x 3 convolution has the stride; "caffe": its first 1 x 1
    channel_order: str | None = None  # of the network's input, of mean and std: "rgb" or "bgr"
    mean: Triple | None = None  # of 0..255
    std: Triple | None = None
    resize: str | None = None  # "fit": within scale, the aspect ratio kept; "stretch": to scale
    scale: tuple[int, int] | None = None  # px: (long edge, short edge) of "fit", (width, height) of "stretch"
    interpolation: str | None = None  # "bilinear" (2 x 2 pixels), "nearest", "antialiased" (Pillow's bilinear)
    pad_divisor: int | None = None  # frames are padded with 0 after normalisation to multiples of it, in px
    anchor_sizes: tuple[tuple[float, ...], ...] | None = None  # px at P2, P3, P4, P5, P6
    aspect_ratios: tuple[float, ...] | None = None  # height / width
    pre_nms_top_n: int | None = None  # anchors of each level that enter NMS
    post_nms_top_n: int | None = None  # proposals of a picture
    rpn_nms_threshold: float | None = None
    score_threshold: float | None = None
    nms_threshold: float | None = None
    detections: int | None = None  # of a picture, at most
    class_names: tuple[str, ...] = ()  # without background; empty: not known
    norm_eps: float = 1e-5
    adaptive_stride: int = 0  # of LIS's adaptive downsampling; 0: none, or not known (ModelConfig says more)
    block_mode: str = "embedded"  # of non-local blocks with theta and phi; "dot" has the same weights
    non_local_scaled: bool = True  # mmcv's NonLocal2d divides embedded logits by sqrt(d)
    backbone: str = ""  # as ModelConfig names it, to be held against the weights; "" where it is not known
    num_classes: int = 0  # with background, to be held against the weights; 0 where it is not known
    # The same: convolutions of RPN and box head, and linear layers of the latter; () where not known
    head_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _as_tuple(getattr(self, field.name))  # as JSON gives it
            object.__setattr__(self, field.name, value)
            fits, expected = _CHECKS[field.name]
            if (value is not None or field.default is not None) and not fits(value):
                raise CheckpointError(f"{field.name} is {shown(value)}; expected {expected}")
        if self.resize == "fit" and self.scale:
            object.__setattr__(self, "scale", (max(self.scale), min(self.scale)))

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of what neither the weights nor a configuration told."""
        needed = [field.name for field in dataclasses.fields(self) if field.default is None]
        return tuple(name for name in needed if getattr(self, name) is None)

    def with_overrides(self, values: Mapping[str, Any]) -> DetectorSettings:
        """These settings, but for ``values``.

        Raises:
            CheckpointError: a name is none of ours, or a value does not fit.
        """
        names = self.field_names
        for name in values:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                raise CheckpointError(
                    f"setting {name!r} is not known; expected {' or '.join(near) or ', '.join(names)}"
                )
        return dataclasses.replace(self, **values)

    def complete(self, source: str) -> DetectorSettings:
        """Itself, once nothing is missing.

        Raises:
            CheckpointError: something is; the message asks for it by name.
        """
        if not self.missing:
            return self
        kind = {"mmdetection": "FILE.py", "detectron2": "FILE.yaml"}.get(self.framework, "FILE")
        asked = ", ".join(f"{name} ({_CHECKS[name][1]})" for name in self.missing)
        raise CheckpointError(
            f"neither the weights nor a configuration of {source} tell {asked}; give the configuration that it was "
            f"trained with, --config {kind}, or each by name: --set {self.missing[0]}=..."
        )

    def check_weights(self, backbone: str, num_classes: int, head_layers: tuple[int, ...], source: str) -> None:
        """Hold what the configuration says against what the weights are.

        Args:
            backbone, num_classes, head_layers: of the ``ModelConfig`` that was read from the weights.

        Raises:
            CheckpointError: they differ: it is the configuration of another checkpoint.
        """
        for name, said, found in (
            ("backbone", self.backbone, backbone),
            ("num_classes", self.num_classes, num_classes),
        ):
            if said and said != found:
                raise CheckpointError(
                    f"checkpoint {source} has the {name} {found}, its configuration {said} (classes are counted with "
                    "the background); give the configuration that it was trained with"
                )
        if self.head_layers and self.head_layers != head_layers:
            text = "{} convolutions in the RPN, {} and {} linear layers in the box head"
            found, said = text.format(*head_layers), text.format(*self.head_layers)
            raise CheckpointError(f"checkpoint {source} has {found}; its configuration {said}")

    @property
    def field_names(self) -> tuple[str, ...]:
        """What can be set of them by name."""
        return tuple(field.name for field in dataclasses.fields(self) if field.name != "framework")

    def told(self) -> dict[str, Any]:
        """All of them by name, as JSON has it: enough to make them again, without any configuration."""
        return json.loads(json.dumps({name: getattr(self, name) for name in self.field_names}))

    def check_size(self, height: int, width: int) -> None:
        """Hold the size of an input, multiples of 32 px, against what pictures are padded to.

        Raises:
            CheckpointError: the framework would pad them to another size, which other detections come of.
        """
        divisor = self.pad_divisor or 32
        if height % divisor or width % divisor:
            raise CheckpointError(
                f"input size is {height}x{width}; expected multiples of {divisor}, which this network's pictures are "
                "padded to"
            )
        stretched = self.scale if self.resize == "stretch" else None
        if divisor % 32 and not (stretched and stretched[0] % 32 == stretched[1] % 32 == 0):
            raise CheckpointError(
                f"this network's pictures are padded to multiples of {divisor} px, those of a file to 32, which "
                "changes detections unless resized pictures have such sides; take that with --set pad_divisor=32"
            )

    def detector_options(self) -> dict[str, Any]:
        """What of these settings torchvision's ``MaskRCNN`` takes, under its names."""
        return {
            "rpn_pre_nms_top_n_test": self.pre_nms_top_n,
            "rpn_post_nms_top_n_test": self.post_nms_top_n,
            "rpn_nms_thresh": self.rpn_nms_threshold,
            "box_score_thresh": self.score_threshold,
            "box_nms_thresh": self.nms_threshold,
            "box_detections_per_img": self.detections,
        }

    def model_fields(self) -> dict[str, Any]:
        """What of these settings ``ModelConfig`` holds too, under its names."""
        sizes = self.anchor_sizes or ()
        single = all(len(level) == 1 for level in sizes)
        fields = {
            "class_names": self.class_names,
            "anchor_sizes": tuple(level[0] for level in sizes) if single else sizes,
            "aspect_ratios": self.aspect_ratios,
            "norm_eps": self.norm_eps,
            "style": self.style,
            "adaptive_stride": self.adaptive_stride,
            "mode": None if self.block_mode == "embedded" else self.block_mode,
        }
        for name, values in (("image_mean", self.mean), ("image_std", self.std)):
            rgb = (values or ())[:: -1 if self.channel_order == "bgr" else 1]
            fields[name] = tuple(round(value / 255, 12) for value in rgb)
        return {name: value for name, value in fields.items() if value}


def backbone_name(depth: int, groups: int, width: int) -> str:
    """torchvision's name of a ResNet with so many groups of so many channels in the first stage."""
    if groups == 1:
        return {64: f"resnet{depth}", 128: f"wide_resnet{depth}_2"}.get(width, f"resnet{depth}_{width}d")
    return f"resnext{depth}_{groups}x{width}d"


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


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, (list, tuple)) else value


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
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "framework": _one_of("mmdetection", "detectron2", "torchvision"),
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
    "head_layers": (
        lambda value: isinstance(value, tuple) and len(value) in (0, 3) and all(type(one) is int for one in value),
        "three whole numbers",
    ),
}

# torchvision's own: torchvision/models/detection/mask_rcnn.py, faster_rcnn.py, rpn.py, transform.py (0.29).
TORCHVISION = DetectorSettings(
    framework="torchvision",
    style="pytorch",
    channel_order="rgb",
    mean=(123.675, 116.28, 103.53),
    std=(58.395, 57.12, 57.375),
    resize="fit",
    scale=(1333, 800),
    interpolation="bilinear",
    pad_divisor=32,
    anchor_sizes=((32,), (64,), (128,), (256,), (512,)),
    aspect_ratios=(0.5, 1.0, 2.0),
    pre_nms_top_n=1000,
    post_nms_top_n=1000,
    rpn_nms_threshold=0.7,
    score_threshold=0.05,
    nms_threshold=0.5,
    detections=100,
)  # fmt: skip
