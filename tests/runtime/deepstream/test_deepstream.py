"""``wnlb deepstream``: its file, its parser and its sizes against ``Predictor`` and Gst-nvinfer's arithmetic."""

from __future__ import annotations

import configparser
import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from tensorrt_rtx_build import build_in_tensorrt_rtx

from wnlb.export.onnx_file.verify import dark_scene
from wnlb.plugins.library import SOURCE
from wnlb.runtime.contract import Contract
from wnlb.runtime.deepstream.configuration import Deployment, app_text, nvinfer_text, resized
from wnlb.runtime.deepstream.planar import for_nvinfer
from wnlb.runtime.onnx_file import contract_of, read_model
from wnlb.runtime.predictor import Predictor

HERE = Path(__file__).parent
FRAME = (80, 96)  # is 64 x 76 in the small model's input of 64 x 96
TYPES = {"float32": 0, "float16": 1, "int32": 3}


class Layer(ctypes.Structure):
    _fields_ = [
        *(("name", ctypes.c_char_p), ("type", ctypes.c_int), ("rank", ctypes.c_uint)),
        *(("dims", ctypes.c_uint * 8), ("data", ctypes.c_void_p)),
    ]


@pytest.fixture(scope="session")
def parser(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """The parser of one frame's outputs: rows of class, box, score and mask size, and the masks; None: refused."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    library = tmp_path_factory.mktemp("deepstream") / "libdriver.so"
    folders = [f"-I{HERE}", f"-I{SOURCE / 'deepstream'}"]
    command = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", *folders]
    subprocess.run([*command, str(HERE / "driver.cpp"), "-o", str(library)], check=True)
    parse = ctypes.CDLL(str(library)).parse

    def parsed(outputs: dict[str, NDArray], thresholds: list[float], size: tuple[int, int] = (64, 96)) -> Any:
        kept = [np.ascontiguousarray(values) for values in outputs.values()]
        layers = (Layer * len(kept))()
        for layer, (name, values) in zip(layers, zip(outputs, kept, strict=True), strict=True):
            layer.name, layer.type, layer.rank = name.encode(), TYPES[values.dtype.name], values.ndim
            layer.dims[: values.ndim] = values.shape
            layer.data = values.ctypes.data
        rows = np.zeros((400, 8), np.float32)
        cells = np.zeros((400, 28 * 28), np.float32)
        limits = (ctypes.c_float * len(thresholds))(*thresholds)
        pointers = (rows.ctypes.data_as(ctypes.c_void_p), cells.ctypes.data_as(ctypes.c_void_p))
        found = parse(layers, len(kept), size[1], size[0], len(thresholds), limits, *pointers)
        return None if found < 0 else (rows[:found], cells[:found].reshape(-1, 28, 28))

    return parsed


def planted() -> dict[str, NDArray]:
    """One frame of five rows, three of which count."""
    rng = np.random.default_rng(2)
    boxes = np.array([[8, 16, 40, 48], [-3, 0, 99, 70], [60, 10, 90, 60], [0, 0, 9, 9], [0, 0, 9, 9]], np.float32)
    return {
        "boxes": boxes,
        "scores": np.array([0.9, 0.5, 0.25, 0.2, 0.1], np.float32),
        "labels": np.array([2, 1, 1, 2, 1], np.int32),
        "masks": rng.random((5, 28, 28)).astype(np.float32),
        "count": np.array([3], np.int32),
    }


def test_rows_are_copied_and_clipped(parser: Callable[..., Any]) -> None:
    outputs = planted()
    rows, masks = parser(outputs, [0.1, 0.1])
    expected = [[1, 8, 16, 32, 32, 0.9, 28, 28], [0, 0, 0, 96, 64, 0.5, 28, 28], [0, 60, 10, 30, 50, 0.25, 28, 28]]
    np.testing.assert_array_equal(rows, np.array(expected, np.float32))
    np.testing.assert_array_equal(masks, outputs["masks"][:3])


def test_each_class_has_its_threshold_and_odd_rows_are_left_out(parser: Callable[..., Any]) -> None:
    rows, masks = parser(planted(), [0.4, 0.95])  # as Gst-nvinfer would drop them, without freeing their masks
    assert rows[:, :2].tolist() == [[0, 0]]
    np.testing.assert_array_equal(masks[0], planted()["masks"][1])
    assert len(parser(planted(), [0.1])[0]) == 2  # labels of one class more than are configured
    for change in (
        {"count": np.array([-4], np.int32)},
        {"labels": np.zeros(5, np.int32)},
        {"scores": np.full(5, np.nan, np.float32)},
        {"boxes": np.full((5, 4), np.nan, np.float32)},
        {"boxes": np.full((5, 4), 7, np.float32)},
    ):
        assert len(parser({**planted(), **change}, [0.0, 0.0])[0]) == 0, change
    assert len(parser({**planted(), "count": np.array([2**31 - 1], np.int32)}, [0.0, 0.0])[0]) == 5


def test_without_masks(parser: Callable[..., Any]) -> None:
    outputs = planted()
    del outputs["masks"]
    rows, _ = parser(outputs, [0.1, 0.1])
    assert rows[:, 6:].tolist() == [[0, 0]] * 3


@pytest.mark.parametrize("name", ["boxes", "scores", "labels", "masks", "count"])
def test_an_engine_of_another_model_is_told(
    parser: Callable[..., Any], name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    wrong = {**planted(), name: planted()[name].astype(np.float16)}
    assert parser(wrong, [0.1, 0.1]) is None
    assert f"output {name} has another type or shape" in capfd.readouterr().err
    shorter = {**planted(), name: planted()[name][..., None]}
    assert parser(shorter, [0.1, 0.1]) is None
    if name != "masks":
        missing = planted()
        del missing[name]
        assert parser(missing, [0.1, 0.1]) is None
        assert f"the engine has no output {name}" in capfd.readouterr().err


@pytest.mark.parametrize("model", ["brief_model_path", "batches_model_path"])
def test_the_file_and_the_parser_find_what_the_predictor_finds(
    model: str, request: pytest.FixtureRequest, parser: Callable[..., Any]
) -> None:
    """Bit by bit, for frames whose place in the input DeepStream and Predictor compute alike."""
    path = request.getfixturevalue(model)
    file, contract = read_model(path)
    content = resized(contract, FRAME)
    assert content == (64, 76)
    made = for_nvinfer(file, contract, content)
    onnx.checker.check_model(made, full_check=True)
    assert contract_of(made) is None
    assert [value.name for value in made.graph.input] == ["image"]
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    frames = list(dark_scene((min(contract.batch, 2), *FRAME, 3)))
    with Predictor(path) as predictor:
        detections = predictor.predict_batch(frames)
        pixels = np.stack([predictor.geometry.prepare(frame)[0] for frame in frames])
    pixels[:, :, content[1] :] = 0  # Gst-nvinfer pads with black
    outputs = session.run(None, {"image": pixels.transpose(0, 3, 1, 2).astype(np.float32)})
    named = dict(zip([value.name for value in made.graph.output], outputs, strict=True))
    assert named["count"].shape == (len(frames), 1)
    for i, expected in enumerate(detections):
        of_frame = {name: values[i] for name, values in named.items()}
        rows, masks = parser(of_frame, [contract.score_threshold] * len(contract.class_names))
        assert len(rows) == len(expected) > 3
        np.testing.assert_array_equal(rows[:, 0] + 1, expected.labels)
        np.testing.assert_array_equal(rows[:, 5], expected.scores)
        corners = np.concatenate([rows[:, 1:3], rows[:, 1:3] + rows[:, 3:5]], 1) * (FRAME[0] / content[0])
        np.testing.assert_allclose(corners, np.minimum(expected.boxes, [96, 80, 96, 80]), atol=1.3)  # 76, not 76.8
        np.testing.assert_array_equal(masks, of_frame["masks"][: len(rows)])


def test_tensorrt_rtx_builds_it(brief_model_path: Path, batches_model_path: Path, tmp_path: Path) -> None:
    file, contract = read_model(brief_model_path)
    (tmp_path / "model.onnx").write_bytes(for_nvinfer(file, contract, (64, 76)).SerializeToString())
    assert build_in_tensorrt_rtx(tmp_path / "model.onnx") > 10_000


def test_sizes_are_those_of_nvinfer(make_contract: Callable[..., Contract]) -> None:
    """get_converted_buffer: even sides of the frame; one side fills the input, the other is rounded down."""
    fit = make_contract(height=608, width=1088)
    for frame, expected in {
        (1080, 1920): (608, 1080),
        (1081, 1921): (608, 1080),
        (720, 1280): (608, 1080),
        (600, 1920): (340, 1088),
        (1920, 1080): (608, 342),
        (608, 1088): (608, 1088),
    }.items():
        assert resized(fit, frame) == expected, frame
    assert resized(make_contract(height=608, width=1088, resize="stretch"), (600, 1920)) == (608, 1088)


def test_configurations_say_what_the_file_is(make_contract: Callable[..., Contract]) -> None:
    contract = make_contract(height=608, width=1088, batch=4, min_batch=1, class_names=("car", "bus; red"))
    deployment = Deployment((1080, 1920), 3, 0.35, "rtsp://camera/night")
    nvinfer, app = configparser.ConfigParser(interpolation=None), configparser.ConfigParser(interpolation=None)
    nvinfer.read_string(nvinfer_text(contract, deployment))
    app.read_string(app_text(contract, deployment))
    found = nvinfer["property"]
    assert found["infer-dims"] == "3;608;1088"
    assert found["output-blob-names"] == "boxes;scores;labels;masks;count"
    kept = ("num-detected-classes", "batch-size", "cluster-mode", "network-type", "output-instance-mask")
    assert [found[name] for name in kept] == ["2", "3", "4", "3", "1"]
    assert found["parse-bbox-instance-mask-func-name"] in (SOURCE / "deepstream" / "parser.cpp").read_text()
    assert f"{found['custom-lib-path']}: parser.cpp" in (SOURCE / "deepstream" / "Makefile").read_text()
    assert nvinfer["class-attrs-all"]["pre-cluster-threshold"] == "0.35"
    assert [name for name in app.sections() if name.startswith("source")] == ["source0", "source1", "source2"]
    assert (app["streammux"]["width"], app["streammux"]["height"], app["streammux"]["batch-size"]) == (
        "1920",
        "1080",
        "3",
    )
    assert (app["tiled-display"]["rows"], app["tiled-display"]["columns"]) == ("2", "2")
    without = nvinfer_text(make_contract(masks="none", resize="stretch"), deployment)
    for line in ("output-instance-mask=0", "maintain-aspect-ratio=0", "output-blob-names=boxes;scores;labels;count"):
        assert line in without.splitlines()


def test_the_command_writes_a_folder(wnlb_here: Callable[..., Any], batches_model_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "night"
    ran = wnlb_here("deepstream", batches_model_path, "-o", folder, "--frame", "90x160", "--cameras", 2)
    assert (ran.code, ran.err) == (0, "")
    names = {"model.onnx", "labels.txt", "config_infer_wnlb.txt", "deepstream_app_wnlb.txt", "parser.cpp", "Makefile"}
    assert {path.name for path in folder.iterdir()} == names
    told = "trtexec --onnx=model.onnx --stronglyTyped --saveEngine=model.engine --minShapes=image:1x3x64x96 "
    assert f"{told}--optShapes=image:2x3x64x96 --maxShapes=image:5x3x64x96" in ran.out
    assert len((folder / "labels.txt").read_text().splitlines()) == 8
    assert "to be known" not in ran.out


def test_refusals(
    wnlb_here: Callable[..., Any],
    brief_model_path: Path,
    small_cpu_model_path: Path,
    planted_model: Callable[..., Path],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "o"
    two = planted_model(tmp_path / "two.onnx")
    for words, message in (
        ([small_cpu_model_path, "--frame", "90x160"], "is made for a CPU"),
        ([brief_model_path, "--frame", "1080p"], "expected HEIGHTxWIDTH"),
        ([brief_model_path, "--frame", "1x160"], "2 to 16384 pixels a side"),
        ([brief_model_path, "--frame", "90x160", "--cameras", "2"], "expected 1 to 1"),
        ([brief_model_path, "--frame", "90x160", "--score-threshold", "nan"], "expected a number above 0 up to 1"),
        (
            [two, "--frame", "90x160"],
            "takes 2 frames, never fewer, and cameras do not keep step",
        ),
        ([tmp_path / "no.onnx", "--frame", "90x160"], "does not exist"),
    ):
        assert message in wnlb_here("deepstream", *words, "-o", folder).refused(), words
    assert not folder.exists()
