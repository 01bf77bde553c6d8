import numpy as np
import pytest

from wnlb.calibration.scenes.camera import DARKNESS_LEVELS, Camera, expose, sense
from wnlb.runtime.darkness import linear_from_srgb
from wnlb.runtime.errors import WnlbError


@pytest.mark.parametrize("electrons", DARKNESS_LEVELS)
@pytest.mark.parametrize("light", [0.0, 0.02, 0.3, 1.0])
def test_mean_and_variance_are_those_of_the_formula(electrons: float, light: float) -> None:
    """Var = E w L + read^2 + row^2 in electrons (Foi et al., 2008; Wei et al., 2020), over 400 x 400 draws."""
    camera = Camera(electrons, read_noise=2.0, row_noise=1.0)
    output = sense(np.full((400, 400, 3), light, np.float32), camera, np.random.default_rng(0))
    for channel, response in enumerate(camera.color_response):
        white = electrons * response
        values = output[..., channel] * white / camera.level_of_white
        variance = light * white + 2.0**2 + 1.0**2
        # The mean is uncertain by the rows' noise, of which there are only 400 draws.
        assert values.mean() == pytest.approx(light * white, abs=5 * np.sqrt(1 / 400 + variance / 160000))
        within_rows = values.var(axis=1).mean() * 400 / 399
        assert within_rows == pytest.approx(light * white + 4.0, rel=0.03)
        assert values.mean(axis=1).var() == pytest.approx(1.0 + (variance - 1) / 400, rel=0.35)


def test_few_electrons_are_counted_not_smeared() -> None:
    camera = Camera(2.0, read_noise=0, row_noise=0, color_response=(1, 1, 1), white_level=1.0)
    electrons = sense(np.full((200, 200, 3), 0.5, np.float32), camera, np.random.default_rng(0)) * 2
    np.testing.assert_allclose(electrons, np.rint(electrons), atol=1e-9)
    for k, share in enumerate((0.3679, 0.3679, 0.1839, 0.0613)):  # Poisson of mean 1
        assert (np.rint(electrons) == k).mean() == pytest.approx(share, abs=0.005)


def test_darker_is_darker_and_noisier() -> None:
    light = np.full((100, 100, 3), 0.5, np.float32)
    pictures = [expose(light, Camera(e), np.random.default_rng(0)).astype(float) for e in DARKNESS_LEVELS]
    means = [p.mean() for p in pictures]
    assert means == sorted(means, reverse=True)
    relative = [p.std() / p.mean() for p in pictures]
    assert relative == sorted(relative)


def test_clipping_and_bits() -> None:
    bright, black = np.full((8, 8, 3), 50, np.float32), np.zeros((8, 8, 3), np.float32)
    quiet = Camera(1000, read_noise=0, row_noise=0)
    assert (expose(bright, quiet, np.random.default_rng(0)) == 255).all()
    assert (expose(black, quiet, np.random.default_rng(0)) == 0).all()
    deep = expose(bright, Camera(1000, bits=16), np.random.default_rng(0))
    assert deep.dtype == np.uint16
    assert deep.max() == 65535


def test_srgb_round_trip() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, -1, 1).repeat(3, 2)
    exact = Camera(1e9, read_noise=0, row_noise=0, color_response=(1, 1, 1), white_level=1.0)
    back = expose(linear_from_srgb(levels), exact, np.random.default_rng(0))
    assert np.abs(back.astype(int) - levels).max() <= 1  # a step of the curve's table, where it is steepest


@pytest.mark.parametrize(
    "fields",
    [{"electrons_at_white": 0}, {"read_noise": -1}, {"bits": 10}, {"white_level": 2.0}, {"electrons_at_white": -3}],
)
def test_bad_cameras_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(WnlbError, match="expected"):
        Camera(**fields)
