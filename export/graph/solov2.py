"""The static graph of SOLOv2, from frames to the outputs of the contract.

Wang, Zhang, Kong, Li, Shen: "SOLOv2: Dynamic and Fast Instance Segmentation", NeurIPS 2020, as mmdetection computes it
(mmdet/models/dense_heads/solov2_head.py, solo_head.py; layers/matrix_nms.py). Nothing is filtered out: what mmdetection
would drop is masked and sorted to the end.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wnlb.export.graph.mask_extent import mask_extents
from wnlb.export.graph.pyramid import PyramidGraph
from wnlb.export.graph.static_ops import take_rows
from wnlb.export.options import ExportOptions
from wnlb.export.solov2 import Selection, Solov2, Solov2Config

MASK_THRESHOLD = 0.5
Shape = tuple[int, int]


class Solov2Graph(PyramidGraph):
    """``image`` uint8 ``[N, H, W, 3]`` and ``content`` int32 ``[N, 2]`` to boxes, scores, labels, masks, count.

    See ``wnlb.runtime.contract``. The head sees the whole frame, as mmdetection's does, with zeros beside the picture;
    masks are cut to the picture when they are pasted, and in their boxes. mmdetection gives no boxes.

    Constants take torch's default type, as in ``DeployGraph``.
    """

    def __init__(self, model: Solov2, options: ExportOptions) -> None:
        config, selection = model.config, model.selection
        model = copy.deepcopy(model).eval().requires_grad_(False)
        super().__init__(model, options, config.image_mean, config.image_std)
        self.features = MaskFeatures(model.head, self.shapes)
        self.cells = Cells(model.head, config, self.shapes)
        self.detect = Instances(config, selection, options)

    def forward(self, image: Tensor, content: Tensor) -> tuple[Tensor, ...]:
        levels, limit = self.pyramid(image, content)
        kernels, scores = self.cells(levels)
        return self.detect(kernels, scores, self.features(levels), limit)

    def lacks_candidates(self, levels: list[Tensor], limit: Tensor) -> bool:
        """See ``Instances.lacks_candidates``.

        Args:
            levels: P2 .. P6.
            limit: as ``limits`` gives it.
        """
        kernels, scores = self.cells(levels)
        return self.detect.lacks_candidates(kernels, scores, self.features(levels), limit)


class NormedConv(nn.Module):
    """Convolution, group norm, ReLU; of ``kind`` ``wnlb.export.solov2.ConvNorm``.

    A group norm is an instance norm of the groups, with scale and shift of the channels behind it. Coordinates are the
    same in every frame: what the convolution makes of them is added, and it reads the other channels alone.

    Args:
        places: coordinates ``[1, 2, h, w]`` of each map that it may read; None: it reads none.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, module: Any, places: list[Tensor] | None = None) -> None:
        super().__init__()
        self.conv, self.groups, self.eps = module.conv, module.norm.num_groups, module.norm.eps
        self.register_buffer("weight", module.norm.weight.reshape(-1, 1, 1), persistent=False)
        self.register_buffer("bias", module.norm.bias.reshape(-1, 1, 1), persistent=False)
        self.located = places is not None
        if places is not None:
            kernel = self.conv.weight
            self.conv = copy.deepcopy(module.conv)
            self.conv.in_channels -= 2
            self.conv.weight = nn.Parameter(kernel[:, :-2].contiguous(), False)
            for i, place in enumerate(places):
                made = F.conv2d(place, kernel[:, -2:], padding=self.conv.padding)
                self.register_buffer(f"place{i}", made, persistent=False)

    def forward(self, x: Tensor, place: int = 0) -> Tensor:
        """``place``: which of ``places`` it is, where there are some."""
        x = self.conv(x)
        if self.located:
            x = x + getattr(self, f"place{place}")
        batch, _, height, width = x.shape
        normed = F.instance_norm(x.reshape(batch, self.groups, -1), eps=self.eps)
        return torch.relu(normed.reshape(batch, -1, height, width) * self.weight + self.bias)


