"""A network built, and given the weights of a checkpoint."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from wnlb.runtime.errors import CheckpointError

_Network = TypeVar("_Network", bound=nn.Module)


def filled(make: Callable[[], _Network], state: Mapping[str, Tensor], path: str, network: str) -> _Network:
    """The network that ``make`` builds, with these weights, in evaluation mode.

    Its shapes are compared before any memory is taken for it.

    Args:
        path, network: names of the checkpoint and of what it is expected to be, for messages.

    Raises:
        CheckpointError: weights are missing, unexpected, misshapen or not finite; all of them are told.
    """
    with torch.device("meta"):
        expected = make().state_dict()
    optional = {name for name in expected if name.endswith(".num_batches_tracked")}
    missing = sorted(expected.keys() - state.keys() - optional)
    unexpected = sorted(state.keys() - expected.keys())
    misshapen = [
        f"{name}: {list(value.shape)} instead of {list(expected[name].shape)}"
        for name, value in state.items()
        if name in expected and value.shape != expected[name].shape
    ]
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    problems = {
        "missing": [_with_nearest(name, unexpected) for name in missing],
        "unexpected": [_with_nearest(name, missing) for name in unexpected],
        "misshapen": misshapen,
        "with NaN or infinity": broken,
    }
    listed = [f"{len(names)} {kind} ({_shortened(names)})" for kind, names in problems.items() if names]
    if listed:
        raise CheckpointError(
            f"checkpoint {path} does not fit the {network} that its weights suggest: {'; '.join(listed)}. "
            "Rename or drop weights with --key-map, correct what was read with --set"
        )
    model = make()
    model.load_state_dict({name: value.to(expected[name].dtype) for name, value in state.items()}, strict=False)
    return model.eval()


def _with_nearest(name: str, others: list[str]) -> str:
    nearest = difflib.get_close_matches(name, others, 1, 0.75)
    return f"{name}, near to {nearest[0]}" if nearest else name


def _shortened(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
