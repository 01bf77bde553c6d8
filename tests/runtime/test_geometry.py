import numpy as np
import pytest
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from wnlb.runtime.errors import PictureError
from wnlb.runtime.geometry import Geometry, Placement

HEIGHT, WIDTH = 64, 96
# Landscape, portrait, exact, one pixel, prime, very long both ways, larger and smaller than the input.
FRAMES = [(600, 900), (900, 600), (64, 96), (1, 1), (97, 61), (3, 4000), (4000, 3), (10, 15), (65, 96), (63, 97)]
MODES = [(resize, kind) for resize in ("fit", "stretch") for kind in ("bilinear", "nearest")]


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
