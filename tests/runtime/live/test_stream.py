"""Real time on sources whose every frame is known, and whose time is made by the test."""

from __future__ import annotations

import itertools
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
from scripted_stream import WAIT, Answering, Gate, Scripted, feed, number_in, numbered, until

from wnlb.runtime.errors import PictureError, Unavailable, WnlbError
from wnlb.runtime.live.stream import ODD_FRAMES, Stream
from wnlb.runtime.predictor import Predictor


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("wnlb.runtime.live.stream.BACK_OFF", (0.0, 0.01))
    before = {thread.ident for thread in threading.enumerate()}
    yield
    left = [thread for thread in threading.enumerate() if thread.ident not in before and thread.name.startswith("wnlb")]
    for thread in left:
        thread.join(WAIT)
        assert not thread.is_alive(), thread.name


def test_the_newest_frame_wins_and_the_others_are_counted() -> None:
    capture_gate, model_gate = Gate(), Gate()
    predictor = Answering(model_gate)
    capture = Scripted([numbered(n) for n in range(20)], capture_gate)
    results = []
    with Stream(predictor, feed(capture, live=False)) as stream:  # type: ignore[arg-type]
        consumer = threading.Thread(target=lambda: results.extend(stream))
        consumer.start()
        capture_gate.wait_for_one()
        capture_gate.open()  # frame 0
        model_gate.wait_for_one()  # is in inference
        for _ in range(6):  # frames 1 to 6 come meanwhile
            capture_gate.wait_for_one()
            capture_gate.open()
        capture_gate.wait_for_one()  # asks for 7: 6 is in line
        assert stream.state().dropped == 5
        model_gate.open()
        model_gate.wait_for_one()
        assert predictor.seen == [0, 6]
        for _ in range(13):  # 7 to 19
            capture_gate.open()
            capture_gate.wait_for_one()
        capture_gate.open()  # the end
        model_gate.open()
        model_gate.wait_for_one()
        model_gate.open()
        consumer.join(WAIT)
    assert predictor.seen == [0, 6, 19]
    assert [result.number for result in results] == [0, 6, 19]
    assert [result.name for result in results] == ["camera_000000", "camera_000006", "camera_000019"]
    assert [number_in(result.pixels) for result in results] == [0, 6, 19]
    state = stream.state()
    assert (state.captured, state.dropped, state.done, state.state) == (20, 17, 3, "ended")
    assert capture.released


def test_the_stamps_are_in_order_and_overlap() -> None:
    """While the result of one frame is held outside, the next is inferred; its latency counts from its capture."""
    gate = Gate()
    capture = Scripted([numbered(n) for n in range(3)])
    predictor = Answering(gate)
    with Stream(predictor, feed(capture, live=False), every_frame=True) as stream:  # type: ignore[arg-type]
        gate.wait_for_one()
        gate.open()
        results = iter(stream)
        first = next(results)
        gate.wait_for_one()  # the second is in inference although the first is still ours
        assert predictor.seen == [0, 1]
        gate.open()
        second = next(results)
        gate.wait_for_one()
        gate.open()
        rest = list(results)
    ordered = [first, second, *rest]
    assert [result.number for result in ordered] == [0, 1, 2]
    for earlier, later in itertools.pairwise(ordered):
        assert earlier.captured_at <= later.captured_at
        assert earlier.done_at <= later.done_at
    for result in ordered:
        assert result.latency_ms == pytest.approx(1e3 * (result.done_at - result.captured_at))
        assert result.latency_ms > 0
    latencies = sorted(result.latency_ms for result in ordered)
    assert stream.state().latency_ms == {"p50": latencies[1], "p95": latencies[2], "p99": latencies[2]}


