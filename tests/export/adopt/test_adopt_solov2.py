"""``wnlb adopt`` on SOLOv2 files with the outputs of the head."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import solo_checkpoint
import torch
from small_solov2 import FORMS, SETTINGS, SmallHeads, TinyHeads, write_heads
from tensorrt_rtx_build import build_in_tensorrt_rtx

from wnlb.calibration.precision.convert import Converter, Int8Choice, save_checked
from wnlb.calibration.precision.groups import groups_of
from wnlb.export.adopt.adopt_onnx import adopt_onnx
from wnlb.export.adopt.families.body import static_body
from wnlb.export.adopt.families.solov2_file import ASSUMED, Solov2File
from wnlb.export.adopt.recognise import recognised
from wnlb.export.graph.solov2 import MatrixNms
from wnlb.export.graph.solov2_heads import Solov2Input
from wnlb.export.onnx_file.verify import dark_scene, onnx_session
from wnlb.export.options import ExportOptions
from wnlb.export.references import solov2
from wnlb.export.references.interface import SoloSettings, content_sizes, network_input
from wnlb.runtime.errors import VerificationError, WnlbError
from wnlb.runtime.onnx_file import read_model
from wnlb.runtime.predictor import Predictor
from wnlb.runtime.profile.stages import stage_of

GRIDS = {"grids": list(solo_checkpoint.SMALL_GRIDS)}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_heads(tmp_path_factory.mktemp("solo") / "raw.onnx", SmallHeads("mmdetection"))


@pytest.fixture(scope="module")
def adopted(original: Path) -> Path:
    """For a GPU, one frame."""
    path = original.with_name("model.onnx")
    adopt_onnx(recognised(original), path, ExportOptions(64, 96), original=original, sha256="ab")
    return path


def read(path: Path, **told: Any) -> Solov2File:
    file = recognised(path, overrides=told)
    assert isinstance(file, Solov2File)
    return file


def test_the_file_says_what_it_is(adopted: Path) -> None:
    _, contract = read_model(adopted)
    assert (contract.framework, contract.masks, contract.format) == ("mmdetection-solov2", "frame", 3)
    assert (contract.score_threshold, contract.detections, contract.candidates) == (0.05, 100, 1000)
    assert (contract.nms_threshold, contract.nms_rounds, contract.padding) == (None, None, "corner")
    assert contract.attention == {f"c{level}": "embedded/standard" for level in (2, 3, 4, 5)}
    assert contract.checkpoint_settings["grids"] == list(solo_checkpoint.SMALL_GRIDS)


def test_every_layer_has_its_place(adopted: Path) -> None:
    """In precision groups and in the profile, as in a file of ``wnlb export``."""
    model, _ = read_model(adopted)
    groups = groups_of(model)
    layers = Counter(groups[node.name] for node in model.graph.node if node.op_type == "Conv")
    assert layers == {
        "stem": 1,
        "c2": 4,
        **dict.fromkeys(("c3", "c4", "c5"), 5),
        **{f"c{level} block": 4 for level in (2, 3, 4, 5)},
        "fpn": 8,
        "mask features": 8,
        "cell head": 10,
        "predictors": 10,
    }
    stages = {stage_of(node.name) for node in model.graph.node}
    wanted = {"input", "cells", "mask features", "masks", "matrix nms", "detections"}
    assert stages == wanted | {*groups.values()} - {"cell head", "predictors"}


def test_detections_equal_those_of_the_reference(adopted: Path) -> None:
    """The reference of the checkpoint that the original was exported from, on a frame that is padded."""
    frame, size = np.zeros((1, 64, 96, 3), np.uint8), (64, 80)
    frame[0, :, :80] = dark_scene((1, *size, 3))[0]
    state = solo_checkpoint.small_state()
    expected = solov2.detections(state, SETTINGS, frame, np.array([size])).detections[0]
    with Predictor(adopted) as predictor:
        found = predictor(np.ascontiguousarray(frame[0, :, :80, ::-1]))
    kept = (expected["boxes"][:, 2:] > expected["boxes"][:, :2]).all(1)
    assert len(found) == kept.sum() > 10
    np.testing.assert_allclose(found.scores, expected["scores"][kept], atol=1e-4)
    np.testing.assert_array_equal(found.labels, expected["labels"][kept])


def test_tensorrt_rtx_builds_it(adopted: Path) -> None:
    assert build_in_tensorrt_rtx(adopted) > 10_000


def test_fp16_and_int8(adopted: Path, tmp_path: Path) -> None:
    converter = Converter(adopted)
    model, report = converter.half("fp16")
    assert report.half > 100
    save_checked(model, tmp_path / "half.onnx")
    ranges = dict.fromkeys(converter.activations, 8.0)
    choice = Int8Choice(frozenset(converter.groups) - {"stem", "predictors", "c2 block"}, "max", "fp16")
    save_checked(converter.int8(choice, ranges), tmp_path / "int8.onnx")


@pytest.mark.parametrize("form", FORMS)
def test_each_arrangement_is_read_the_same(form: str, tmp_path: Path) -> None:
    """What the network of the adopted file gives is what the original gives, arranged; and both what it computes."""
    model = TinyHeads(form)
    path = write_heads(tmp_path / "tiny.onnx", model)
    file = read(path, **(GRIDS if "all" in form else {}))
    assert (file.heads.grids, file.heads.classes, file.heads.channels) == (solo_checkpoint.SMALL_GRIDS, 3, 4)
    assert file.heads.logits == (form == "mmdetection")
    x = np.random.default_rng(0).random((1, 3, 64, 96), np.float32)
    session = onnx_session(str(path))
    names = [value.name for value in session.get_outputs()]
    given = file.given(dict(zip(names, session.run(None, {"input": x}), strict=True)))
    body = static_body(file.model, (64, 96), 1, None)
    made = onnx_session(body.SerializeToString()).run(list(file.outputs), {"input": x})
    with torch.no_grad():
        model.form = "mmdetection"
        kernels, logits, features = (t := model(torch.from_numpy(x)))[:5], t[5:10], t[10]
        probabilities = [level[0].sigmoid() for level in logits]
        scores = solov2._peaks(probabilities) if form != "mmdetection" else probabilities
        cells = [torch.cat([own.flatten(1).T for own in levels]) for levels in ([k[0] for k in kernels], scores)]
    for own, other, expected in zip(given, made, (*cells, features[0]), strict=True):
        np.testing.assert_allclose(own[0], expected, atol=1e-5)
        np.testing.assert_allclose(other[0], expected, atol=1e-5)


def test_a_network_that_wants_bgr() -> None:
    frame, content = dark_scene((2, 64, 96, 3)), np.array([[64, 96], [33, 61]], np.int32)
    mean, std = (103.53, 116.28, 123.675), (1.0, 57.0, 2.0)
    settings = SoloSettings(channel_order="bgr", mean=mean, std=std)
    expected = network_input(frame, content_sizes(frame, content), settings, torch.float32)
    graph = Solov2Input(64, 96, [v / 255 for v in mean[::-1]], [v / 255 for v in std[::-1]], bgr=True)
    found = graph(torch.from_numpy(frame), torch.from_numpy(content))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_what_the_file_does_not_tell(tmp_path: Path) -> None:
    """Mmdetection's configuration, or a setting by name, wins over what is assumed; both have to fit the file."""
    path = write_heads(tmp_path / "tiny.onnx", TinyHeads("mmdetection", classes=8))
    assert read(path).assumed == (
        *("channel_order", "mean", "std", "resize", "interpolation", "score_threshold", "detections"),
        *("cell_strides", "cell_threshold", "nms_candidates", "nms_sigma"),
    )
    config = tmp_path / "solov2.py"
    config.write_text(solo_checkpoint.small_config())
    file = recognised(path, config=config, overrides={"nms_sigma": 0.5})
    assert isinstance(file, Solov2File)
    assert file.assumed == ()
    entries = file.entries(ExportOptions(64, 96, score_threshold=0.2))
    assert (entries["scale"], entries["detections"], entries["score_threshold"]) == ((608, 416), 20, 0.2)
    assert file.selection(ExportOptions(64, 96)).nms_sigma == 0.5
    assert ASSUMED.nms_sigma == 2
    config.write_text(solo_checkpoint.small_config().replace("num_grids=[12, 10", "num_grids=[12, 11"))
    with pytest.raises(WnlbError, match=r"has grids of \[12, 10, 8, 6, 4\], its configuration \[12, 11"):
        recognised(path, config=config)
    with pytest.raises(WnlbError, match="has scores of 8 classes, the list of names has 2"):
        recognised(path, ("a", "b"))
    with pytest.raises(WnlbError, match=r"nms_threshold is 0\.5, but SOLOv2 has neither proposals nor NMS of boxes"):
        file.entries(ExportOptions(64, 96, nms_threshold=0.5))