class MaskFeatures(nn.Module):
    """P2 .. P5 to the features ``[N, E, H/4, W/4]`` that a cell's kernel makes its mask of."""

    def __init__(self, head: Any, shapes: list[Shape]) -> None:
        super().__init__()
        places = [None, None, None, [coordinates(*shapes[3])]]
        self.convs: Any = nn.ModuleList(
            nn.ModuleList(NormedConv(module, place if i == 0 else None) for i, module in enumerate(level))
            for level, place in zip(head.mask_convs, places, strict=True)
        )
        self.predict = NormedConv(head.conv_pred)

    def forward(self, levels: list[Tensor]) -> Tensor:
        (first,), *others = self.convs
        total = first(levels[0])
        for x, convs in zip(levels[1:4], others, strict=True):
            for conv in convs:
                x = conv(x)
                x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            total = total + x
        return self.predict(total)


class Cells(nn.Module):
    """P2 .. P6 to the kernels ``[N, S, E]`` and scores ``[N, S, C]`` of the cells of all grids, row by row.

    A score that is less than that of the cell left, above, or left above of it is 0 (points NMS).
    """

    def __init__(self, head: Any, config: Solov2Config, shapes: list[Shape]) -> None:
        super().__init__()
        # P2 is halved and P6 brought to the size of P5 before they are brought to their grids.
        maps = [shapes[1], *shapes[1:4], shapes[3]]
        cells = list(zip(shapes, maps, config.grids, strict=True))
        self.to_grids = nn.ModuleList(Resampling(shape, own, (grid, grid)) for shape, own, grid in cells)
        places = [Resampling(own, (grid, grid))(coordinates(*own)) for _, own, grid in cells]
        self.kernel_convs = nn.ModuleList(
            NormedConv(module, places if i == 0 else None) for i, module in enumerate(head.kernel_convs)
        )
        self.class_convs = nn.ModuleList(NormedConv(module) for module in head.cls_convs)
        self.conv_kernel, self.conv_class = head.conv_kernel, head.conv_cls

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        kernels, scores = [], []
        for i, (x, to_grid) in enumerate(zip(levels, self.to_grids, strict=True)):
            kernel = score = to_grid(x)
            for conv in self.kernel_convs:
                kernel = conv(kernel, i)
            for conv in self.class_convs:
                score = conv(score)
            kernels.append(self.conv_kernel(kernel).flatten(2))
            scores.append(peaks(self.conv_class(score).sigmoid()).flatten(2))
        return torch.cat(kernels, 2).transpose(1, 2), torch.cat(scores, 2).transpose(1, 2)


def peaks(score: Tensor) -> Tensor:
    """Scores ``[N, C, g, g]`` of a grid, 0 where the cell left, above, or left above has more (points NMS)."""
    most = F.max_pool2d(score, 2, 1, 1)[:, :, :-1, :-1]
    return score * (score >= most)


