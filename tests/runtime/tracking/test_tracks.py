"""Zones, lines, counts, ways and MOT lines of planted objects."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

from wnlb.runtime.coco import coco_results
from wnlb.runtime.detections import Detections
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.overlay import class_color, color_of, draw, track_color
from wnlb.runtime.tracking.mot import MotLines
from wnlb.runtime.tracking.tracks import Tracks
from wnlb.runtime.tracking.zones import Zone, parse_zones

NAMES = ("car", "bus")


def seen(*rows: tuple[int, float, float, int, float]) -> Detections:
    """Track, foot x, foot y, label, score; best first."""
    boxes = np.array([(x - 10, y - 20, x + 10, y) for _, x, y, _, _ in rows], np.float32).reshape(-1, 4)
    tracks, labels = (np.array([row[i] for row in rows], np.int32) for i in (0, 3))
    scores = np.array([row[4] for row in rows], np.float32)
    return Detections(200, 300, boxes, scores, labels, None, tracks)


class Known:
    """A tracker whose identities are in the detections already."""

    def update(self, detections: Detections, at_s: float) -> Detections:
        return detections


def test_a_line_is_crossed_each_way_by_who_crosses_it() -> None:
    line = Zone("gate", ((100, 150), (200, 150)))  # from left to right, so its right is below
    assert line.crossed((150, 140), (150, 160)) == "right"
    assert line.crossed((150, 160), (150, 140)) == "left"
    assert line.crossed((150, 140), (150, 149)) == ""
    assert line.crossed((250, 140), (250, 160)) == ""  # beside its end
    assert line.crossed((90, 140), (300, 152)) == ""  # the way passes the end
    assert line.crossed((150, 150), (150, 160)) == "right"
    assert line.crossed((150, 160), (150, 150)) == "left"
    assert line.crossed((150, 150), (150, 140)) == ""  # who stands on it is at its left already


def test_crossings_of_random_walks_add_up() -> None:
    """On a line through the whole frame: crossings to the right less those to the left are the net change of side."""
    rng, line = np.random.default_rng(0), Zone("all", ((0, -1000), (0, 1000)))
    for _ in range(200):
        walk = np.cumsum(rng.integers(-3, 4, (40, 2)), 0).tolist()
        ways = [line.crossed((*a,), (*b,)) for a, b in itertools.pairwise(walk)]
        sides = [x < 0 for x, _ in (walk[0], walk[-1])]  # walking down, the right is where x is below 0
        assert ways.count("right") - ways.count("left") == sides[1] - sides[0]


def test_counts_by_class_and_zone() -> None:
    zones = parse_zones(["yard=50,50 150,50 150,190 50,190", "0,100 300,100"])
    tracks = Tracks(Known(), NAMES, zones)
    for i in range(10):
        car, bus = (1, 20 + 15.0 * i, 120, 1, 0.9), (2, 100, 80 + 5.0 * i, 2, 0.8)
        found = tracks.update(seen(car, bus, (0, 250, 50, 1, 0.7), (3, 100, 150, 1, 0.3)), 0.1 * i)
        assert found.track_ids is not None
        assert found.track_ids.tolist() == [1, 2]  # neither what has no track nor what is weak
    told = tracks.counts()
    assert told["seen"] == {"car": 1, "bus": 1}
    yard, line = told["zones"]
    assert yard == {"name": "yard", "inside": {"bus": 1}, "entered": {"car": 1}}  # the bus was there at the beginning
    assert line == {"name": "line 2", "left": {}, "right": {"bus": 1}}


def test_a_box_that_trembles_on_an_edge_comes_in_once() -> None:
    """Its foot goes over the line or the edge and back for two seconds; then it is away for longer, and comes again."""
    tracks = Tracks(Known(), NAMES, parse_zones(["gate=0,100 300,100", "yard=0,100 300,100 300,190 0,190"]))
    trembling = [98.0, *[102.0, 98.0] * 10, 103.0, *[110.0] * 12]
    away = [90.0] * 12
    for i, y in enumerate([*trembling, *away, 110.0, 120.0]):
        tracks.update(seen((1, 150, y, 1, 0.9)), 0.1 * i)
        gate, yard = tracks.counts()["zones"]
        if i == len(trembling) - 1:
            assert (gate["left"], gate["right"], yard["entered"]) == ({}, {"car": 1}, {"car": 1})
    assert (gate["left"], gate["right"], yard["entered"]) == ({"car": 1}, {"car": 2}, {"car": 2})
    tracks.update(seen(), 60.0)
    assert not any(counts._last for counts in tracks.zones)


def test_an_object_is_what_it_was_taken_for_most() -> None:
    tracks = Tracks(Known(), NAMES)
    for i, (label, score) in enumerate([(2, 0.9), (1, 0.6), (1, 0.55), (2, 0.5)]):
        tracks.update(seen((7, 50, 50, label, score)), 0.1 * i)
    assert tracks.counts()["seen"] == {"bus": 1}


def test_tracks_that_are_gone_stay_counted_and_are_no_longer_kept() -> None:
    tracks = Tracks(Known(), NAMES)
    for i in range(400):  # a camera that runs on: an object every second, each for half of it
        tracks.update(seen((1 + i // 10, 50.0, 50, 1, 0.9)) if i % 10 < 5 else seen(), 0.1 * i)
    assert tracks.counts()["seen"] == {"car": 40}
    assert len(tracks._ways) <= 12


def test_identities_and_ways_are_drawn() -> None:
    frame = np.zeros((200, 300, 3), np.uint8)
    tracks = Tracks(Known(), NAMES, parse_zones(["10,190 290,190"]))
    for i in range(10):
        found = tracks.update(seen((3, 40 + 20.0 * i, 100, 1, 0.9)), 0.1 * i)
    overlay = draw(frame, found, NAMES)
    assert (overlay == track_color(3)).all(2).sum() > 100  # the plate of its name has the colour of the track
    assert not (overlay == class_color(1)).all(2).any()
    assert not overlay[100, 40:200].any()
    tracks.draw(overlay, found)
    assert (overlay[100, 50:190] == track_color(3)).all(1).mean() > 0.9  # where it came from
    assert (overlay[190, 20:280] > 200).all(1).mean() > 0.9  # the line
    assert color_of(found, 0) == track_color(3)
    plain = Detections(200, 300, found.boxes, found.scores, found.labels, None)
    assert color_of(plain, 0) == class_color(1)


def test_only_the_newest_two_seconds_of_a_way_are_drawn() -> None:
    tracks = Tracks(Known(), NAMES)
    for i in range(60):
        found = tracks.update(seen((1, 10 + 4.0 * i, 100, 1, 0.9)), 0.1 * i)
    overlay = np.zeros((200, 300, 3), np.uint8)
    tracks.draw(overlay, found)
    columns = np.flatnonzero(overlay.any((0, 2)))
    assert columns.min() == pytest.approx(10 + 4 * 39, abs=3)
    assert columns.max() == pytest.approx(10 + 4 * 59, abs=3)


def test_mot_lines_and_coco_entries() -> None:
    found = seen((5, 60, 70, 1, 0.9), (0, 10, 20, 2, 0.5))
    lines = MotLines()
    lines.add(0, found)
    lines.add(11, found)
    assert lines.to_text().splitlines() == [
        "1,5,50.00,50.00,20.00,20.00,0.90000,-1,-1,-1",
        "12,5,50.00,50.00,20.00,20.00,0.90000,-1,-1,-1",
    ]
    assert [entry.get("track_id") for entry in coco_results(found, 1)] == [5, None]
    lines.add(12, Detections.none(200, 300))
    assert len(lines.to_text().splitlines()) == 2


def test_zones_as_they_are_written() -> None:
    line, area = parse_zones(["0,200 320.5,200", "the yard = 1,2 3,4 5,0"])
    assert line == Zone("line 1", ((0, 200), (320.5, 200)))
    assert area == Zone("the yard", ((1, 2), (3, 4), (5, 0)))
    assert (line.is_line, area.is_line) == (True, False)
    assert area.points.dtype == np.int32
    for wrong in (
        "",
        "1,2",
        "1,2 3",
        "1,2 1,2",
        "a,b c,d",
        "0,200;320,200",
        "(0,200) (320,200)",
        "gate:0,200 320,200",
        "=1,2 3,4",
        "1,2 3,4 nan,1",
        "1e9,0 2,2",
        "9999999,1 2,2",
    ):
        with pytest.raises(WnlbError, match="expected"):
            parse_zones([wrong])
    with pytest.raises(WnlbError, match="not all different"):
        parse_zones(["a=1,2 3,4", "a=1,2 3,4 5,0"])
    with pytest.raises(WnlbError, match="expected pixels of the frame, not shares of it"):
        parse_zones(["0,0.5 1,0.5"])
    beyond, closed = parse_zones(["-5,200 325,200", "1,2 9,2 9,8 1,2"])  # a line through the whole frame; a closed area
    assert beyond.corners == ((-5, 200), (325, 200))
    assert closed.corners == ((1, 2), (9, 2), (9, 8))


@pytest.mark.parametrize("corners", ["0,0 9,9 0,9 9,0", "0,0 5,5 9,9", "0,0 9,0 9,9 5,-5", "0,0 9,0 9,9 0,9 12,4"])
def test_edges_that_cross_are_no_area(corners: str) -> None:
    """Half of what they seem to hold would not count."""
    with pytest.raises(WnlbError, match="edges cross"):
        parse_zones([corners])


@pytest.mark.parametrize("corners", ["0,0 10,0 10,5 20,5 20,0 30,0 30,10 0,10", "0,0 9,0 9,9 0,9", "0,0 9,0 4,1 4,9"])
def test_areas_that_are_not_convex_are_taken(corners: str) -> None:
    assert len(parse_zones([corners])[0].corners) == len(corners.split())


def test_a_zone_beside_the_frame_is_told_with_the_first_frame() -> None:
    """As of a line that was meant for the camera's larger mode: it would count nothing all night."""
    for text in ("0,500 300,500", "yard=400,10 900,10 900,190", "-9,0 -9,200"):
        zones = parse_zones([text])
        with pytest.raises(
            WnlbError, match=f"zone {zones[0].name} lies beside the frames, which are of 300x200 pixels"
        ):
            Tracks(Known(), NAMES, zones).update(seen(), 0.0)
    Tracks(Known(), NAMES, parse_zones(["0,200 900,200", "-5,-5 5,-5 5,5"])).update(seen(), 0.0)


def test_a_polygon_holds_what_opencv_fills() -> None:
    corners = ((10, 10), (90, 30), (60, 90), (40, 40))  # not convex
    mask = np.zeros((100, 100), np.uint8)
    cv2.fillPoly(mask, [Zone("", corners).points], 1)
    inside = np.array([[Zone("", corners).holds((x, y)) for x in range(100)] for y in range(100)])
    core = cv2.erode(mask, np.ones((3, 3), np.uint8)) > 0
    assert inside[core].all()
    assert not inside[cv2.dilate(mask, np.ones((3, 3), np.uint8)) == 0].any()
