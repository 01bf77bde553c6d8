"""Random SOLOv2 checkpoints as mmdetection would save them, and what mmdetection itself found with them.

Every weight is drawn by a NumPy generator of its own (seed of the family, crc32 of the name) times a fan-in scale; the
outputs of the head are scaled so that some hundred (cell, class) pairs pass mmdetection's threshold.

Families: "r18": ResNet-18, light head, the authors' block after each stage, w between 0.3 and 0.6. "r50-caffe":
ResNet-50 in the style "caffe" with BGR input, full head, no blocks.

``data/oracles/solov2-FAMILY.reference.npz`` holds what mmdet 3.3.0 (mmcv 2.1.0, PyTorch 2.14.1, OpenCV 5.0.0) computed
from that checkpoint and the two dark ``peer_checkpoint.pictures``, with the configuration that it read. The blocks
there were ``wnlb.export.block``'s, appended to the stages of mmdetection's ResNet.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peer_checkpoint import ORACLES
from peer_keys import Shapes, layer, resnet, weighted_block
from torch import Tensor

FAMILIES = ("r18", "r50-caffe")
CLASSES = 8
GRIDS = (40, 36, 24, 16, 12)
HEADS = {"r18": (2, 256, 128), "r50-caffe": (4, 512, 256)}  # convolutions of a branch, their channels, the kernels'


def reference(family: str) -> Mapping[str, NDArray]:
    """What mmdetection found.

    For each picture, the names starting with ``a_`` or ``b_``: scores, labels (from 0), masks (bits along the last axis
    of ``[D, height, width]``, in the picture), input_size (padded) and picture_size (resized), height and width; cells
    (of how many pairs the score passed). Also ``config``, text, and ``digest`` of the weights.
    """
    return np.load(ORACLES / f"solov2-{family}.reference.npz")


def checkpoint(family: str) -> dict[str, Tensor]:
    """The float32 state dict, by mmdetection's names. Raises ValueError if it is not what mmdetection had."""
    weights = state(family)
    if digest(weights) != str(reference(family)["digest"]):
        raise ValueError(f"NumPy {np.__version__} draws other numbers than the one that made the references")
    return {name: torch.from_numpy(value) for name, value in weights.items()}


def shapes(
    depth: int, convs: int, width: int, kernel: int, neck: int = 256, mask_width: int = 128, classes: int = CLASSES
) -> Shapes:
    """Names and shapes of a SOLOv2, without blocks."""
    found = resnet(depth)
    first = 256 if depth >= 50 else 64
    for i in range(4):
        found |= layer(f"neck.lateral_convs.{i}.conv", neck, first << i, 1, 1)
        found |= layer(f"neck.fpn_convs.{i}.conv", neck, neck, 3, 3)
    for i in range(convs):
        for branch, extra in (("kernel", 2), ("cls", 0)):
            inputs = neck + extra if i == 0 else width
            found |= _normed(f"mask_head.{branch}_convs.{i}", width, inputs, 3)
    found |= layer("mask_head.conv_cls", classes, width, 3, 3) | layer("mask_head.conv_kernel", kernel, width, 3, 3)
    for level in range(4):
        for i in range(max(level, 1)):
            inputs = mask_width if i else neck + 2 * (level == 3)
            found |= _normed(f"mask_head.mask_feature_head.convs_all_levels.{level}.conv{i}", mask_width, inputs, 3)
    return found | _normed("mask_head.mask_feature_head.conv_pred", kernel, mask_width, 1)


def state(family: str) -> dict[str, NDArray]:
    """The weights of a family."""
    found = shapes(18 if family == "r18" else 50, *HEADS[family])
    if family == "r18":
        for i in range(4):
            found |= weighted_block(f"backbone.layer{i + 1}.wnlb", 64 << i)
    seed = zlib.crc32(f"solov2 {family}".encode())
    return drawn(found, seed, caffe=family == "r50-caffe")


def drawn(found: Shapes, seed: int, caffe: bool = False) -> dict[str, NDArray]:
    """Weights of these shapes: a lively network."""
    weights: dict[str, NDArray] = {}
    for name, shape in found.items():
        path, _, kind = name.rpartition(".")

        def draw(name: str = name, shape: tuple[int, ...] = shape) -> NDArray[np.float32]:
            own = np.random.default_rng([seed, zlib.crc32(name.encode())])
            return own.standard_normal(shape, np.float32)

        if kind == "num_batches_tracked":
            weights[name] = np.zeros((), np.int64)
        elif kind == "w":
            weights[name] = np.float32(0.45) + np.float32(0.05) * draw().clip(-3, 3)
        elif len(shape) == 4:
            gain = 1 if "neck" in path or "wnlb" in path else 2
            gain = gain / 57**2 if caffe and path == "backbone.conv1" else gain
            gain = gain / 400 if path.endswith(("theta", "phi")) else gain
            weights[name] = draw() * np.float32((gain / np.prod(shape[1:])) ** 0.5)
        elif kind == "bias":
            weights[name] = np.float32(0.1) * draw()
        elif kind == "running_var":
            weights[name] = 1 + np.float32(0.1) * np.abs(draw())
        elif kind == "running_mean":
            weights[name] = np.float32(0.1) * draw()
        else:  # scale of a norm; of one that ends a residual branch it is small
            last = path.endswith(("bn3", "bn2", "downsample.1"))
            weights[name] = np.float32(0.4 if last else 0.9) * (1 + np.float32(0.2) * draw().clip(-2, 2))
    weights["mask_head.conv_cls.weight"] *= np.float32(1.8)
    weights["mask_head.conv_cls.bias"] -= np.float32(4.9)
    weights["mask_head.conv_kernel.weight"] *= np.float32(10 / found["mask_head.conv_kernel.weight"][0] ** 0.5)
    return weights


