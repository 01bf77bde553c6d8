"""Files made by commands, and kept."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import pty
import struct
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

import pytest

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.profile import making
from wnlb.runtime.profile.making import Maker, run_wnlb


class Commands:
    """In place of ``wnlb``: writes the file that ``-o`` names, and counts."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def __call__(self, words: Sequence[str], quiet: bool) -> str:
        self.seen.append(list(words))
        if "-o" in words:
            Path(words[words.index("-o") + 1]).write_text(" ".join(words))
        return json.dumps({"number": len(self.seen)})


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    found = Commands()
    monkeypatch.setattr(making, "run_wnlb", found)
    return found


def test_a_file_is_made_once(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("1")
    for _ in range(2):
        maker = Maker(tmp_path / "models", quiet=True)  # also after the program has ended
        path = maker.make("a.onnx", ["export", tmp_path / "weights"], [tmp_path / "weights"])
        assert path == tmp_path / "models" / "a.onnx"
        assert maker.made["a.onnx"].command == f"wnlb export {tmp_path / 'weights'} -o {path}"
    assert commands.seen == [["export", str(tmp_path / "weights"), "-o", str(path)]]


@pytest.mark.parametrize("change", ["input", "folder", "pattern", "words", "file", "gone", "record", "version"])
def test_it_is_made_again_where_something_changed(
    commands: Commands, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, pictures = tmp_path / "weights", tmp_path / "pictures"
    weights.write_text("1")
    pictures.mkdir()
    (pictures / "a.png").write_text("1")
    words, inputs = ["export", "x"], [weights, pictures, "SM 8.7", f"{tmp_path}/**/*.jpg"]
    path = Maker(tmp_path / "models", quiet=True).make("a.onnx", words, inputs)
    if change == "input":
        weights.write_text("2")
    elif change == "folder":
        (pictures / "b.png").write_text("1")
    elif change == "pattern":
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep" / "b.jpg").write_text("1")
    elif change == "words":
        words = ["export", "y"]
    elif change == "file":
        path.write_text("damaged")
    elif change == "gone":
        path.unlink()
    elif change == "record":
        (path.parent / "made.json").write_text('{"a.onnx": {"key": 1}}')
    else:
        monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9.9")
    Maker(tmp_path / "models", quiet=True).make("a.onnx", words, inputs)
    assert len(commands.seen) == 2


def test_what_a_command_prints_is_kept(commands: Commands, tmp_path: Path) -> None:
    maker = Maker(tmp_path, quiet=True)
    assert maker.tell("a.json", ["evaluate", "a"], []) == {"number": 1}
    assert maker.tell("a.json", ["evaluate", "a"], []) == {"number": 1}
    assert maker.tell("a.json", ["evaluate", "b"], []) == {"number": 2}


def test_commands_are_shown_unless_quiet(
    commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Maker(tmp_path, quiet=False).make("a.onnx", ["export", "x"], [])
    assert capsys.readouterr().err == f"+ wnlb export x -o {tmp_path / 'a.onnx'}\n"


def test_in_a_terminal_the_progress_of_a_command_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    try:
        with os.fdopen(theirs, "w") as terminal:
            monkeypatch.setattr(sys, "stderr", terminal)
            run_wnlb(["scenes", "-o", str(tmp_path / "night"), "--count", "2", "--size", "64x64"])
            assert b"0/2 [" in os.read(ours, 1 << 16)
    finally:
        os.close(ours)


def test_a_real_command() -> None:
    assert run_wnlb(["--version"]) == f"{importlib.metadata.version('wnlb-deploy')}\n"
    with pytest.raises(WnlbError, match=r"^no\.onnx does not exist; expected an ONNX file$"):
        run_wnlb(["inspect", "no.onnx"])
    with pytest.raises(WnlbError, match="invalid choice: 'nothing'"):
        run_wnlb(["nothing"])
