import hashlib

import cv2
import numpy as np
import pytest

from wnlb.calibration.scenes.camera import Camera, expose
from wnlb.calibration.scenes.scene import Scene, make_scene
from wnlb.calibration.scenes.shapes import CLASSES, draw_object
from wnlb.runtime.errors import WnlbError


def digest(*arrays: np.ndarray) -> str:
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()[:16]


def test_same_seed_same_pixels() -> None:
    """Pinned: a change of this hash makes every benchmark figure incomparable with older ones."""
    scene = make_scene(7, 3, 128, 160)
    picture = expose(scene.light, Camera(100), np.random.default_rng(1))
    assert digest(scene.clean, *(o.mask for o in scene.objects)) == "cfbe5cf210658beb"
    assert digest(picture) == "e540b2f495004a72"
    again = make_scene(7, 3, 128, 160)
    assert digest(again.light) == digest(scene.light)
    assert digest(make_scene(7, 4, 128, 160).clean) != digest(scene.clean)
    assert digest(make_scene(8, 3, 128, 160).clean) != digest(scene.clean)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(0, i, 160, 160) for i in range(60)]


def test_masks_do_not_overlap_and_hold_their_promises(scenes: list[Scene]) -> None:
    for scene in scenes:
        total = sum((o.mask.astype(int) for o in scene.objects), np.zeros((160, 160), int))
        assert total.max(initial=0) <= 1
        for item in scene.objects:
            assert item.mask.dtype == bool
            assert item.mask.sum() >= 90
            assert 1 <= item.label <= len(CLASSES)


def test_masks_are_the_pixels_drawn(scenes: list[Scene]) -> None:
    """Along the outline of an object the picture changes: its gradient there is well above that elsewhere."""
    on, off = [], []
    for scene in scenes:
        grey = cv2.cvtColor(scene.clean, cv2.COLOR_RGB2GRAY).astype(np.float32)
        gradient = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
        for item in scene.objects:
            mask = item.mask.astype(np.uint8)
            ring = cv2.dilate(mask, np.ones((3, 3))) - cv2.erode(mask, np.ones((3, 3)))
            on.append(gradient[ring > 0].mean())
            off.append(np.median(gradient))
    assert np.median(on) > 3 * np.median(off)


def test_every_class_scale_and_a_share_of_occlusion_occurs(scenes: list[Scene]) -> None:
    labels = [o.label for scene in scenes for o in scene.objects]
    assert set(labels) == set(range(1, 9))
    areas = np.array([o.mask.sum() for scene in scenes for o in scene.objects]) / 160**2
    assert np.percentile(areas, 10) < 0.02
    assert np.percentile(areas, 90) > 0.1
    assert 2 < len(labels) / len(scenes) < 7


def test_lights_and_sizes(scenes: list[Scene]) -> None:
    assert max(scene.light.max() for scene in scenes) > 1
    assert all(np.isfinite(scene.light).all() and scene.light.min() >= 0 for scene in scenes)
    wide = make_scene(1, 0, 64, 224)
    assert wide.light.shape == wide.clean.shape == (64, 224, 3)


@pytest.mark.parametrize("name", CLASSES)
def test_drawings_fill_their_box_and_vary(name: str) -> None:
    drawings = [draw_object(name, np.random.default_rng(i)) for i in range(20)]
    assert len({round(d.aspect, 6) for d in drawings}) == 20
    for drawing in drawings:
        points = np.array([point for part in drawing.parts for point in part.points])
        assert points.min() >= -0.05
        assert points.max() <= 1.1
        assert points[:, 1].max() > 0.6


def test_bad_scenes_are_refused() -> None:
    for arguments in ((0, 0, 32, 320), (-1, 0), (0, -1)):
        with pytest.raises(WnlbError, match="expected"):
            make_scene(*arguments)
