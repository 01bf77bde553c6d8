import dataclasses

import numpy as np
import pytest
import torch

from wnlb.export.checkpoints.checkpoint import load_checkpoint
from wnlb.export.onnx_file.export_onnx import configure
from wnlb.export.onnx_file.reference import match
from wnlb.export.options import ExportOptions
from wnlb.export.references.picture import detectron2_size, mmdet_size, pasted
from wnlb.runtime.backend import open_backend
from wnlb.runtime.contract import Contract
from wnlb.runtime.errors import PictureError, WnlbError
from wnlb.runtime.overlap import abreast
from wnlb.runtime.predictor import Predictor, geometry_of


class PlantedBackend:
    """Gives the same arrays every time, as a backend with buffers of its own would."""

    description = "planted"

    def __init__(self, contract: Contract, **outputs: np.ndarray) -> None:
        self.contract = contract
        self.outputs = outputs
        self.closed = 0
        self.inputs: list[np.ndarray] = []
        self.contents: list[list[list[int]] | None] = []

    def run(self, inputs):
        assert list(inputs) == list(self.contract.input_shapes)
        self.inputs.append(inputs[self.contract.input_name].copy())
        self.contents.append(inputs["content"].tolist() if "content" in inputs else None)
        return self.outputs

    def close(self):
        self.closed += 1


@pytest.fixture
def backend(make_contract):
    """Two frames of 64 x 96: three boxes in the first, one in the second; the other rows are padding."""
    contract = make_contract(batch=2, detections=4, pad_rgb=(7, 8, 9))
    boxes = np.zeros((2, 4, 4), np.float32)
    boxes[0, :3] = [[8, 16, 40, 48], [0, 0, 96, 64], [60, 10, 90, 60]]
    boxes[1, 0] = [0, 0, 32, 64]
    masks = np.zeros((2, 4, 28, 28), np.float32)
    masks[:, 0], masks[0, 1, :, :14] = 1, 1
    scores = np.array([[0.9, 0.5, 0.25, 0], [0.75, 0, 0, 0]], np.float32)
    labels = np.array([[2, 1, 1, 0], [1, 0, 0, 0]], np.int32)
    return PlantedBackend(contract, boxes=boxes, scores=scores, labels=labels, masks=masks, count=np.array([3, 1]))


def test_masks_of_the_frame(make_contract):
    """Centred, and pasted by the framework's rule: what has no pixel is no detection of ultralytics."""
    contract = make_contract(batch=1, detections=4, framework="ultralytics", padding="centre", masks="frame")
    boxes = np.array([[[32, 0, 64, 32], [32, 0, 64, 32], [40, 8, 200, 200], [0, 0, 9, 9]]], np.float32)
    masks = np.ones((1, 4, 16, 24), np.float16)
    masks[0, 1] = -1
    scores, labels = np.array([[0.9, 0.8, 0.7, 0.6]], np.float32), np.array([[1, 2, 2, 1]], np.int32)
    planted = PlantedBackend(contract, boxes=boxes, scores=scores, labels=labels, masks=masks, count=np.array([3]))
    with Predictor(planted) as predictor:
        found = predictor(frame(128, 64))  # 64 x 32 of the input, from column 32
        assert planted.contents == [[[64, 32]]]
        np.testing.assert_allclose(found.scores, [0.9, 0.7])
        assert found.labels.tolist() == [1, 2]
        assert found.boxes.tolist() == [[0, 0, 64, 64], [16, 16, 64, 128]]
        assert [(mask.x, mask.y, *mask.pixels.shape) for mask in found.masks] == [(0, 0, 64, 64), (16, 16, 112, 48)]
        assert all(mask.pixels.all() for mask in found.masks)
    with Predictor(planted, score_threshold=0.75) as predictor:
        assert len(predictor(frame(128, 64)).masks) == 1


def frame(height: int, width: int, value: int = 50) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_maps_boxes_to_each_frame(backend):
    wide, tall = Predictor(backend).predict_batch([frame(640, 960), frame(200, 100)])
    assert (wide.height, wide.width, tall.height, tall.width) == (640, 960, 200, 100)
    np.testing.assert_allclose(wide.boxes, [[80, 160, 400, 480], [0, 0, 960, 640], [600, 100, 900, 600]], rtol=1e-6)
    np.testing.assert_allclose(tall.boxes, [[0, 0, 100, 200]], rtol=1e-6)  # 200 x 100 lies in 64 x 32 of the input
    np.testing.assert_array_equal(wide.scores, np.array([0.9, 0.5, 0.25], np.float32))
    np.testing.assert_array_equal(wide.labels, [2, 1, 1])
    assert (len(wide.masks), len(tall.masks)) == (3, 1)


