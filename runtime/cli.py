"""The ``wnlb`` command: one subcommand a module, imported only when it is asked for.

Such a module has ``add_arguments(parser)`` and ``run(arguments) -> exit code``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import os
import re
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from wnlb.runtime.errors import PictureWarning, WnlbError

COMMANDS = {
    "export": ("wnlb.export.command", "checkpoint to one static, verified ONNX file"),
    "adopt": ("wnlb.export.adopt.command", "an ONNX file of another tool (YOLO-seg) to one of ours"),
    "convert": ("wnlb.calibration.precision.command", "FP32 file to FP16, BF16 or INT8, calibrated on night pictures"),
    "build": ("wnlb.runtime.engine.command", "ONNX file to an engine of TensorRT or TensorRT-RTX"),
    "run": ("wnlb.runtime.live.command", "a camera, stream or video in real time, with a live page"),
    "report": ("wnlb.runtime.night.command", "the page of a night that 'wnlb run --report' recorded"),
    "predict": ("wnlb.runtime.predict_command", "detect on pictures, folders, videos or a camera"),
    "label": ("wnlb.runtime.labelling.command", "label pictures and videos by the million, for training"),
    "profile": ("wnlb.runtime.profile.command", "accuracy and latency side by side, and where the time goes"),
    "evaluate": ("wnlb.calibration.accuracy.command", "AP on labelled pictures, by class and by darkness; tracks"),
    "compare": ("wnlb.calibration.comparison.command", "models, from the first drifting tensor to pictures"),
    "triton": ("wnlb.runtime.serving.command", "serve models to many cameras with NVIDIA's Triton Server"),
    "deepstream": ("wnlb.runtime.deepstream.command", "a folder that NVIDIA DeepStream runs"),
    "scenes": ("wnlb.calibration.scenes.command", "write synthetic night scenes or videos, with labels"),
    "darken": ("wnlb.calibration.scenes.darken_command", "render a daylight COCO set dark"),
    "inspect": ("wnlb.runtime.inspect_command", "show what a model file or an engine holds"),
    "doctor": ("wnlb.runtime.doctor_command", "what this machine can do, and what to install for the rest"),
}
_NAMES = max(map(len, COMMANDS)) + 6  # the column in which help says what a command does
EXTRAS = {
    "torch": "export",
    "torchvision": "export",
    "onnx": "calibration",
    "onnxscript": "export",
    "safetensors": "export",
    "onnxruntime": "cpu",
    "cv2": "cpu",
    "tritonclient": "triton",
    "grpc": "triton",
    "trackers": "track",
    "pyarrow": "label",
    "fsspec": "label",
    "ray": "ray",
    "prometheus_client": "metrics",
}
_NUMBERS = {"float": "a number, e.g. 0.5", "int": "a whole number"}  # argparse names types
EXAMPLES = """\
from a checkpoint to the night, in five commands:
  wnlb export checkpoint.pth -o model.onnx --size 416x608
  wnlb convert model.onnx --precision int8 -o model.int8.onnx --images night_pictures/
  wnlb build model.int8.onnx -o model.engine         # or run the .onnx files themselves, in ONNX Runtime
  wnlb run model.engine 0 --serve 127.0.0.1:8080     # camera 0, with a live page
  wnlb profile checkpoint.pth --size 416x608 --images night_pictures/ -o report/    # which precision, at what cost

of a YOLO-seg file of ultralytics instead of a checkpoint:
  wnlb adopt best.onnx -o model.onnx

'wnlb COMMAND --help' explains a command.
Exit codes: 0 done, 1 a check did not hold, 2 bad input, 3 some files of many were bad.
"""


class _Help(argparse.RawDescriptionHelpFormatter):
    """With room for the longest command, which argparse counts two columns too short."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=_NAMES)
        self._action_max_length = _NAMES - 2


class Parser(argparse.ArgumentParser):
    """Answers bad arguments with one line."""

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"invalid (float|int) value: (.*)", lambda m: f"{m[2]}; expected {_NUMBERS[m[1]]}", message)
        self.exit(2, f"{self.prog}: error: {message}; see '{self.prog} --help'\n")

    def refuse_rest(self, words: Sequence[str]) -> None:
        """What no argument took: of a pattern that was not quoted, the shell has made many words."""
        if words and not any(word.startswith("-") for word in words):
            more = f" and {len(words) - 1} more" if len(words) > 1 else ""
            self.error(f"{words[0]}{more}: one word too many; a pattern of files is quoted, e.g. 'night/*.png'")
        if words:
            self.error(f"unrecognized arguments: {' '.join(words)}")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        sys.stdout.flush()  # a help text that nobody reads any more must fail here, not when Python ends
        super().exit(status, message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    # Read when OpenCV is loaded: its own lines about a bad file would stand around our one.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("QT_LOGGING_RULES", "default.warning=false")  # of fonts that OpenCV's window lacks
    chosen = next((word for word in argv if word in COMMANDS), None)
    parser = Parser(
        prog="wnlb",
        description="Mask R-CNN with weighted non-local blocks, from a checkpoint to a fast engine.",
        epilog=EXAMPLES,
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=importlib.metadata.version("wnlb-deploy"))
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    own = parser
    try:
        for name, (module, summary) in COMMANDS.items():
            subparser = commands.add_parser(
                name, help=summary, description=summary, formatter_class=argparse.RawDescriptionHelpFormatter
            )
            if name == chosen:
                importlib.import_module(module).add_arguments(subparser)
                own = subparser
        arguments, rest = parser.parse_known_args(argv)
        own.refuse_rest(rest)
        arguments.command_line = shlex.join(["wnlb", *argv])  # for reports: how to get them again
        with _told_warnings(f"wnlb {chosen}"):
            code = importlib.import_module(COMMANDS[arguments.command][0]).run(arguments)
        sys.stdout.flush()
        return int(code)
    except WnlbError as error:
        return _refuse(f"wnlb {chosen}: error: {error}", error.exit_code)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        return _refuse(
            f"wnlb {chosen}: error: {package} is not installed: pip install 'wnlb-deploy[{EXTRAS[package]}]'", 2
        )
    except ImportError as error:  # installed, but a library below it is not there
        return _refuse(f"wnlb {chosen}: error: a library cannot be loaded: {error}", 2)
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a name that is too long, a folder that may not be entered
        return _refuse(f"wnlb {chosen}: error: {error}", 2)
    except Exception as error:
        if type(error).__module__ != "cv2":
            raise
        return _refuse(f"wnlb {chosen}: error: OpenCV: {getattr(error, 'err', '') or error}", 2)
    except KeyboardInterrupt:
        return _refuse(f"wnlb {chosen}: interrupted", 130)


@contextlib.contextmanager
def _told_warnings(command: str) -> Iterator[None]:
    """What is said of pictures becomes a line of ours on standard error, each once."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", PictureWarning)
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
            if issubclass(category, PictureWarning):
                print(" ".join(f"{command}: {message}".split()), file=sys.stderr)
            else:
                others(message, category, *where)

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _refuse(line: str, code: int) -> int:
    print(" ".join(line.split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
