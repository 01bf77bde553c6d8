"""Ranges of activations: one histogram of magnitudes for each tensor, from which every calibrator reads its range."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from wnlb.runtime.denormals import flush_in_session, without_denormals
from wnlb.runtime.errors import MissingDependency, WnlbError
from wnlb.runtime.files import atomic_path
from wnlb.runtime.onnx_file import with_shapes

METHODS = ("max", "entropy", "percentile", "mse")
BINS = 2048
LEVELS = 127  # of a symmetric int8 above 0
PERCENTILE = 99.99
_SAVE_EVERY = 16  # inputs
_ENTROPY_BINS = 512
Inputs = dict[str, NDArray]  # of a model, by name


class Histogram:
    """Magnitudes from 0 to ``limit``, a power of 2, in ``BINS`` bins; where a larger one comes, pairs of bins merge."""

    def __init__(self, counts: NDArray[np.int64] | None = None, limit: float = 0.0, largest: float = 0.0) -> None:
        self.counts = np.zeros(BINS, np.int64) if counts is None else counts
        self.limit, self.largest = limit, largest

    def add(self, values: NDArray[np.float32]) -> None:
        """Count the magnitudes of an array of any shape. Raises WnlbError for NaN and infinity."""
        row = np.ascontiguousarray(values, np.float32).reshape(1, -1)
        largest = float(max(np.max(row, initial=0), -np.min(row, initial=0)))
        if not np.isfinite(largest):
            raise WnlbError("an activation is not a finite number; the model or its input is damaged")
        self.largest = max(self.largest, largest)
        if not self.limit:
            self.limit = 2.0 ** (np.floor(np.log2(largest)) + 1) if largest else 0.0
        if not self.limit:
            self.counts[0] += row.size
            return
        while largest >= self.limit:
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate([pairs, np.zeros(BINS // 2, np.int64)])
            self.limit *= 2
        both = cv2.calcHist([row], [0], None, [2 * BINS], [-self.limit, self.limit]).ravel().astype(np.int64)
        self.counts += both[BINS:] + both[BINS - 1 :: -1]

    def range(self, method: str) -> float:
        """The largest magnitude that int8 shall represent, by one of ``METHODS``; 0 for a tensor that is 0 throughout.

        ``entropy`` is ONNX Runtime's (Kullback-Leibler divergence), ``percentile`` covers 99.99 percent of the values,
        ``mse`` minimises the squared error of rounding and clipping together.
        """
        if not self.largest or method == "max":
            return self.largest
        edges = np.linspace(0, self.limit, BINS + 1)
        if method == "percentile":
            share = np.cumsum(self.counts) / self.counts.sum()
            return min(float(edges[1 + np.searchsorted(share, PERCENTILE / 100)]), self.largest)
        if method == "mse":
            return min(self._mse_range(edges), self.largest)
        return min(self._entropy_range(), self.largest)

    def _mse_range(self, edges: NDArray) -> float:
        centers, used = (edges[:-1] + edges[1:]) / 2, np.flatnonzero(self.counts)
        values, weights = centers[used], self.counts[used]
        best, best_error = self.largest, np.inf
        for candidate in edges[max(BINS // 64, 1) : used[-1] + 2]:
            step = candidate / LEVELS
            error = weights @ (values - np.minimum(np.round(values / step), LEVELS) * step) ** 2
            if error < best_error:
                best, best_error = float(candidate), error
        return best

    def _entropy_range(self) -> float:
        try:
            from onnxruntime.quantization.calibrate import HistogramCollector
        except ImportError as error:
            raise MissingDependency("ONNX Runtime is not installed: pip install 'wnlb-deploy[cpu]'") from error
        # Both signs, for its search is around 0; fewer bins, for it is written in Python loops.
        counts = self.counts.reshape(_ENTROPY_BINS, -1).sum(1)
        edges = np.linspace(-self.limit, self.limit, 2 * _ENTROPY_BINS + 1)
        both, largest = np.concatenate([counts[::-1], counts]), np.float64(self.largest)
        collector = HistogramCollector("entropy", True, 2 * _ENTROPY_BINS, LEVELS + 1, PERCENTILE, "same")
        low, high = collector.get_entropy_threshold((both, edges, -largest, largest), LEVELS + 1)
        return max(-float(low), float(high))


class Tap:
    """A model of which inner tensors can be read, in ONNX Runtime on the CPU.

    Args:
        model: without local functions. Left as it is.
        tensors: names of tensors to read.
        reduce: read only the largest magnitude of each: ``[]`` instead of the tensor.
    """

    def __init__(self, model: onnx.ModelProto, tensors: Sequence[str], *, reduce: bool = False) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise MissingDependency("ONNX Runtime is not installed: pip install 'wnlb-deploy[cpu]'") from error
        tapped = onnx.ModelProto()
        tapped.CopyFrom(model)
        types = _value_types(tapped)
        own = {value.name for value in tapped.graph.output}
        self.tensors, self._names = list(tensors), []
        for name in self.tensors:
            output = name
            if reduce:
                output = f"{name}/largest"
                tapped.graph.node.append(helper.make_node("Abs", [name], [f"{name}/magnitude"]))
                tapped.graph.node.append(helper.make_node("ReduceMax", [f"{name}/magnitude"], [output], keepdims=0))
            if output not in own:
                tapped.graph.output.append(helper.make_tensor_value_info(output, types[name], None))
            self._names.append(output)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        flush_in_session(options)
        with without_denormals():
            self._session = ort.InferenceSession(
                tapped.SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["WeightBiasQuantization"],  # see wnlb.runtime.onnxruntime_backend
            )

    def __call__(self, inputs: Inputs) -> dict[str, NDArray]:
        """The model's inputs to every tapped tensor, by name."""
        with without_denormals():
            return dict(zip(self.tensors, self._session.run(self._names, inputs), strict=True))