class Resampling(nn.Module):
    """Maps ``[N, C, h, w]`` from one height and width to the next and on, each time bilinear between pixel centres.

    Along an axis that is a product of constant matrices.
    """

    rows: Tensor  # [h', h]
    columns: Tensor  # [w, w']

    def __init__(self, *shapes: Shape) -> None:
        super().__init__()
        for name, axis in (("rows", 0), ("columns", 1)):
            weights = torch.eye(shapes[0][axis], dtype=torch.float64).unsqueeze(0)
            for shape in shapes[1:]:
                weights = F.interpolate(weights, size=shape[axis], mode="linear", align_corners=False)
            weights = weights[0].T if axis == 0 else weights[0]
            self.register_buffer(name, weights.to(torch.get_default_dtype()).contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows @ (x @ self.columns)


class Instances(nn.Module):
    """Kernels and scores of cells, and mask features, to the outputs of the contract."""

    score_threshold: Tensor  # [], of (cell, class) pairs

    def __init__(self, config: Solov2Config, selection: Selection, options: ExportOptions) -> None:
        super().__init__()
        pairs = sum(grid * grid for grid in config.grids) * (config.num_classes - 1)
        self.candidates, self.detections = min(options.candidates, pairs), selection.detections
        self.with_masks = options.masks != "none"
        # A buffer, so that the file holds it under this name: it can be changed there.
        self.register_buffer("score_threshold", torch.tensor(float(selection.cell_threshold)), persistent=False)
        self.found = MasksOfCells(config, selection, self.candidates, options.target == "cpu")

    def forward(self, kernels: Tensor, scores: Tensor, features: Tensor, limit: Tensor) -> tuple[Tensor, ...]:
        best, cell, label = self.pairs(scores)
        passing = (best > self.score_threshold) & (limit[..., 0] > 0)  # none of a frame that holds no picture
        boxes, best, label, masks = self.found(best, cell, label, passing, kernels, features, limit)
        found = best > 0
        outputs = [boxes * found.unsqueeze(-1), best, (label * found).int()]
        return (*outputs, *([masks] if self.with_masks else []), found.sum(1).int())

    def lacks_candidates(self, kernels: Tensor, scores: Tensor, features: Tensor, limit: Tensor) -> bool:
        """Whether more (cell, class) pairs pass the threshold than are looked at, and one of the others might be among
        the detections.

        What a pair scores in the end is at most what it scores here, and it takes nothing from those that score more.
        """
        _, final, *_ = self(kernels, scores, features, limit)
        passing = (scores > self.score_threshold).flatten(1).sum(1)
        best, *_ = self.pairs(scores)
        return bool(((passing > self.candidates) & (final[:, -1] <= best[:, -1])).any())

    def pairs(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The K best (cell, class) pairs of ``scores [N, S, C]``: score, cell, and label from 1, ``[N, K]``."""
        classes = scores.shape[2]
        best, index = scores.flatten(1).topk(self.candidates, 1)
        cell = index // classes
        return best, cell, index - cell * classes + 1


class MasksOfCells(nn.Module):
    """From (cell, class) pairs, the best first, to detections and their masks.

    On a CPU (``rows``) masks are made of the pairs that pass alone, as many of each image of a batch as the one with
    the most has: ONNX Runtime takes a number that depends on the data.
    """

    areas: Tensor  # [S, 1], cells that a mask of each cell has more than

    def __init__(self, config: Solov2Config, selection: Selection, candidates: int, rows: bool) -> None:
        super().__init__()
        self.candidates, self.ranked = candidates, min(selection.nms_candidates, candidates)
        self.threshold, self.detections, self.rows = selection.score_threshold, selection.detections, rows
        cells = zip(config.grids, config.cell_strides, strict=True)
        areas = [torch.full((grid * grid, 1), float(area)) for grid, area in cells]
        self.register_buffer("areas", torch.cat(areas), persistent=False)
        self.products, self.nms = MaskProducts(), MatrixNms(selection.nms_sigma)

    def forward(
        self,
        score: Tensor,
        cell: Tensor,
        label: Tensor,
        passing: Tensor,
        kernels: Tensor,
        features: Tensor,
        limit: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes ``[N, D, 4]``, scores (0 where there is none), labels ``[N, D]`` and masks ``[N, D, h, w]``.

        Args:
            score, cell, label, passing: ``[N, K]``; the last, bool, come first.
            kernels, features: ``[N, S, E]``, ``[N, E, h, w]``.
            limit: as ``limits`` gives it.
        """
        score, cell, label, passing = self._first(passing, score, cell, label, passing)
        masks = self.products(take_rows(kernels, cell), features.flatten(2))  # [N, K, h*w]
        inside = (masks > MASK_THRESHOLD).to(masks.dtype)
        area = inside.sum(2)
        real = passing & (area > F.embedding(cell, self.areas).squeeze(-1))
        score = score * (masks * inside).sum(2) / area.clamp(min=1) * real
        score, rank = self._whole(score, self.candidates).topk(self.ranked, 1)
        score, rank = self._first(score > 0, score, rank)  # [N, M]
        rank = self._among(rank, masks)
        area, label = area.gather(1, rank), label.gather(1, rank)
        score = score * self.nms(_rows_of(inside, rank), area, label)
        score = self._whole(score * (score >= self.threshold), self.ranked)
        score, index = score.topk(min(self.detections, self.ranked), 1)
        if missing := self.detections - index.shape[1]:
            score, index = F.pad(score, (0, missing)), F.pad(index, (0, missing))
        (index,) = self._first(score > 0, index)  # [N, D]
        index = self._among(index, rank)
        masks = _rows_of(masks, rank.gather(1, index)).unflatten(2, features.shape[2:])
        boxes = self._whole(mask_extents(masks, limit, MASK_THRESHOLD), self.detections)
        masks = self._whole(masks - MASK_THRESHOLD, self.detections)
        return boxes, score, self._whole(label.gather(1, index), self.detections), masks

    def _first(self, there: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        """Of values ``[N, R]`` the first rows, as many as are ``there``, bool ``[N, R]``: one at least."""
        if not self.rows:
            return values
        count: Any = (there.sum(0) > 0).sum().clamp(min=1).item()
        torch._check(count >= 1)
        torch._check(count <= there.shape[1])
        return tuple(value.narrow(1, 0, count) for value in values)

    def _whole(self, values: Tensor, rows: int) -> Tensor:
        """``[N, R, ...]`` with zeros behind, ``[N, rows, ...]``."""
        if not self.rows:
            return values
        return F.pad(values, (0, 0) * (values.dim() - 2) + (0, rows)).narrow(1, 0, rows)

    def _among(self, index: Tensor, values: Tensor) -> Tensor:
        """An index that no row without a detection leads beyond the rows of ``values``."""
        return index.clamp(max=values.shape[1] - 1) if self.rows else index


class MaskProducts(nn.Module):
    """Kernels ``[N, K, E]`` and features ``[N, E, h*w]`` to probabilities ``[N, K, h*w]``."""

    def forward(self, kernels: Tensor, features: Tensor) -> Tensor:
        return (kernels @ features).sigmoid()


class MatrixNms(nn.Module):
    """What is left of each score, ``[N, M]``, by the gaussian Matrix NMS.

    min_i f(iou_ij) / f(most_i) with f(x) = exp(-sigma x^2) is exp(-sigma max_i (iou_ij^2 - most_i^2)): i of the same
    class and before j, most_i the most that i shares with one before it (equations 5 and 6 of the paper).
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, inside: Tensor, area: Tensor, label: Tensor) -> Tensor:
        """``inside [N, M, h*w]``, 0 or 1, best first; ``area`` and ``label`` ``[N, M]``."""
        shared = inside @ inside.transpose(1, 2)
        rank = torch.arange(inside.shape[1], device=inside.device)
        pairs = (rank.unsqueeze(1) < rank.unsqueeze(0)) & (label.unsqueeze(2) == label.unsqueeze(1))
        union = (area.unsqueeze(2) + area.unsqueeze(1) - shared).clamp(min=1)
        overlap = shared / union * pairs.to(shared.dtype)
        squared = overlap * overlap
        return torch.exp(-self.sigma * (squared - squared.amax(1).unsqueeze(2)).amax(1))


def _rows_of(values: Tensor, index: Tensor) -> Tensor:
    """``values [N, R, P]`` and ``index [N, M]`` to ``[N, M, P]``, without an index for each of P."""
    batch, rows = values.shape[:2]
    if batch != 1:
        index = index + rows * torch.arange(batch, device=index.device).unsqueeze(1)
    return F.embedding(index, values.flatten(0, 1))


def coordinates(height: int, width: int) -> Tensor:
    """``[1, 2, h, w]``: x and y, from -1 in the first to 1 in the last (mmdet/models/utils/misc.py)."""
    x = torch.linspace(-1, 1, width).expand(height, width)
    y = torch.linspace(-1, 1, height).unsqueeze(1).expand(height, width)
    return torch.stack([x, y]).unsqueeze(0)