def test_every_frame_of_a_file_in_order(planted_model_path: Path) -> None:
    """Through the real predictor: the planted model's score is the brightness of the very frame."""
    frames = [numbered(n) for n in range(50)]
    with Predictor(planted_model_path) as predictor:
        with Stream(predictor, feed(Scripted(frames), live=False, fps=1), every_frame=True) as stream:
            results = list(stream)
        for number, (result, frame) in enumerate(zip(results, frames, strict=True)):
            assert (result.number, number_in(result.pixels)) == (number, number)
            np.testing.assert_array_equal(result.detections.scores, predictor(frame).scores)
            assert result.times_ms.keys() == {"prepare", "infer", "paste"}
    assert stream.state().dropped == 0


def test_a_lost_camera_is_opened_until_it_is_back() -> None:
    lost: list[str] = []
    captures = [Scripted([numbered(0)]), PictureError("unplugged"), PictureError("still"), Scripted([numbered(1)])]
    broken = Scripted([numbered(2), cv2.error("select() timeout")])
    last = Scripted(numbered(n) for n in range(3, 10**9))
    source = feed(*captures, broken, last)
    with Stream(Answering(), source, on_change=lost.append) as stream:  # type: ignore[arg-type]
        for result in stream:
            if number_in(result.pixels) > 2:
                break
    state = stream.state()
    assert state.reconnects == 3
    assert all(capture.released for capture in (captures[0], captures[3], broken, last))  # type: ignore[union-attr]
    assert "camera is back" in lost
    assert "camera gives no more frames; opening it again" in lost


def test_a_camera_that_never_comes_back_is_shown_and_can_be_left() -> None:
    seen = threading.Event()

    def told(message: str) -> None:
        seen.set()

    capture_gate = Gate()
    source = feed(Scripted([numbered(0)], capture_gate))
    stream = Stream(Answering(), source, on_change=told)  # type: ignore[arg-type]
    capture_gate.wait_for_one()
    capture_gate.open()
    capture_gate.wait_for_one()
    capture_gate.open()
    results = iter(stream)
    assert next(results).number == 0
    assert seen.wait(WAIT)
    until(lambda: "gone" in stream.state().last_error)
    assert stream.state().state == "reconnecting"
    threading.Timer(0.05, stream.stop).start()  # as a signal handler does
    assert list(results) == []
    stream.close()
    assert stream.state().state == "ended"


def test_a_camera_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its read never returns; another is opened beside it, and what it may say later is not heard."""
    monkeypatch.setattr("wnlb.runtime.live.stream.STALLED", 0.05)
    gate, lost = Gate(), list[str]()
    hanging = Scripted([numbered(0), numbered(99)], gate)
    healthy = Scripted(numbered(n) for n in range(1, 50))
    with Stream(Answering(), feed(hanging, healthy), on_change=lost.append) as stream:  # type: ignore[arg-type]
        gate.wait_for_one()
        gate.open()
        results = iter(stream)
        assert number_in(next(results).pixels) == 0
        gate.wait_for_one()  # hangs
        assert number_in(next(results).pixels) >= 1
        gate.open()  # gives frame 99 now
        until(lambda: hanging.released)
    assert re.fullmatch(r"camera gave nothing for \d+ s; opening it again", lost[0])
    assert "camera is back" in lost


def test_a_camera_that_hangs_from_the_beginning_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wnlb.runtime.live.stream.STALLED", 0.05)
    gate = Gate()
    hanging, healthy = Scripted([numbered(0)], gate), Scripted(numbered(n) for n in range(1, 50))
    with Stream(Answering(), feed(hanging, healthy)) as stream:  # type: ignore[arg-type]
        assert number_in(next(iter(stream)).pixels) >= 1
        gate.open()


def test_waits_grow_while_no_frame_comes_and_the_loss_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens, and gives nothing: no reason to begin anew."""
    waits: list[float] = []
    monkeypatch.setattr("wnlb.runtime.live.stream.BACK_OFF", (0.001, 0.002, 0.004))
    lost: list[str] = []
    gate = Gate()
    first = Scripted([numbered(0)], gate)
    source = feed(first, *(Scripted([]) for _ in range(5)), Scripted(numbered(n) for n in itertools.count()))
    stream = Stream(Answering(), source, on_change=lost.append)  # type: ignore[arg-type]
    wait = stream._stop.wait
    monkeypatch.setattr(stream._stop, "wait", lambda seconds: waits.append(seconds) or wait(seconds))
    with stream:
        gate.open()  # a frame
        gate.open()  # and no more
        until(lambda: len(lost) == 2)
    assert lost == ["camera gives no more frames; opening it again", "camera is back"]
    assert [seconds for seconds in waits if seconds < 0.01] == [0.001, 0.002, 0.004, 0.004, 0.004, 0.004]


