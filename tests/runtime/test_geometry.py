import cv2
import numpy as np
import pytest
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from wnlb.export.references.picture import (
    detectron2_size,
    mmdet_size,
    prepared,
    resized_by_nearest,
    resized_by_opencv,
    resized_by_pillow,
)
from wnlb.runtime.conventions import DETECTRON2, MMDETECTION
from wnlb.runtime.errors import PictureError
from wnlb.runtime.geometry import Geometry, Placement

HEIGHT, WIDTH = 64, 96
# Landscape, portrait, exact, one pixel, prime, very long both ways, larger and smaller than the input.
FRAMES = [(600, 900), (900, 600), (64, 96), (1, 1), (97, 61), (3, 4000), (4000, 3), (10, 15), (65, 96), (63, 97)]
MODES = [(resize, kind) for resize in ("fit", "stretch") for kind in ("bilinear", "nearest", "antialiased")]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 7919 + width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("resize", ["fit", "stretch"])
@pytest.mark.parametrize("frame", FRAMES)
def test_boxes_round_trip(frame, resize):
    placement = Geometry(HEIGHT, WIDTH, resize).place(*frame)
    rng = np.random.default_rng(0)
    height, width = frame
    boxes = np.sort(rng.random((50, 2, 2)), 1).reshape(50, 4) * [width, height, width, height]
    boxes = np.concatenate([boxes, [[0, 0, width, height], [0, 0, 0, 0]]]).astype(np.float32)
    there = placement.boxes_to_input(boxes)
    assert there.dtype == np.float32
    assert (there[:, 2:] <= np.array([placement.width, placement.height]) * (1 + 1e-6)).all()
    back = placement.boxes_to_frame(there)
    assert back.dtype == np.float32
    # Two divisions and two products in float32, each off by at most half an ulp of a coordinate up to max(frame).
    np.testing.assert_allclose(back, boxes, rtol=0, atol=4 * np.finfo(np.float32).eps * max(frame))


def test_planted_placements():
    assert Geometry(64, 96).place(600, 900) == Placement(600, 900, 64, 96)
    assert Geometry(64, 96).place(900, 600) == Placement(900, 600, 64, 42)  # 600 * 64 / 900 = 42.7, rounded down
    assert Geometry(64, 96).place(3, 4000) == Placement(3, 4000, 1, 96)  # 0.07 rows become one
    assert Geometry(64, 96, "stretch").place(900, 600) == Placement(900, 600, 64, 96)
    box = np.array([[0, 0, 21, 32]], np.float32)
    np.testing.assert_array_equal(Placement(900, 600, 64, 42).boxes_to_frame(box), [[0, 0, 300, 450]])


SIZE_RULES = [(MMDETECTION.size_rule, mmdet_size), (DETECTRON2.size_rule, detectron2_size)]


@pytest.mark.parametrize(("rule", "size"), SIZE_RULES)
def test_frames_are_as_large_as_the_framework_makes_them(rule, size):
    rng = np.random.default_rng(0)
    frames = [*rng.integers(1, 5000, (3000, 2)).tolist(), [800, 1333], [1333, 800], [640, 480], [427, 640]]
    for long, short in ((1333, 800), (608, 416), (101, 101), (2000, 7)):
        geometry = Geometry(2048, 2048, scale=(long, short), size_rule=rule)
        for frame in frames:
            height, width = size(*frame, short, long)
            assert geometry.place(*frame) == Placement(*frame, max(height, 1), max(width, 1))


def test_the_order_of_operations_shows():
    """The two frameworks differ by a pixel where a side ends at a half, which one order of products rounds away."""
    frames = [(height, width) for height in range(1, 400) for width in range(height, 400)]
    apart = [frame for frame in frames if mmdet_size(*frame, 416, 608) != detectron2_size(*frame, 416, 608)]
    assert apart
    for frame in apart:
        sizes = [Geometry(608, 608, scale=(608, 416), size_rule=rule).place(*frame) for rule, _ in SIZE_RULES]
        assert sizes[0] != sizes[1]


