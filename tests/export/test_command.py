import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from small_models import small_model

from wnlb.runtime.cli import main

BRIEF = ("--pre-nms", 100, "--post-nms", 60, "--candidates", 480, "--nms-rounds", 16)  # a CPU is through with soon


Command = Callable[..., Any]


def test_export_prints_plan_and_verification_and_predict_reads_the_file(
    wnlb_here: Command, tmp_path: Path, small_checkpoint_path: Path
) -> None:
    classes = tmp_path / "names.txt"
    classes.write_text("\n".join("abcdefgh"))
    output = tmp_path / "model.onnx"
    run = wnlb_here("export", small_checkpoint_path, "-o", output, "--size", "64x64", "--classes", classes)
    assert run.code == 0, run.err
    for said in ("resnet18, 8 classes", "GFLOP", "c2     standard", "nothing to detect", "wrote"):
        assert said in run.out
    shown = json.loads(wnlb_here("inspect", output, "--json").out)
    assert shown["contract"]["class_names"] == list("abcdefgh")
    assert shown["inputs"] == {"image": "uint8 [1, 64, 64, 3]", "content": "int32 [1, 2]"}
    text = wnlb_here("inspect", output).out
    assert "attention: c2 embedded/standard" in text
    assert shown["sha256"] in text


def test_export_as_json(wnlb: Command, tmp_path: Path, small_checkpoint_path: Path) -> None:
    output = tmp_path / "model.onnx"
    options = (
        "--size",
        "64x64",
        "--set",
        "mode=dot",
        "--masks",
        "none",
        "--detections",
        7,
        "--interpolation",
        "nearest",
        *BRIEF,
    )
    run = wnlb("export", small_checkpoint_path, "-o", output, *options, "--json")
    assert run.code == 0, run.err
    assert run.err == ""
    told = json.loads(run.out)
    assert [plan["mode"] for plan in told["plan"]] == ["dot"] * 4
    assert [case["missing"] for case in told["verification"]] == [0, 0, 0, 0]
    assert told["contract"]["interpolation"] == "nearest"
    assert [o.name for o in onnx.load(output).graph.output] == ["boxes", "scores", "labels", "count"]


