"""Random Mask R-CNN checkpoints as mmdetection and detectron2 would save them, and what the frameworks found with them.

Every parameter of the ResNet-50 with FPN (eight classes) is drawn by a NumPy generator of its own (seed of the family
and of the set, crc32 of the name) times a fan-in scale. What had to be measured on data (statistics of batch norms,
scale and bias of the output layers) and the framework's configuration lie in ``data/oracles/FAMILY-SET.stats.npz``,
with a digest of the whole state: a NumPy that draws other numbers is noticed.

``data/oracles/FAMILY-SET.reference.npz`` holds what the framework itself computed from that checkpoint and the two dark
``pictures``: mmdet 3.3.0 with mmcv 2.1.0, detectron2 of 2026-06; PyTorch 2.14.1, OpenCV 5.0.0, Pillow 13.0.0.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ORACLES = Path(__file__).parent / "data" / "oracles"
SET = "open"
FAMILIES = ("mmdet-pytorch", "mmdet-caffe", "d2-msra")
CLASSES = 8
UNITS = (3, 4, 6, 3)
Layer = tuple[str, tuple[int, ...], str]  # name, shape of the weight, kind; see ``layers``


def reference(family: str) -> Mapping[str, NDArray]:
    """What the framework found.

    For each picture, the names starting with ``a_`` or ``b_``: boxes (x1 y1 x2 y2 in the picture), scores, labels (from
    0), masks (bits along the last axis of masks_shape ``[D, height, width]``); input_size (padded) and picture_size
    (resized), height and width; proposals, boxes_input (both in pixels of the input), mask_probs (float16
    ``[D, 28, 28]``, of the own class), input_sample (``input[:, ::13, ::13]``), picture_sha256.
    """
    return np.load(ORACLES / f"{family}-{SET}.reference.npz")


def checkpoint(family: str) -> dict[str, Tensor]:
    """The float32 state dict, by the framework's names. Raises ValueError if it is not what the framework had."""
    stats = np.load(ORACLES / f"{family}-{SET}.stats.npz")
    state = _state(family, stats)
    if _digest(state) != str(stats["digest"]):
        raise ValueError(f"NumPy {np.__version__} draws other numbers than the one that made the references")
    return {name: torch.from_numpy(value) for name, value in state.items()}


def config(family: str) -> str:
    """The framework's configuration: Python of mmdetection, YAML of detectron2."""
    return bytes(np.load(ORACLES / f"{family}-{SET}.stats.npz")["config"]).decode()


def pictures() -> dict[str, NDArray[np.uint8]]:
    """Two dark scenes, uint8 RGB: 400 x 600, which detectron2 does not resize, and 333 x 517."""
    return {"a": _picture(400, 600), "b": _picture(333, 517)}


def _layers(family: str) -> list[Layer]:
    """Every layer in the framework's order: what was measured is stored in this order.

    Kinds: stem, conv (no bias, He), norm, damped (the norm that ends a residual branch), plain (bias, gain 1), relu
    (bias, He), level0..3 (output of the FPN; brings sums of 4..1 laterals to one size), up (transposed convolution),
    head (output layer: scale and bias are measured), objectness (head, and a measured direction: anchors of all levels
    in balance).
    """
    body, neck, rpn, box, mask = (_d2_parts if family.startswith("d2") else _mmdet_parts)()
    layers = [*neck, *body] if family.startswith("d2") else [*body, *neck]
    shapes = ((256, 256, 3, 3), (3, 256, 1, 1), (12, 256, 1, 1))
    layers += zip(rpn, shapes, ("relu", "objectness", "head"), strict=True)
    layers += [(name, _BOX_LAYERS[part][0], _BOX_LAYERS[part][1]) for part, name in box]
    shapes = ((256, 256, 3, 3),) * 4 + ((256, 256, 2, 2), (CLASSES, 256, 1, 1))
    layers += zip(mask, shapes, ("relu",) * 4 + ("up", "head"), strict=True)
    return layers


_BOX_LAYERS: dict[str, tuple[tuple[int, ...], str]] = {
    "fc1": ((1024, 256 * 49), "relu"),
    "fc2": ((1024, 1024), "relu"),
    "cls": ((CLASSES + 1, 1024), "head"),
    "reg": ((4 * CLASSES, 1024), "head"),
}
Parts = tuple[list[Layer], list[Layer], list[str], list[tuple[str, str]], list[str]]


