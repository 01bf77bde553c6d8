"""``wnlb convert`` of a file of another tool: arrays in the place of pictures, errors of outputs in the place of AP."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from wnlb.calibration.accuracy.judge import evenly
from wnlb.calibration.precision.foreign import ForeignFile
from wnlb.calibration.precision.job import progress_bar
from wnlb.calibration.precision.ranges import METHODS, Inputs, collect_histograms
from wnlb.runtime.denormals import without_denormals
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import atomic_path, make_folder, sha256_of
from wnlb.runtime.onnx_file import described
from wnlb.runtime.onnxruntime_backend import open_session
from wnlb.runtime.table import human_bytes, table

_COUNT = 256  # files of arrays that are calibrated on
_SUFFIXES = (".npz", ".npy")
_FOR_OURS = ("images", "annotations", "eval_images", "max_ap_drop", "sensitivity", "keep")


def convert_foreign(arguments: argparse.Namespace) -> int:
    """The whole command, of a file without a contract. Raises WnlbError for what only a file of ours can have."""
    for name in _FOR_OURS:
        if getattr(arguments, name):
            raise WnlbError(
                f"--{name.replace('_', '-')} is for files of ours; {arguments.model} has no wnlb contract, which says "
                "how frames go in and detections come out: give --inputs, arrays as it takes them"
            )
    if arguments.precision == "int8" and not arguments.inputs:
        raise WnlbError(
            f"INT8 of {arguments.model}, which has no wnlb contract, needs --inputs: .npz or .npy files of arrays as "
            "it takes them, made of night pictures"
        )
    file = ForeignFile(arguments.model)
    runs = _Runs(file, arguments)
    facts: dict[str, Any] = {"precision": arguments.precision, "contract": None, "inputs": len(runs)}
    if arguments.precision != "bf16":
        with progress_bar(len(runs), "look for overflow", arguments.json) as bar:
            file.watch_overflow(runs, bar.update)
    if arguments.precision == "int8":
        model, facts["method"] = _int8(file, runs, arguments)
        facts["layers"] = len(file.layers)
        _say(arguments, f"\nINT8: {len(file.layers)} layers, all but the first and the last; {arguments.rest} beside")
    else:
        model, report = file.half(arguments.precision)
        facts |= {"half": report.half, "fp32": report.full, "overflowing": list(report.overflowing)}
        _say(arguments, f"\n{report.half} nodes in {arguments.precision.upper()}, {report.full} in FP32")
    with atomic_path(arguments.output) as temporary:
        onnx.save(model, temporary)
        onnx.checker.check_model(model)
        if arguments.precision != "bf16":  # which ONNX Runtime's CPU does not have
            facts["errors"] = runs.errors(temporary)
            rows = [(name, f"{100 * error:.3g} %") for name, error in facts["errors"].items()]
            _say(arguments, f"\nagainst FP32, on {runs.what}:\n\n" + table(("output", "relative error"), rows))
    size = arguments.output.stat().st_size
    facts |= {"output": str(arguments.output), "bytes": size}
    _say(arguments, f"\nwrote {arguments.output}, {human_bytes(size)}; it has no wnlb contract, as the original")
    if arguments.json:
        print(json.dumps(facts, indent=2))
    return 0


def _int8(file: ForeignFile, runs: _Runs, arguments: argparse.Namespace) -> tuple[onnx.ModelProto, str]:
    """The file, and the calibrator by which outputs differ least."""
    if not file.layers:
        raise WnlbError(f"{file.path} has no convolution or fully connected layer between others; nothing is for INT8")
    folder = arguments.calibration or arguments.output.with_suffix(".calibration")
    make_folder(folder)
    key = f"{file.sha256} {runs.sha256()}"
    with progress_bar(len(runs), "measure ranges", arguments.json) as bar:
        histograms = collect_histograms(file.model, file.activations, runs, key, folder / "ranges.npz", bar.update)
    methods = METHODS if arguments.method == "auto" else (arguments.method,)
    models, worst = {}, {}
    for method in methods:
        ranges = {name: histogram.range(method) for name, histogram in histograms.items()}
        models[method] = file.int8(ranges, arguments.rest)
        with atomic_path(folder / "trial.onnx") as temporary:
            onnx.save(models[method], temporary)
            worst[method] = max(runs.errors(temporary, arguments.trial_pictures).values())
            temporary.write_bytes(b"")
        (folder / "trial.onnx").unlink()
    if len(methods) > 1:
        rows = [(name, f"{100 * error:.3g} %") for name, error in worst.items()]
        _say(arguments, "\n" + table(("calibrator", "largest relative error"), rows))
    method = min(worst, key=worst.__getitem__)
    return models[method], method


class _Runs:
    """Inputs of the model, run by run: from files, or, where none are given, noise from 0 to 1."""

    def __init__(self, file: ForeignFile, arguments: argparse.Namespace) -> None:
        self._file = file
        weights = {tensor.name for tensor in file.model.graph.initializer}
        self._declared = {value.name: value for value in file.model.graph.input if value.name not in weights}
        found = _files(arguments.inputs) if arguments.inputs else []
        self._paths = [found[i] for i in evenly(len(found), arguments.count or _COUNT)] if found else []
        self.what = f"{len(self._paths)} of {len(found)} files of {arguments.inputs}" if found else "noise from 0 to 1"
        self._seed = arguments.seed
        if not found and arguments.precision != "bf16":
            next(iter(self))
            print(
                "wnlb convert: warning: no --inputs: values beyond FP16's range are looked for on noise",
                file=sys.stderr,
            )

    def __len__(self) -> int:
        return len(self._paths) or 1

    def __iter__(self) -> Iterator[Inputs]:
        for path in self._paths:
            yield self._read(path)
        if not self._paths:
            yield {name: self._noise(value) for name, value in self._declared.items()}

    def sha256(self) -> str:
        """Tells these files from others."""
        return " ".join(sha256_of(path) for path in self._paths)

    def errors(self, path: Path, count: int | None = None) -> dict[str, float]:
        """How far a file's outputs are from the original's: ``|a - b| / |a|`` over all runs, or ``count`` of them.

        Raises:
            WnlbError: it gives other shapes, or numbers that are not finite.
        """
        names = [value.name for value in self._file.model.graph.output]
        sums = {name: np.zeros(2) for name in names}
        sessions = [open_session(own, device="cpu") for own in (self._file.path, path)]
        wanted = set(evenly(len(self), count))
        for own in (inputs for i, inputs in enumerate(self) if i in wanted):
            with without_denormals():
                original, other = (session.run(names, own) for session in sessions)
            for name, a, b in zip(names, original, other, strict=True):
                if a.shape != b.shape or (np.isfinite(a).all() and not np.isfinite(b).all()):
                    raise WnlbError(f"output {name} of the converted file is {list(b.shape)} or not finite")
                a, b = a.astype(np.float64), b.astype(np.float64)
                sums[name] += ((a - b) ** 2).sum(), (a**2).sum()
        return {name: float(np.sqrt(error / max(size, 1e-30))) for name, (error, size) in sums.items()}

    def _noise(self, value: Any) -> NDArray:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if not all(dims):
            raise WnlbError(
                f"{self._file.path} leaves sizes open ({value.name}: {described(value)}); give --inputs, .npz or .npy "
                "files of arrays as it takes them"
            )
        return np.random.default_rng(self._seed).random(dims).astype(kind)

    def _read(self, path: Path) -> Inputs:
        try:
            content = np.load(path, allow_pickle=False)
            arrays = {name: content[name] for name in content} if isinstance(content, np.lib.npyio.NpzFile) else content
        except Exception as error:  # of NumPy and zipfile
            raise WnlbError(f"{path} cannot be read as arrays: {str(error).splitlines()[0]}") from error
        if not isinstance(arrays, dict):
            arrays = {next(iter(self._declared)): arrays} if len(self._declared) == 1 else {}
        for name, value in self._declared.items():
            array, dims = arrays.get(name), value.type.tensor_type.shape.dim
            kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            fits = array is not None and array.dtype == kind and array.ndim == len(dims)
            if (
                array is None
                or not fits
                or any(d.dim_value not in (0, n) for d, n in zip(dims, array.shape, strict=True))
            ):
                got = "absent" if array is None else f"{array.dtype} {list(array.shape)}"
                raise WnlbError(f"{path}: input {name} is {got}; expected {described(value)}")
        return {name: arrays[name] for name in self._declared}


def _files(source: Path) -> list[Path]:
    """The files of arrays of a folder, in order, or the one file."""
    if not source.exists():
        raise WnlbError(f"{source} does not exist; expected .npz or .npy files, or a folder of them")
    found = sorted(path for path in source.iterdir() if path.suffix in _SUFFIXES) if source.is_dir() else [source]
    if not found:
        raise WnlbError(f"{source} has no .npz or .npy files; save arrays as the model takes them, one run in each")
    return found


def _say(arguments: argparse.Namespace, text: str) -> None:
    if not arguments.json:
        print(text)