def test_closing_waits_for_the_inference() -> None:
    """The predictor may be closed after it."""
    gate, closed = Gate(), []
    stream = Stream(Answering(gate), feed(Scripted([numbered(0)]), live=False))  # type: ignore[arg-type]
    gate.wait_for_one()
    closing = threading.Thread(target=lambda: (stream.close(), closed.append(True)))
    closing.start()
    until(lambda: stream.stopped)
    assert not closed
    gate.open()
    closing.join(WAIT)
    assert closed
    assert stream.state().done == 0  # nobody took it


def test_while_nothing_comes_there_is_none() -> None:
    gate = Gate()
    with Stream(Answering(), feed(Scripted([numbered(0)], gate), live=False)) as stream:  # type: ignore[arg-type]
        results = stream.results(idle_s=0.001)
        assert next(results) is None
        gate.wait_for_one()
        gate.open()
        gate.wait_for_one()
        gate.open()
        assert [result.number for result in results if result is not None] == [0]


def test_odd_frames_are_left_out_and_counted() -> None:
    odd = [np.empty((0, 0, 3), np.uint8), np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 3), np.float32), "frame"]
    grey = np.full((64, 96), 9, np.uint8)
    sixteen = np.full((32, 48, 3), 9 << 8, np.uint16)
    other = [np.zeros((1, 1, 3), np.uint8), grey[..., None], np.full((64, 96, 4), 9, np.uint8)]
    frames = [numbered(0), *odd, grey, sixteen, *other]
    with Stream(Answering(), feed(Scripted(frames), live=False), every_frame=True) as stream:  # type: ignore[arg-type]
        results = list(stream)
    assert stream.state().odd == 4
    assert [result.number for result in results] == [0, 5, 6, 7, 8, 9]
    assert all(result.pixels.dtype == np.uint8 and result.pixels.shape[2] == 3 for result in results)
    assert {int(result.pixels.max()) for result in results[1:]} == {9, 0}
    for result in results:
        assert result.pixels.shape[:2] == (result.detections.height, result.detections.width)


def test_a_camera_that_gives_only_rubbish_counts_as_lost() -> None:
    rubbish = Scripted(np.zeros((4, 4, 2), np.uint8) for _ in range(10 * ODD_FRAMES))
    with Stream(Answering(), feed(rubbish, Scripted([numbered(1)] * 2))) as stream:  # type: ignore[arg-type]
        assert next(iter(stream)).number in (ODD_FRAMES, ODD_FRAMES + 1)
    assert stream.state().odd == ODD_FRAMES


def test_fuzzed_frames_never_end_a_stream() -> None:
    rng = np.random.default_rng(0)
    kinds = [np.uint8, np.uint16, np.int32, np.float32, bool]

    def any_frame() -> Any:
        shape = rng.integers(0, 40, int(rng.integers(0, 5)))
        return rng.integers(0, 2, shape).astype(kinds[rng.integers(len(kinds))])

    frames = [any_frame() for _ in range(300)]
    frames = [frame for i in range(300) for frame in (frames[i], numbered(i))]
    with Stream(Answering(), feed(Scripted(frames), live=False), every_frame=True) as stream:  # type: ignore[arg-type]
        results = list(stream)
    state = stream.state()
    assert state.captured == 600
    assert state.odd + len(results) == 600
    assert {result.number for result in results} >= set(range(1, 600, 2))


