"""SOLOv2 files with the outputs of the head, as mmdetection's network is exported, or SOLO's: what one is framed by.

Such a file gives scores and kernels of the cells, and mask features; thresholds, Matrix NMS and masks are left to
whoever runs it. Names and order of the outputs differ from script to script, so shapes tell which is which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from wnlb.export.adopt.families.foreign import ForeignFile
from wnlb.export.adopt.families.parts import Block, name_by_part
from wnlb.export.adopt.families.solov2_heads import Heads, gathered, heads_of
from wnlb.export.adopt.families.solov2_parts import Solov2Network
from wnlb.export.checkpoints.configurations.mmdet_config import settings_from_file
from wnlb.export.checkpoints.configurations.setting_checks import shown
from wnlb.export.checkpoints.configurations.solov2_settings import Solov2Settings
from wnlb.export.graph.solov2_heads import Solov2Input, Solov2Output
from wnlb.export.options import ExportOptions
from wnlb.export.references import solov2 as reference
from wnlb.export.references.interface import SoloSettings, content_sizes, network_input
from wnlb.export.solov2 import Selection, Solov2Config
from wnlb.runtime.conventions import MMDETECTION_SOLOV2
from wnlb.runtime.errors import CheckpointError, WnlbError

FRAMEWORK = MMDETECTION_SOLOV2.framework
# What mmdetection's configurations of SOLOv2 say (configs/solov2, 3.3.0), for what a file does not tell.
ASSUMED = Solov2Settings(
    framework=FRAMEWORK,
    channel_order="rgb",
    mean=(123.675, 116.28, 103.53),
    std=(58.395, 57.12, 57.375),
    resize="fit",
    interpolation="bilinear",
    cell_strides=(8, 8, 16, 32, 32),
    cell_threshold=0.1,
    nms_candidates=500,
    nms_sigma=2.0,
    score_threshold=0.05,
    detections=100,
)
_ASKED = tuple(
    name for name in ASSUMED.field_names if getattr(Solov2Settings(FRAMEWORK), name) != getattr(ASSUMED, name)
)
_TOLD = (*_ASKED, "scale", "grids")  # the others are of the weights, which are in the file


@dataclass(frozen=True)
class Solov2File(ForeignFile):
    """A SOLOv2 file; see ``ForeignFile``.

    Attributes:
        heads: which of the original's outputs is what.
        settings: what the file does not tell.
        assumed: names of those that nothing told, and that are mmdetection's.
    """

    heads: Heads
    settings: Solov2Settings
    assumed: tuple[str, ...]

    @property
    def outputs(self) -> tuple[str, str, str]:
        return Heads.OUTPUTS

    @property
    def title(self) -> str:
        grids = ", ".join(map(str, self.heads.grids))
        lines = [f"SOLOv2, {len(self.class_names)} classes, grids of {grids}, kernels of {self.heads.channels}"]
        if self.assumed:
            told = "; ".join(f"{name}={shown(getattr(self.settings, name))}" for name in self.assumed)
            lines.append(f"the file does not tell these, taken as mmdetection has them (--config, --set): {told}")
        return "\n".join(lines)

    def selection(self, options: ExportOptions) -> Selection:
        """Counts and thresholds."""
        return self.settings.selection().with_options(options)

    def entries(self, options: ExportOptions) -> dict[str, Any]:
        settings, selection = self.settings, self.selection(options)
        mean, std = ([value / 255 for value in self._rgb(values)] for values in (settings.mean, settings.std))
        return {
            "framework": FRAMEWORK,
            "detections": selection.detections,
            "score_threshold": selection.score_threshold,
            "nms_threshold": None,
            "nms_rounds": None,
            "resize": options.resize or settings.resize,
            "scale": None if options.resize else settings.scale,
            "interpolation": options.interpolation or settings.interpolation,
            "pad_rgb": tuple(round(value) for value in self._rgb(settings.mean)),
            "mean": tuple(mean),
            "std": tuple(std),
            "checkpoint_settings": {name: value for name, value in settings.told().items() if name in _TOLD},
        }

    def _rgb(self, values: Any) -> tuple[float, ...]:
        return tuple(values[::-1] if self.settings.channel_order == "bgr" else values)

    def input_graph(self, height: int, width: int) -> Solov2Input:
        mean, std = ([v / 255 for v in self._rgb(values)] for values in (self.settings.mean, self.settings.std))
        return Solov2Input(height, width, mean, std, self.settings.channel_order == "bgr")

    def output_graph(self, options: ExportOptions) -> Solov2Output:
        config = Solov2Config(
            num_classes=len(self.class_names) + 1,
            grids=self.heads.grids,
            cell_strides=self.settings.cell_strides or (),
        )
        return Solov2Output(config, self.selection(options), options)

    def name_parts(self, body: onnx.ModelProto) -> list[Block]:
        return name_by_part(Solov2Network(body))

    def reference_input(self, image: NDArray[np.uint8], content: NDArray[np.int32]) -> NDArray[np.float32]:
        sizes = content_sizes(image, content)
        return network_input(image, sizes, self._reference_settings(self.settings.selection()), torch.float32).numpy()

    def given(self, outputs: Mapping[str, NDArray]) -> tuple[NDArray, ...]:
        return self.heads.arranged(outputs)

    def reference(
        self, outputs: Sequence[NDArray], content: tuple[int, int], threshold: float, options: ExportOptions
    ) -> dict[str, NDArray]:
        selection = dataclasses.replace(self.selection(options), cell_threshold=threshold)
        kernels, scores, features = map(torch.from_numpy, outputs)
        settings = self._reference_settings(selection)
        found = reference.instances(settings, self._by_grid(kernels), self._by_grid(scores), features, content)
        found["masks"] -= reference.MASK_THRESHOLD  # as the contract has masks of the frame
        return found

    def _by_grid(self, cells: Tensor) -> list[Tensor]:
        """``[S, C]`` to ``[C, g, g]`` of each grid."""
        parts = cells.split([grid * grid for grid in self.heads.grids])
        return [part.T.unflatten(1, (grid, grid)) for part, grid in zip(parts, self.heads.grids, strict=True)]

    def least_score(self, threshold: float, options: ExportOptions) -> float:
        return self.selection(options).score_threshold

    def _reference_settings(self, selection: Selection) -> SoloSettings:
        names = ("channel_order", "mean", "std", "cell_strides")
        told = {name: getattr(self.settings, name) for name in names}
        return SoloSettings(grids=self.heads.grids, **told, **dataclasses.asdict(selection))


def read_solov2(
    model: onnx.ModelProto,
    path: Path,
    class_names: tuple[str, ...] = (),
    config: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Solov2File | None:
    """What a file is whose outputs are those of a SOLOv2's head; None where they are not.

    Args:
        class_names: in the place of those that the configuration tells.
        config: of mmdetection, read as data, for what the file does not tell.
        overrides: the same by name, fields of ``Solov2Settings``; they win.

    Raises:
        WnlbError: it has such outputs, but not all, or of other shapes; or the configuration is of another network.
    """
    told = Solov2Settings(FRAMEWORK)
    if config:
        read = settings_from_file(config, {}, FRAMEWORK)
        assert isinstance(read, Solov2Settings)
        told = read
    told = told.with_overrides(overrides or {})
    found = heads_of(model, path, told.grids)
    if found is None:
        return None
    heads, height, width, batch = found
    names = class_names or told.class_names or tuple(f"class {i + 1}" for i in range(heads.classes))
    for said, where in ((told.num_classes - 1, "the configuration"), (len(names), "the list of names")):
        if said > 0 and said != heads.classes:
            raise WnlbError(
                f"{path} has scores of {heads.classes} classes, {where} has {said}; expected those that it was trained "
                "with"
            )
    if told.grids and told.grids != heads.grids:
        raise CheckpointError(
            f"{path} has grids of {shown(heads.grids)}, its configuration {shown(told.grids)}; give the configuration "
            "that it was trained with"
        )
    missing = [name for name in _ASKED if getattr(told, name) is None]
    settings = told.with_overrides({name: getattr(ASSUMED, name) for name in missing})
    settings = dataclasses.replace(settings, grids=heads.grids)
    return Solov2File(
        gathered(model, heads), names, height, width, bool(height and width), batch, heads, settings, tuple(missing)
    )
