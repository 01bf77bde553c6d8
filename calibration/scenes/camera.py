"""A camera in the dark: from linear light to the noisy picture that it would deliver.

    electrons = Poisson(E w_c L) + N(0, read^2) + r_row,    r_row ~ N(0, row^2)
    linear    = clip(electrons / (E w_c) * white_level),    picture = round(sRGB(linear))

with L the light (1 is a white surface under full light), E the photo-electrons that white yields in a pixel, and w_c
the colour response of channel c, whose inverse is the white balance. Signal-dependent Poisson and signal-independent
Gaussian noise: Foi, Trimeche, Katkovnik, Egiazarian, "Practical Poissonian-Gaussian noise modeling and fitting for
single-image raw-data", IEEE TIP 2008. Row noise and its size: Wei, Fu, Yang, Huang, "A physics-based noise formation
model for extreme low-light raw denoising", CVPR 2020. Rendering daylight pictures dark by going back to linear light:
Brooks et al., "Unprocessing images for learned raw denoising", CVPR 2019. The sRGB curve: IEC 61966-2-1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.errors import WnlbError

# Photo-electrons at white, from dusk to a street without lamps; also the bins that results are reported in.
DARKNESS_LEVELS = (1000.0, 300.0, 100.0, 30.0, 10.0)
_CURVE_STEPS = 1 << 14


@dataclass(frozen=True)
class Camera:
    """Exposure and noise; all noise in photo-electrons.

    ``electrons_at_white`` is the darkness: the photo-electrons that a white surface under the scene's full light yields
    in one pixel of the green channel. Its shot noise is the square root of it.
    """

    electrons_at_white: float = 100.0
    read_noise: float = 1.6  # standard deviation
    row_noise: float = 0.6  # standard deviation, one draw for each row and channel
    color_response: tuple[float, float, float] = (0.55, 1.0, 0.65)  # of R, G, B, against green
    color_cast: tuple[float, float, float] = (1.0, 1.0, 1.0)  # what the white balance leaves, on R, G, B
    white_level: float | None = None  # linear output of white, 0..1; None: see ``level_of_white``
    bits: int = 8  # of the picture: 8 or 16

    def __post_init__(self) -> None:
        if not self.electrons_at_white > 0:
            raise WnlbError(f"darkness is {self.electrons_at_white} photo-electrons at white; expected more than 0")
        if min(self.read_noise, self.row_noise) < 0:
            raise WnlbError(f"noise is {self.read_noise} and {self.row_noise} electrons; expected 0 or more")
        if self.bits not in (8, 16):
            raise WnlbError(f"pictures of {self.bits} bits; expected 8 or 16")
        if self.white_level is not None and not 0 < self.white_level <= 1:
            raise WnlbError(f"white level is {self.white_level}; expected more than 0, up to 1")

    @property
    def level_of_white(self) -> float:
        """Linear output of white: a camera that makes up for half of the stops that light is missing.

        1 from 1000 electrons up, 0.1 at 10 electrons; so darker scenes are both darker and noisier, as photographs are.
        """
        return self.white_level if self.white_level is not None else min((self.electrons_at_white / 1000) ** 0.5, 1.0)

    def at(self, electrons_at_white: float) -> Camera:
        """The same camera with another darkness."""
        return replace(self, electrons_at_white=electrons_at_white)


def expose(light: NDArray[np.float32], camera: Camera, rng: np.random.Generator) -> NDArray[np.uint8 | np.uint16]:
    """The picture of a scene.

    Args:
        light: linear RGB ``[H, W, 3]``, 1 is white under full light; lamps may exceed it.
        camera: exposure and noise.
        rng: source of the noise; the same state gives the same picture.

    Returns:
        sRGB ``[H, W, 3]``, uint8 or uint16.
    """
    linear = np.clip(sense(light, camera, rng), 0, 1)
    table = _CURVES[camera.bits]
    return table[np.rint(linear * (_CURVE_STEPS - 1)).astype(np.int32)]


def sense(light: NDArray[np.float32], camera: Camera, rng: np.random.Generator) -> NDArray[np.float64]:
    """Linear output of the camera ``[H, W, 3]`` before clipping and rounding; arguments as ``expose``."""
    white = camera.electrons_at_white * np.asarray(camera.color_response)  # electrons of white per channel
    electrons = rng.poisson(light * white).astype(np.float64)
    electrons += camera.read_noise * rng.standard_normal(light.shape)
    electrons += camera.row_noise * rng.standard_normal((light.shape[0], 1, 3))
    return electrons * (camera.level_of_white * np.asarray(camera.color_cast) / white)


def _srgb_curve(bits: int) -> NDArray:
    linear = np.linspace(0, 1, _CURVE_STEPS)
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(curve * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)


_CURVES = {bits: _srgb_curve(bits) for bits in (8, 16)}