def largest_magnitudes(
    model: onnx.ModelProto, tensors: Sequence[str], inputs: Iterable[Inputs], on_done: Callable[[], object]
) -> dict[str, float]:
    """Largest magnitude of each tensor over all inputs; NaN where one had it."""
    tap = Tap(model, tensors, reduce=True)
    largest = dict.fromkeys(tensors, 0.0)
    for own in inputs:
        for name, value in tap(own).items():
            largest[name] = float(np.maximum(largest[name], value))  # a NaN stays
        on_done()
    return largest


def collect_histograms(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    inputs: Iterable[Inputs],
    key: str,
    cache: Path,
    on_done: Callable[[], object] = lambda: None,
) -> dict[str, Histogram]:
    """A histogram for each tensor over all inputs, kept in a file.

    The file is used again where ``key`` and the tensors are the same; one that an interrupt left behind is continued.

    Args:
        inputs: of the model, by name, in the same order each time.
        key: tells model and pictures apart, e.g. by their hashes.
        cache: the file; it is written every ``_SAVE_EVERY`` inputs and at the end.
        on_done: called after each, also for those that the file already holds.
    """
    key = hashlib.sha256(repr((key, list(tensors), BINS)).encode()).hexdigest()
    done, histograms = _load(cache, key, tensors)
    tap = None
    count = 0
    for count, own in enumerate(inputs, 1):
        if count > done:
            tap = tap or Tap(model, tensors)
            for name, values in tap(own).items():
                histograms[name].add(values)
            if count % _SAVE_EVERY == 0:
                _save(cache, key, count, histograms)
        on_done()
    if count != done:
        _save(cache, key, count, histograms)
    return histograms


def _value_types(model: onnx.ModelProto) -> dict[str, int]:
    graph = with_shapes(model).graph
    return {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}


def _load(cache: Path, key: str, tensors: Sequence[str]) -> tuple[int, dict[str, Histogram]]:
    """Inputs done and histograms; nothing done where the file is missing, damaged, or of another key."""
    try:
        with np.load(cache, allow_pickle=False) as file:
            if str(file["key"]) == key:
                counts, limits, largest = file["counts"], file["limits"], file["largest"]
                rows = zip(tensors, counts, limits, largest, strict=True)
                return int(file["done"]), {n: Histogram(c.copy(), float(li), float(la)) for n, c, li, la in rows}
    except (OSError, ValueError, KeyError, EOFError, io.UnsupportedOperation):
        pass
    except Exception as error:  # zipfile.BadZipFile and what else a damaged archive raises
        if type(error).__module__ not in ("zipfile", "zlib"):
            raise
    return 0, {name: Histogram() for name in tensors}


def _save(cache: Path, key: str, done: int, histograms: dict[str, Histogram]) -> None:
    with atomic_path(cache) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            key=key,
            done=done,
            counts=np.stack([h.counts for h in histograms.values()]),
            limits=np.array([h.limit for h in histograms.values()]),
            largest=np.array([h.largest for h in histograms.values()]),
        )
