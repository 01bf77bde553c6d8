"""Which pictures a model is calibrated on: a sample that covers the darkness and the noise of what it will see."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.calibration.scenes.camera import DARKNESS_LEVELS, Camera, expose
from wnlb.calibration.scenes.scene import make_scene
from wnlb.runtime.contract import Contract
from wnlb.runtime.darkness import BIN_EDGES, darkness_bin, luminance
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import atomic_path
from wnlb.runtime.source import Frame, PictureSource, Source, listed_pictures, open_source
from wnlb.runtime.text_file import read_json

BRIGHT = BIN_EDGES[-2]  # mean linear luminance from which a picture counts as daylight
BRIGHT_SHARE = 0.2
FEWEST = 64
SCENES = 256
# Each stratum of the one before is cut again, into equal numbers of pictures.
_STRATA = (("luminance", 8), ("noise", 2), ("contrast", 2))
_LAPLACE = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)


@dataclass(frozen=True)
class PictureStatistics:
    """One picture of a source and what was measured of it."""

    name: str
    sha256: str  # of its pixels and their shape: another file name or format does not hide a picture
    luminance: float  # mean, linear, 0..1
    noise: float  # standard deviation, in levels of 0..255
    contrast: float  # 95th minus 5th percentile of the grey picture, in levels

    @property
    def bright(self) -> bool:
        return self.luminance >= BRIGHT


@dataclass(frozen=True)
class Selection:
    """The chosen pictures, and what they were chosen from."""

    source: str
    seed: int
    chosen: tuple[PictureStatistics, ...]
    seen: tuple[PictureStatistics, ...]
    failures: tuple[str, ...] = ()

    def warnings(self) -> list[str]:
        """What a user should know before trusting a calibration on these pictures."""
        found = []
        bright = sum(picture.bright for picture in self.chosen)
        if bright > BRIGHT_SHARE * len(self.chosen):
            found.append(
                f"{bright} of {len(self.chosen)} calibration pictures are bright (mean linear luminance of {BRIGHT:g} "
                "or more): ranges measured on daylight do not fit the night; give night pictures"
            )
        if len(self.chosen) < FEWEST:
            found.append(f"only {len(self.chosen)} calibration pictures; {FEWEST} or more give steady ranges")
        return found

    @property
    def luminances(self) -> tuple[float, float]:
        """Of the darkest and the brightest chosen picture."""
        found = [picture.luminance for picture in self.chosen]
        return min(found), max(found)

    def sha256(self) -> str:
        """Of the chosen pictures, in their order."""
        return hashlib.sha256("".join(picture.sha256 for picture in self.chosen).encode()).hexdigest()

    def frames(self, which: Sequence[int] | None = None) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """The chosen pictures, or these of them, read again: name and uint8 BGR ``[h, w, 3]``, in their order."""
        wanted = {self.chosen[i].name for i in (range(len(self.chosen)) if which is None else which)}
        for frame in _only(open_pictures(self.source), wanted):
            if frame.name in wanted and frame.pixels is not None:
                yield frame.name, frame.pixels

    def check_apart(self, hashes: dict[str, str]) -> None:
        """Raise WnlbError where evaluation pictures (hash to name) are among the calibration pictures."""
        common = [picture.name for picture in self.chosen if picture.sha256 in hashes]
        if common:
            raise WnlbError(
                f"{len(common)} of the calibration pictures are in the evaluation set (the first: {common[0]}): its "
                "accuracy would flatter; keep the two apart"
            )


def select_pictures(
    source: str,
    count: int = 256,
    seed: int = 0,
    on_done: Callable[[], object] = lambda: None,
) -> Selection:
    """Choose up to ``count`` pictures that cover the luminance, noise and contrast of a source.

    The pictures are cut into strata by their ranks and drawn from these in turn. The same source and seed give the
    same choice; a picture that is there twice counts once.

    Args:
        source: folder, glob pattern, picture, video, a text file with the path of a picture on each line, or
            ``scenes`` (``scenes:SEED``) for synthetic night scenes.
        on_done: called after each picture is measured.

    Raises:
        WnlbError: nothing in the source can be read, or ``count`` is below 1.
    """
    if count < 1:
        raise WnlbError(f"{count} calibration pictures were asked for; expected at least 1")
    seen, failures, hashes = [], [], set()
    for frame in open_pictures(source):
        if frame.pixels is None:
            failures.append(frame.error)
        else:
            statistics = measure(frame.name, frame.pixels)
            if statistics.sha256 not in hashes:
                seen.append(statistics)
                hashes.add(statistics.sha256)
        on_done()
    if not seen:
        raise WnlbError(f"none of {len(failures)} pictures in {source} can be read; the first: {failures[0]}")
    order = _stratified(seen, np.random.default_rng(seed))
    chosen = sorted(order[:count])
    return Selection(source, seed, tuple(seen[i] for i in chosen), tuple(seen), tuple(failures))


class SceneSource:
    """Synthetic night scenes at all levels of darkness, as ``wnlb scenes`` makes them."""

    def __init__(self, seed: int, count: int = SCENES) -> None:
        self.seed, self.count = seed, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self.count):
            camera = Camera(DARKNESS_LEVELS[index % len(DARKNESS_LEVELS)])
            picture = expose(make_scene(self.seed, index).light, camera, np.random.default_rng([self.seed, index, 1]))
            yield Frame(f"scene_{index:06d}", np.asarray(picture[..., ::-1], np.uint8))


def open_pictures(source: str) -> Source | SceneSource:
    """As ``open_source``, and the other kinds that ``select_pictures`` takes."""
    path = Path(source)
    word, _, seed = source.partition(":")
    if word == "scenes" and (seed.isdecimal() or not seed) and not path.exists():
        return SceneSource(int(seed or 0))
    if path.suffix.lower() != ".txt":
        return open_source(source)
    return PictureSource(listed_pictures(path))


def measure(name: str, picture_bgr: NDArray[np.uint8]) -> PictureStatistics:
    """Statistics of a uint8 BGR picture ``[h, w, 3]``.

    The noise is Immerkaer's estimate ("Fast noise variance estimation", 1996): the mean magnitude of a mask that edges
    and gradients cancel in.
    """
    grey = np.asarray(cv2.cvtColor(picture_bgr, cv2.COLOR_BGR2GRAY), np.uint8)
    inner = cv2.filter2D(grey.astype(np.float32), -1, _LAPLACE)[1:-1, 1:-1]
    noise = float(np.sqrt(np.pi / 2) / 6 * np.abs(inner).mean()) if inner.size else 0.0
    low, high = np.percentile(grey, (5, 95))
    return PictureStatistics(name, pixel_hash(picture_bgr), luminance(picture_bgr), noise, float(high - low))


def pixel_hash(picture_bgr: NDArray[np.uint8]) -> str:
    """SHA-256 of the shape and the pixels."""
    return hashlib.sha256(repr(picture_bgr.shape).encode() + np.ascontiguousarray(picture_bgr).tobytes()).hexdigest()


def hashes_of(source: str, on_done: Callable[[], object] = lambda: None) -> dict[str, str]:
    """Hash to name of every picture of a source that can be read."""
    found = {}
    for frame in open_pictures(source):
        if frame.pixels is not None:
            found[pixel_hash(frame.pixels)] = frame.name
        on_done()
    return found


def write_manifest(selection: Selection, contract: Contract, path: Path) -> None:
    """JSON: the chosen pictures with their hashes and statistics, and how they were prepared."""
    preparation = ("framework", "height", "width", "resize", "scale", "interpolation", "pad_rgb", "layout", "color")
    content = {
        "source": selection.source,
        "seed": selection.seed,
        "sha256": selection.sha256(),
        "preparation": {name: getattr(contract, name) for name in preparation},
        "seen": len(selection.seen),
        "bright": sum(picture.bright for picture in selection.chosen),
        "warnings": selection.warnings(),
        "unreadable": list(selection.failures),
        "pictures": [asdict(picture) for picture in selection.chosen],
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1))


def read_hashes(path: Path) -> dict[str, str]:
    """Hash to name of the pictures of a manifest. Raises WnlbError where it cannot be read."""
    try:
        content = read_json(path, "calibration manifest")
        return {picture["sha256"]: picture["name"] for picture in content["pictures"]}
    except (KeyError, TypeError) as error:
        raise WnlbError(f"calibration manifest {path} cannot be read: {error}; convert the model again") from error


def coverage_table(selection: Selection) -> list[tuple[object, ...]]:
    """Rows of luminance bin, pictures seen, pictures chosen, and their mean noise and contrast."""
    rows: list[tuple[object, ...]] = []
    for lower, upper in pairwise(BIN_EDGES):
        name = f"{lower:g}-{upper:g}"
        seen = [picture for picture in selection.seen if darkness_bin(picture.luminance) == name]
        chosen = [picture for picture in selection.chosen if darkness_bin(picture.luminance) == name]
        noise, contrast = (
            float(np.mean([getattr(p, what) for p in chosen])) if chosen else None for what in ("noise", "contrast")
        )
        rows.append((name, len(seen), len(chosen), noise, contrast))
    return rows


def _only(source: Source | SceneSource, wanted: set[str]) -> Iterator[Frame]:
    """A source's frames; of a folder, only the wanted ones are decoded."""
    if isinstance(source, PictureSource):
        source.paths = {name: path for name, path in source.paths.items() if name in wanted}
    yield from source


def _stratified(seen: Sequence[PictureStatistics], rng: np.random.Generator) -> list[int]:
    """All indices, those of different strata in turn."""
    lists = [[int(i) for i in rng.permutation(len(seen))]]
    for what, parts in _STRATA:
        halves = []
        for own in lists:
            ranked = sorted(own, key=lambda i: getattr(seen[i], what))
            places = {index: place * parts // len(own) for place, index in enumerate(ranked)}
            halves += [[i for i in own if places[i] == part] for part in range(parts)]
        lists = [own for own in halves if own]
    # Multiples of the golden ratio: however few turns there are, they are spread over all strata.
    lists = [lists[i] for i in sorted(range(len(lists)), key=lambda i: i * 0.6180339887 % 1)]
    turns = max(map(len, lists))
    return [own[turn] for turn in range(turns) for own in lists if turn < len(own)]
