"""From the FP32 file to FP16, BF16 or INT8, precision written into the graph."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, version_converter

from wnlb.calibration.accuracy.judge import Figure, Judge, Ledger
from wnlb.calibration.precision.groups import in_order, scope_of
from wnlb.calibration.precision.mixed import MixedReport, float_tensors, half_masks, heavy_nodes, infer_again, to_half
from wnlb.calibration.precision.quantize import OPSET as INT8_OPSET
from wnlb.calibration.precision.quantize import Graph, Layer, check_placement, pair_names, quantize
from wnlb.calibration.precision.ranges import Histogram, Inputs, largest_magnitudes
from wnlb.export.onnx_file.fuse import PLUGIN_OP, fuse_attention, unfuse_attention
from wnlb.export.onnx_file.lint import lint
from wnlb.runtime.contract import METADATA_KEY
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import atomic_path
from wnlb.runtime.inputs import prepared_inputs
from wnlb.runtime.onnx_file import read_model
from wnlb.runtime.onnxruntime_backend import OnnxRuntimeBackend

BF16_OPSET = 22  # the first that allows BF16 in Conv
# First and last layers: a hundredth of the arithmetic. They are INT8 only where that alone costs next to nothing.
EDGES = ("stem", "predictors")
EDGE_DROP = 0.1  # AP in percent
Progress = Callable[[], object]


@dataclass(frozen=True)
class Int8Choice:
    """What an INT8 file is made of."""

    groups: frozenset[str]  # in INT8
    method: str
    rest: str  # precision of everything else


class Converter:
    """An FP32 file, ready to be written in other precisions.

    Args:
        path: what ``wnlb export`` wrote.

    Raises:
        WnlbError: the file is not there, no ONNX file of ours, not FP32, or made for a CPU.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model, self.contract = read_model(path)
        if self.contract.precision != "fp32":
            raise WnlbError(f"{path} is {self.contract.precision} already; convert the FP32 file it was made from")
        if self.contract.target == "cpu":
            raise WnlbError(
                f"{path} was exported with --target cpu, whose mask head has no convolutions for FP16 or INT8 "
                "to speed up; export it with --target gpu"
            )
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self._plugins = _plugin_scopes(self.model)
        unfuse_attention(self.model)
        if self.contract.masks == "frame":
            half_masks(self.model)
        self.heavy = heavy_nodes(self.model)
        graph = Graph(self.model)
        self.layers: list[Layer] = graph.layers()
        self.activations = graph.activations()
        self.largest: dict[str, float] = {}
        self.calibrated_luminance: tuple[float, float] | None = None  # of the pictures that INT8's ranges are from
        self._by_opset: dict[int | None, onnx.ModelProto] = {None: self.model}

    @property
    def groups(self) -> dict[str, int]:
        """Groups that can be INT8, in the order of the network, and their numbers of layers."""
        counts: dict[str, int] = {}
        for layer in self.layers:
            counts[layer.group] = counts.get(layer.group, 0) + 1
        return {group: counts[group] for group in in_order(set(counts))}

    def watch_overflow(self, inputs: Iterable[Inputs], on_done: Progress = lambda: None) -> None:
        """Measure on pictures which values leave FP16's range; later conversions keep their nodes in FP32."""
        tensors = float_tensors(self.model, self.heavy)
        self.largest = largest_magnitudes(self.model, tensors, inputs, on_done)

    def half(self, precision: str) -> tuple[onnx.ModelProto, MixedReport]:
        """The file in ``fp16`` or ``bf16``."""
        model = self._copy(BF16_OPSET if precision == "bf16" else None)
        report = to_half(model, precision, self.heavy, self.largest)
        return self._finished(model, precision), report

    def int8(self, choice: Int8Choice, ranges: dict[str, float]) -> onnx.ModelProto:
        """The file with some groups in INT8.

        Args:
            ranges: of ``activations``, see ``ranges_by``.
        """
        model = self._copy(INT8_OPSET)
        quantize(model, {layer.node for layer in self.layers if layer.group in choice.groups}, ranges)
        infer_again(model)
        check_placement(model)
        if choice.rest == "fp16":
            to_half(model, "fp16", self.heavy | pair_names(model), self.largest)
            check_placement(model)
        return self._finished(model, f"int8+{choice.rest}")

    def _copy(self, opset: int | None) -> onnx.ModelProto:
        if opset is not None and opset not in self._by_opset:
            self._by_opset[opset] = version_converter.convert_version(self.model, opset)
        model = onnx.ModelProto()
        model.CopyFrom(self._by_opset[opset])
        return model

    def _finished(self, model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
        opset = next(entry.version for entry in model.opset_import if not entry.domain)
        contract = dataclasses.replace(self.contract, precision=precision, opset=opset)
        if precision.startswith("int8"):
            contract = dataclasses.replace(contract, calibrated_luminance=self.calibrated_luminance)
        if self._plugins:
            fuse_attention(model, self._plugins)
        helper.set_model_props(
            model, {**{e.key: e.value for e in model.metadata_props}, METADATA_KEY: contract.to_json()}
        )
        lint(model, contract)
        return model


def ranges_by(histograms: dict[str, Histogram], method: str) -> dict[str, float]:
    """The range of each tensor by one of ``ranges.METHODS``."""
    return {name: histogram.range(method) for name, histogram in histograms.items()}


def save_checked(model: onnx.ModelProto, path: Path, run: bool = True) -> None:
    """Write a file that opens, and gives finite outputs of its contract's shapes, in ONNX Runtime; else none appears.

    Args:
        run: False where ONNX Runtime's CPU cannot run the file (BF16).
    """
    with atomic_path(path) as temporary:
        onnx.save(model, temporary)
        onnx.checker.check_model(model)
        if run:
            backend = OnnxRuntimeBackend(temporary, device="cpu")
            contract = backend.contract
            frame = np.random.default_rng(0).integers(0, 64, contract.input_shape[1:], dtype=np.uint8)
            for batch in {contract.batches[0], contract.batch}:
                outputs = backend.run(prepared_inputs(contract, [frame] * batch))
                for name, expected in contract.output_shapes.items():
                    if outputs[name].shape != (batch, *expected[1:]) or not np.isfinite(outputs[name]).all():
                        raise WnlbError(f"output {name} of the converted file is {outputs[name].shape} or not finite")


class Int8Trials:
    """Measures choices of groups on one judge, remembering what was measured.

    Args:
        key: tells model, pictures and judge apart, for the ledger.
    """

    def __init__(
        self,
        converter: Converter,
        histograms: dict[str, Histogram],
        judge: Judge,
        ledger: Ledger,
        key: str,
        on_done: Progress = lambda: None,
    ) -> None:
        self._converter, self._histograms, self._judge = converter, histograms, judge
        self._ledger, self._key, self._on_done = ledger, key, on_done

    def figure(self, choice: Int8Choice) -> Figure:
        """AP with these groups in INT8."""

        def measure() -> Figure:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "trial.onnx"
                onnx.save(self._converter.int8(choice, ranges_by(self._histograms, choice.method)), path)
                return self._judge.measure(path, self._on_done)

        return self._remembered((sorted(choice.groups), choice.method, choice.rest), measure)

    def baseline(self) -> Figure:
        """AP of the FP32 file."""
        return self._remembered("fp32", lambda: self._judge.measure(self._converter.path, self._on_done))

    def drop(self, choice: Int8Choice) -> float:
        """How much AP these groups cost."""
        return self.baseline().drop(self.figure(choice))

    def _remembered(self, what: object, measure: Callable[[], Figure]) -> Figure:
        key = repr((self._key, self._judge.truth, len(self._judge), what))
        return self._ledger.get(hashlib.sha256(key.encode()).hexdigest(), measure)


def _plugin_scopes(model: onnx.ModelProto) -> tuple[str, ...]:
    """How the names of the nodes begin that are plugin nodes."""
    return tuple(f"{scope_of(node)}/" for node in model.graph.node if node.op_type == PLUGIN_OP)
