"""Weights by the names that their framework gave them, and which of them a reference has used."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from wnlb.runtime.errors import CheckpointError

# Counters of batch norm, and what older detectron2 stored of its own configuration.
_NO_WEIGHTS = ("num_batches_tracked", "pixel_mean", "pixel_std", "anchor_generator.cell_anchors.")


class Weights:
    """A state dict that says what it lacks, and what of it nobody asked for.

    Args:
        state: floating-point tensors of one dtype, by name.
        framework, network: their names, for messages.
    """

    def __init__(self, state: Mapping[str, Tensor], framework: str, network: str = "Mask R-CNN with FPN") -> None:
        self._state = {name: value for name, value in state.items() if not any(part in name for part in _NO_WEIGHTS)}
        self._network = f"{framework} {network}"
        self._used: set[str] = set()
        kinds = {value.dtype for value in self._state.values()}
        if len(kinds) != 1 or not kinds <= {torch.float32, torch.float64}:
            found = ", ".join(sorted(map(str, kinds))) or "nothing"
            raise CheckpointError(f"weights are of {found}; expected all of torch.float32 or all of torch.float64")
        self.dtype = kinds.pop()

    def __contains__(self, name: str) -> bool:
        return name in self._state

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._state:
            raise CheckpointError(
                f"checkpoint has no weight {name}: not the {self._network} that this reference "
                f"computes. Its weights start with {', '.join(list(self._state)[:3])}"
            )
        self._used.add(name)
        return self._state[name]

    def get(self, name: str) -> Tensor | None:
        """None where there is no such weight: a convolution without bias, say."""
        return self[name] if name in self._state else None

    def children(self, path: str) -> list[str]:
        """Paths of the direct children of a module in the order they run: numbered ones, then those with a name."""
        start = f"{path}."
        names = {name[len(start) :].split(".")[0]: None for name in self._state if name.startswith(start)}
        numbered = sorted((name for name in names if name.isdigit()), key=int)
        return [start + name for name in (*numbered, *(name for name in names if not name.isdigit()))]

    def owners_of(self, ending: str) -> list[str]:
        """Paths of the modules that have a weight of this name: ``owners_of("g.weight")``."""
        return [name.removesuffix(f".{ending}") for name in self._state if name.endswith(f".{ending}")]

    def check_all_used(self) -> None:
        """Raises CheckpointError if a weight was never asked for: the network has a part that was left out."""
        unused = [name for name in self._state if name not in self._used]
        if unused:
            raise CheckpointError(
                f"{len(unused)} weights belong to no part of the {self._network} that this "
                f"reference computes: {', '.join(unused[:3])}"
            )