def test_masks_fill_their_part_of_the_frame(backend):
    whole, half, none = Predictor(backend)(frame(640, 960)).full_masks()
    for mask, (x1, y1, x2, y2) in ((whole, (80, 160, 400, 480)), (half, (0, 0, 480, 640))):
        expected = np.zeros((640, 960), bool)
        expected[y1:y2, x1:x2] = True
        # An edge moves by less than half of a mask pixel, at most 960 / 28 / 2 of the frame's.
        intersection, union = (mask & expected).sum(), (mask | expected).sum()
        assert intersection / union > 0.95
    assert not none.any()


@pytest.mark.parametrize(
    ("framework", "size"), [("mmdetection", mmdet_size), ("detectron2", detectron2_size)], ids=["mmdet", "detectron2"]
)
def test_pastes_as_the_frameworks_weights_were_trained_in(make_contract, framework, size):
    rng = np.random.default_rng(0)
    contract = make_contract(framework=framework, scale=(90, 60), detections=5, resize="fit")
    height, width = size(333, 517, 60, 90)
    boxes = rng.uniform(0, 1, (1, 5, 2, 2)) * [width, height]
    boxes = np.sort(boxes, 2).reshape(1, 5, 4).astype(np.float32)
    boxes[0, 4] = [5, 7, 5, 30]  # empty: detectron2 drops it
    masks = rng.random((1, 5, 28, 28), np.float32)
    outputs = {"boxes": boxes, "scores": np.array([[0.9, 0.8, 0.7, 0.6, 0.5]], np.float32), "masks": masks}
    outputs |= {"labels": np.array([[1, 2, 1, 2, 1]], np.int32), "count": np.array([5], np.int32)}
    found = Predictor(PlantedBackend(contract, **outputs))(frame(333, 517))
    expected, pixels = pasted(boxes[0], masks[0], (height, width), (333, 517))
    rows = 4 if framework == "detectron2" else 5
    assert found.boxes.dtype == np.float32
    assert found.labels.tolist() == [1, 2, 1, 2, 1][:rows]
    np.testing.assert_array_equal(found.boxes, expected[:rows].astype(np.float32))
    np.testing.assert_array_equal([*found.full_masks()], pixels[:rows])


def test_drops_the_empty_wherever_they_are(make_contract):
    """Without masks too; boxes in the padding are empty once they are clipped."""
    contract = make_contract(framework="detectron2", detections=4, masks="none")
    boxes = np.array([[[50, 0, 90, 60], [0, 0, 20, 20], [3, 3, 3, 3], [10, 4, 30, 64]]], np.float32)
    scores, labels = np.array([[0.9, 0.8, 0.7, 0.6]], np.float32), np.array([[1, 2, 1, 2]], np.int32)
    backend = PlantedBackend(contract, boxes=boxes, scores=scores, labels=labels, count=np.array([4]))
    found = Predictor(backend)(frame(64, 40))
    assert (found.labels.tolist(), found.masks) == ([2, 2], None)
    np.testing.assert_array_equal(found.boxes, boxes[0, [1, 3]])
    np.testing.assert_array_equal(found.scores, scores[0, [1, 3]])


def test_prepares_each_frame_as_the_contract_says(backend):
    Predictor(backend).predict_batch([frame(64, 96, 50), frame(64, 48, 60)])
    (batch,) = backend.inputs
    assert batch.dtype == np.uint8
    assert (batch[0] == 50).all()
    assert (batch[1, :, :48] == 60).all()
    assert (batch[1, :, 48:] == (7, 8, 9)).all()
    contract = dataclasses.replace(
        backend.contract, framework="mmdetection", resize="stretch", scale=(90, 60), interpolation="nearest"
    )
    geometry = geometry_of(contract)
    assert dataclasses.astuple(geometry) == (64, 96, "stretch", "nearest", (7, 8, 9), (90, 60), "nearest", "corner")


def test_tells_what_of_each_input_the_frame_fills(backend):
    predictor = Predictor(backend)
    predictor.predict_batch([frame(64, 96), frame(200, 100)])
    predictor.predict_batch([frame(30, 96)])
    assert backend.contents == [[[64, 96], [64, 32]], [[30, 96], [0, 0]]]
    backend.contract = predictor.contract = dataclasses.replace(backend.contract, resize="stretch")
    Predictor(backend)(frame(200, 100))
    assert backend.contents[2] == [[64, 96], [0, 0]]


def test_a_model_of_format_1_is_given_its_image_alone(backend):
    """Its padding is a part of the picture."""
    backend.contract = dataclasses.replace(backend.contract, format=1)
    Predictor(backend)(frame(64, 48, 60))
    assert backend.contents == [None]
    assert (backend.inputs[0][0, :, 48:] == (7, 8, 9)).all()