@pytest.mark.parametrize("rule", ["down", "nearest", "nearest, short side first"])
def test_a_smaller_input_scales_instead(rule):
    """Then both rules of rounding hold for the input's own limits, as without a scale."""
    small = Geometry(64, 96, scale=(1333, 800), size_rule=rule)
    without = Geometry(64, 96, size_rule=rule)
    for frame in FRAMES:
        assert small.place(*frame) == without.place(*frame)
    # 1333 x 800 of 640 x 480 is 1067 x 800: the input holds it, or one side of it, or neither
    for size, expected in (((800, 1088), (800, 1067)), ((800, 1056), (792, 1056)), ((768, 1344), (768, 1024))):
        height, width = expected
        placement = Geometry(*size, scale=(1333, 800), size_rule=rule).place(480, 640)
        width -= rule == "down" and width == 1067  # 1066.67
        assert placement == Placement(480, 640, height, width)


def test_planted_roundings():
    for rule, side in (("down", 391), ("nearest", 392), ("nearest, short side first", 392)):  # 391.6
        assert Geometry(416, 608, size_rule=rule).place(333, 517) == Placement(333, 517, side, 608)
        assert Geometry(416, 608, scale=(608, 416), size_rule=rule).place(333, 517) == Placement(333, 517, side, 608)
        assert Geometry(640, 640, scale=(608, 416), size_rule=rule).place(517, 333) == Placement(517, 333, 608, side)
        assert Geometry(64, 96, scale=(50, 50), size_rule=rule).place(1, 4000) == Placement(1, 4000, 1, 50)


def test_stretches_to_the_scale():
    for scale, expected in (((90, 60), (60, 90)), ((96, 64), (64, 96)), ((100, 60), (60, 96)), ((1, 500), (64, 1))):
        placement = Geometry(64, 96, "stretch", scale=scale).place(300, 200)
        assert (placement.height, placement.width) == expected


PREPARATIONS = [
    (MMDETECTION.size_rule, mmdet_size, "bilinear", resized_by_opencv),
    (MMDETECTION.size_rule, mmdet_size, "nearest", resized_by_nearest),
    (DETECTRON2.size_rule, detectron2_size, "antialiased", resized_by_pillow),
]


@pytest.mark.parametrize(("rule", "size", "interpolation", "resize"), PREPARATIONS)
@pytest.mark.parametrize("frame", [(120, 180), (180, 120), (40, 61), (33, 97), (64, 96), (200, 30), (1, 1)])
def test_inputs_are_those_of_the_frameworks(frame, rule, size, interpolation, resize):
    picture = noise(*frame)
    expected, content = prepared(picture, size(*frame, 64, 96), resize)
    geometry = Geometry(*expected.shape[:2], "fit", interpolation, (0, 0, 0), (96, 64), rule)
    ours, placement = geometry.prepare(picture[..., ::-1])
    assert (placement.height, placement.width) == content
    np.testing.assert_array_equal(ours, expected)


def test_boxes_keep_their_precision():
    placement = Placement(1080, 1920, 750, 1333)
    boxes = np.random.default_rng(0).uniform(0, 700, (50, 4))
    for there in (placement.boxes_to_frame, placement.boxes_to_input):
        exact, rounded = there(boxes), there(boxes.astype(np.float32))
        assert (exact.dtype, rounded.dtype) == (np.float64, np.float32)
        np.testing.assert_allclose(exact, rounded, rtol=1e-6)


@pytest.mark.parametrize("frame", [(1080, 1920), (1920, 1080), (333, 517), (97, 61)])
def test_boxes_return_as_in_the_frameworks(frame):
    """mmdetection divides by the factors of width and height; detectron2 multiplies by their inverse, and clips."""
    placement = Geometry(800, 1344, scale=(1333, 800), size_rule=MMDETECTION.size_rule).place(*frame)
    boxes = np.random.default_rng(0).uniform(0, 1, (200, 4)) * ([placement.width, placement.height] * 2)
    boxes = np.sort(boxes.reshape(-1, 2, 2), 1).reshape(-1, 4).astype(np.float32)  # clipped to the content
    height, width = frame
    factors = torch.tensor([placement.width / width, placement.height / height] * 2)
    divided = torch.from_numpy(boxes) / factors
    scaled = torch.from_numpy(boxes) * torch.tensor([width / placement.width, height / placement.height] * 2)
    limit = torch.tensor([width, height] * 2)
    ours = placement.boxes_to_frame(boxes)
    for theirs in (divided, torch.minimum(scaled, limit)):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=3 * np.finfo(np.float32).eps)


