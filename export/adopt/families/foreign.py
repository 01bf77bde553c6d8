"""What adopting asks of a file of another tool, whatever its family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from wnlb.export.adopt.families.parts import Block
from wnlb.export.graph.output_graph import OutputGraph
from wnlb.export.options import ExportOptions


@dataclass(frozen=True)
class ForeignFile(ABC):
    """A file of another tool: what it is, and what it is framed by.

    Attributes:
        model: the network, from ``[N, 3, H, W]`` to ``outputs``.
        class_names: one for each class but the background.
        height, width: of its input, px; where they are open, those that it was exported with, or None.
        fixed_size: whether they are not open.
        batch: images of a run; None where that is open.
    """

    model: onnx.ModelProto
    class_names: tuple[str, ...]
    height: int | None
    width: int | None
    fixed_size: bool
    batch: int | None

    @property
    @abstractmethod
    def outputs(self) -> tuple[str, ...]:
        """Names of what ``model`` gives."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What it is, for people."""

    @property
    def licence(self) -> str:
        """What the file says of it; empty where it says nothing."""
        return ""

    @abstractmethod
    def entries(self, options: ExportOptions) -> dict[str, Any]:
        """Of the contract, what this family has."""

    @abstractmethod
    def input_graph(self, height: int, width: int) -> nn.Module:
        """From ``image`` and ``content`` to the input of the network."""

    @abstractmethod
    def output_graph(self, options: ExportOptions) -> OutputGraph:
        """From the outputs of the network, in the order of ``outputs``, and ``content`` to those of the contract."""

    @abstractmethod
    def name_parts(self, body: onnx.ModelProto) -> list[Block]:
        """Name the nodes of the network after its parts, in place; its blocks."""

    @abstractmethod
    def reference_input(self, image: NDArray[np.uint8], content: NDArray[np.int32]) -> NDArray[np.float32]:
        """What the original file is given, of ``image [N, H, W, 3]`` and ``content [N, 2]``."""

    @abstractmethod
    def given(self, outputs: Mapping[str, NDArray]) -> tuple[NDArray, ...]:
        """What the original file gave, by name, as ``model`` gives it."""

    @abstractmethod
    def reference(
        self, outputs: Sequence[NDArray], content: tuple[int, int], threshold: float, options: ExportOptions
    ) -> dict[str, NDArray]:
        """Detections of what the original gave for one image, by a reference that shares no code with the graph.

        Args:
            outputs: in the order of ``outputs``, without the first axis.
            content: height and width of the picture.
            threshold: the first that scores meet.
        """

    @abstractmethod
    def least_score(self, threshold: float, options: ExportOptions) -> float:
        """Of a detection, with ``threshold`` as the first that scores meet."""