def test_a_batch_smaller_than_the_models_leaves_nothing_of_the_one_before(backend):
    predictor = Predictor(backend)
    predictor.predict_batch([frame(64, 96, 50), frame(64, 96, 60)])
    assert len(predictor.predict_batch([frame(64, 96, 70)])) == 1
    assert (backend.inputs[1][0] == 70).all()
    assert not backend.inputs[1][1].any()


@pytest.mark.parametrize("count", [0, 3])
def test_a_batch_that_does_not_fit_is_refused(backend, count):
    with pytest.raises(WnlbError, match=f"{count} frames; expected 1 to 2"):
        Predictor(backend).predict_batch([frame(64, 96)] * count)
    assert backend.inputs == []


@pytest.mark.parametrize(
    ("threshold", "rows"), [(0, 3), (0.25, 3), (0.2500001, 2), (0.5, 2), (0.9, 1), (0.91, 0), (1, 0)]
)
def test_keeps_scores_from_the_threshold_up(backend, threshold, rows):
    found = Predictor(backend, score_threshold=threshold)(frame(64, 96))
    assert len(found) == len(found.boxes) == len(found.masks) == rows


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_bad_threshold_is_refused(backend, threshold):
    with pytest.raises(WnlbError, match="score threshold"):
        Predictor(backend, score_threshold=threshold)


def test_a_model_without_masks(backend):
    backend.contract = dataclasses.replace(backend.contract, masks="none")
    del backend.outputs["masks"]
    found = Predictor(backend)(frame(64, 96))
    assert found.masks is None
    assert len(found) == 3


def test_nothing_found(backend):
    backend.outputs["count"] = np.array([0, 0])
    found = Predictor(backend)(frame(64, 96))
    assert (len(found), found.masks, found.boxes.shape) == (0, (), (0, 4))


def test_detections_outlive_the_buffers_of_the_backend(backend):
    found = Predictor(backend)(frame(64, 96))
    boxes, scores, labels = found.boxes.copy(), found.scores.copy(), found.labels.copy()
    masks = [*found.full_masks()]
    for values in backend.outputs.values():
        values[...] = 0
    np.testing.assert_array_equal(found.boxes, boxes)
    np.testing.assert_array_equal(found.scores, scores)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal([*found.full_masks()], masks)


def test_a_bad_frame_is_refused_before_the_model_runs(backend):
    with pytest.raises(PictureError, match="NoneType"):
        Predictor(backend)(None)
    assert backend.inputs == []


def test_closes_its_backend_also_after_an_error(backend):
    with pytest.raises(PictureError), Predictor(backend) as predictor:
        predictor(None)
    assert backend.closed == 1


@pytest.mark.parametrize("size", [(64, 96), (480, 640), (640, 480), (1, 1), (5, 700)])
def test_a_real_model_answers_inside_the_frame(real, size):
    height, width = size
    found = real(np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8))
    assert len(found) > 0
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [width, height, width, height]).all()
    assert (found.boxes[:, :2] <= found.boxes[:, 2:]).all()
    assert (np.diff(found.scores) <= 0).all()
    assert found.scores.min() > real.contract.score_threshold
    assert set(found.labels.tolist()) <= set(range(1, 9))
    assert [mask.shape for mask in found.full_masks()] == [size] * len(found)
    assert set(real.times_ms) == {"prepare", "infer", "paste"}


@pytest.fixture(scope="module")
def real(small_model_path):
    with Predictor(small_model_path, device="cpu") as predictor:
        yield predictor


@pytest.mark.parametrize("size", [(64, 71), (47, 96), (50, 96)])
def test_a_real_model_finds_what_torchvision_finds_in_a_padded_frame(real, small_checkpoint_path, size):
    """With its own transform, which pads to multiples of 32: here to the input's shape, and resizes nothing."""
    model, _ = load_checkpoint(small_checkpoint_path)
    configure(model, ExportOptions(64, 96))
    frame = np.random.default_rng(2).integers(0, 256, (*size, 3), np.uint8)
    model.transform.min_size, model.transform.max_size = (min(size),), max(size)
    with torch.no_grad():
        (eager,) = model([torch.from_numpy(frame[..., ::-1].transpose(2, 0, 1).copy()) / 255])
    ours = real(frame)
    assert len(eager["scores"]) == len(ours) > 0
    outputs = {"boxes": ours.boxes, "scores": ours.scores, "labels": ours.labels, "count": np.array(len(ours))}
    expected = {name: value.numpy() for name, value in eager.items()}
    pairs, missing, extra = match(expected, outputs, 0.05, nms_threshold=model.roi_heads.nms_thresh)
    assert (missing, extra) == (0, 0)
    masks = [*ours.full_masks()]
    for a, b in pairs:
        np.testing.assert_allclose(ours.boxes[b], eager["boxes"][a], atol=0.05)
        np.testing.assert_allclose(ours.scores[b], eager["scores"][a], atol=1e-4)
        assert (masks[b] != (eager["masks"][a, 0].numpy() > 0.5)).mean() < 1e-3