def test_boxes_in_the_padding_are_clipped_to_the_frame():
    placement = Geometry(64, 96).place(128, 64)  # 64 x 32 of the input
    boxes = np.array([[-5, -5, 40, 70], [50, 0, 96, 64]], np.float32)
    np.testing.assert_array_equal(placement.boxes_to_frame(boxes), [[0, 0, 64, 128], [64, 0, 64, 128]])
    assert placement.boxes_to_frame(np.empty((0, 4), np.float32)).shape == (0, 4)


def test_a_side_that_fits_exactly_loses_no_pixel():
    """49 * (64 / 49) is 63.99999999999999 in float64."""
    assert 49 * (64 / 49) < 64
    geometry = Geometry(64, 96)
    assert {geometry.place(side, side).height for side in range(1, 3000)} == {64}


@pytest.mark.parametrize("frame", [(600, 900), (37, 96), (500, 1333), (10, 15), (17, 400), (480, 720), (70, 100)])
def test_resizes_as_torchvision(frame):
    for height, width, size in ((HEIGHT, WIDTH, frame), (WIDTH, HEIGHT, frame[::-1])):  # landscape and portrait
        transform = GeneralizedRCNNTransform(HEIGHT, WIDTH, [0, 0, 0], [1, 1, 1]).eval()
        picture = noise(*size)
        rgb = torch.from_numpy(picture[..., ::-1].copy()).permute(2, 0, 1).float()
        expected = transform.resize(rgb, None)[0].permute(1, 2, 0).numpy()
        prepared, placement = Geometry(height, width).prepare(picture)
        assert (placement.height, placement.width) == expected.shape[:2]
        ours = prepared[: placement.height, : placement.width].astype(np.float32)
        # One level: half from rounding to uint8, the rest from OpenCV's weights of 11 bits.
        assert np.abs(ours - expected).max() <= 1


@pytest.mark.parametrize(("frame", "resized"), [((32, 48), (64, 96)), ((128, 192), (64, 96)), ((90, 60), (64, 42))])
def test_nearest_takes_pixels_and_makes_none(frame, resized):
    picture = noise(*frame)
    prepared, placement = Geometry(HEIGHT, WIDTH, "fit", "nearest").prepare(picture)
    rows, columns = (np.arange(resized[i]) * frame[i] // resized[i] for i in (0, 1))  # floor, as OpenCV and mmcv do
    assert (placement.height, placement.width) == resized
    np.testing.assert_array_equal(prepared[: resized[0], : resized[1], ::-1], picture[rows][:, columns])


@pytest.mark.parametrize(("resize", "interpolation"), MODES)
@pytest.mark.parametrize("frame", FRAMES)
def test_pads_right_and_bottom(frame, resize, interpolation):
    """A constant BGR frame becomes the same colour in RGB, and all else the padding."""
    pad_rgb = (124, 116, 104)
    prepared, placement = Geometry(HEIGHT, WIDTH, resize, interpolation, pad_rgb).prepare(
        np.full((*frame, 3), (1, 2, 3), np.uint8)
    )
    expected = np.full((HEIGHT, WIDTH, 3), pad_rgb, np.uint8)
    expected[: placement.height, : placement.width] = (3, 2, 1)
    assert prepared.dtype == np.uint8
    np.testing.assert_array_equal(prepared, expected)
    assert resize == "fit" or (placement.height, placement.width) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (128, 128), (416, 608)])
@pytest.mark.parametrize("frame", [*FRAMES, (1080, 1920), (333, 517), (41, 96), (3, 4000), (127, 254)], ids=str)
def test_the_padding_is_where_ultralytics_has_it(frame, size):
    """By the formulas of its ``LetterBox``, which rounds half to even."""
    share = min(size[0] / frame[0], size[1] / frame[1])
    height, width = (max(round(side * share), 1) for side in frame)
    top, left = (round((side - used) / 2 - 0.1) for side, used in zip(size, (height, width), strict=True))
    geometry = Geometry(*size, size_rule="nearest even", padding="centre", pad_rgb=(114, 114, 114))
    picture = noise(*frame)
    prepared, placement = geometry.prepare(picture)
    assert placement == Placement(*frame, height, width, top, left)
    resized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
    bottom, right = (round((side - used) / 2 + 0.1) for side, used in zip(size, (height, width), strict=True))
    expected = cv2.copyMakeBorder(resized, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(114, 114, 114))
    np.testing.assert_array_equal(prepared[..., ::-1], expected)
    boxes = np.random.default_rng(0).uniform(0, 1, (50, 4)) * ([frame[1], frame[0]] * 2)
    there = placement.boxes_to_input(boxes)
    np.testing.assert_allclose(there, boxes * ([width / frame[1], height / frame[0]] * 2) + [left, top, left, top])
    np.testing.assert_allclose(placement.boxes_to_frame(there), boxes, rtol=1e-9, atol=1e-9)


