"""Configurations of mmdetection: real ones, deviations, hostile ones. None is ever run."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from wnlb.export.checkpoints.configurations.mmdet_config import (
    settings_from_data,
    settings_from_file,
    settings_from_meta,
)
from wnlb.export.checkpoints.configurations.python_data import data_from_file, data_from_text
from wnlb.export.checkpoints.configurations.settings import DetectorSettings
from wnlb.runtime.errors import CheckpointError

CONFIGS = Path(__file__).parents[3] / "data" / "configs"
TEXTS = {style: (CONFIGS / f"mmdet_{style}.py.txt").read_text() for style in ("caffe", "pytorch")}
CLASSES = ("bicycle", "chair", "dining table", "bottle", "motorcycle", "car", "tv", "bus")
COMMON = {
    "framework": "mmdetection",
    "resize": "fit",
    "scale": (608, 416),
    "interpolation": "bilinear",
    "pad_divisor": 32,
    "anchor_sizes": ((32,), (64,), (128,), (256,), (512,)),
    "aspect_ratios": (0.5, 1.0, 2.0),
    "pre_nms_top_n": 1000,
    "post_nms_top_n": 1000,
    "rpn_nms_threshold": 0.7,
    "score_threshold": 0.05,
    "nms_threshold": 0.5,
    "detections": 100,
    "class_names": CLASSES,
    "backbone": "resnet50",
    "num_classes": 9,
    "head_layers": (1, 0, 2),
}
STYLES = {
    "caffe": {"channel_order": "bgr", "mean": (103.53, 116.28, 123.675), "std": (1.0, 1.0, 1.0)},
    "pytorch": {"channel_order": "rgb", "mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)},
}
# As mmdetection 2.x and LIS write it: preparation in the pipeline, nothing beside the model.
VERSION_2 = """
img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug',
        img_scale=(600, 400),
        flip=False,
        transforms=[
            dict(type='Resize', keep_ratio=True, interpolate_mode='nearest'),
            dict(type='RandomFlip'),
            dict(type='Normalize', **img_norm_cfg),
            dict(type='Pad', size_divisor=32),
            dict(type='ImageToTensor', keys=['img']),
            dict(type='Collect', keys=['img']),
        ])
]
data = dict(train=[dict(type='CocoDataset')] * 2, test=dict(type='CocoDataset', pipeline=test_pipeline))
"""


def only_our_errors(run: Callable[[], object]) -> None:
    """Whatever a damaged configuration is: read, or refused in one line."""
    message = ""
    try:
        run()
    except CheckpointError as error:
        message = str(error)
    assert "\n" not in message


def changed(style: str = "caffe", version_2: bool = False) -> dict:
    """A configuration whose parts a test may change."""
    config = data_from_text(TEXTS[style], "cfg")
    if version_2:
        for name in ("test_dataloader", "test_pipeline"):
            del config[name]
        del config["model"]["data_preprocessor"]
        config |= data_from_text(VERSION_2, "cfg")
    return config


@pytest.mark.parametrize("style", TEXTS)
def test_a_checkpoint_s_own_configuration(style: str) -> None:
    meta = {"cfg": TEXTS[style], "dataset_meta": {"classes": CLASSES}}
    expected = DetectorSettings(style=style, **COMMON, **STYLES[style])
    assert settings_from_meta(meta, "x.pth") == expected
    assert expected.missing == ()
    assert settings_from_meta({"config": TEXTS[style], "CLASSES": CLASSES}, "x.pth") == expected
    assert settings_from_meta({"cfg": TEXTS[style], "dataset_meta": {"CLASSES": list(CLASSES)}}, "x.pth") == expected
    assert settings_from_meta({"epoch": 12}, "x.pth") is None


def test_class_names_that_only_the_configuration_tells() -> None:
    config = changed()
    config["test_dataloader"]["dataset"]["metainfo"] = {"classes": list(CLASSES)}
    assert settings_from_data(config, "night.py").class_names == CLASSES
    del config["test_dataloader"]["dataset"]["metainfo"]
    config["test_dataloader"]["dataset"] = {"type": "RepeatDataset", "dataset": {"metainfo": {"CLASSES": CLASSES}}}
    config["test_pipeline"] = changed()["test_dataloader"]["dataset"]["pipeline"]
    assert settings_from_data(config, "night.py").class_names == CLASSES
    config = changed(version_2=True)
    config["data"] = {"test": {**config.get("data", {}).get("test", {}), "classes": CLASSES}}
    assert settings_from_data(config, "lis.py").class_names == CLASSES
    config["data"]["test"]["classes"] = "names.txt"  # a file, which nobody opens
    assert settings_from_data(config, "lis.py").class_names == ()
    text = TEXTS["caffe"]
    named = settings_from_meta({"cfg": text, "dataset_meta": {"classes": CLASSES[::-1]}}, "x.pth")
    assert named is not None
    assert named.class_names == CLASSES[::-1]  # what it was trained on goes before what it was tested on


def test_version_2_and_lis() -> None:
    config = changed(version_2=True)
    config["model"]["type"], config["model"]["backbone"]["type"] = "MaskRCNNNoiseInv", "ResNetAdaDSmoothPrior"
    found = settings_from_data(config, "lis.py")
    expected = {**COMMON, **STYLES["caffe"], "scale": (600, 400), "interpolation": "nearest", "class_names": ()}
    assert found == DetectorSettings(style="caffe", adaptive_stride=2, **expected)
    for kind, style, stride in (("ResNetAdaD", "pytorch", 2), ("ResNetAdaDSmoothPrior", "pytorch", 1)):
        config["model"]["backbone"] |= {"type": kind, "style": style}
        found = settings_from_data(config, "lis.py")
        assert (found.style, found.adaptive_stride) == (style, stride)
    # Before 2.8: thresholds beside the model, other names.
    config["test_cfg"] = {
        "rpn": {"nms_pre": 500, "nms_post": 300, "max_num": 300, "nms_thr": 0.6, "min_bbox_size": 0},
        "rcnn": {"score_thr": 0.1, "nms": {"type": "nms", "iou_thr": 0.4}, "max_per_img": 50, "mask_thr_binary": 0.5},
    }
    del config["model"]["test_cfg"]
    found = settings_from_data(config, "lis.py")
    assert (found.pre_nms_top_n, found.post_nms_top_n, found.rpn_nms_threshold) == (500, 300, 0.6)
    assert (found.score_threshold, found.nms_threshold, found.detections) == (0.1, 0.4, 50)


def test_other_supported_settings_are_told() -> None:
    config = changed("pytorch")
    config["model"]["backbone"] |= {"type": "mmdet.ResNeXt", "depth": 101, "groups": 32, "base_width": 8}
    config["model"]["rpn_head"]["anchor_generator"] |= {"scales": [4, 8], "ratios": [1.0]}
    config["model"]["backbone"]["norm_cfg"] = {"type": "SyncBN", "eps": 1e-3}
    pipeline = config["test_dataloader"]["dataset"]["pipeline"]
    pipeline[1] = {"type": "mmdet.Resize", "scale": (640, 480), "interpolation": "nearest"}
    found = settings_from_data(config, "cfg")
    assert found.backbone == "resnext101_32x8d"
    assert found.anchor_sizes == ((16, 32), (32, 64), (64, 128), (128, 256), (256, 512))
    assert (found.aspect_ratios, found.norm_eps) == ((1.0,), 1e-3)
    assert (found.resize, found.scale, found.interpolation) == ("stretch", (640, 480), "nearest")
    config["model"]["backbone"] = {"type": "ResNet", "depth": 18, "style": "caffe"}
    assert settings_from_data(config, "cfg").style == "pytorch"  # no unit has a 1 x 1 convolution: the same
    config["model"]["roi_head"]["context"] = {"type": "NonLocal2d", "use_scale": False, "mode": "dot_product"}
    with pytest.raises(CheckpointError, match=r"model\.roi_head\.context"):
        settings_from_data(config, "cfg")
    found = settings_from_data(config, "cfg", {"roi_head_type": "StandardRoIHead"})
    assert (found.block_mode, found.non_local_scaled) == ("dot", False)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.type", "PointRend", "model is of the type 'PointRend'; expected Mask R-CNN with FPN"),
        ("model.type", "Mask2Former", "'Mask2Former'"),
        ("model.backbone.type", "SwinTransformer", "'SwinTransformer'; expected ResNet or ResNeXt"),
        ("model.backbone.type", "NightResNet", "--set backbone_type=ResNet"),
        ("model.backbone.style", "tensorflow", "'tensorflow'; expected 'pytorch' or 'caffe'"),
        ("model.backbone.depth", None, "backbone.depth is None; expected 18 or 34"),
        ("model.backbone.dcn", {"type": "DCNv2"}, "backbone.dcn is {'type': 'DCNv2'}; expected None"),
        ("model.backbone.plugins", [{"cfg": {}}], "backbone.plugins"),
        ("model.backbone.avg_down", True, "backbone.avg_down is True; expected False"),
        ("model.backbone.norm_cfg", {"type": "GN", "num_groups": 32}, "norm_cfg.type is 'GN'; expected BN"),
        ("model.backbone.attention", True, "backbone.attention is True, which is not known"),
        ("model.neck.type", "PAFPN", "'PAFPN'; expected FPN"),
        ("model.neck", [{"type": "FPN"}, {"type": "BFP"}], "expected a dictionary"),
        ("model.neck.add_extra_convs", "on_output", "neck.add_extra_convs is 'on_output'; expected False"),
        ("model.neck.num_outs", 6, "num_outs is 6; expected 5"),
        ("model.neck.upsample_cfg", {"mode": "bilinear"}, "upsample_cfg"),
        ("model.rpn_head.anchor_generator.strides", [8, 16, 32, 64, 128], "strides"),
        ("model.rpn_head.anchor_generator.octave_base_scale", 4, "octave_base_scale"),
        ("model.rpn_head.bbox_coder.target_stds", [0.1, 0.1, 0.2, 0.2], "target_stds"),
        ("model.rpn_head.loss_cls.use_sigmoid", False, "use_sigmoid is False; expected True"),
        ("model.roi_head.type", "CascadeRoIHead", "'CascadeRoIHead'"),
        ("model.roi_head.bbox_roi_extractor.roi_layer.sampling_ratio", 2, "sampling_ratio is 2; expected 0"),
        ("model.roi_head.bbox_roi_extractor.roi_layer.aligned", False, "aligned is False; expected True"),
        ("model.roi_head.bbox_roi_extractor.finest_scale", 28, "finest_scale is 28; expected 56"),
        ("model.roi_head.mask_roi_extractor", None, "roi_head has no mask_roi_extractor"),
        ("model.roi_head.bbox_head.bbox_coder.target_stds", [1, 1, 1, 1], "target_stds"),
        ("model.roi_head.bbox_head.loss_cls.type", "SeesawLoss", "SeesawLoss"),
        ("model.roi_head.bbox_head.num_classes", "8", "num_classes is '8'; expected a whole number"),
        ("model.roi_head.mask_head.num_classes", 80, "mask_head.num_classes is 80; expected 8"),
        ("model.roi_head.mask_head.upsample_cfg", {"type": "carafe"}, "upsample_cfg"),
        ("model.test_cfg.rcnn.nms.type", "soft_nms", "nms.type is 'soft_nms'; expected nms"),
        ("model.test_cfg.rcnn.mask_thr_binary", 0.4, "mask_thr_binary is 0.4; expected 0.5"),
        ("model.test_cfg.rpn.min_bbox_size", 16, "min_bbox_size is 16; expected 0"),
        ("model.test_cfg.rpn", {"nms_pre": 9, "max_per_img": 9, "nms_thr": 0.7}, "min_bbox_size is -1; expected 0"),
        ("model.test_cfg.rpn.max_num", 500, "max_num is 500; expected 1000"),
        ("model.test_cfg.rpn.nms_post", 500, "nms_post is 500; expected 1000"),
        ("model.test_cfg.rpn.nms_thr", 0.5, "nms_thr is 0.5; expected 0.7"),
        ("model.test_cfg.rcnn.score_thr", 1.5, "score_threshold is 1.5; expected a number from 0 to 1"),
        ("model.data_preprocessor.pad_value", 114, "pad_value is 114; expected 0"),
        ("model.data_preprocessor.type", "Enhancer", "type is 'Enhancer'; expected DetDataPreprocessor"),
        ("model.test_cfg", None, "model.test_cfg is None; expected a dictionary"),
        ("model", None, "has no model"),
    ],
)
def test_what_deviates_is_refused_by_name(path: str, value: object, message: str) -> None:
    config = changed()
    *parents, name = path.split(".")
    place = config
    for parent in parents:
        place = place[parent]
    place[name] = value
    with pytest.raises(CheckpointError) as error:
        settings_from_data(config, "cfg")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"type": "LowLightEnhance"}, "the step 'LowLightEnhance', whose effect on a picture is not known"),
        ({"type": "Resize", "scale": (9, 9), "backend": "pillow"}, "backend is 'pillow'; expected 'cv2'"),
        ({"type": "Resize", "scale": [(9, 9), (8, 8)]}, "one scale for all pictures"),
        ({"type": "Pad", "size": (640, 640)}, "size is [640, 640]; expected None"),
        ({"type": "LoadImageFromFile", "color_type": "grayscale"}, "color_type"),
        ({"type": "LoadImageFromFile", "to_float32": True}, "to_float32 is True; expected False"),
        ({"type": "Pad", "size_divisor": 32}, "none beside Pad"),
        ({"type": "Normalize", "mean": [0, 0, 0], "std": [1, 1, 1]}, "none beside Normalize"),
        ({"type": "RandomFlip", "prob": 0.5}, "prob is 0.5"),
        ("Resize", "expected a dictionary"),
    ],
)
def test_steps_that_would_change_the_picture_are_refused(step: object, message: str) -> None:
    config = changed()
    pipeline = config["test_dataloader"]["dataset"]["pipeline"]
    pipeline[1 if isinstance(step, dict) and step["type"] == "Resize" else 2] = step
    with pytest.raises(CheckpointError) as error:
        settings_from_data(config, "cfg")
    assert message in str(error.value)


@pytest.mark.parametrize("order", [(2, 1, 0, 3), (0, 1, 3, 2), (0, 1, 2, 3, 3), (0, 1, 2, 2, 3)])
def test_steps_in_another_order_are_refused(order: tuple[int, ...]) -> None:
    config = changed(version_2=True)
    steps = config["test_pipeline"][1]["transforms"]
    steps[:4] = [dict(steps[i]) for i in order]
    with pytest.raises(CheckpointError, match="expected Resize, Normalize, Pad in this order, each once"):
        settings_from_data(config, "cfg")


def test_the_scale_around_the_steps_goes_before_that_of_resize() -> None:
    config = changed(version_2=True)
    around = config["data"]["test"]["pipeline"][1]
    around["transforms"][0]["img_scale"] = (1333, 800)
    assert settings_from_data(config, "cfg").scale == (600, 400)
    around["img_scale"], around["scale_factor"] = None, 1.0
    with pytest.raises(CheckpointError, match="one scale for all pictures"):
        settings_from_data(config, "cfg")


def test_the_preprocessor_may_stand_beside_the_model() -> None:
    config = changed("pytorch")
    expected = settings_from_data(changed("pytorch"), "cfg")
    config["data_preprocessor"] = config["model"].pop("data_preprocessor")
    assert settings_from_data(config, "cfg") == expected


def test_blocks_of_several_kinds_are_refused() -> None:
    config = changed()
    blocks = [{"type": "NonLocal2d"}, {"type": "mmcv.NonLocal2d", "use_scale": False}]
    types = {"roi_head_type": "StandardRoIHead"}
    config["model"]["roi_head"]["blocks"] = blocks[1:]
    assert not settings_from_data(config, "cfg", types).non_local_scaled
    config["model"]["roi_head"]["blocks"] = blocks
    with pytest.raises(CheckpointError, match="NonLocal2d of several kinds"):
        settings_from_data(config, "cfg", types)


def test_what_mmdetection_2_writes_into_its_checkpoints_is_read() -> None:
    """tools/train.py sets gpu_ids, which comes before the text is made."""
    assert data_from_text("gpu_ids = range(0, 8)\nx = range(3)\ny = range(9, 0, -4)", "cfg") == {
        "gpu_ids": list(range(8)),
        "x": [0, 1, 2],
        "y": [9, 5, 1],
    }


def test_a_pipeline_that_is_not_there_leaves_its_settings_open() -> None:
    config = changed()
    del config["test_dataloader"], config["test_pipeline"]
    assert settings_from_data(config, "cfg").missing == ("resize", "scale", "interpolation")
    config = changed(version_2=True)
    del config["data"], config["test_pipeline"]
    found = settings_from_data(config, "cfg")
    assert found.channel_order == "bgr"  # img_norm_cfg
    assert found.missing == ("resize", "scale", "interpolation", "pad_divisor")


def test_files_build_on_one_another(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.py").write_text(TEXTS["pytorch"])
    (tmp_path / "base" / "extra.py").write_text("wide = 32\nname = 'night'\n")
    path = tmp_path / "night.py"
    path.write_text(
        '''"""A night."""
_base_ = ['base/model.py', './base/extra.py']
norm = dict(type='BN', requires_grad=False)
half: float = 1 / 2
model = dict(
    backbone=dict(_delete_=True, type='ResNeXt', depth=50, groups={{_base_.wide}}, base_width=2 * 2, norm_cfg=norm),
    roi_head=dict(bbox_head=dict(num_classes=2 ** 2 - 1), mask_head=dict(num_classes=3)),
    test_cfg=dict(rcnn=dict(score_thr=-(-half), max_per_img=_base_.model.test_cfg.rcnn.max_per_img // 2)))
where = f'{_base_.name}/{wide_name}' if False else 'x'
'''.replace(
            "where = f'{_base_.name}/{wide_name}' if False else 'x'\n",
            "where = f'{_base_.name}/x' + '{{fileBasename}}'\n",
        )
    )
    data = data_from_file(path)
    assert data["where"] == "night/xnight.py"
    assert "style" not in data["model"]["backbone"]  # it was replaced
    found = settings_from_file(path)
    assert (found.backbone, found.num_classes, found.score_threshold, found.detections) == (
        "resnext50_32x4d",
        4,
        0.5,
        50,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import os\n", "line 1 has an import"),
        ("x = 1\ny = __import__('os').system('touch {marker}')\n", "line 2 calls __import__('os').system"),
        ("x = open('{marker}', 'w')", "line 1 calls open"),
        ("x = [i for i in range(9)]", "has ListComp"),
        ("if True:\n    x = 1", "has an if"),
        ("def f(): pass", "has a function"),
        ("x = y", "uses y, which it has not given a value"),
        ("x = (lambda: 1)()", "calls"),
        ("x = 'a'.__class__", "takes '__class__' of 'a'"),
        ("x = dict(a=1)\nx.a = 2", "sets a part of a value"),
        ("x = 'a' * 10 ** 9", "computes with"),
        ("x = [0] * 10 ** 9", "1000000000 items"),
        ("x = 9 ** 9 ** 9", "computes with"),
        ("x = range(10 ** 30)", "a very large number items"),
        ("x = range(0, 9, 0)", "makes a range of [0, 9, 0]"),
        ("x = range('a')", "makes a range of ['a']"),
        ("x = 1 / 0", "which fails"),
        ("x = f'{1:>1000000000}'", "has FormattedValue"),
        ("x = {1, 2}", "has a set"),
        ("_base_ = 'mmdet::_base_/models/mask.py'", "a file of an installed package"),
        ("_base_ = 'absent.py'", "which"),
        ("_base_ = 3", "expected names of files"),
        ("_base_ = 'night.py'", "among its own _base_ files"),
        ("x = (", "is no Python configuration"),
        ("x = " + "[" * 5000 + "]" * 5000, ""),
        ("x = " + "-" * 20000 + "1", ""),
        ("x = 1" + "0" * 5000, "is no Python configuration"),
        ("x\0 = 1", ""),
        ("with read_base():\n    from .a import *", "has a with statement"),
    ],
)
def test_what_is_more_than_data_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    marker, path = tmp_path / "run", tmp_path / "night.py"
    path.write_text(text.replace("{marker}", str(marker)))
    with pytest.raises(CheckpointError) as error:
        settings_from_file(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    assert not marker.exists()


def test_a_checkpoint_s_configuration_opens_no_files(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text(TEXTS["caffe"])
    with pytest.raises(CheckpointError, match="checkpoints open no files"):
        settings_from_meta({"cfg": f"_base_ = '{tmp_path}/base.py'"}, "x.pth")


def test_doubled_values_make_no_large_ones() -> None:
    text = "a = ['x']\n" + "".join(f"a{'a' * i} = [{'a' * i}, {'a' * i}]\n" for i in range(1, 60))
    with pytest.raises(CheckpointError, match="has no model") as error:
        settings_from_data(data_from_text(text, "cfg"), "cfg")
    text += "model = dict(type='MaskRCNN', backbone=" + "a" * 60 + ")"
    with pytest.raises(CheckpointError) as error:
        settings_from_data(data_from_text(text, "cfg"), "cfg")
    assert len(str(error.value)) < 300
    text = "a = 'x'\n" + "a = a + a\n" * 60
    with pytest.raises(CheckpointError, match="items"):
        data_from_text(text, "cfg")


def test_damaged_configurations_give_our_errors_alone() -> None:
    rng = random.Random(17)
    parts = [
        "None",
        "0",
        "-1",
        "1e400",
        "[]",
        "{}",
        "()",
        "'x'",
        "True",
        "dict(type=[])",
        "(",
        "=",
        "\n",
        "{{x}}",
        "*a",
    ]
    lines = (TEXTS["caffe"] + VERSION_2).splitlines()
    lines = [line for line in lines if line.strip()]
    for _ in range(300):
        damaged = list(lines)
        for _ in range(rng.randint(1, 3)):
            i = rng.randrange(len(damaged))
            kind = rng.random()
            if kind < 0.5 and "=" in damaged[i]:
                damaged[i] = damaged[i].partition("=")[0] + "=" + rng.choice(parts) + ","
            elif kind < 0.7:
                del damaged[i]
            else:
                damaged[i] = damaged[i].replace(rng.choice("=,()[]'0123456789"), rng.choice(parts), 1)
        only_our_errors(lambda: settings_from_meta({"cfg": "\n".join(damaged)}, "x.pth"))  # noqa: B023


def test_wrong_values_at_every_place_give_our_errors_alone() -> None:
    odd = [None, -1, 0, 2.5, float("nan"), float("inf"), "x", [], {}, [None], {"type": []}, {1: 2}, True, 10**400]

    def places(value: object, path: tuple = ()) -> list[tuple]:
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
        return [path] * bool(path) + [place for key, item in inner for place in places(item, (*path, key))]

    for version_2 in (False, True):
        kept = {"model", "test_dataloader", "data", "img_norm_cfg"}
        names = [
            place for place in places(changed(version_2=version_2)) if place[0] in kept and "train_cfg" not in place
        ]
        assert len(names) > 100
        for n, place in enumerate(names):
            config = changed(version_2=version_2)
            inside = config
            for key in place[:-1]:
                inside = inside[key]
            inside[place[-1]] = odd[n % len(odd)]
            only_our_errors(lambda: settings_from_data(config, "cfg"))  # noqa: B023
