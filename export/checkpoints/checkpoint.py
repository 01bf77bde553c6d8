"""Checkpoints as training scripts save them: read, recognised, written."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN

from wnlb.export.backbone import BackboneConfig
from wnlb.export.checkpoints.configurations.settings import TORCHVISION, DetectorSettings, NetworkSettings
from wnlb.export.checkpoints.configurations.solov2_settings import Solov2Settings
from wnlb.export.checkpoints.files.container import CONFIG_KEY, damage_told, open_container
from wnlb.export.checkpoints.files.tensors import loaded
from wnlb.export.checkpoints.filling import filled
from wnlb.export.checkpoints.frameworks import SETTINGS, TYPES, own_names, recognise, settings_for, torchvision_state
from wnlb.export.checkpoints.names.dialect import infer_config, unwrapped
from wnlb.export.checkpoints.solov2_network import solov2_of
from wnlb.export.checkpoints.weights import chosen, weight_sets
from wnlb.export.coco_names import numbered_coco_names
from wnlb.export.model import ModelConfig, model_from_config
from wnlb.export.solov2 import Solov2
from wnlb.runtime.conventions import MASK_RCNN, MaskRcnnConventions
from wnlb.runtime.errors import CheckpointError
from wnlb.runtime.files import atomic_path
from wnlb.runtime.text_file import read_text


@dataclass(frozen=True)
class Origin:
    """What a checkpoint of another framework than torchvision holds, for those who compute as these do.

    Attributes:
        state: float32 weights by the framework's own names.
        settings: what the weights do not tell.
    """

    state: Mapping[str, Tensor]
    settings: NetworkSettings

    @property
    def conventions(self) -> MaskRcnnConventions:
        """Of the framework, for its Mask R-CNN."""
        return MASK_RCNN[self.settings.framework]


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint as it was read.

    Attributes:
        model: float32 and in evaluation mode. With an ``origin`` it holds the network and its thresholds, but
            torchvision's own code computes something else with them.
        config: what was read of it, stored with it or set.
        weights: which of its sets of weights this is, ``"model"``; ``"."`` where they lie in no dictionary.
        others: the sets of weights that it has besides.
        hints: what the weights leave open and was assumed.
        origin: of a checkpoint of another framework than torchvision; else None.
    """

    model: MaskRCNN | Solov2
    config: BackboneConfig
    weights: str
    others: tuple[str, ...]
    hints: tuple[str, ...]
    origin: Origin | None = None


def load_checkpoint(
    path: Path | str,
    *,
    key_map: Path | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    weights: str | None = None,
) -> tuple[MaskRCNN, ModelConfig]:
    """``read_checkpoint`` of a torchvision model, of which only the model and its configuration are wanted.

    Raises:
        CheckpointError: as ``read_checkpoint``; or it is of another framework, whose network torchvision's code would
            compute in another way.
    """
    read = read_checkpoint(path, key_map=key_map, overrides=overrides, weights=weights)
    if read.origin:
        raise CheckpointError(
            f"checkpoint {path} is of {read.origin.settings.framework}; expected a torchvision model, which alone can "
            "be run as one: export it with 'wnlb export'"
        )
    assert isinstance(read.model, MaskRCNN)
    assert isinstance(read.config, ModelConfig)
    return read.model, read.config