def test_files_that_are_refused(tmp_path: Path) -> None:
    def refused(model: TinyHeads, *names: str, **told: Any) -> str:
        with pytest.raises(WnlbError) as error:
            read(write_heads(tmp_path / "tiny.onnx", model, names=names), **told)
        return str(error.value)

    assert "360 cells are not those of the grids 40, 36, 24, 16, 12" in refused(TinyHeads(FORMS[2]))
    assert "their names must hold 'kernel'" in refused(TinyHeads(FORMS[0], classes=4))
    assert "chooses its detections itself" in refused(TinyHeads(FORMS[2]), "dets", "labels", "masks")
    assert "setting 'sigma' is not known" in refused(TinyHeads(FORMS[0]), sigma=2)
    named = write_heads(tmp_path / "named.onnx", TinyHeads(FORMS[2], classes=4), names=("cate", "kernel", "seg"))
    assert read(named, **GRIDS).heads.kernels.names == ("kernel",)


def test_what_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verification sees candidates that are too few, and a Matrix NMS of another sigma in the graph."""
    original, path = write_heads(tmp_path / "tiny.onnx", TinyHeads("mmdetection", classes=8)), tmp_path / "model.onnx"
    with pytest.raises(VerificationError, match="more candidates pass the score threshold than --candidates holds"):
        adopt_onnx(recognised(original), path, ExportOptions(64, 96, candidates=8), original=original)
    monkeypatch.setattr("wnlb.export.graph.solov2.MatrixNms", lambda sigma: MatrixNms(0.5 * sigma))
    with pytest.raises(VerificationError, match=r"scores differ|are missing"):
        adopt_onnx(recognised(original), path, ExportOptions(64, 96), original=original)
    assert not path.exists()


def test_the_command(original: Path, tmp_path: Path, wnlb_here: Callable[..., Any]) -> None:
    """For a CPU and several frames, with names."""
    path, names = tmp_path / "model.onnx", tmp_path / "names.txt"
    names.write_text("\n".join("abcdefgh"))
    words = ("adopt", original, "-o", path, "--classes", names, "--target", "cpu", "--batch", "1-2")
    ran = wnlb_here(*words, "--set", "detections=30", "--json")
    assert ran.code == 0, ran
    told = json.loads(ran.out)
    assert told["contract"]["class_names"] == list("abcdefgh")
    assert (told["contract"]["detections"], told["contract"]["min_batch"]) == (30, 1)
    assert sum(case["detections"] for case in told["verification"]) > 30
    frames = list(dark_scene((2, 64, 96, 3)))
    with Predictor(path) as predictor:
        together = predictor.predict_batch(frames)
        alone = [predictor(frame) for frame in frames]
    for own, other in zip(together, alone, strict=True):
        assert len(own) == len(other) > 5
        np.testing.assert_allclose(own.scores, other.scores, atol=1e-5)
    onnx.checker.check_model(path)