def _d2_parts() -> Parts:
    def body() -> Iterator[Layer]:
        up = "backbone.bottom_up"
        yield from _normed(f"{up}.stem.conv1", f"{up}.stem.conv1.norm", (64, 3, 7, 7), "stem")
        for stage, unit, inputs, middle, outputs in _units():
            path = f"{up}.res{stage + 2}.{unit}"
            if unit == 0:
                name = f"{path}.shortcut"
                yield from _normed(name, f"{name}.norm", (outputs, inputs, 1, 1), norm="damped")
            for i, shape in enumerate(_convs(inputs, middle, outputs), 1):
                name = f"{path}.conv{i}"
                yield from _normed(name, f"{name}.norm", shape, norm="damped" if i == 3 else "norm")

    lateral, output = _fpn_layers()
    neck = [
        (f"backbone.fpn_{part}{i + 2}", *own[i])
        for i in range(4)
        for part, own in (("lateral", lateral), ("output", output))
    ]
    rpn = [f"proposal_generator.rpn_head.{name}" for name in ("conv", "objectness_logits", "anchor_deltas")]
    names = ("box_head.fc1", "box_head.fc2", "box_predictor.cls_score", "box_predictor.bbox_pred")
    box = [(part, f"roi_heads.{name}") for part, name in zip(("fc1", "fc2", "cls", "reg"), names, strict=True)]
    mask = [f"roi_heads.mask_head.{name}" for name in (*(f"mask_fcn{i}" for i in (1, 2, 3, 4)), "deconv", "predictor")]
    return list(body()), neck, rpn, box, mask


def _mmdet_parts() -> Parts:
    def body() -> Iterator[Layer]:
        yield from _normed("backbone.conv1", "backbone.bn1", (64, 3, 7, 7), "stem")
        for stage, unit, inputs, middle, outputs in _units():
            path = f"backbone.layer{stage + 1}.{unit}"
            for i, shape in enumerate(_convs(inputs, middle, outputs), 1):
                yield from _normed(f"{path}.conv{i}", f"{path}.bn{i}", shape, norm="damped" if i == 3 else "norm")
            if unit == 0:
                shape = (outputs, inputs, 1, 1)
                yield from _normed(f"{path}.downsample.0", f"{path}.downsample.1", shape, norm="damped")

    lateral, output = _fpn_layers()
    neck = [(f"neck.lateral_convs.{i}.conv", *own) for i, own in enumerate(lateral)]
    neck += [(f"neck.fpn_convs.{i}.conv", *own) for i, own in enumerate(output)]
    rpn = [f"rpn_head.{name}" for name in ("rpn_conv", "rpn_cls", "rpn_reg")]
    names = ("fc_cls", "fc_reg", "shared_fcs.0", "shared_fcs.1")
    box = [(part, f"roi_head.bbox_head.{name}") for part, name in zip(("cls", "reg", "fc1", "fc2"), names, strict=True)]
    convs = (f"convs.{i}.conv" for i in range(4))
    mask = [f"roi_head.mask_head.{name}" for name in (*convs, "upsample", "conv_logits")]
    return list(body()), neck, rpn, box, mask


def _units() -> Iterator[tuple[int, int, int, int, int]]:
    """Stage, unit, and channels of its input, its 3 x 3 convolution and its output."""
    inputs = 64
    for stage, count in enumerate(UNITS):
        for unit in range(count):
            yield stage, unit, inputs, 64 << stage, 256 << stage
            inputs = 256 << stage


def _convs(inputs: int, middle: int, outputs: int) -> tuple[tuple[int, ...], ...]:
    return (middle, inputs, 1, 1), (middle, middle, 3, 3), (outputs, middle, 1, 1)


def _normed(name: str, norm_name: str, shape: tuple[int, ...], kind: str = "conv", norm: str = "norm") -> list[Layer]:
    return [(name, shape, kind), (norm_name, shape[:1], norm)]


def _fpn_layers() -> tuple[list[tuple[tuple[int, ...], str]], list[tuple[tuple[int, ...], str]]]:
    lateral = [((256, 256 << i, 1, 1), "plain") for i in range(4)]
    return lateral, [((256, 256, 3, 3), f"level{i}") for i in range(4)]


