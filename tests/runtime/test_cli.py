import importlib.metadata
import os
import subprocess
import sys

import pytest

from wnlb.runtime.cli import COMMANDS, EXTRAS

# Runs the command as on a machine that lacks the packages of argv[1].
WITHOUT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
from wnlb.runtime.cli import main
sys.exit(main(sys.argv[2:]))
"""


def run_without(packages: str, *words: str, cwd) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", WITHOUT, packages, *words]
    return subprocess.run(command, capture_output=True, cwd=cwd, timeout=300, check=False)


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)], ids=["wnlb", *COMMANDS])
def test_help(wnlb_here, words):
    ran = wnlb_here(*words, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(" ".join(["usage: wnlb", *words]))
    if not words:
        assert all(f"    {name} " in ran.out for name in COMMANDS)


def test_version(wnlb):
    ran = wnlb("--version")
    assert (ran.code, ran.out) == (0, importlib.metadata.version("wnlb-deploy") + "\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "required: COMMAND"),
        (["bogus"], "invalid choice: 'bogus'"),
        (["--bogus"], "required: COMMAND"),
        (["predict"], "required: model, source"),
        (["predict", "m.onnx", "a.png", "--bogus"], "unrecognized arguments: --bogus"),
        (["predict", "m.onnx", "a.png", "--device", "tpu"], "invalid choice: 'tpu'"),
        (
            ["predict", "m.onnx", "a.png", "--score-threshold", "0,5"],
            "--score-threshold: '0,5'; expected a number, e.g. 0.5",
        ),
        (["predict", "m.onnx", "a.png", "--threads", "two"], "--threads: 'two'; expected a whole number"),
        (
            ["predict", "m.onnx", "a.png", "b.png"],
            "predict: error: b.png: one word too many; a pattern of files is quoted",
        ),
        (["run", "m.onnx", "a.png", "b.png", "c.png", "--quiet"], "run: error: b.png and 1 more: one word too many"),
        (["inspect"], "required: file"),
        (["export", "c.pth", "-o", "m.onnx"], "required: --size"),
        (["inspect", "a" * 5000], "aaaa"),
        (["predict", "m.onnx", "a" * 5000], "aaaa"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_bad_arguments_are_one_line(wnlb_here, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in wnlb_here(*words).refused()


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("torch", ["export", "c.pth", "-o", "m.onnx", "--size", "64x96"]),
        ("torchvision", ["export", "c.pth", "-o", "m.onnx", "--size", "64x96"]),
        ("onnx", ["inspect", "planted.onnx"]),
        ("onnxruntime", ["predict", "planted.onnx", "a.png"]),
        ("cv2", ["predict", "planted.onnx", "a.png"]),
    ],
)
def test_a_missing_package_is_one_line_that_says_what_to_install(planted_model_path, tmp_path, package, words):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "planted.onnx").symlink_to(planted_model_path)
    ran = run_without(package, *words, cwd=tmp_path)
    line = ran.stderr.decode()
    assert ran.returncode == 2
    assert ran.stderr.count(b"\n") == 1
    assert f"wnlb {words[0]}: error: " in line
    assert f"pip install 'wnlb-deploy[{EXTRAS[package]}]'" in line


def test_help_needs_no_package(tmp_path):
    assert run_without(",".join(EXTRAS), "--help", cwd=tmp_path).returncode == 0
    assert run_without("torch,torchvision,onnx,onnxscript", "export", "--help", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("words", [["inspect", "planted.onnx"], ["--help"]], ids=" ".join)
def test_a_reader_that_left_is_no_error(planted_model_path, tmp_path, words, unbuffered):
    """As in `wnlb inspect model.onnx | head -1`."""
    (tmp_path / "planted.onnx").symlink_to(planted_model_path)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "wnlb.runtime.cli", *words]
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    ran = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, cwd=tmp_path, env=env, timeout=300, check=False
    )
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (0, b"")
