"""``wnlb darken``: a daylight COCO set, rendered dark."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from wnlb.calibration.scenes.command import add_camera_arguments, darkness_levels

_DESCRIPTION = """\
Render a daylight data set dark, with the noise of a camera (the protocol of the paper: synthetic low-light COCO).
Annotations are carried over. For each darkness level E, OUT/E/images and OUT/E/annotations.json are written.

  wnlb darken --annotations instances_val2017.json --images val2017/ -o dark/ --darkness 300,30
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE", help="COCO labels")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of their pictures")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the dark sets")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default: 0)")
    add_camera_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from wnlb.calibration.labels.pictures import LabelledPictures
    from wnlb.calibration.labels.reader import read_labels
    from wnlb.calibration.scenes.darkened_dataset import write_darkened

    levels, labels = darkness_levels(arguments.darkness), read_labels(arguments.annotations)
    pictures, count = LabelledPictures(labels, arguments.images), len(labels.images)
    for note in (*labels.notes, *pictures.notes):
        print(f"wnlb darken: annotations {arguments.annotations}: {note}", file=sys.stderr)
    with tqdm(total=count, unit="picture", disable=None, file=sys.stderr, leave=False) as bar:
        failures = write_darkened(
            labels,
            pictures,
            arguments.output,
            levels,
            arguments.seed,
            bits=arguments.bits,
            workers=arguments.workers,
            on_done=lambda done: bar.update(done - bar.n),
        )
    print(f"{count - len(failures)} pictures at {len(levels)} darkness levels are in {arguments.output}/")
    for failure in failures:
        print(f"wnlb darken: {failure}", file=sys.stderr)
    return 3 if failures else 0