def digest(weights: Mapping[str, NDArray]) -> str:
    """SHA-256 of all of them."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        sha.update(f"{name} {weights[name].dtype} {weights[name].shape}".encode())
        sha.update(np.ascontiguousarray(weights[name]).tobytes())
    return sha.hexdigest()


def _normed(name: str, out: int, inputs: int, size: int) -> Shapes:
    return {f"{name}.conv.weight": (out, inputs, size, size), f"{name}.gn.weight": (out,), f"{name}.gn.bias": (out,)}


def assert_equals(
    family: str, name: str, scores: NDArray, labels: NDArray, masks: NDArray[np.bool_], empty_too: bool
) -> None:
    """Detections in the picture ``name`` against what mmdetection found there: scores within 1e-4, of the masks' pixels
    one in a thousand.

    Each of ours belongs to the one of mmdetection's whose mask is most like its own. A mask of few cells gains or
    loses one by rounding, its score then changes, and near ties change places.

    Args:
        labels: from 1.
        masks: ``[D, height, width]``.
        empty_too: whether detections without a pixel in the picture are among them, as among mmdetection's.
    """
    expected = {key[2:]: value for key, value in reference(family).items() if key.startswith(f"{name}_")}
    theirs = np.unpackbits(expected["masks"], -1, count=masks.shape[2]).astype(bool)
    kept = theirs.any((1, 2)) | empty_too
    theirs, their_scores, their_labels = theirs[kept], expected["scores"][kept], expected["labels"][kept] + 1
    assert len(masks) == len(theirs)
    apart = np.abs(scores[:, None] - their_scores) > 1e-4
    apart |= labels[:, None] != their_labels
    flat, their_flat = (value.reshape(len(value), -1).astype(np.float32) for value in (masks, theirs))
    shared = flat @ their_flat.T
    differing = flat.sum(1)[:, None] + their_flat.sum(1) - 2 * shared  # pixels
    near = np.abs(scores[:, None] - their_scores).min(1).max()
    left, wrong = np.where(apart, np.inf, differing), 0.0
    for _ in masks:
        i, j = divmod(int(left.argmin()), len(masks))
        wrong += left[i, j]
        left[i] = left[:, j] = np.inf
    total = their_flat.sum()
    print(f"{family} {name}: {len(masks)} found, scores {near:.1e}, {wrong:.0f} of {total:.0f} pixels differ")
    assert wrong <= 1e-3 * total  # infinite where one was left over


SMALL_GRIDS = (12, 10, 8, 6, 4)


def small_config() -> str:
    """The configuration of ``small_state``: as that of "r18", with its norms in 8 groups and ``SMALL_GRIDS``."""
    text = bytes(reference("r18")["config"]).decode().replace("NightResNet", "ResNet")
    text = text.replace("num_groups=32", "num_groups=8").replace("max_per_img=50", "max_per_img=20")
    text = re.sub(r"num_grids=\[[^]]*\]", f"num_grids={list(SMALL_GRIDS)}", text)
    return text.replace("num_classes=8,", "num_classes=8, norm_cfg=dict(type='GN', num_groups=8),")


def small_state(seed: int = 5, levels: tuple[int, ...] = (2, 3, 4, 5), **widths: int) -> dict[str, Tensor]:
    """A narrow SOLOv2 on a ResNet-18, with the authors' blocks after these stages."""
    found = shapes(18, **{"convs": 1, "width": 32, "kernel": 16, "neck": 32, "mask_width": 16, **widths})
    for level in levels:
        found |= weighted_block(f"backbone.layer{level - 1}.wnlb", 32 << (level - 1))
    return {name: torch.from_numpy(value) for name, value in drawn(found, seed).items()}


def write_small(path: Path, **options: Any) -> None:
    """As mmengine saves while training: weights, and the configuration in ``meta``."""
    torch.save({"state_dict": small_state(**options), "meta": {"cfg": small_config(), "epoch": 12}}, path)
