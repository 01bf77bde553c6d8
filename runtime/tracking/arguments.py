"""``--track`` and ``--zone``, as ``wnlb predict`` and ``wnlb run`` have them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.source import PICTURES_FPS
from wnlb.runtime.tracking.tracker import LOW_SCORE, BufferedIouTracker, TrackerOptions
from wnlb.runtime.tracking.tracks import Tracks
from wnlb.runtime.tracking.zones import Zone, parse_zones


def add_tracking_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("identities over time (extra: track)")
    group.add_argument(
        "--track", action="store_true", help="one number for one object; only what belongs to a track is given out"
    )
    group.add_argument(
        "--zone",
        action="append",
        default=[],
        metavar="[NAME=]X,Y X,Y ...",
        help="count in it, pixels of the frame: a polygon, e.g. 'yard=10,200 310,200 310,310 10,310', or two points: a "
        "line; may be given several times",
    )


def check_tracking_arguments(arguments: argparse.Namespace) -> tuple[Zone, ...]:
    """The zones. Raises WnlbError before anything is opened."""
    if arguments.zone and not arguments.track:
        raise WnlbError("--zone counts tracks; add --track")
    return parse_zones(arguments.zone)


def make_tracks(
    arguments: argparse.Namespace, zones: Sequence[Zone], class_names: Sequence[str], fps: float
) -> Tracks | None:
    """What ``--track`` asks for; None without it.

    Args:
        fps: of the source; 0 where it has no rate.
    """
    if not arguments.track:
        return None
    tracker = BufferedIouTracker(TrackerOptions(fps or PICTURES_FPS))
    return Tracks(tracker, class_names, zones, arguments.score_threshold)


def predicted_score(arguments: argparse.Namespace) -> float:
    """What the model must give: with ``--track`` weaker detections too, which hold identities."""
    return min(arguments.score_threshold, LOW_SCORE) if arguments.track else arguments.score_threshold
