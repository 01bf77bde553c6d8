"""How a configuration of mmdetection prepares a picture for its network at test time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

from wnlb.export.checkpoints.configurations.section import Section
from wnlb.export.checkpoints.configurations.setting_checks import is_count, shown
from wnlb.export.checkpoints.configurations.settings import Triple
from wnlb.runtime.errors import CheckpointError

# Steps that leave the picture as it is.
_HARMLESS = (
    *("LoadAnnotations", "ImageToTensor", "ToTensor", "DefaultFormatBundle", "Collect", "PackDetInputs"),
    *("LoadImageFromFile", "LoadImageFromWebcam", "LoadImageFromNDArray"),
)
_ORDER = ("Resize", "Normalize", "Pad")


class Preparation(TypedDict, total=False):
    """Fields of ``DetectorSettings``; those that the configuration does not tell are absent."""

    channel_order: str
    mean: Triple
    std: Triple
    resize: str
    scale: tuple[int, int]
    interpolation: str
    pad_divisor: int


def preparation(config: Section, model: Section) -> Preparation:
    """What the test pipeline and, in 3.x, the model's preprocessor do.

    Raises:
        CheckpointError: they do something that is not supported exactly.
    """
    found: Preparation = {}
    # mmengine's runner gives a model that has none the preprocessor beside it.
    holder = model if "data_preprocessor" in model else config
    steps = _test_pipeline(config)
    if steps is not None:
        names = [_run(step, found) for step in _flattened(steps)]
        changing = [name for name in names if name in _ORDER]
        if changing != [name for name in _ORDER if name in changing]:
            raise CheckpointError(
                f"{config.source}: its test pipeline has the steps {', '.join(changing)}; expected {', '.join(_ORDER)} "
                "in this order, each once"
            )
        if "data_preprocessor" not in holder and names:
            found.setdefault("pad_divisor", 1)
    if "data_preprocessor" in holder:
        for name, entry in (("Normalize", "mean"), ("Pad", "pad_divisor")):  # Pad before normalising: not with 0
            if entry in found:
                value = holder.get("data_preprocessor")
                holder.refuse("data_preprocessor", value, f"none beside {name} in the pipeline")
        _preprocess(holder.section("data_preprocessor"), found)
    elif steps is None and "img_norm_cfg" in config:
        _normalise(config.section("img_norm_cfg"), found)
    return found


def test_datasets(config: Section) -> Iterator[Mapping[str, Any]]:
    """The dictionaries of the test data, 2.x and 3.x, each before the one that it wraps; of several the first."""
    data, loader = config.get("data"), config.get("test_dataloader")
    places = [data.get("test") if isinstance(data, Mapping) else None]
    places.append(loader.get("dataset") if isinstance(loader, Mapping) else None)
    for place in places:
        for _ in range(8):  # ConcatDataset, RepeatDataset and others around a dataset
            if isinstance(place, (list, tuple)):
                place = place[0] if place else None
            if not isinstance(place, Mapping):
                break
            yield place
            place = place.get("dataset") or place.get("datasets")


def _test_pipeline(config: Section) -> Section | None:
    """The pipeline as the entry of a section; from the test data, else the variable ``test_pipeline``."""
    steps = next((found for one in test_datasets(config) if (found := one.get("pipeline")) is not None), None)
    steps = config.get("test_pipeline") if steps is None else steps
    return None if steps is None else Section({"steps": steps}, "test pipeline", config.source)


def _flattened(pipeline: Section) -> list[Section]:
    """The steps, those inside ``MultiScaleFlipAug`` with its scale."""
    steps = []
    for step in pipeline.sections("steps"):
        if step.kind() != "MultiScaleFlipAug":
            steps.append(step)
            continue
        step.only("flip", False)
        scales = step.get("img_scale")
        step.expect("scale_factor", 1.0, default=None)
        step.ignore("flip_direction", "transforms")
        step.finish()
        if isinstance(scales, list) and len(scales) == 1:
            scales = scales[0]
        for inner in step.sections("transforms"):
            values = {"img_scale": scales} if inner.get("type") == "Resize" else {}  # goes before its own
            steps.append(
                Section({**{name: inner.get(name) for name in inner.names}, **values}, inner.path, inner.source)
            )
    return steps


def _run(step: Section, found: Preparation) -> str:
    """What one step adds to ``found``; its name."""
    kind = step.kind()
    if kind == "Resize":
        _resize(step, found)
    elif kind == "Normalize":
        step.ignore("type")
        _normalise(step, found)
    elif kind == "Pad":
        _pad(step, found)
    elif kind == "RandomFlip":
        step.expect("flip_ratio", 0, default=None)
        step.expect("prob", 0, default=None)
    elif kind not in _HARMLESS:
        raise CheckpointError(
            f"{step.source}: its test pipeline has the step {shown(kind)}, whose effect on a picture is not known; "
            f"expected {', '.join(('Resize', 'Normalize', 'Pad', *_HARMLESS[:6]))}. If it changes nothing, give a copy "
            "of the configuration without it: --config"
        )
    elif kind.startswith("LoadImage"):
        step.only("color_type", "color")
        step.only("channel_order", "bgr")
        step.only("to_float32", False)  # resized without rounding to grey levels
    return kind


def _resize(step: Section, found: Preparation) -> None:
    """2.x: img_scale, keep_ratio=True; 3.x (mmcv 2): scale, keep_ratio=False by default; LIS: interpolate_mode."""
    version_3 = "scale" in step
    name = "scale" if version_3 else "img_scale"
    scale = step.get(name)
    if isinstance(scale, (list, tuple)) and len(scale) == 1:
        scale = scale[0]
    if not isinstance(scale, (list, tuple)) or len(scale) != 2 or not all(map(is_count, scale)):
        step.refuse(name, scale, "two whole numbers, one scale for all pictures")
    if "scale" in found:
        raise CheckpointError(f"{step.source}: its test pipeline resizes twice; expected one Resize")
    keep = step.truth("keep_ratio", not version_3)
    for interpolation in ("interpolation", "interpolate_mode"):
        step.expect(interpolation, "bilinear", "nearest", default="bilinear")
    names = {step.get("interpolation", "bilinear"), step.get("interpolate_mode", "bilinear")}
    step.only("backend", "cv2")
    step.only("scale_factor", None)
    step.only("ratio_range", None)
    step.ignore("type", "clip_object_border", "bbox_clip_border", "multiscale_mode", "override", "img_scale", "scale")
    step.finish()
    found["resize"] = "fit" if keep else "stretch"
    found["scale"] = (scale[0], scale[1])
    # LIS's Resize takes interpolate_mode where the ratio is kept, and mmcv's bilinear where not.
    found["interpolation"] = (
        "nearest" if "nearest" in names and (keep or "interpolate_mode" not in step) else "bilinear"
    )


def _normalise(section: Section, found: Preparation) -> None:
    found["mean"], found["std"] = _triple(section, "mean"), _triple(section, "std")
    found["channel_order"] = "rgb" if section.truth("to_rgb", True) else "bgr"
    section.finish()


def _pad(step: Section, found: Preparation) -> None:
    step.expect("pad_val", 0, {"img": 0}, {"img": 0, "masks": 0, "seg": 255}, default=0)
    step.only("size", None)
    step.only("pad_to_square", False)
    step.only("padding_mode", "constant")
    found["pad_divisor"] = step.count("size_divisor")
    step.ignore("type")
    step.finish()


def _preprocess(section: Section, found: Preparation) -> None:
    """3.x: models/data_preprocessors/data_preprocessor.py."""
    section.kind("DetDataPreprocessor")
    section.only("pad_value", 0)
    section.only("rgb_to_bgr", False)
    section.only("batch_augments", None)
    section.ignore("boxtype2tensor", "pad_mask", "mask_pad_value", "pad_seg", "seg_pad_value", "non_blocking")
    if "mean" in section:
        found["mean"], found["std"] = _triple(section, "mean"), _triple(section, "std")
    else:
        section.only("mean", None)
        section.only("std", None)
        found["mean"], found["std"] = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    found["channel_order"] = "rgb" if section.truth("bgr_to_rgb", False) else "bgr"
    found["pad_divisor"] = section.count("pad_size_divisor", 1)
    section.finish()


def _triple(section: Section, name: str) -> Triple:
    first, second, third = section.numbers(name, 3)
    return float(first), float(second), float(third)