def test_an_error_of_the_model_comes_out_where_results_are_read() -> None:
    source = feed(Scripted(numbered(n) for n in range(10**9)))
    stream = Stream(Answering(fails_at=3), source, every_frame=True)  # type: ignore[arg-type]
    seen = []
    with pytest.raises(WnlbError, match="the GPU fell out"), stream:
        seen.extend(result.number for result in stream)
    assert stream.state().state != "running"


def test_what_is_not_there_at_the_beginning_is_refused() -> None:
    with pytest.raises(PictureError, match="camera is gone"):
        Stream(Answering(), feed())  # type: ignore[arg-type]
    stream = Stream(Answering(), feed(Scripted([]), live=False))  # type: ignore[arg-type]
    with pytest.raises(PictureError, match="holds no frame"), stream:
        list(stream)


def test_a_file_is_played_at_its_own_speed_and_can_be_left_at_once() -> None:
    """A frame a minute: the second is waited for, and the stream closes without waiting."""
    with Stream(Answering(), feed(Scripted(numbered(n) for n in range(5)), live=False, fps=1 / 60)) as stream:  # type: ignore[arg-type]
        assert next(iter(stream)).number == 0
        assert stream.state().captured == 1


def test_memory_does_not_grow_over_2000_frames(planted_model_path: Path) -> None:
    process, sizes = psutil.Process(os.getpid()), []
    source = feed(Scripted(numbered(n % 65536) for n in range(2000)), live=False)
    with Predictor(planted_model_path) as predictor, Stream(predictor, source, every_frame=True) as stream:
        for result in stream:
            if result.number > 500:
                sizes.append(process.memory_info().rss)
    state = stream.state()
    assert (state.done, state.dropped) == (2000, 0)
    assert max(sizes) - sizes[0] < 8 << 20


class _Unserved(Answering):
    """Its server is away for a while."""

    def __init__(self, away: range) -> None:
        super().__init__()
        self._away = away

    def __call__(self, frame: np.ndarray) -> Any:
        found = super().__call__(frame)
        if len(self.seen) - 1 in self._away:
            raise Unavailable("no server answers at gpu:8001")
        return found


def test_a_model_whose_server_is_away_is_asked_again() -> None:
    """Of a camera, with a newer frame each time; told once, and once when it is back."""
    gate, told = Gate(), []
    predictor, states = _Unserved(range(1, 4)), []
    capture = Scripted([numbered(n) for n in range(6)], gate)
    with Stream(predictor, feed(capture), on_change=told.append) as stream:  # type: ignore[arg-type]
        results = iter(stream)
        for number in range(6):
            gate.wait_for_one()
            gate.open()
            until(lambda number=number: len(predictor.seen) > number)
            if number in (0, 4, 5):
                assert number_in(next(results).pixels) == number
            else:
                until(lambda number=number: stream.state().unserved == number)
            states.append(stream.state())
        assert predictor.seen == [0, 1, 2, 3, 4, 5]
    assert told[:2] == ["no server answers at gpu:8001; trying again", "the model answers again"]
    assert [state.state for state in states] == ["running", *["unserved"] * 3, "running", "running"]
    assert states[2].last_error == "no server answers at gpu:8001"
    assert (stream.state().unserved, stream.state().done) == (3, 3)
    gate.open()


def test_of_a_file_a_server_that_is_away_ends_the_stream() -> None:
    capture = Scripted([numbered(n) for n in range(3)])
    with (
        Stream(_Unserved(range(1, 2)), feed(capture, live=False), every_frame=True) as stream,  # type: ignore[arg-type]
        pytest.raises(Unavailable, match="no server answers"),
    ):
        assert [number_in(result.pixels) for result in stream] == []
