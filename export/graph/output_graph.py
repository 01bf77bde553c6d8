"""What makes our outputs of those of another tool's network; traced, it is the end of the file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class OutputGraph(nn.Module, ABC):
    """From what a network gives, and ``content``, to the outputs of the contract.

    ``detect.score_threshold`` is the first threshold that scores meet.
    """

    detect: Any

    @abstractmethod
    def best_scores(self, outputs: Sequence[Tensor]) -> Tensor:
        """Of the network's outputs, all scores that the first threshold is for, ``[N, R]``."""

    @abstractmethod
    def chain(self, outputs: Sequence[Tensor], content: Tensor, threshold: float) -> int | None:
        """Rounds that suppression needs at a threshold; None where any number is taken."""

    @abstractmethod
    def lacks_candidates(self, outputs: Sequence[Tensor], content: Tensor) -> bool:
        """Whether more pass the threshold than are looked at, and the others might be among the detections."""
