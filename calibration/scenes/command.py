"""``wnlb scenes``: night scenes with COCO annotations."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from wnlb.calibration.scenes.camera import DARKNESS_LEVELS
from wnlb.runtime.errors import WnlbError

_DESCRIPTION = """\
Write synthetic night scenes of eight classes (those of the LIS data set), with exact masks, for trying, testing and
calibrating where no labelled night pictures are at hand. The same seed gives the same pixels.

Darkness is the number of photo-electrons that a white surface under full light yields in a pixel: 1000 is dusk, 10 is a
street without lamps. Scene i is taken at level i of the list, around and around.

  wnlb scenes -o night/ --count 100
  wnlb scenes -o night/ --count 500 --size 416x608 --darkness 100,30 --seed 7
  wnlb scenes -o drives/ --video --count 10

With --video videos with known identities instead: objects and a camera that move, hide one another and shine, an
exposure that changes, and noise of its own in each frame; annotations as in COCO-VID.
"""
FRAMES, FPS = 48, 12.0  # of a video
LEVELS = (0.1, 100_000)  # photo-electrons at white: below there is no picture, above no pixel could hold them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder of the set")
    parser.add_argument("--count", type=int, metavar="N", help="scenes (default: 100), or videos (default: 10)")
    parser.add_argument("--video", action="store_true", help="videos with identities, for tracking")
    parser.add_argument("--frames", type=int, metavar="N", help=f"of each video (default: {FRAMES})")
    parser.add_argument("--fps", type=float, metavar="R", help=f"frames a second of videos (default: {FPS:g})")
    parser.add_argument("--size", default="320x320", metavar="HxW", help="pixels (default: 320x320)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the series of scenes (default: 0)")
    add_camera_arguments(parser)


def add_camera_arguments(parser: argparse.ArgumentParser) -> None:
    """Those that ``wnlb darken`` has too."""
    levels = ",".join(f"{level:g}" for level in DARKNESS_LEVELS)
    parser.add_argument(
        "--darkness", default=levels, metavar="E,E,...", help=f"photo-electrons at white (default: {levels})"
    )
    parser.add_argument("--bits", type=int, choices=(8, 16), default=8, help="of the pictures (default: 8)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes (default: one per core)")


def darkness_levels(text: str) -> list[float]:
    """``"300,30"`` to numbers. Raises WnlbError."""
    try:
        levels = [float(part) for part in text.split(",")]
    except ValueError:
        levels = []
    names = {f"{level:g}" for level in levels}  # of folders
    if not levels or not all(LEVELS[0] <= level <= LEVELS[1] for level in levels) or len(names) < len(levels):
        raise WnlbError(
            f"darkness is {text!r}; expected different numbers of photo-electrons from {LEVELS[0]:g} to {LEVELS[1]:g}, "
            "such as 300,100,30"
        )
    return levels


def run(arguments: argparse.Namespace) -> int:
    from wnlb.runtime.geometry import parse_size

    height, width = parse_size(arguments.size)
    levels = darkness_levels(arguments.darkness)
    for name in ("frames", "fps"):
        if getattr(arguments, name) is not None and not arguments.video:
            raise WnlbError(f"--{name} is of videos; give --video too, or leave it out")
    count = arguments.count if arguments.count is not None else 10 if arguments.video else 100
    (_write_videos if arguments.video else _write_scenes)(arguments, count, height, width, levels)
    return 0


def _write_scenes(arguments: argparse.Namespace, count: int, height: int, width: int, levels: list[float]) -> None:
    from wnlb.calibration.scenes.contact_sheet import contact_sheet
    from wnlb.calibration.scenes.dataset import write_scenes
    from wnlb.calibration.scenes.writing import write_png

    options = {"bits": arguments.bits, "workers": arguments.workers}
    with _bar(count, "scene") as bar:
        on_done = _counting(bar)
        write_scenes(arguments.output, count, height, width, levels, arguments.seed, **options, on_done=on_done)
    write_png(arguments.output / "contact_sheet.png", contact_sheet(arguments.seed, levels)[..., ::-1])
    print(f"{count} scenes with clean twins, annotations.json and contact_sheet.png: {arguments.output}/")


def _write_videos(arguments: argparse.Namespace, count: int, height: int, width: int, levels: list[float]) -> None:
    from wnlb.calibration.scenes.video_dataset import write_videos

    options = {"bits": arguments.bits, "workers": arguments.workers}
    frames = FRAMES if arguments.frames is None else arguments.frames
    length = (frames, FPS if arguments.fps is None else arguments.fps)
    with _bar(count, "video") as bar:
        on_done = _counting(bar)
        write_videos(
            arguments.output, count, *length, height, width, levels, arguments.seed, **options, on_done=on_done
        )
    print(f"{count} videos of {frames} frames with annotations.json (COCO-VID): {arguments.output}/")


def _bar(count: int, unit: str) -> Any:
    return tqdm(total=max(count, 0), unit=unit, disable=None, file=sys.stderr, leave=False)


def _counting(bar: Any) -> Callable[[int], None]:
    return lambda done: bar.update(done - bar.n)