def read_checkpoint(
    path: Path | str,
    *,
    key_map: Path | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    weights: str | None = None,
    trained_with: Path | None = None,
) -> LoadedCheckpoint:
    """Rebuild the model whose weights a training script saved.

    Reads ``.safetensors``, what ``torch.save`` or ``pickle.dump`` wrote, and shards of them, without running anything
    of it (``container.open_container``): a state dict, bare or in dictionaries, under any common prefix, in any float
    type. What the network looks like is read from the names and shapes of the weights; what they do not tell
    (``mode`` dot or embedded, ``norm_eps``, anchors, mean and deviation, class names) comes from the configuration
    that ``save_checkpoint`` stores, from ``overrides``, or is torchvision's default. Checkpoints of mmdetection and
    detectron2 are told by the names of their weights; for them nothing is assumed: what the configuration inside the
    checkpoint or ``trained_with`` does not tell has to be among ``overrides``.

    Args:
        path: the checkpoint; of a sharded one the index or the folder.
        key_map: a file with lines ``regular expression => replacement``, applied to every name in turn; an empty
            replacement drops the name.
        overrides: fields of ``ModelConfig``; of another framework's checkpoint fields of ``DetectorSettings`` and, for
            classes of the user's own, what they are to be read as: ``{"backbone_type": "ResNet"}``.
        weights: which weights, where there are several sets (a model and its moving average): the name of the
            dictionary that they lie in, a word of it, or its path, ``"state_dict.ema_model"``. None: no average,
            usual names first.
        trained_with: the configuration of mmdetection (``.py``, read as data) or detectron2 (``.yaml``).

    Raises:
        CheckpointError: the file is no checkpoint, or its weights do not make a Mask R-CNN; the message lists what is
            missing, unexpected or misshapen.
    """
    path, source = Path(path), str(path)
    container = open_container(path)
    with damage_told(path):
        sets = weight_sets(container.content, source)
        taken = chosen(sets, weights, source)
        state = {name: loaded(weight) for name, weight in taken.weights.items()}
    if key_map is not None:
        state = _rename(state, Path(key_map))
    others = tuple(each.name for each in sets if each is not taken)
    known = {**_settings(container.settings, path), **(overrides or {})}
    framework = recognise(map(unwrapped, state))
    with damage_told(path):
        if framework in SETTINGS:
            settings = settings_for(framework, container.content, source, trained_with, _told(known, framework))
            model, config = _network_of(settings, state, known, source)
            floats = {name: value.float() for name, value in own_names(state, framework).items()}
            hints = _name_hints(config)
            return LoadedCheckpoint(model, config, taken.name, others, hints, Origin(floats, settings))
        if trained_with:
            raise CheckpointError(f"checkpoint {path} is torchvision's; --config is for mmdetection and detectron2")
        state = torchvision_state(state, framework, TORCHVISION, source)
        config = infer_config(state, known)
        if not config.class_names and config.num_classes == 1 + len(numbered := numbered_coco_names()):
            config = dataclasses.replace(config, class_names=numbered)
        model = filled(lambda: model_from_config(config), state, source, "Mask R-CNN")
    hints = (*_norm_hints(config, known), *_name_hints(config))
    return LoadedCheckpoint(model.eval(), config, taken.name, others, hints)


def _network_of(
    settings: NetworkSettings, state: Mapping[str, Tensor], known: Mapping[str, Any], source: str
) -> tuple[MaskRCNN | Solov2, BackboneConfig]:
    """The network of another framework's weights, with its counts and thresholds; ``known`` as ``overrides`` are."""
    told = _told(known, settings.framework)
    fields = {name: value for name, value in known.items() if name not in {*told, "mode"}}
    renamed = torchvision_state(state, settings.framework, settings, source, fields.get("placement"))
    if isinstance(settings, Solov2Settings):
        return solov2_of(renamed, settings, fields, source)
    assert isinstance(settings, DetectorSettings)
    config = infer_config(renamed, {**settings.model_fields(), **fields})
    settings.check_weights(config.backbone, config.num_classes, config.head_layers, source)
    options = settings.detector_options()
    return filled(lambda: model_from_config(config, **options), renamed, source, "Mask R-CNN"), config


def _told(overrides: Mapping[str, Any], framework: str) -> dict[str, Any]:
    """Those that ``settings_for`` takes; ``mode``, as it is called of torchvision's models, among them."""
    names = {*SETTINGS[framework](framework).field_names, *(f"{part}_type" for part in TYPES)}
    told = {name: value for name, value in overrides.items() if name in names}
    return {**told, "block_mode": overrides["mode"]} if "mode" in overrides else told


def _norm_hints(config: ModelConfig, known: Mapping[str, Any]) -> tuple[str, ...]:
    if config.norm == "batch" or "norm_eps" in known:
        return ()
    return (
        "its batch norm is frozen (no num_batches_tracked), and weights do not tell its eps: 1e-05 was taken, "
        "torchvision's default; what was fine-tuned from torchvision's COCO weights needs --set norm_eps=0",
    )


def _name_hints(config: BackboneConfig) -> tuple[str, ...]:
    if config.class_names:
        return ()
    return ("nothing tells the names of its classes: they are called class 1, class 2 ...; give them with --classes",)


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


def _settings(text: object, path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise CheckpointError(f"checkpoint {path}: its entry {CONFIG_KEY} is not a JSON object")
    return settings


def _rename(state: dict[str, Tensor], key_map: Path) -> dict[str, Tensor]:
    rules = []
    for number, line in enumerate(read_text(key_map, "key map").splitlines(), 1):
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
