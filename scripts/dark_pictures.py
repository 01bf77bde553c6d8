"""Write a few synthetic dark pictures, for trying the toolkit where no night photographs are at hand.

python scripts/dark_pictures.py out/pictures --count 6
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2

from wnlb.export.verify import dark_scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder, made if it is not there")
    parser.add_argument("--count", type=int, default=6)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for i, scene in enumerate(dark_scene((arguments.count, 400, 600, 3)), 1):
        cv2.imwrite(str(arguments.output / f"dark_{i:02d}.png"), scene[..., ::-1])
    print(f"wrote {arguments.count} pictures to {arguments.output}")


if __name__ == "__main__":
    main()
