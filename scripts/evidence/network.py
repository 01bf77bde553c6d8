"""The whole network: eager torchvision against our static graph as one CUDA graph, same weights, same night scene.

Everyone starts with the uint8 frame on the GPU and ends with boxes, scores, labels and 28 x 28 masks there: the
resizing and the pasting of masks that torchvision does are left out, which favours it. The static graph is what
TensorRT gets: an engine must beat what PyTorch makes of it. Counts of detections are set by the score threshold, for
everyone alike.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from fresh_checkpoint import LIS_CLASSES, fresh_model
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from evidence.attention import draw
from evidence.checkout import ROOT
from evidence.kernels import Launch, fits, kernels_of, launcher, name_of, rehearsed
from evidence.stage import NO_TIME, Context, first_line, needs_gpu
from evidence.timing import median_ms, memory_of
from wnlb.calibration.scenes.camera import Camera, expose
from wnlb.calibration.scenes.scene import make_scene
from wnlb.export.checkpoints.checkpoint import load_checkpoint
from wnlb.export.graph.attention import DeployedBlock
from wnlb.export.graph.deploy import DeployGraph
from wnlb.export.model import ModelConfig
from wnlb.export.options import ExportOptions
from wnlb.plugins.build import Built
from wnlb.plugins.tiles import PORTABLE
from wnlb.runtime.errors import MissingDependency
from wnlb.runtime.latency import percentile

MASK_ROWS = (8, 16, 32, 64)  # of the mask branches that are captured, beside that for all rows
COUNTS = (100, 5)  # detections: all rows, and what a night scene has
Found = tuple[Tensor, Tensor, Tensor, Tensor]  # boxes [D, 4], scores [D], labels [D], masks [D, 28, 28]
_EVERYTHING = 1e-6  # score threshold
_COMPILING = 60  # seconds that it takes at least


@dataclass(frozen=True)
class Case:
    name: str
    height: int
    width: int
    model: Any

    @property
    def size(self) -> str:
        return f"{self.height}x{self.width}"


@dataclass(frozen=True)
class Variant:
    run: Callable[[Tensor], Found]
    set_threshold: Callable[[float], None]
    bytes: int | None = None  # of one run, where it cannot be seen from outside


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
        model = fresh_model(ModelConfig(9, "resnet18", class_names=LIS_CLASSES, **narrow), size=64)
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
    everything = _in_precision(_eager(model, context.device), "fp32", context.device)(frame)
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
            return Variant(_in_precision(_eager(own, device), precision, device), _threshold_of(own))

        return make

    def static(precision: str, kernels: list[Built], form: Callable[..., Variant] = _at_once) -> Callable[[], Variant]:
        return lambda: form(_static_graph(model, case, precision, kernels, context), case, precision, context.device)

    made = {"eager FP16": eager("fp16")}
    if compiled:
        made["compiled FP16"] = eager("fp16", lambda m: _compiled(m, context.rehearse))
        made["static FP16"] = static("fp16", [])
        return made
    made["eager FP16, channels last, half weights"] = eager("fp16", lambda m: _halved(_channels_last(m)))
    made["static FP16"] = static("fp16", [])
    if kernels:
        made["static FP16, our kernel"] = static("fp16", kernels)
        again = [] if context.rehearse else kernels  # the interpreter takes seconds for each
        made["static FP16, our kernel, masks by count"] = static("fp16", again, _masks_by_count)
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


def _channels_last(model: Any) -> Any:
    return model.to(memory_format=torch.channels_last)


def _halved(model: Any) -> Any:
    """Weights of products in FP16, as autocast would make them anew with each run."""
    for part in model.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            part.half()
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


# Static


def _static_graph(model: Any, case: Case, precision: str, kernels: list[Built], context: Context) -> Any:
    graph: Any = DeployGraph(copy.deepcopy(model).to("cpu"), ExportOptions(case.height, case.width)).eval()
    graph = graph.to(context.device)
    if precision != "fp32":  # tensor cores like it
        graph = _channels_last(graph)
    if precision == "fp16":
        graph = _halved(graph)
    if kernels:
        for path, block in [(p, m) for p, m in graph.named_modules() if isinstance(m, DeployedBlock)]:
            if block.mode == "embedded":
                graph.set_submodule(path, KernelBlock(block, kernels, context))
    return graph


def _whole_frame(case: Case, device: str) -> Tensor:
    return torch.tensor([[case.height, case.width]], dtype=torch.int32, device=device)


def _at_once(graph: Any, case: Case, precision: str, device: str) -> Variant:
    """The whole network as one graph: masks for all rows."""
    content, taken = _whole_frame(case, device), None
    run = _in_precision(lambda frame: graph(frame, content), precision, device)
    if device == "cuda":
        run, taken = _captured(run, torch.zeros(1, case.height, case.width, 3, dtype=torch.uint8, device="cuda"))

    def found(frame: Tensor) -> Found:
        boxes, scores, labels, masks, count = run(frame)
        n = int(count[0])
        return boxes[0, :n], scores[0, :n], labels[0, :n], masks[0, :n]

    return Variant(found, lambda value: graph.detect.score_threshold.fill_(value), taken)


def _masks_by_count(graph: Any, case: Case, precision: str, device: str) -> Variant:
    """A graph up to the boxes, and one of the mask branch for each of ``MASK_ROWS``: the host reads the count between.

    The pyramid stays on the GPU; where nothing was found the second graph is not run.
    """
    content, taken = _whole_frame(case, device), None
    kept: list[Tensor] = []  # what the second graph reads of the first

    def boxes_of(frame: Tensor) -> tuple[Tensor, ...]:
        levels, limit = graph.pyramid(frame, content)
        maps = graph.detect.maps(levels[:4])
        boxes, scores, labels, found = graph.detect.boxes(maps, *graph.rpn(levels, limit), limit)
        kept[:] = maps, boxes, labels, found
        return boxes, scores, labels, found.sum(1)

    def masks_of(rows: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
        def run(_: Tensor) -> tuple[Tensor, ...]:
            maps, boxes, labels, found = kept
            return (graph.detect.mask(maps, boxes[:, :rows], labels[:, :rows], found[:, :rows]),)

        return _in_precision(run, precision, device)

    first = _in_precision(boxes_of, precision, device)
    frame = torch.zeros(1, case.height, case.width, 3, dtype=torch.uint8, device=device)
    rows_at_once = [rows for rows in MASK_ROWS if rows < graph.detect.detections] + [graph.detect.detections]
    if device == "cuda":
        first, taken = _captured(first, frame)
        second = {rows: _captured(masks_of(rows), frame[:, :1, :1])[0] for rows in rows_at_once}
    else:
        first(frame)
        second = {rows: masks_of(rows) for rows in rows_at_once}

    def found(frame: Tensor) -> Found:
        boxes, scores, labels, count = first(frame)
        n = int(count[0])
        rows = next(rows for rows in rows_at_once if rows >= n)
        masks = second[rows](frame[:, :1, :1])[0] if n else torch.zeros(1, 0, 28, 28, device=device)
        return boxes[0, :n], scores[0, :n], labels[0, :n], masks[0, :n]

    return Variant(found, lambda value: graph.detect.score_threshold.fill_(value), taken)


class KernelBlock(nn.Module):
    """A deployed block whose attention is our kernel: the fastest of those that fit."""

    def __init__(self, block: Any, kernels: list[Built], context: Context) -> None:
        super().__init__()
        self.block, self.chosen = block, ""
        d, n = block.plan.inner_channels, block.plan.positions
        self.launch = self._fastest(d, n, kernels, context)

    def _fastest(self, d: int, n: int, kernels: list[Built], context: Context) -> Launch:
        inputs = draw(1, d, d, n, torch.float16, context.device, seed=d)
        output, found = torch.empty_like(inputs[2]), []
        for kernel in kernels:
            if fits(kernel, d, d, n, "float16"):
                launch = launcher(kernel, context.rehearse)
                ms = median_ms(lambda launch=launch: launch(*inputs, output), context.device)
                found.append((ms, name_of(kernel), launch))
        if not found:
            raise MissingDependency(f"no kernel for {d} channels at {n} positions")
        _, self.chosen, launch = min(found, key=lambda item: item[0])
        return launch

    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        query, key, value = (
            conv(x).flatten(2).to(torch.float16).contiguous() for conv in (block.theta, block.phi, block.g)
        )
        y = torch.empty_like(value)
        self.launch(query, key, value, y)
        return block.residual * x + block.W_z(y.reshape(x.shape[0], -1, *x.shape[2:]))


def _captured(
    run: Callable[[Tensor], tuple[Tensor, ...]], frame: Tensor
) -> tuple[Callable[[Tensor], tuple[Tensor, ...]], int]:
    """The same as one CUDA graph, and the bytes that a run takes: of a replay they cannot be seen."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(frame)
    torch.cuda.current_stream().wait_stream(stream)
    _, taken = memory_of(lambda: run(frame), "cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run(frame)

    def replay(now: Tensor, _alive: object = run) -> tuple[Tensor, ...]:
        """``run`` holds tensors that the graph reads: freed, their memory would be another's."""
        frame.copy_(now)
        graph.replay()
        return outputs

    return replay, taken


# Precision, time, agreement


def _in_precision(run: Callable[[Tensor], Any], precision: str, device: str) -> Callable[[Tensor], Any]:
    def now(frame: Tensor) -> Any:
        half = torch.autocast(device, torch.float16, enabled=precision == "fp16", cache_enabled=False)
        with torch.inference_mode(), half, _matrix_products("high" if precision == "tf32" else "highest"):
            return run(frame)

    return now


@contextlib.contextmanager
def _matrix_products(precision: str) -> Iterator[None]:
    """``high``: float32 products and convolutions as TF32; ``highest``: as they are."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "high"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


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
