"""What is asked for, what overrides what, and what is held against the weights."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from wnlb.export.checkpoints.configurations.settings import TORCHVISION, DetectorSettings, backbone_name
from wnlb.export.checkpoints.frameworks import recognise, settings_for
from wnlb.export.model import ModelConfig
from wnlb.runtime.errors import CheckpointError

CONFIGS = Path(__file__).parents[2] / "data" / "configs"
CAFFE = (CONFIGS / "mmdet_caffe.py.txt").read_text()


def test_torchvision_needs_nothing() -> None:
    assert settings_for("torchvision_v2", {}, "x.pth") == TORCHVISION
    assert settings_for("torchvision", {}, "x.pth", overrides={"detections": 30}).detections == 30
    with pytest.raises(CheckpointError, match="for mmdetection or detectron2 alone"):
        settings_for("torchvision", {}, "x.pth", config=Path("a.py"))


@pytest.mark.parametrize(("framework", "kind"), [("mmdetection", "FILE.py"), ("detectron2", "FILE.yaml")])
def test_what_nothing_tells_is_asked_for_by_name(framework: str, kind: str) -> None:
    with pytest.raises(CheckpointError) as error:
        settings_for(framework, {"meta": {"epoch": 3}}, "x.pth")
    message = str(error.value)
    assert "style (pytorch or caffe), channel_order (rgb or bgr), mean" in message
    assert f"--config {kind}, or each by name: --set style=..." in message
    assert "\n" not in message


def test_the_command_line_goes_before_the_file_and_the_file_before_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(CAFFE.replace("score_thr=0.05", "score_thr=0.2"))
    content = {"meta": {"cfg": CAFFE, "CLASSES": ["a"] * 8}}
    assert settings_for("mmdetection", content, "x.pth").score_threshold == 0.05
    found = settings_for("mmdetection", content, "x.pth", path)
    assert (found.score_threshold, found.class_names) == (0.2, ("a",) * 8)
    found = settings_for("mmdetection", content, "x.pth", path, {"score_threshold": 0.3, "scale": [300, 400]})
    assert (found.score_threshold, found.scale) == (0.3, (400, 300))


def test_a_backbone_of_the_user_s_own_is_read_as_the_user_says() -> None:
    own = CAFFE.replace("type='ResNet'", "type='NightResNet', night=True")
    content = {"meta": {"cfg": own}}
    with pytest.raises(CheckpointError, match="--set backbone_type=ResNet"):
        settings_for("mmdetection", content, "x.pth")
    assert settings_for("mmdetection", content, "x.pth", overrides={"backbone_type": "ResNet"}).style == "caffe"
    with pytest.raises(CheckpointError, match="expected the name of a class"):
        settings_for("mmdetection", content, "x.pth", overrides={"backbone_type": 3})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"stile": "caffe"}, "setting 'stile' is not known; expected style"),
        ({"framework": "detectron2"}, "'framework' is not known"),
        ({"style": "tensorflow"}, "style is 'tensorflow'; expected pytorch or caffe"),
        ({"style": None}, "tell style"),
        ({"mean": [1, 2]}, "mean is [1, 2]; expected three numbers"),
        ({"std": [1, 0, 1]}, "three numbers above 0"),
        ({"scale": [600]}, "expected two whole numbers"),
        ({"anchor_sizes": [[32], [64]]}, "expected five lists"),
        ({"nms_threshold": True}, "expected a number from 0 to 1"),
        ({"detections": 1.5}, "a whole number from 1 up"),
        ({"class_names": "a"}, "a list of names"),
        ({"adaptive_stride": 3}, "adaptive_stride is 3; expected 0 or 1 or 2"),
        ({"norm_eps": None}, "norm_eps is None"),
        ({"non_local_scaled": 1}, "expected True or False"),
    ],
)
def test_values_that_do_not_fit_are_refused(overrides: dict, message: str) -> None:
    with pytest.raises(CheckpointError) as error:
        settings_for("mmdetection", {"meta": {"cfg": CAFFE}}, "x.pth", overrides=overrides)
    assert message in str(error.value)


def test_the_configuration_of_another_checkpoint_is_told() -> None:
    layers = (1, 0, 2)
    settings = DetectorSettings("mmdetection", backbone="resnet50", num_classes=81, head_layers=layers)
    settings.check_weights("resnet50", 81, layers, "x.pth")
    with pytest.raises(CheckpointError, match="0 and 1 linear layers in the box head; its conf"):
        settings.check_weights("resnet50", 81, (1, 0, 1), "x.pth")
    with pytest.raises(CheckpointError, match="num_classes 9, its configuration 81"):
        settings.check_weights("resnet50", 9, layers, "x.pth")
    with pytest.raises(CheckpointError, match="backbone resnet101, its configuration resnet50"):
        settings.check_weights("resnet101", 81, layers, "x.pth")


def test_what_was_told_is_enough_to_read_it_again() -> None:
    """Without a configuration, which a class of the user's own or a call may have made unreadable."""
    settings = settings_for("mmdetection", {"meta": {"cfg": CAFFE}}, "x.pth")
    unreadable = {"meta": {"cfg": "x = open('a')", "CLASSES": ["none"]}}
    assert settings_for("mmdetection", unreadable, "x.pth", overrides=settings.told()) == settings
    with pytest.raises(CheckpointError, match="calls open"):
        settings_for("mmdetection", unreadable, "x.pth", overrides={"style": "caffe"})


