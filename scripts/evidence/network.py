"""The whole network: eager torchvision against our static graph as one CUDA graph, same weights, same night scene.

Everyone starts with the uint8 frame on the GPU and ends with boxes, scores, labels and 28 x 28 masks there: the
resizing and the pasting of masks that torchvision does are left out, which favours it. The static graph is what
TensorRT gets: an engine must beat what PyTorch makes of it. Counts of detections are set by the score threshold, for
everyone alike.
"""

from __future__ import annotations

import copy
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from fresh_checkpoint import LIS_CLASSES, fresh_model
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from evidence.checkout import ROOT
from evidence.kernels import kernels_of, rehearsed
from evidence.stage import NO_TIME, Context, first_line, needs_gpu
from evidence.static import (
    Case,
    Found,
    Variant,
    at_once,
    channels_last,
    halved,
    in_precision,
    masks_by_count,
    static_graph,
)
from evidence.timing import memory_of
from wnlb.calibration.scenes.camera import Camera, expose
from wnlb.calibration.scenes.scene import make_scene
from wnlb.export.checkpoints.checkpoint import load_checkpoint
from wnlb.export.model import ModelConfig
from wnlb.plugins.build import Built
from wnlb.plugins.tiles import PORTABLE
from wnlb.runtime.errors import MissingDependency
from wnlb.runtime.latency import percentile

COUNTS = (100, 5)  # detections: all rows, and what a night scene has
_EVERYTHING = 1e-6  # score threshold
_COMPILING = 60  # seconds that it takes at least


def run(context: Context) -> None:
    arch = needs_gpu(context)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.benchmark_limit = True, 3  # all of them would take a minute
    kernels = _kernels(context, arch)
    context.fact("weights", "the ResNet-50 is untrained (seeded, heads that answer), the sample is trained")
    cases = list(_cases(context))
    for number, case in enumerate(cases):
        seconds = context.left() * (0.8 if number == len(cases) - 1 else 1 / (len(cases) - number))
        _measure(context, case, kernels, seconds, compiled=False)
    for case in cases[:2]:  # compiled for tens of seconds: when everything else is there
        if context.left() > _COMPILING or context.rehearse:
            _measure(context, case, [], context.left(), compiled=True)
        else:
            context.add(model=case.name, size=case.size, compiled=True, refused=NO_TIME)


def _cases(context: Context) -> Iterator[Case]:
    if context.rehearse:
        narrow = {"fpn_channels": 32, "box_features": 64, "mask_channels": (16, 16), "mask_hidden": 16}
        levels = ("c4", "c5")  # of the others the interpreter takes seconds for each run
        model = fresh_model(ModelConfig(9, "resnet18", levels, class_names=LIS_CLASSES, **narrow), size=64)
        model.rpn._pre_nms_top_n["testing"] = model.rpn._post_nms_top_n["testing"] = 32
        model.roi_heads.detections_per_img = 8
        yield Case("untrained ResNet-18", 64, 96, model)
        return
    resnet50 = fresh_model(ModelConfig(num_classes=9, backbone="resnet50", class_names=LIS_CLASSES))
    for height, width in ((416, 608), (800, 1344)):
        yield Case("ResNet-50, four blocks", height, width, resnet50)
    yield Case("sample (ResNet-18)", 320, 320, load_checkpoint(ROOT / "export" / "sample.safetensors")[0])


def _measure(context: Context, case: Case, kernels: list[Built], seconds: float, compiled: bool) -> None:
    """A row for each count and variant, the variants in turns."""
    what = {"model": case.name, "size": case.size, "compiled": compiled}
    if context.left() <= 0 or seconds <= 1:
        context.add(**what, refused=NO_TIME)
        return
    until = time.time() + seconds
    model = copy.deepcopy(case.model).eval().requires_grad_(False).to(context.device)
    light = make_scene(7, 3, case.height, case.width).light
    scene = expose(light, Camera(), np.random.default_rng(7)).astype(np.uint8)
    frame = torch.from_numpy(scene).unsqueeze(0).to(context.device)  # [1, H, W, 3]
    _threshold_of(model)(_EVERYTHING)
    everything = in_precision(_eager(model, context.device), "fp32", context.device)(frame)
    variants: dict[str, Variant] = {}
    for name, make in _makers(model, case, context, kernels, compiled).items():
        if time.time() > until - seconds / 2 and not compiled:
            context.add(**what, variant=name, refused=NO_TIME)
            continue
        try:
            variants[name] = _settled(make(), frame, context.device)
        except Exception as error:  # of memory, compilers and capture, each with its own exceptions
            context.add(**what, variant=name, refused=first_line(error))
    for number, count in enumerate(COUNTS):
        share = max(until - time.time(), 1.0) / (len(COUNTS) - number)
        scores = everything[1]
        threshold = float(scores[count - 1 : count + 1].mean()) if len(scores) > count else _EVERYTHING
        expected = tuple(t[: int((scores > threshold).sum())] for t in everything)
        for variant in variants.values():
            variant.set_threshold(threshold)
        times = _turns(list(variants.values()), frame, share, context.device)
        for (name, variant), ms in zip(variants.items(), times, strict=True):
            context.add(
                **what,
                variant=name,
                detections=len(expected[1]),
                runs=len(ms),
                p50_ms=percentile(ms, 50),
                p99_ms=percentile(ms, 99),
                bytes=variant.bytes,
                **_agreement(expected, variant.run(frame)),
            )


