"""Configurations and ``.pkl`` files of detectron2: real ones, deviations, hostile ones. Nothing of them is ever run."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from wnlb.export.checkpoints.configurations import yaml_data
from wnlb.export.checkpoints.configurations.detectron2_config import settings_from_file
from wnlb.export.checkpoints.configurations.settings import DetectorSettings
from wnlb.runtime.errors import CheckpointError, MissingDependency

MSRA = Path(__file__).parents[3] / "data" / "configs" / "detectron2_msra.yaml"
# Base-RCNN-FPN.yaml of detectron2 and a file on top of it, as people write them: defaults are left out.
BASE = """
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  BACKBONE: {NAME: "build_resnet_fpn_backbone"}
  RESNETS: {OUT_FEATURES: ["res2", "res3", "res4", "res5"]}
  FPN: {IN_FEATURES: ["res2", "res3", "res4", "res5"]}
  ANCHOR_GENERATOR: {SIZES: [[32], [64], [128], [256], [512]], ASPECT_RATIOS: [[0.5, 1.0, 2.0]]}
  RPN: {IN_FEATURES: ["p2", "p3", "p4", "p5", "p6"], PRE_NMS_TOPK_TEST: 1000, POST_NMS_TOPK_TEST: 1000}
  ROI_HEADS: {NAME: "StandardROIHeads", IN_FEATURES: ["p2", "p3", "p4", "p5"]}
  ROI_BOX_HEAD: {NAME: "FastRCNNConvFCHead", NUM_FC: 2, POOLER_RESOLUTION: 7}
  ROI_MASK_HEAD: {NAME: "MaskRCNNConvUpsampleHead", NUM_CONV: 4, POOLER_RESOLUTION: 14}
"""
TOP = """
_BASE_: "base/Base-RCNN-FPN.yaml"
MODEL:
  MASK_ON: True
  PIXEL_STD: [57.375, 57.12, 58.395]
  RESNETS: {DEPTH: 101, STRIDE_IN_1X1: False, NUM_GROUPS: 32, WIDTH_PER_GROUP: 8}
INPUT:
  MIN_SIZE_TRAIN: !!python/tuple [640, 800]
