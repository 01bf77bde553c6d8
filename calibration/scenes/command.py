"""``wnlb scenes``: night scenes with COCO annotations."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

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
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for images/, clean/, annotations.json")
    parser.add_argument("--count", type=int, default=100, help="scenes (default: 100)")
    parser.add_argument("--size", default="320x320", metavar="HxW", help="pixels (default: 320x320)")
    parser.add_argument("--seed", type=int, default=0, help="of the series of scenes (default: 0)")
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
    if not levels or not all(0 < level < float("inf") for level in levels) or len(set(levels)) < len(levels):
        raise WnlbError(
            f"darkness is {text!r}; expected different numbers of photo-electrons above 0, such as 300,100,30"
        )
    return levels


def run(arguments: argparse.Namespace) -> int:
    from wnlb.calibration.scenes.contact_sheet import contact_sheet
    from wnlb.calibration.scenes.dataset import write_png, write_scenes
    from wnlb.runtime.geometry import parse_size

    height, width = parse_size(arguments.size)
    levels = darkness_levels(arguments.darkness)
    with tqdm(total=max(arguments.count, 0), unit="scene", disable=None, file=sys.stderr, leave=False) as bar:
        write_scenes(
            arguments.output,
            arguments.count,
            height,
            width,
            levels,
            arguments.seed,
            bits=arguments.bits,
            workers=arguments.workers,
            on_done=lambda done: bar.update(done - bar.n),
        )
    write_png(arguments.output / "contact_sheet.png", contact_sheet(arguments.seed, levels)[..., ::-1])
    print(f"{arguments.count} scenes with clean twins, annotations.json and contact_sheet.png: {arguments.output}/")
    return 0