@pytest.mark.parametrize(
    ("fields", "size", "message"),
    [
        ({"pad_divisor": 64}, (416, 608), "input size is 416x608; expected multiples of 64"),
        ({"pad_divisor": 64}, (448, 640), ""),
        ({"pad_divisor": 1}, (448, 640), "take that with --set pad_divisor=32"),
        ({"pad_divisor": 1, "resize": "stretch", "scale": (640, 448)}, (448, 640), ""),
        ({"pad_divisor": 1, "resize": "stretch", "scale": (600, 400)}, (448, 640), "--set pad_divisor=32"),
        ({}, (64, 96), ""),
    ],
)
def test_pictures_that_are_padded_to_other_sizes(fields: dict, size: tuple[int, int], message: str) -> None:
    settings = DetectorSettings("mmdetection", **{"pad_divisor": 32, "resize": "fit", "scale": (600, 400), **fields})
    with pytest.raises(CheckpointError, match=message) if message else contextlib.nullcontext():
        settings.check_size(*size)


def test_the_model_is_built_with_the_same_settings() -> None:
    assert ModelConfig(9, **TORCHVISION.model_fields()) == ModelConfig(9)
    settings = TORCHVISION.with_overrides({"block_mode": "dot", "norm_eps": 1e-3, "class_names": ["a"]})
    config = ModelConfig(2, **settings.model_fields())
    assert (config.mode, config.norm_eps, config.class_names) == ("dot", 1e-3, ("a",))
    config = ModelConfig(2, **settings.with_overrides({"style": "caffe", "adaptive_stride": 2}).model_fields())
    assert (config.style, config.adaptive_stride) == ("caffe", 2)


def test_backbones_have_torchvision_s_names() -> None:
    assert backbone_name(50, 1, 64) == "resnet50"
    assert backbone_name(50, 1, 128) == "wide_resnet50_2"
    assert backbone_name(101, 64, 4) == "resnext101_64x4d"
    assert backbone_name(101, 32, 4) == "resnext101_32x4d"  # which torchvision has no function for


@pytest.mark.parametrize("name", ["conv1_w", "res2_0_branch2a_w", "fpn_inner_res5_2_sum_w"])
def test_names_that_detectron2_matches_by_guess_are_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"is of a Detectron or Caffe2 network \('matching_heuristics'\)"):
        recognise([name])