def test_halves_are_rounded_to_even():
    assert Geometry(64, 96, size_rule="nearest even").place(65 * 2, 192).height == 64  # no more than the input holds
    assert Geometry(640, 640, size_rule="nearest even").place(1, 1280).height == 1  # 0.5 would be nothing
    assert Geometry(640, 640, size_rule="nearest even").place(5, 1280).height == 2  # 2.5
    assert Geometry(640, 640, size_rule="nearest even").place(7, 1280).height == 4  # 3.5


def test_an_exact_frame_is_only_turned_to_rgb():
    frame = noise(HEIGHT, WIDTH)
    for resize, interpolation in MODES:
        prepared, _ = Geometry(HEIGHT, WIDTH, resize, interpolation).prepare(frame)
        np.testing.assert_array_equal(prepared, frame[..., ::-1])


@pytest.mark.parametrize("resize", ["fit", "stretch"])
@pytest.mark.parametrize("frame", [(600, 900), (900, 600), (97, 61), (20, 15)])
def test_pixels_land_where_boxes_say(frame, resize):
    """The white rectangle of a black frame is found in the input at ``boxes_to_input`` of it."""
    height, width = frame
    x1, y1, x2, y2 = width // 5, height // 3, width - width // 4, height - 2
    picture = np.zeros((height, width, 3), np.uint8)
    picture[y1:y2, x1:x2] = 255
    prepared, placement = Geometry(HEIGHT, WIDTH, resize).prepare(picture)
    ys, xs = np.nonzero(prepared[..., 0] > 127)
    found = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    expected = placement.boxes_to_input(np.array([[x1, y1, x2, y2]], np.float32))[0]
    assert np.abs(found - expected).max() <= 1  # the edge is in a pixel or beside it


@pytest.mark.parametrize("frame", FRAMES)
def test_writes_into_out(frame):
    geometry, picture = Geometry(HEIGHT, WIDTH, pad_rgb=(9, 8, 7)), noise(*frame)
    batch = np.full((2, HEIGHT, WIDTH, 3), 77, np.uint8)
    result, _ = geometry.prepare(picture, batch[1])
    assert np.shares_memory(result, batch)
    np.testing.assert_array_equal(batch[1], geometry.prepare(picture)[0])
    assert (batch[0] == 77).all()


def test_views_and_read_only_frames_are_taken():
    picture = noise(80, 120)
    for view in (picture[::-1], picture[:, ::-1], picture[..., ::-1], picture[::2, 10:], picture.transpose(1, 0, 2)):
        solid = view.copy()
        solid.flags.writeable = False
        np.testing.assert_array_equal(Geometry(64, 96).prepare(view)[0], Geometry(64, 96).prepare(solid)[0])


@pytest.mark.parametrize(
    ("frame", "got"),
    [
        (None, "NoneType"),
        ([[1, 2, 3]], "list"),
        (np.zeros((4, 5), np.uint8), "uint8 [4, 5]"),
        (np.zeros((4, 5, 3), np.float32), "float32 [4, 5, 3]"),
        (np.zeros((4, 5, 4), np.uint8), "uint8 [4, 5, 4]"),
        (np.zeros((4, 5, 1), np.uint8), "uint8 [4, 5, 1]"),
        (np.zeros((1, 4, 5, 3), np.uint8), "uint8 [1, 4, 5, 3]"),
        (np.zeros((0, 5, 3), np.uint8), "uint8 [0, 5, 3]"),
    ],
)
def test_a_bad_frame_is_refused(frame, got):
    with pytest.raises(PictureError) as refused:
        Geometry(HEIGHT, WIDTH).prepare(frame)
    assert f"frame is {got}; expected" in str(refused.value)
    assert "uint8 [h, w, 3] in BGR" in str(refused.value)
