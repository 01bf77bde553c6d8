"""What a checkpoint of another framework needs beside its weights, whoever tells it."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from wnlb.export.checkpoints.configurations.setting_checks import CHECKS, shown
from wnlb.runtime.errors import CheckpointError

Triple = tuple[float, float, float]
NO_STYLE = ("resnet18", "resnet34")  # their residual units have no 1 x 1 convolution that could take the stride
# Parts that may be of a class of the user's own, with other layers.
OWN_HEADS = {f"{part}_type" for part in ("detector", "rpn_head", "roi_head", "bbox_head", "mask_head")}


_Settings = TypeVar("_Settings", bound="NetworkSettings")


@dataclass(frozen=True)
class NetworkSettings:
    """What names and shapes of weights do not tell. None stands for what nothing tells: it is asked for.

    ``style`` is why nothing is guessed: both styles have the same names and shapes, and other detections.
    """

    framework: str  # whose conventions hold, see ``wnlb.runtime.conventions``
    style: str | None = None  # "pytorch": a unit's 3 x 3 convolution has the stride; "caffe": its first 1 x 1
    channel_order: str | None = None  # of the network's input, of mean and std: "rgb" or "bgr"
    mean: Triple | None = None  # of 0..255
    std: Triple | None = None
    resize: str | None = None  # "fit": within scale, the aspect ratio kept; "stretch": to scale
    scale: tuple[int, int] | None = None  # px: (long edge, short edge) of "fit", (width, height) of "stretch"
    interpolation: str | None = None  # "bilinear" (2 x 2 pixels), "nearest", "antialiased" (Pillow's bilinear)
    pad_divisor: int | None = None  # frames are padded with 0 after normalisation to multiples of it, in px
    score_threshold: float | None = None
    detections: int | None = None  # of a picture, at most
    class_names: tuple[str, ...] = ()  # without background; empty: not known
    norm_eps: float = 1e-5
    adaptive_stride: int = 0  # of LIS's adaptive downsampling; 0: none, or not known (ModelConfig says more)
    block_mode: str = "embedded"  # of non-local blocks with theta and phi; "dot" has the same weights
    non_local_scaled: bool = True  # mmcv's NonLocal2d divides embedded logits by sqrt(d)
    backbone: str = ""  # as ModelConfig names it, to be held against the weights; "" where it is not known
    num_classes: int = 0  # with background, to be held against the weights; 0 where it is not known

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _as_tuple(getattr(self, field.name))  # as JSON gives it
            object.__setattr__(self, field.name, value)
            fits, expected = CHECKS[field.name]
            if (value is not None or field.default is not None) and not fits(value):
                raise CheckpointError(f"{field.name} is {shown(value)}; expected {expected}")
        if self.resize == "fit" and self.scale:
            object.__setattr__(self, "scale", (max(self.scale), min(self.scale)))

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of what neither the weights nor a configuration told."""
        needed = [field.name for field in dataclasses.fields(self) if field.default is None]
        return tuple(name for name in needed if getattr(self, name) is None)

    def with_overrides(self: _Settings, values: Mapping[str, Any]) -> _Settings:
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

    def complete(self: _Settings, source: str) -> _Settings:
        """Itself, once nothing is missing.

        Raises:
            CheckpointError: something is; the message asks for it by name.
        """
        if not self.missing:
            return self
        kind = {"mmdetection": "FILE.py", "detectron2": "FILE.yaml"}.get(self.framework.split("-")[0], "FILE")
        asked = ", ".join(f"{name} ({CHECKS[name][1]})" for name in self.missing)
        raise CheckpointError(
            f"neither the weights nor a configuration of {source} tell {asked}; give the configuration that it was "
            f"trained with, --config {kind}, or each by name: --set {self.missing[0]}=..."
        )

    def check_network(self, backbone: str, num_classes: int, source: str) -> None:
        """Hold what the configuration says against what the weights are.

        Args:
            backbone, num_classes: of the ``ModelConfig`` that was read from the weights.

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

    def model_fields(self) -> dict[str, Any]:
        """What of these settings ``BackboneConfig`` holds too, under its names."""
        fields = {
            "class_names": self.class_names,
            "norm_eps": self.norm_eps,
            "style": self.style,
            "adaptive_stride": self.adaptive_stride,
            "mode": None if self.block_mode == "embedded" else self.block_mode,
        }
        for name, values in (("image_mean", self.mean), ("image_std", self.std)):
            rgb = (values or ())[:: -1 if self.channel_order == "bgr" else 1]
            fields[name] = tuple(round(value / 255, 12) for value in rgb)
        return {name: value for name, value in fields.items() if value}


@dataclass(frozen=True)
class DetectorSettings(NetworkSettings):
    """The same of a Mask R-CNN."""

    anchor_sizes: tuple[tuple[float, ...], ...] | None = None  # px at P2, P3, P4, P5, P6
    aspect_ratios: tuple[float, ...] | None = None  # height / width
    pre_nms_top_n: int | None = None  # anchors of each level that enter NMS
    post_nms_top_n: int | None = None  # proposals of a picture
    rpn_nms_threshold: float | None = None
    nms_threshold: float | None = None
    # Convolutions of RPN and box head, and linear layers of the latter, to be held against the weights; () where not
    # known
    head_layers: tuple[int, ...] = ()

    def check_weights(self, backbone: str, num_classes: int, head_layers: tuple[int, ...], source: str) -> None:
        """``check_network``, and the same of the heads.

        Raises:
            CheckpointError: it is the configuration of another checkpoint.
        """
        self.check_network(backbone, num_classes, source)
        if self.head_layers and self.head_layers != head_layers:
            text = "{} convolutions in the RPN, {} and {} linear layers in the box head"
            found, said = text.format(*head_layers), text.format(*self.head_layers)
            raise CheckpointError(f"checkpoint {source} has {found}; its configuration {said}")

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
        sizes = self.anchor_sizes or ()
        single = all(len(level) == 1 for level in sizes)
        fields = {
            "anchor_sizes": tuple(level[0] for level in sizes) if single else sizes,
            "aspect_ratios": self.aspect_ratios,
        }
        return {**super().model_fields(), **{name: value for name, value in fields.items() if value}}


def backbone_name(depth: int, groups: int, width: int) -> str:
    """torchvision's name of a ResNet with so many groups of so many channels in the first stage."""
    if groups == 1:
        return {64: f"resnet{depth}", 128: f"wide_resnet{depth}_2"}.get(width, f"resnet{depth}_{width}d")
    return f"resnext{depth}_{groups}x{width}d"


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, (list, tuple)) else value


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
