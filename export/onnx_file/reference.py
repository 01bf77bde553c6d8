"""What the eager network finds, the truth of every comparison, and how far other detections are from it."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.image_list import ImageList

from wnlb.export.checkpoints.checkpoint import Origin
from wnlb.export.references import detectron2, mmdet, solov2
from wnlb.export.references.interface import NetworkSettings, Settings, SoloSettings
from wnlb.export.solov2 import Solov2
from wnlb.runtime.contract import FRAME_SHARE, MASK_SIZE

BOX_TOLERANCE = 0.05  # input pixels
SCORE_TOLERANCE = 1e-4
MASK_TOLERANCE = 1e-3  # of a probability
Arrays = dict[str, NDArray]
_Settings = TypeVar("_Settings", bound=NetworkSettings)


@dataclass(frozen=True)
class Difference:
    """How far detections are from those of a reference, over a batch; errors are the largest of all matched ones."""

    detections: int  # of the reference
    missing: int  # detections of the reference that the other does not have
    extra: int  # detections of the other that the reference does not have
    box_error: float  # input pixels
    score_error: float
    mask_error: float  # of a probability

    @property
    def unmatched(self) -> int:
        return self.missing + self.extra

    @property
    def errors(self) -> dict[str, float]:
        return {"boxes": self.box_error, "scores": self.score_error, "masks": self.mask_error}


def worst(differences: Iterable[Difference]) -> Difference:
    """The largest of each error, and the one with the most unmatched detections, by their share."""
    found = list(differences)
    most = max(found, key=lambda one: one.unmatched / max(one.detections, 1))
    errors = {name: max(getattr(one, name) for one in found) for name in ("box_error", "score_error", "mask_error")}
    return dataclasses.replace(most, **errors)


class Eager:
    """A network as the framework computes it that trained it: torchvision itself, or the reference of another one.

    Args:
        model: with the counts and thresholds that hold, also for ``origin``.
        origin: of a model of another framework.
    """

    def __init__(self, model: MaskRCNN | Solov2, origin: Origin | None = None) -> None:
        self.model, self._origin = model, origin

    @property
    def rows(self) -> int:
        """Detections of an image, at most."""
        model = self.model
        return model.selection.detections if isinstance(model, Solov2) else model.roi_heads.detections_per_img

    @property
    def least_score(self) -> float:
        """Of a detection."""
        model = self.model
        return model.selection.score_threshold if isinstance(model, Solov2) else model.roi_heads.score_thresh

    @property
    def nms_threshold(self) -> float:
        """Of the IoU of detections; 1 where no box suppresses another."""
        return 1.0 if isinstance(self.model, Solov2) else self.model.roi_heads.nms_thresh

    @property
    def first_threshold(self) -> float:
        """Of scores, which decides alone on what there is: of pairs of proposal or cell and class."""
        model = self.model
        return model.selection.cell_threshold if isinstance(model, Solov2) else model.roi_heads.score_thresh

    @contextmanager
    def with_first_threshold(self, value: float) -> Iterator[None]:
        """Another ``first_threshold`` for a while."""
        model: Any = self.model
        owner, name = (model, "selection") if isinstance(model, Solov2) else (model.roi_heads, "score_thresh")
        before = getattr(owner, name)
        try:
            changed = dataclasses.replace(before, cell_threshold=value) if isinstance(model, Solov2) else value
            setattr(owner, name, changed)
            yield
        finally:
            setattr(owner, name, before)

    @property
    def framework(self) -> str:
        return self._origin.settings.framework if self._origin else "torchvision"

    def doubled(self) -> Eager:
        """The same in float64."""
        origin = self._origin
        if origin:
            origin = dataclasses.replace(origin, state={name: value.double() for name, value in origin.state.items()})
        return Eager(copy.deepcopy(self.model).double(), origin)

    def detections(
        self, images: NDArray[np.uint8], content: NDArray[np.int32] | None = None
    ) -> tuple[list[Arrays], list[Tensor]]:
        """As ``eager_detections``; masks of SOLOv2 are ``[D, H/4, W/4]``, probabilities less 0.5."""
        if self._origin is None:
            assert isinstance(self.model, MaskRCNN)
            return eager_detections(self.model, images, content)
        batch, height, width = images.shape[:3]
        if content is None:
            content = np.tile(np.array([height, width], np.int32), (batch, 1))
        there = np.flatnonzero(content.min(1) > 0)  # what holds no picture is none for the framework
        if isinstance(self.model, Solov2):
            run = solov2.detections(self._origin.state, self._settings(SoloSettings), images[there], content[there])
            mask = (height // FRAME_SHARE, width // FRAME_SHARE)
            for own in run.detections:
                own["masks"] -= solov2.MASK_THRESHOLD  # as the contract has masks of the frame
        else:
            reference = {"mmdetection": mmdet.detections, "detectron2": detectron2.detections}[self.framework]
            run = reference(self._origin.state, self._settings(Settings), images[there], content[there])
            mask = (MASK_SIZE, MASK_SIZE)
        found = [_nothing(mask) for _ in range(batch)]
        for i, own in zip(there, run.detections, strict=True):
            found[i] = own
        return found, run.pyramid

    def _settings(self, kind: type[_Settings]) -> _Settings:
        """Of the reference, counts and thresholds those of the model."""
        assert self._origin is not None
        names = {field.name for field in dataclasses.fields(kind)}
        told = {name: value for name, value in dataclasses.asdict(self._origin.settings).items() if name in names}
        if isinstance(self.model, Solov2):
            return kind(**{**told, **dataclasses.asdict(self.model.selection)})
        rpn, heads = self.model.rpn, self.model.roi_heads
        return kind(
            **{
                **told,
                "pre_nms_top_n": rpn.pre_nms_top_n(),
                "post_nms_top_n": rpn.post_nms_top_n(),
                "rpn_nms_threshold": rpn.nms_thresh,
                "score_threshold": heads.score_thresh,
                "nms_threshold": heads.nms_thresh,
                "detections": heads.detections_per_img,
            }
        )


def _nothing(mask: tuple[int, int]) -> Arrays:
    shapes = {"boxes": (0, 4), "scores": (0,), "labels": (0,), "masks": (0, *mask)}
    return {name: np.zeros(shape, np.int64 if name == "labels" else np.float32) for name, shape in shapes.items()}


def eager_detections(
    model: MaskRCNN, images: NDArray[np.uint8], content: NDArray[np.int32] | None = None
) -> tuple[list[Arrays], list[Tensor]]:
    """Run torchvision's own stages on images that are already of the input's size, in the precision of the model.

    As its transform batches images of different sizes: normalised, then padded with zeros at the right and bottom.

    Args:
        images: uint8 RGB ``[N, H, W, 3]``.
        content: ``[N, 2]`` height and width of the picture inside each; None: they are pictures throughout.

    Returns:
        For each image boxes ``[D, 4]`` in input pixels, scores ``[D]``, labels ``[D]`` and masks ``[D, 28, 28]``
        (none where the mask predictor lacks classes, for which torchvision fails); and the pyramid P2..P6,
        ``[N, C, h, w]`` each.
    """
    batch, height, width = images.shape[:3]
    sizes = [(height, width)] * batch if content is None else [(int(h), int(w)) for h, w in content]
    with torch.no_grad():
        x = torch.from_numpy(images).permute(0, 3, 1, 2).to(next(model.parameters()).dtype) / 255
        padded = torch.zeros_like(x)
        for image, out, (h, w) in zip(x, padded, sizes, strict=True):
            out[:, :h, :w] = model.transform.normalize(image)[:, :h, :w]
        features = OrderedDict(model.backbone(padded))
        _fix_scales(model, features, (height, width))
        proposals, _ = model.rpn(ImageList(padded, sizes), features)
        with _masks_where_it_has_them(model):
            detections, _ = model.roi_heads(features, proposals, sizes)
    found = [{name: value.numpy() for name, value in d.items()} for d in detections]
    for d in found:
        if "masks" in d:
            d["masks"] = d["masks"][:, 0]
    return found, list(features.values())


@contextmanager
def _masks_where_it_has_them(model: MaskRCNN) -> Iterator[None]:
    """Without the mask branch for a while, where its predictor has fewer classes than there are labels."""
    heads, predictor = model.roi_heads, model.roi_heads.mask_predictor
    if predictor.mask_fcn_logits.out_channels < heads.box_predictor.cls_score.out_features:
        heads.mask_predictor = None
    try:
        yield
    finally:
        heads.mask_predictor = predictor


def _fix_scales(model: MaskRCNN, features: OrderedDict[str, Tensor], size: tuple[int, int]) -> None:
    """Have RoI pooling take its scales from the padded images.

    torchvision guesses them from the first pictures that a model sees, and keeps them: from one that fills less than
    70 % of the padded height it guesses wrong (64 rows of P2 for a picture of 150 in 256 become a scale of 1/2).
    """
    for pool in (model.roi_heads.box_roi_pool, model.roi_heads.mask_roi_pool):
        pool.scales = pool.map_levels = None
        pool(features, [next(iter(features.values())).new_zeros(0, 4)], [size])


def as_outputs(found: Sequence[Arrays], rows: int) -> Arrays:
    """Detections of ``eager_detections`` as a file gives them: ``rows`` rows an image, 0 from ``count`` on."""
    counts = [len(own["scores"]) for own in found]
    outputs = {"count": np.array(counts, np.int32)}
    for name in found[0]:
        padding = [(0, rows)] + [(0, 0)] * (found[0][name].ndim - 1)
        outputs[name] = np.stack([np.pad(own[name], padding)[:rows] for own in found])
    return outputs


def difference(
    reference: Sequence[Arrays],
    outputs: Arrays,
    score_threshold: float,
    score_slack: float = SCORE_TOLERANCE,
    nms_threshold: float = 1.0,
) -> Difference:
    """How far the outputs of a file, or ``as_outputs``, are from what ``eager_detections`` found; see ``match``.

    Masks may be those of the first rows alone.
    """
    missing = extra = 0
    errors = {"boxes": 0.0, "scores": 0.0, "masks": 0.0}
    for i, found in enumerate(reference):
        own = {key: value[i] for key, value in outputs.items()}
        pairs, own_missing, own_extra = match(found, own, score_threshold, score_slack, nms_threshold)
        missing, extra = missing + own_missing, extra + own_extra
        for key in errors.keys() & own.keys() & found.keys():
            for a, b in pairs:
                if b >= len(own[key]):  # a row that has no mask
                    continue
                errors[key] = float(np.maximum(errors[key], np.abs(found[key][a] - own[key][b]).max()))  # NaN stays
    total = sum(len(found["scores"]) for found in reference)
    return Difference(total, missing, extra, errors["boxes"], errors["scores"], errors["masks"])


def match(
    eager: Arrays,
    outputs: Arrays,
    score_threshold: float,
    score_slack: float = SCORE_TOLERANCE,
    nms_threshold: float = 1.0,
) -> tuple[list[tuple[int, int]], int, int]:
    """Pair the detections of one image one to one: equal label, score and box within ten tolerances, nearest box first.

    A detection within the slack of a cut (the threshold, or the last row where the output is full) may fall on either
    side of it. Of two boxes of one label of which NMS keeps the better one, either may be there where their scores are
    within the slack: they are no pair, and neither missing nor extra.

    Returns:
        Pairs of rows (eager, file), eager rows that are missing in the file, and rows of the file that are extra.
    """
    count = int(outputs["count"])
    full = count == len(outputs["scores"])
    cut = max(score_threshold, float(outputs["scores"][-1]) if full else 0.0) + score_slack
    distance = np.abs(eager["boxes"][:, None] - outputs["boxes"][None, :count]).max(2)  # [eager, file]
    apart = np.abs(eager["scores"][:, None] - outputs["scores"][None, :count]) > 10 * score_slack
    distance[apart | (eager["labels"][:, None] != outputs["labels"][None, :count])] = np.inf
    pairs = []
    for _ in range(min(distance.shape)):
        i, j = divmod(int(distance.argmin()), count)
        if distance[i, j] > 10 * BOX_TOLERANCE:
            break
        pairs.append((i, j))
        distance[i, :] = distance[:, j] = np.inf
    missing = set(range(len(eager["scores"]))) - {i for i, _ in pairs}
    extra = set(range(count)) - {j for _, j in pairs}
    for i, j in itertools.product(sorted(missing), sorted(extra)):
        tie = i in missing and j in extra and eager["labels"][i] == outputs["labels"][j]
        tie = tie and abs(eager["scores"][i] - outputs["scores"][j]) <= score_slack
        if tie and _iou(eager["boxes"][i], outputs["boxes"][j]) > nms_threshold:
            missing.remove(i)
            extra.remove(j)
    return pairs, sum(eager["scores"][i] > cut for i in missing), sum(outputs["scores"][j] > cut for j in extra)


def _iou(one: NDArray, other: NDArray) -> float:
    """Of two boxes x1 y1 x2 y2."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    common = float(sides.clip(0).prod())
    return common / max(float((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod()) - common, 1e-12)