def _number(text: str) -> int:
    return zlib.crc32(text.encode())


def _state(family: str, stats: Mapping[str, NDArray]) -> dict[str, NDArray]:
    seed = _number(f"{family} {SET}")
    at: dict[str, int] = {}
    state: dict[str, NDArray] = {}

    def draw(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        return np.random.default_rng([seed, _number(name)]).standard_normal(shape, np.float32)

    def measured(name: str, count: int) -> NDArray[np.float32]:
        first = at.get(name, 0)
        at[name] = first + count
        return stats[name][first : first + count].astype(np.float32)

    for name, shape, kind in _layers(family):
        count, weight, bias = shape[0], f"{name}.weight", f"{name}.bias"
        if kind in ("norm", "damped"):
            gain = np.float32(0.4 if kind == "damped" else 0.9)
            state[weight] = gain * (1 + np.float32(0.2) * draw(weight, shape).clip(-2, 2))
            state[bias] = np.float32(0.1) * draw(bias, shape)
            state[f"{name}.running_mean"] = measured("running_mean", count)
            state[f"{name}.running_var"] = measured("running_var", count)
            if not family.startswith("d2"):
                state[f"{name}.num_batches_tracked"] = np.zeros((), np.int64)
            continue
        state[weight] = draw(weight, shape) * _scale(family, shape, kind)
        if kind in ("head", "objectness"):
            state[weight] *= measured("head_scale", count).reshape(-1, *[1] * (len(shape) - 1))
            state[bias] = measured("head_bias", count)
            if kind == "objectness":
                state[weight] += stats["direction"].reshape(1, 256, 1, 1)
        elif kind not in ("stem", "conv"):
            spread = np.float32(0.5 if kind.startswith("level") else 0.1)
            state[bias] = spread * draw(bias, (shape[1] if kind == "up" else count,))
    return state


def _scale(family: str, shape: tuple[int, ...], kind: str) -> np.float32:
    fan = shape[0] if kind == "up" else int(np.prod(shape[1:]))
    gains = {"plain": 1, "head": 1, "objectness": 1, **{f"level{i}": 1 / (4 - i) for i in range(4)}}
    scale = np.float32(np.sqrt(gains.get(kind, 2) / fan))
    # The other families feed pixel values that are not divided by their standard deviation.
    return np.float32(scale / 57) if kind == "stem" and family != "mmdet-pytorch" else scale


def _digest(state: Mapping[str, NDArray]) -> str:
    sha = hashlib.sha256()
    for name in sorted(state):
        sha.update(f"{name} {state[name].dtype} {state[name].shape}".encode())
        sha.update(np.ascontiguousarray(state[name]).tobytes())
    return sha.hexdigest()


def _picture(height: int, width: int) -> NDArray[np.uint8]:
    """Blobs with rims on soft light, and noise, in integer arithmetic alone."""
    rng = np.random.default_rng([_number(SET), height, width])
    coarse = rng.integers(4, 70, (height // 48 + 2, width // 48 + 2, 3))
    y, x = np.arange(height), np.arange(width)
    v, u = (y % 48)[:, None, None], (x % 48)[None, :, None]
    rows, columns = (y // 48)[:, None], (x // 48)[None]
    upper = coarse[rows, columns] * (48 - u) + coarse[rows, columns + 1] * u
    lower = coarse[rows + 1, columns] * (48 - u) + coarse[rows + 1, columns + 1] * u
    image = (upper * (48 - v) + lower * v) // (48 * 48)
    for i in range(28):
        cy, cx, ry, rx = (int(rng.integers(0, n)) for n in (height, width, 0.16 * height, 0.16 * width))
        colour, rim = rng.integers(0, 150, 3), rng.integers(0, 200, 3)
        dy, dx = np.abs(y - cy)[:, None] * 64 // (ry + 6), np.abs(x - cx)[None] * 64 // (rx + 6)
        far = np.maximum(dy, dx) if i % 2 else np.sqrt(dy * dy + dx * dx)
        image[far < 64] = rim
        image[far < 54] = (colour + image[far < 54]) // 2
    noise = rng.integers(-6, 7, (4, height, width, 3)).sum(0)
    return (image + noise).clip(0, 255).astype(np.uint8)