def test_failed_verification_exits_with_1_and_leaves_nothing(
    wnlb_here: Command, tmp_path: Path, small_checkpoint_path: Path
) -> None:
    output = tmp_path / "model.onnx"
    run = wnlb_here(
        "export", small_checkpoint_path, "-o", output, "--size", "64x96", "--masks", "none", *BRIEF[:-1], 1, "--json"
    )
    assert run.code == 1
    assert "needs" in run.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--size", "64"), "expected HEIGHTxWIDTH"),
        (("--size", "100x100"), "multiple of 32"),
        (("--size", "64x64", "--attention-memory", "lots"), "expected a size such as"),
        (("--size", "64x64", "--classes", "no/such/file"), "cannot be read"),
        (("--size", "64x64", "--set", "mode"), "expected NAME=VALUE"),
        (("--size", "64x64", "--set", "mode=scaled"), "expected one of embedded"),
        (("--size", "64x64", "--set", "fpn_channels=16"), "misshapen"),
        (("--size", "64x64", "--batch", "two"), "batch is 'two'; expected a number of frames such as 4"),
        (("--size", "64x64", "--precision", "fp16"), "unrecognized arguments: --precision fp16"),
        ((), "required: --size"),
    ],
)
def test_bad_arguments_get_one_line(
    wnlb_here: Command, tmp_path: Path, small_checkpoint_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    run = wnlb_here("export", small_checkpoint_path, "-o", tmp_path / "model.onnx", *arguments, "--json")
    assert run.code == 2
    assert said in run.err
    assert run.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ("0-4", "batch is 0-4; expected A-B, with A from 1 up and B above it"),
        ("4-1", "batch is 4-1; expected A-B"),
        ("4-4", "batch is 4-4; expected A-B"),
        ("0", "batch is 0; expected at least 1"),
        *(
            (text, f"batch is {text!r}; expected a number of frames such as 4, or the fewest and the most: 1-8")
            for text in ("a-b", "1-", "1-2-3", "-2", "1..8")
        ),
    ],
)
def test_bad_batches_get_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], batch: str, said: str) -> None:
    output = tmp_path / "model.onnx"
    assert main(["export", "sample", "-o", str(output), "--size", "64x64", f"--batch={batch}"]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not output.exists()


def test_missing_checkpoint_and_missing_folder(wnlb_here: Command, tmp_path: Path, small_checkpoint_path: Path) -> None:
    for checkpoint, output, said in (
        (tmp_path / "none.pth", tmp_path / "m.onnx", "does not exist"),
        (small_checkpoint_path, tmp_path / "no" / "m.onnx", "create it"),
    ):
        run = wnlb_here("export", checkpoint, "-o", output, "--size", "64x64", "--json")
        assert (run.code, run.err.count("\n")) == (2, 1)
        assert said in run.err


def test_weights_and_settings_are_chosen_and_told(wnlb_here: Command, tmp_path: Path) -> None:
    """A frozen model with several anchors a level and its average, as other people's scripts save them."""
    model = small_model(norm="frozen", anchor_sizes=((16, 24), (32, 48), (64, 96), (128, 160), (200, 256)))
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    content = {"model": state, "model_ema": state.copy(), "history": {"loss": Path("x")}}
    torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    options = ("-o", tmp_path / "m.onnx", "--size", "64x64", "--masks", "none", *BRIEF, "--weights", "ema")
    refused = wnlb_here("export", tmp_path / "c.pth", *options)
    assert refused.code == 2
    assert "6 anchors per position" in refused.err
    proposed = [word for word in shlex.split(refused.err[refused.err.index("--set") :]) if word != "--set"]
    again = [word for setting in proposed for word in ("--set", setting)]
    refused = wnlb_here("export", tmp_path / "c.pth", *options[:-1], "swa", *again)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "no weights named 'swa'; expected one of model, model_ema" in refused.err
    run = wnlb_here("export", tmp_path / "c.pth", *options, *again)
    assert run.code == 0, run.err
    assert "weights: model_ema; also there: model (--weights NAME)" in run.out
    assert "--set norm_eps=0" in run.out
    contract = json.loads(wnlb_here("inspect", tmp_path / "m.onnx", "--json").out)["contract"]
    assert contract["checkpoint_weights"] == "model_ema"


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("model.pth", "has the suffix '.pth'; expected .onnx"),
        ("folder.onnx", "is a folder; expected the name of a file to write"),
        ("no/model.onnx", "create it or choose another output"),
        ("file.txt/model.onnx", "create it or choose another output"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_work_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, output: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.onnx").mkdir()
    Path("file.txt").write_text("x")
    assert main(["export", "not/there.pth", "-o", output, "--size", "64x64"]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.txt", "folder.onnx"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--size", "999999968x999999968"], "expected fewer than 2^31 in a tensor"),
        (["--size", "64x64", "--batch", "999999999"], "expected fewer than 2^31 in a tensor"),
        (["--size", "64x64", "--set", "norm=frozen", "--set", "norm_epsilon=0"], "expected norm_eps"),
        (["--size", "64x64", "--set", "norm_eps=-1"], "norm_eps is -1; expected a number from 0 to 1"),
        (["--size", "64x64", "--set", "mask_channels=[0]"], "mask_channels is (0,); expected more than 0"),
        (["--size", "64x64", "--set", "mask_channels=[]"], "expected the channels of one convolution or more"),
    ],
)
def test_settings_that_make_no_sense_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert main(["export", "sample", "-o", str(tmp_path / "m.onnx"), *options]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_names_of_classes_that_do_not_fit_are_refused_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    words = ["export", "sample", "-o", str(tmp_path / "m.onnx"), "--size", "64x64", "--classes"]
    assert main([*words, str(tmp_path / "names.txt")]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert "2 class names for 8 classes" in told.err
