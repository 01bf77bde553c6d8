"""What stands before and behind a SOLOv2 network in a static file whose network is another tool's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wnlb.export.graph.output_graph import OutputGraph
from wnlb.export.graph.pyramid import NormalisedFrames, limits
from wnlb.export.graph.solov2 import Instances, peaks
from wnlb.export.options import ExportOptions
from wnlb.export.solov2 import Selection, Solov2Config


class Solov2Input(NormalisedFrames):
    """``image`` uint8 ``[N, H, W, 3]`` and ``content`` int32 ``[N, 2]`` to the network's ``[N, 3, H, W]``.

    Args:
        bgr: whether that has its channels in the other order. Mean and deviation are of RGB in 0..1 all the same.
    """

    def __init__(self, height: int, width: int, mean: Sequence[float], std: Sequence[float], bgr: bool) -> None:
        super().__init__(height, width, mean, std)
        self.bgr = bgr

    def forward(self, image: Tensor, content: Tensor) -> Tensor:
        x, _ = self.normalised(image, content)
        return torch.cat(x.split(1, 1)[::-1], 1) if self.bgr else x


class Solov2Output(OutputGraph):
    """From what the cells of all grids have to the outputs of the contract.

    ``kernels [N, S, E]``, ``scores [N, S, C]``, probabilities, grid after grid and row by row; ``features
    [N, E, H/4, W/4]``.
    """

    def __init__(self, config: Solov2Config, selection: Selection, options: ExportOptions) -> None:
        super().__init__()
        self.cells = nn.ModuleDict({"peaks": Peaks(config.grids)})  # beside the network's own cells
        self.detect = InstancesOfContent(config, selection, options)

    def forward(self, kernels: Tensor, scores: Tensor, features: Tensor, content: Tensor) -> tuple[Tensor, ...]:
        return self.detect(kernels, self.cells["peaks"](scores), features, content)

    def best_scores(self, outputs: Sequence[Tensor]) -> Tensor:
        """Of (cell, class) pairs, ``[N, S * C]``."""
        return self.cells["peaks"](outputs[1]).flatten(1)

    def chain(self, outputs: Sequence[Tensor], content: Tensor, threshold: float) -> None:
        """Matrix NMS has no rounds."""

    def lacks_candidates(self, outputs: Sequence[Tensor], content: Tensor) -> bool:
        """See ``Instances.lacks_candidates``."""
        kernels, scores, features = outputs
        return self.detect.lacks_candidates(kernels, self.cells["peaks"](scores), features, content)


class InstancesOfContent(Instances):
    """``Instances`` that are told the picture's size by ``content [N, 2]``."""

    def forward(self, kernels: Tensor, scores: Tensor, features: Tensor, content: Tensor) -> tuple[Tensor, ...]:
        return super().forward(kernels, scores, features, limits(content.to(scores.dtype)))


class Peaks(nn.Module):
    """Scores ``[N, S, C]`` of the cells of all grids without those that are less than a neighbour, see ``peaks``."""

    def __init__(self, grids: Sequence[int]) -> None:
        super().__init__()
        self.grids = tuple(grids)

    def forward(self, scores: Tensor) -> Tensor:
        found, first, cells = [], 0, scores.transpose(1, 2)  # [N, C, S]
        for grid in self.grids:
            part = cells.narrow(2, first, grid * grid).unflatten(2, (grid, grid))
            found.append(peaks(part).flatten(2))
            first += grid * grid
        return torch.cat(found, 2).transpose(1, 2)
