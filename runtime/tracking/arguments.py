"""``--track``, ``--zone`` and ``--smooth``, as ``wnlb predict``, ``run`` and ``evaluate`` have them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.source import PICTURES_FPS
from wnlb.runtime.tracking.smoothing import SmoothedTracker
from wnlb.runtime.tracking.tracker import LOW_SCORE, BufferedIouTracker, Tracker, TrackerOptions
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
    add_smoothing_argument(group)


def add_smoothing_argument(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--smooth",
        type=float,
        metavar="SECONDS",
        help="steadier masks and scores: those of a track are averaged over its past, of which what lies SECONDS back "
        "counts half, e.g. 0.2, at least the time of a frame (default: as found; it costs accuracy where much moves)",
    )


def check_tracking_arguments(arguments: argparse.Namespace) -> tuple[Zone, ...]:
    """The zones. Raises WnlbError before anything is opened."""
    if arguments.zone and not arguments.track:
        raise WnlbError("--zone counts tracks; add --track")
    check_smoothing(arguments)
    return parse_zones(arguments.zone)


def check_smoothing(arguments: argparse.Namespace) -> None:
    """Raises WnlbError where ``--smooth`` cannot be done."""
    if arguments.smooth is None:
        return
    if not arguments.track:
        raise WnlbError("--smooth averages over tracks; add --track")
    if not 0 < arguments.smooth < math.inf:
        raise WnlbError(f"--smooth is {arguments.smooth:g}; expected seconds above 0, e.g. 0.2")


def make_tracker(fps: float, smooth_s: float | None) -> Tracker:
    """A tracker for a source of so many frames a second; with ``--smooth``, in seconds, its masks are steady."""
    tracker = BufferedIouTracker(TrackerOptions(fps))
    return SmoothedTracker(tracker, smooth_s) if smooth_s else tracker


def make_tracks(
    arguments: argparse.Namespace, zones: Sequence[Zone], class_names: Sequence[str], fps: float
) -> Tracks | None:
    """What ``--track`` asks for; None without it.

    Args:
        fps: of the source; 0 where it has no rate.
    """
    if not arguments.track:
        return None
    tracker = make_tracker(fps or PICTURES_FPS, arguments.smooth)
    return Tracks(tracker, class_names, zones, arguments.score_threshold)


def predicted_score(arguments: argparse.Namespace) -> float:
    """What the model must give: with ``--track`` weaker detections too, which hold identities."""
    return min(arguments.score_threshold, LOW_SCORE) if arguments.track else arguments.score_threshold
