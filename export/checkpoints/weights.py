"""The sets of weights inside a checkpoint: a model, its moving average, a teacher; and which of them is meant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from wnlb.export.checkpoints.files.pickles import Inert
from wnlb.export.checkpoints.files.tensors import NumpyArray, StoredTensor, Weight
from wnlb.export.checkpoints.names.dialect import detector_prefixes, unwrapped
from wnlb.runtime.errors import CheckpointError

TOP = "."  # name of the weights that lie in no dictionary of their own
CONTAINERS = ("model", "state_dict", "model_state_dict", "model_state", "net", "network", "weights", "params", "module")
_AVERAGED = re.compile(r"(?<![a-z])(ema|shadow|averaged?|swa|polyak|teacher)|ema$")


@dataclass(frozen=True)
class WeightSet:
    """Weights of one network.

    Attributes:
        name: where they lie in the checkpoint, ``"state_dict.ema_model"``; ``TOP`` where they lie in nothing.
        weights: by their names in the file, without wrappers.
    """

    name: str
    weights: Mapping[str, Weight]

    @property
    def rank(self) -> tuple[bool, int, int]:
        """The smallest is what a file is read for: no average; a usual name; the most weights."""
        parts = self.name.lower().split(".")
        usual = min((CONTAINERS.index(part) for part in parts if part in CONTAINERS), default=len(CONTAINERS))
        return bool(_AVERAGED.search(self.name.lower())), 0 if self.name == TOP else usual, -len(self.weights)


def weight_sets(content: Any, source: str) -> list[WeightSet]:
    """All sets of weights of one network that lie in a checkpoint, the one that is meant first.

    Raises:
        CheckpointError: there are none.
    """
    if isinstance(content, (Tensor, StoredTensor, NumpyArray)) or not isinstance(content, (dict, list, tuple)):
        raise CheckpointError(f"checkpoint {source} holds a {_kind(content)}; expected a state dict")
    found = list(_dictionaries(content))
    # What an optimizer keeps of a weight has names without a dot.
    found = [each for each in found if any("." in name for name in each.weights)] or found
    if not found:
        raise CheckpointError(_no_weights(content, source))
    found = [part for each in found for part in _networks(each, source)]
    most = max(len(each.weights) for each in found)
    return sorted((each for each in found if 4 * len(each.weights) >= most), key=lambda each: each.rank)


def chosen(sets: list[WeightSet], wanted: str | None, source: str) -> WeightSet:
    """The set called ``wanted``, by its whole name, a part or a word of it; the first without one.

    Raises:
        CheckpointError: none or several are called so.
    """
    if wanted is None:
        return sets[0]
    named = [each for each in sets if each.name == wanted]
    for separators in (r"\.", r"[._]"):  # a dictionary on the way, then a word of its name: ema of model_ema
        named = named or [each for each in sets if wanted.lower() in re.split(separators, each.name.lower())]
    if len(named) != 1:
        listed = ", ".join(each.name for each in sets if each.name != TOP)
        expected = f"expected one of {listed}" if listed else "it holds one set without a name: leave out --weights"
        several = "several weights" if named else "no weights"
        raise CheckpointError(f"checkpoint {source} has {several} named {wanted!r}; {expected}")
    return named[0]


def _dictionaries(content: Any) -> Iterator[WeightSet]:
    """Every dictionary that holds weights, wherever it lies; their order is that of the file."""
    seen: set[int] = set()
    left: list[tuple[tuple[str, ...], Any]] = [((), content)]
    while left:
        path, value = left.pop(0)
        if id(value) in seen or any(part.lower().startswith("optim") for part in path):
            continue
        seen.add(id(value))
        children = list(_children(value))
        weights = {name: child for name, child in children if isinstance(child, (Tensor, StoredTensor, NumpyArray))}
        if weights and isinstance(value, dict):
            yield WeightSet(".".join(path) or TOP, weights)
        left += [((*path, name), child) for name, child in children if isinstance(child, (dict, list, tuple))]


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((name, child) for name, child in value.items() if isinstance(name, str))
        if isinstance(value, Inert) and isinstance(value.state, dict) and "_modules" not in value.state:
            yield from _children(value.state)
    else:
        yield from ((str(i), child) for i, child in enumerate(value) if isinstance(child, dict))


def _networks(found: WeightSet, source: str) -> Iterator[WeightSet]:
    """The networks whose weights lie side by side in one dictionary: ``model.*`` and ``ema_model.*``."""
    weights: dict[str, Weight] = {}
    for name, value in found.weights.items():
        if weights.setdefault(unwrapped(name), value) is not value:
            raise CheckpointError(
                f"checkpoint {source} has two weights named {unwrapped(name)}, of which one is wrapped"
            )
    flat = {name.replace(".", "_"): name for name in weights if "." in name}
    average = {name: flat[name[4:]] for name in weights if name.startswith("ema_") and name[4:] in flat}  # as mmcv 1
    if average:
        yield WeightSet(_joined(found.name, "ema"), {name: weights[own] for own, name in average.items()})
        weights = {name: value for name, value in weights.items() if name not in average}
    prefixes = sorted(detector_prefixes(weights), key=len, reverse=True)
    if len(prefixes) < 2:
        yield WeightSet(found.name, weights)
        return
    for prefix in prefixes:
        own = {name: value for name, value in weights.items() if name.startswith(prefix)}
        weights = {name: value for name, value in weights.items() if name not in own}
        yield WeightSet(_joined(found.name, prefix.strip(".")), own)


def _joined(path: str, part: str) -> str:
    return ".".join(name for name in (path, part) if name not in (TOP, "")) or TOP


def _kind(content: Any) -> str:
    return content.name if isinstance(content, Inert) else type(content).__name__.replace("StoredTensor", "Tensor")


def _no_weights(content: Any, source: str) -> str:
    advice = 'save the weights alone: torch.save({"model": model.state_dict()}, path)'
    for value in [content, *content.values()] if isinstance(content, dict) else content:
        if isinstance(value, Inert) and isinstance(value.state, dict) and "_modules" in value.state:
            held = f"a whole model of type {value.name}, which only running its code could load"
            if value.name.startswith("ultralytics."):
                advice = "where it was trained: 'yolo export model=... format=onnx', then 'wnlb adopt' of that file"
            return f"checkpoint {source} holds {held}; {advice}"
    names = list(content)[:8] if isinstance(content, dict) else map(_kind, content[:8])
    listed = ", ".join(map(str, names)) or "nothing"
    return (
        f"checkpoint {source} holds {listed}, but no weights; expected a state dict, bare or in a dictionary; {advice}"
    )