def _settled(variant: Variant, frame: Tensor, device: str) -> Variant:
    """After a first run, in which libraries choose and compile; then the memory of another is its own."""
    variant.run(frame)
    if variant.bytes is not None:
        return variant
    return replace(variant, bytes=memory_of(lambda: variant.run(frame), device)[1])


def _makers(
    model: Any, case: Case, context: Context, kernels: list[Built], compiled: bool
) -> dict[str, Callable[[], Variant]]:
    """Name to a function that makes the variant; what it needs is only made then."""
    device = context.device

    def eager(precision: str, form: Callable[[Any], Any] = lambda m: m) -> Callable[[], Variant]:
        def make() -> Variant:
            own = form(copy.deepcopy(model))
            return Variant(in_precision(_eager(own, device), precision, device), _threshold_of(own))

        return make

    def static(precision: str, kernels: list[Built], form: Callable[..., Variant] = at_once) -> Callable[[], Variant]:
        return lambda: form(static_graph(model, case, precision, kernels, context), case, precision, context.device)

    made = {"eager FP16": eager("fp16")}
    if compiled:
        made["compiled FP16"] = eager("fp16", lambda m: _compiled(m, context.rehearse))
        made["static FP16"] = static("fp16", [])
        return made
    made["eager FP16, channels last, half weights"] = eager("fp16", lambda m: halved(channels_last(m)))
    made["static FP16"] = static("fp16", [])
    if kernels:
        made["static FP16, our kernel"] = static("fp16", kernels)
        made["static FP16, our kernel, masks by count"] = static("fp16", kernels, masks_by_count)
    for precision in ("fp32", "tf32"):
        made[f"eager {precision.upper()}"] = eager(precision)
        made[f"static {precision.upper()}"] = static(precision, [])
    return made


def _compiled(model: Any, rehearse: bool) -> Any:
    """Backbone with its blocks, FPN, box head; the rest of torchvision's model changes its shapes with each frame."""
    if not rehearse:
        torch.compiler.reset()  # else another size than the first is compiled for any size
        model.backbone = torch.compile(model.backbone, dynamic=False)
        model.roi_heads.box_head = torch.compile(model.roi_heads.box_head, dynamic=False)
    return model


# Eager


def _eager(model: Any, device: str) -> Callable[[Tensor], Found]:
    mean, std = (
        torch.tensor(v, device=device)[:, None, None] for v in (model.transform.image_mean, model.transform.image_std)
    )

    def run(frame: Tensor) -> Found:
        size = (frame.shape[1], frame.shape[2])
        image = (frame.permute(0, 3, 1, 2) / 255 - mean) / std
        batched = ImageList(image, [size])
        features = OrderedDict(model.backbone(image))
        proposals, _ = model.rpn(batched, features)
        found = model.roi_heads(features, proposals, [size])[0][0]
        return found["boxes"], found["scores"], found["labels"], found["masks"][:, 0]

    return run


def _threshold_of(model: Any) -> Callable[[float], None]:
    def set_threshold(value: float) -> None:
        model.roi_heads.score_thresh = value

    return set_threshold


# Precision, time, agreement


def _turns(variants: list[Variant], frame: Tensor, seconds: float, device: str) -> list[list[float]]:
    """Milliseconds from the frame on the GPU to its detections, of each variant, measured in turns."""
    times: list[list[float]] = [[] for _ in variants]
    until, least, most = time.time() + seconds, 8, 300
    if device == "cpu":
        least = most = 1
    for turn in range(most if variants else 0):
        if turn >= least and time.time() > until:
            break
        for variant, taken in zip(variants, times, strict=True):
            variant.run(frame)  # the caches are those of this variant again
            _wait(device)
            begun = time.perf_counter()
            variant.run(frame)
            _wait(device)
            taken.append(1e3 * (time.perf_counter() - begun))
    return times


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _agreement(expected: tuple[Tensor, ...], found: Found) -> dict[str, Any]:
    """How many of the detections of eager FP32 are found again, and how far those are away."""
    boxes, scores, labels = (t.float() for t in expected[:3])
    own_boxes, own_scores, own_labels = (t.float() for t in found[:3])
    result: dict[str, Any] = {"found": len(own_scores), "expected": len(scores), "again": 0}
    if not len(scores) or not len(own_scores):
        return result
    overlap = box_iou(boxes, own_boxes)
    overlap[labels[:, None] != own_labels[None]] = 0
    best, index = overlap.max(1)
    again = (best > 0.9) & ((own_scores[index] - scores).abs() < 0.05)
    apart = (own_boxes[index] - boxes).abs().amax(1)[again]
    result["again"] = int(again.sum())
    result["box_px"] = float(apart.max()) if len(apart) else None
    result["score"] = float((own_scores[index] - scores).abs()[again].max()) if len(apart) else None
    return result


def _kernels(context: Context, arch: int) -> list[Built]:
    """In float16; none where there are none, and the row of our kernel is left out."""
    if context.rehearse:
        return rehearsed(arch, ("float16",), (32, 64, 128, 256))
    for which in (arch, PORTABLE):
        try:
            return [kernel for kernel in kernels_of(context, which) if kernel.job.dtype == "float16"]
        except MissingDependency as error:
            context.fact("kernels", str(error))
    return []
