"""Checkpoints as training scripts save them: read, recognised, written."""

from __future__ import annotations

import argparse
import difflib
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN

from wnlb.export.checkpoints.dialect import canonical_state, infer_config
from wnlb.export.model import ModelConfig, model_from_config
from wnlb.runtime.errors import CheckpointError
from wnlb.runtime.files import atomic_path

CONFIG_KEY = "wnlb.config"
CONTAINERS = ("model", "state_dict", "model_state_dict", "model_state", "net", "network", "weights", "params")
EMA_CONTAINERS = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema")
# Harmless types that torchvision's reference scripts and others put beside the weights.
_SAFE_TYPES: list[Any] = [argparse.Namespace]


def load_checkpoint(
    path: Path | str, *, key_map: Path | str | None = None, overrides: Mapping[str, Any] | None = None
) -> tuple[MaskRCNN, ModelConfig]:
    """Rebuild the model whose weights a training script saved.

    Reads ``.safetensors``, and with ``weights_only=True`` anything that ``torch.save`` wrote: a bare state dict or one
    inside a dictionary (``CONTAINERS``, then ``EMA_CONTAINERS``), under any common prefix, in any float type. What the
    network looks like is read from the names and shapes of the weights; what they do not tell (``mode`` dot or
    embedded, ``norm_eps``, anchors, class names) comes from the configuration that ``save_checkpoint`` stores, from
    ``overrides``, or is torchvision's default.

    Args:
        path: the checkpoint.
        key_map: a file with lines ``regular expression => replacement``, applied to every name in turn; an empty
            replacement drops the name.
        overrides: fields of ``ModelConfig``.

    Returns:
        The model, float32 and in evaluation mode, and its configuration.

    Raises:
        CheckpointError: the file is no checkpoint, or its weights do not make a Mask R-CNN; the message lists what is
            missing, unexpected or misshapen.
    """
    state, stored = _read(Path(path))
    if key_map is not None:
        state = _rename(state, Path(key_map))
    state = canonical_state(state, str(path))
    config = infer_config(state, {**stored, **(overrides or {})})
    model = model_from_config(config)
    _load_strictly(model, state, str(path))
    return model.eval(), config


def save_checkpoint(model: MaskRCNN, config: ModelConfig, path: Path | str, dtype: torch.dtype | None = None) -> None:
    """Write the weights with their configuration, as ``.safetensors`` or ``.pth``.

    Args:
        dtype: type to store floating-point weights in (``torch.float16`` halves the file); None keeps theirs.
    """
    state = {
        name: (value.to(dtype) if dtype and value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in model.state_dict().items()
    }
    settings = json.dumps(config.to_dict())
    with atomic_path(path) as temporary:
        if Path(path).suffix == ".safetensors":
            safetensors.torch.save_file(state, temporary, {CONFIG_KEY: settings})
        else:
            torch.save({"model": state, CONFIG_KEY: settings}, temporary)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict of a file and the configuration stored with it (empty where there is none)."""
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} {'is a folder' if path.is_dir() else 'does not exist'}")
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                settings = (file.metadata() or {}).get(CONFIG_KEY, "{}")
            return safetensors.torch.load_file(path), _settings(settings, path)
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(f"checkpoint {path} is not a readable .safetensors file: {error}") from error
    try:
        with torch.serialization.safe_globals(_SAFE_TYPES):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_unsafe_message(path, str(error))) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"checkpoint {path} is not a readable PyTorch file: {reason}") from error
    settings = content.get(CONFIG_KEY, "{}") if isinstance(content, Mapping) else "{}"
    return _state_dict(content, path), _settings(settings, path)


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """The mapping of names to tensors inside what a checkpoint holds."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"checkpoint {path} holds a {type(content).__name__}; expected a state dict")
    for name in (*CONTAINERS, *EMA_CONTAINERS, "module"):
        if isinstance(content.get(name), Mapping):
            return _state_dict(content[name], path)
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        names = ", ".join(map(str, list(content)[:8])) or "nothing"
        raise CheckpointError(
            f"checkpoint {path} holds {names}, but no weights; expected a state dict, bare or under one of "
            f"{', '.join((*CONTAINERS, *EMA_CONTAINERS))}"
        )
    return state


def _settings(text: object, path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise CheckpointError(f"checkpoint {path}: its entry {CONFIG_KEY} is not a JSON object")
    return settings


def _unsafe_message(path: Path, reason: str) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", reason)
    if not found:
        return f"checkpoint {path} is not a readable PyTorch file"
    return (
        f"checkpoint {path} holds an object of type {found[1]}, which only running its code could load; "
        'save the weights alone: torch.save({"model": model.state_dict()}, path)'
    )


def _rename(state: dict[str, Tensor], key_map: Path) -> dict[str, Tensor]:
    try:
        lines = key_map.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"key map {key_map} cannot be read: {error}") from error
    rules = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        pattern, arrow, replacement = (part.strip() for part in line.partition("=>"))
        try:
            rules.append((re.compile(pattern), replacement))
        except re.error as error:
            raise CheckpointError(f"key map {key_map}, line {number}: {error} in {pattern!r}") from error
        if not arrow or not pattern:
            raise CheckpointError(f"key map {key_map}, line {number}: expected 'pattern => replacement', got {line!r}")
    renamed = {}
    for name, value in state.items():
        for rule, replacement in rules:
            if rule.search(name):
                try:
                    name = rule.sub(replacement, name) if replacement else ""
                except (re.error, IndexError) as error:
                    raise CheckpointError(f"key map {key_map}: {error} in {replacement!r}") from error
        if name:
            renamed[name] = value
    return renamed


def _load_strictly(model: MaskRCNN, state: dict[str, Tensor], path: str) -> None:
    expected = model.state_dict()
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
            f"checkpoint {path} does not fit the Mask R-CNN that its weights suggest: {'; '.join(listed)}. "
            "Rename or drop weights with --key-map, correct what was read with --set"
        )
    model.load_state_dict({name: value.to(expected[name].dtype) for name, value in state.items()}, strict=False)


def _with_nearest(name: str, others: list[str]) -> str:
    nearest = difflib.get_close_matches(name, others, 1, 0.75)
    return f"{name}, near to {nearest[0]}" if nearest else name


def _shortened(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
