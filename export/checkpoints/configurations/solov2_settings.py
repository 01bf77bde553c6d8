"""What a SOLOv2 checkpoint of mmdetection needs beside its weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from wnlb.export.checkpoints.configurations.settings import NetworkSettings
from wnlb.export.solov2 import Selection


@dataclass(frozen=True)
class Solov2Settings(NetworkSettings):
    """Everything that names and shapes of weights do not tell, see ``NetworkSettings``.

    ``score_threshold`` is that of detections, behind Matrix NMS (``filter_thr`` of ``test_cfg``).
    """

    grids: tuple[int, ...] | None = None  # cells along each side of the frame, for P2, P3, P4, P5, P6
    cell_strides: tuple[float, ...] | None = None  # a mask counts if it has more cells than that of its grid
    norm_groups: int | None = None  # of the head's group norms
    cell_threshold: float | None = None  # of the scores of (cell, class) pairs, before their masks are made
    nms_candidates: int | None = None  # masks that enter Matrix NMS, at most
    nms_sigma: float | None = None  # of its decay, exp(-sigma IoU^2)

    def selection(self) -> Selection:
        """Which cells become detections. All settings are known, see ``complete``."""
        names = [field.name for field in dataclasses.fields(Selection)]
        return Selection(**{name: getattr(self, name) for name in names})

    def model_fields(self) -> dict[str, Any]:
        own = {"grids": self.grids, "cell_strides": self.cell_strides, "norm_groups": self.norm_groups}
        return {**super().model_fields(), **own}