def test_an_enlarged_frame_gives_enlarged_boxes(real):
    """Every pixel twice, resized back to the input with bilinear weights, is the same input."""
    picture = np.random.default_rng(3).integers(0, 256, (64, 96, 3), np.uint8)
    small, large = real(picture), real(picture.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(small.scores, large.scores)
    np.testing.assert_allclose(2 * small.boxes, large.boxes, rtol=1e-6)


@pytest.mark.parametrize("image", [np.zeros((2, 96, 64, 3), np.uint8), np.zeros((2, 64, 96, 3), np.float32)])
def test_a_wrong_input_is_refused(planted_model_path, image):
    inputs = {"image": image, "content": np.zeros((2, 2), np.int32)}
    with pytest.raises(WnlbError, match=r"input image is .*expected uint8 \[2, 64, 96, 3\]"):
        open_backend(planted_model_path, device="cpu").run(inputs)


def test_a_file_of_format_1_runs_as_before(tmp_path, planted_model, make_contract):
    path = planted_model(tmp_path / "old.onnx", make_contract(batch=2, format=1, pad_rgb=(255, 255, 255)))
    with Predictor(path, device="cpu") as predictor:
        found = predictor(np.zeros((64, 48, 3), np.uint8))
    assert found.scores[0] == pytest.approx(0.5)  # half of what it sees is its padding
    np.testing.assert_array_equal(found.boxes, [[8, 16, 40, 48], [32, 0, 48, 64]])


def test_a_closed_backend_says_so(planted_model_path):
    backend = open_backend(planted_model_path, device="cpu")
    predictor = Predictor(backend)
    predictor.close()
    backend.close()
    with pytest.raises(WnlbError, match="closed"):
        predictor(frame(64, 96))


def test_a_model_of_several_batches_gets_the_frames_that_come(planted_batches_path):
    frames = [frame(64, 96 - 10 * i, 40 * (i + 1)) for i in range(5)]
    with Predictor(planted_batches_path, device="cpu") as predictor:
        run, seen = predictor.backend.run, []
        predictor.backend.run = lambda inputs: run(seen.append({n: len(a) for n, a in inputs.items()}) or inputs)
        alone = [predictor(own).scores for own in frames]
        for count in (5, 1, 3):
            found = predictor.predict_batch(frames[:count])
            np.testing.assert_array_equal([own.scores for own in found], alone[:count])
        assert seen == [{"image": n, "content": n} for n in (1, 1, 1, 1, 1, 5, 1, 3)]
        with pytest.raises(WnlbError, match="6 frames; expected 1 to 5"):
            predictor.predict_batch([*frames, frames[0]])


def test_a_model_of_two_frames_or_more_is_given_two(planted_model, make_contract, tmp_path):
    path = planted_model(tmp_path / "m.onnx", make_contract(batch=4, min_batch=2))
    with Predictor(path, device="cpu") as predictor:
        run, seen = predictor.backend.run, []
        predictor.backend.run = lambda inputs: run(seen.append(inputs["content"].tolist()) or inputs)
        assert len(predictor.predict_batch([frame(64, 96, 9)])) == 1
        assert seen == [[[64, 96], [0, 0]]]


def test_frames_at_once_are_those_of_one_after_the_other(small_cpu_model_path):
    """The real network, run by two threads at once on one session: bit for bit."""
    rng = np.random.default_rng(4)
    frames = [rng.integers(0, 256, (64, 96 - 4 * i, 3), np.uint8) for i in range(12)]
    with Predictor(small_cpu_model_path, device="cpu", threads=2) as alone:
        expected = [alone(own) for own in frames]
    with Predictor(small_cpu_model_path, device="cpu", threads=2, at_once=2, score_threshold=0.06) as predictor:
        lanes = predictor.abreast()
        assert [lane.score_threshold for lane in lanes] == [0.06, 0.06]
        found = list(abreast((own for own in frames), lanes))
    assert sum(map(len, expected)) > 12
    for own, other in zip(found, expected, strict=True):
        other = other.above(0.06)
        for name in ("boxes", "scores", "labels"):
            np.testing.assert_array_equal(getattr(own, name), getattr(other, name))
        for mask, same in zip(own.full_masks(), other.full_masks(), strict=True):
            np.testing.assert_array_equal(mask, same)