"""
EXPECTED = {
    "framework": "detectron2",
    "channel_order": "bgr",
    "mean": (103.53, 116.28, 123.675),
    "resize": "fit",
    "interpolation": "antialiased",
    "pad_divisor": 32,
    "anchor_sizes": ((32,), (64,), (128,), (256,), (512,)),
    "aspect_ratios": (0.5, 1.0, 2.0),
    "pre_nms_top_n": 1000,
    "post_nms_top_n": 1000,
    "rpn_nms_threshold": 0.7,
    "score_threshold": 0.05,
    "nms_threshold": 0.5,
    "detections": 100,
    "head_layers": (1, 0, 2),
}


def only_our_errors(read: Callable[[Path], object], path: Path) -> None:
    """Whatever a damaged file is: read, or refused in one line."""
    message = ""
    try:
        read(path)
    except CheckpointError as error:
        message = str(error)
    assert "\n" not in message


@pytest.fixture
def top(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "Base-RCNN-FPN.yaml").write_text(BASE)
    path = tmp_path / "night.yaml"
    path.write_text(TOP)
    return path


def test_a_whole_configuration() -> None:
    own = {"style": "caffe", "std": (1.0, 1.0, 1.0), "scale": (608, 400), "backbone": "resnet50", "num_classes": 9}
    found = settings_from_file(MSRA)
    assert found == DetectorSettings(**EXPECTED, **own)
    assert found.missing == ()


def test_a_short_configuration_on_top_of_others(top: Path) -> None:
    own = {"style": "pytorch", "std": (57.375, 57.12, 58.395), "scale": (1333, 800), "num_classes": 81}
    assert settings_from_file(top) == DetectorSettings(**EXPECTED, **own, backbone="resnext101_32x8d")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("META_ARCHITECTURE: RetinaNet", "META_ARCHITECTURE is 'RetinaNet'; expected GeneralizedRCNN"),
        ("BACKBONE: {NAME: build_resnet_backbone}", "--set backbone_type=build_resnet_fpn_backbone"),
        ("MASK_ON: False", "MASK_ON is False; expected True"),
        ("RESNETS: {DEPTH: 26}", "DEPTH is 26; expected 18 or 34"),
        ("RESNETS: {NORM: GN}", "NORM is 'GN'"),
        ("RESNETS: {RES5_DILATION: 2}", "RES5_DILATION is 2; expected 1"),
        ("RESNETS: {DEFORM_ON_PER_STAGE: [False, True, True, True]}", "DEFORM_ON_PER_STAGE"),
        ("FPN: {FUSE_TYPE: avg}", "FUSE_TYPE is 'avg'; expected 'sum'"),
        ("FPN: {NORM: GN}", "FPN.NORM is 'GN'"),
        ("ANCHOR_GENERATOR: {OFFSET: 0.5}", "OFFSET is 0.5; expected 0.0"),
        ("ANCHOR_GENERATOR: {SIZES: [[32, 64], [128]]}", "lists for five levels"),
        ("RPN: {BBOX_REG_WEIGHTS: [10, 10, 5, 5]}", "BBOX_REG_WEIGHTS"),
        ("ROI_HEADS: {NAME: CascadeROIHeads}", "'CascadeROIHeads'; expected StandardROIHeads"),
        ("ROI_BOX_HEAD: {POOLER_TYPE: ROIAlign}", "POOLER_TYPE is 'ROIAlign'; expected 'ROIAlignV2'"),
        ("ROI_BOX_HEAD: {POOLER_SAMPLING_RATIO: 2}", "POOLER_SAMPLING_RATIO is 2; expected 0"),
        ("ROI_BOX_HEAD: {POOLER_RESOLUTION: 14}", "POOLER_RESOLUTION is 14; expected 7"),
        ("ROI_BOX_HEAD: {NIGHT: True}", "ROI_BOX_HEAD.NIGHT is True, which is not known"),
        ("ROI_MASK_HEAD: {NAME: PointRendMaskHead}", "'PointRendMaskHead'"),
        ("NIGHT: {GAIN: 2}", "MODEL.NIGHT is {'GAIN': 2}, which is not known"),
        ("BACKBONE: {GAIN: 2}", "MODEL.BACKBONE.GAIN is 2, which is not known"),
        ("PROPOSAL_GENERATOR: {MIN_SIZE: 2}", "MIN_SIZE is 2; expected 0"),
        ("WEIGHTS: x\nINPUT: {ENHANCE: True}", "INPUT.ENHANCE is True, which is not known"),
        ("ROI_HEADS: {SCORE_THRESH_TEST: low}", "SCORE_THRESH_TEST is 'low'; expected a number"),
        ("PIXEL_MEAN: [1, 2]", "PIXEL_MEAN is [1, 2]; expected a list of 3 numbers"),
        ("RPN: 3", "RPN is 3"),
        ("RESNETS: []", "RESNETS is []"),
        ("WEIGHTS: x\nTEST: {AUG: {ENABLED: True}}", "TEST.AUG.ENABLED is True, with which each picture is run at"),
        ("WEIGHTS: x\nTEST: {SOFT_NMS: True}", "TEST.SOFT_NMS is True, which is not known"),
        ("WEIGHTS: x\nINPUT: {MIN_SIZE_TEST: 0}", "MIN_SIZE_TEST is 0, which leaves pictures in their own sizes"),
        ("WEIGHTS: x\nENHANCE: {GAMMA: 2.2}", "ENHANCE is {'GAMMA': 2.2}, which is not known"),
        ("WEIGHTS: x\nVERSION: 1", "VERSION is 1; expected 2"),
    ],
)
def test_what_deviates_is_refused_by_name(top: Path, line: str, message: str) -> None:
    own = top.with_name("own.yaml")
    own.write_text(f"_BASE_: night.yaml\nMODEL:\n  {line}\n")
    with pytest.raises(CheckpointError) as error:
        settings_from_file(own)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_class_names_are_those_of_coco_where_it_was_trained_on_that_alone(top: Path) -> None:
    own = top.with_name("own.yaml")
    for datasets, names in (
        ("[coco_2017_train]", ("person", "toothbrush")),
        ("[coco_2014_train, coco_2014_valminusminival]", ("person", "toothbrush")),
        ("[coco_2017_train, night_train]", None),
        ("[night_train]", None),
        ("[]", None),
        ("3", None),
    ):
        own.write_text(f"_BASE_: night.yaml\nDATASETS: {{TRAIN: {datasets}}}\n")
        found = settings_from_file(own).class_names
        assert (found[:: len(found) - 1] if found else None) == names, datasets
        assert len(found) in (0, 80)
    assert settings_from_file(MSRA).class_names == ()  # eight classes: not COCO's, whatever its DATASETS say


def test_a_class_of_the_user_s_own_is_read_as_the_user_says(top: Path) -> None:
    own = top.with_name("own.yaml")
    own.write_text("_BASE_: night.yaml\nMODEL:\n  BACKBONE: {NAME: night_fpn}\n  FPN: {BLOCKS: true}\n")
    found = settings_from_file(own, {"backbone_type": "build_resnet_fpn_backbone"})
    assert found == settings_from_file(top)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system ['touch {marker}']", "line 1 is no plain data"),
        ("a: !!python/name:os.system", "configurations are never run"),
        ("a: !night x", "is no plain data"),
        ("a: [", "is no YAML"),
        ("- 1", "expected names and values"),
        ("_BASE_: night.yaml", "among its own _BASE_ files"),
        ("_BASE_: absent.yaml", "builds on it: the whole one is config.yaml"),
        ("_BASE_: https://example.org/a.yaml", "expected a file"),
        ("_BASE_: 3", "expected names of files"),
        ("MODEL: &x {MODEL: *x}", "META_ARCHITECTURE"),
        ("MODEL: 3", "MODEL is 3; expected a dictionary"),
        ("? [1, 2]\n: 3", ""),
        ("a: 2026-99-99", "is no YAML"),
        ("a: " + "[" * 5000, ""),
        ("a: \0", ""),
    ],
)
def test_what_is_more_than_data_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    marker, path = tmp_path / "run", tmp_path / "night.yaml"
    path.write_text(text.replace("{marker}", str(marker)))
    with pytest.raises(CheckpointError) as error:
        settings_from_file(path)
    assert message in str(error.value) or "MODEL.BACKBONE.NAME" in str(error.value)
    assert "\n" not in str(error.value)
    assert not marker.exists()


def test_damaged_configurations_give_our_errors_alone(tmp_path: Path) -> None:
    rng = random.Random(17)
    lines = [line for line in MSRA.read_text().splitlines() if line.strip()]
    path = tmp_path / "damaged.yaml"
    for _ in range(150):
        damaged = list(lines)
        for _ in range(rng.randint(1, 3)):
            i = rng.randrange(len(damaged))
            if rng.random() < 0.6 and ": " in damaged[i]:
                odd = rng.choice(
                    ["", "[]", "-1", ".nan", "x", "{}", "[[]]", "1e9", "*id001", "!!python/none", "&a [*a]"]
                )
                damaged[i] = damaged[i].partition(": ")[0] + ": " + odd
            else:
                del damaged[i]
        path.write_text("\n".join(damaged))
        only_our_errors(settings_from_file, path)


def test_without_pyyaml_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingDependency, match=r"wnlb-deploy\[export\]"):
        yaml_data.data_from_yaml(MSRA)
