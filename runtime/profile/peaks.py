"""What a machine reaches at best, measured through the backend: the roof of the roofline."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.onnxruntime_backend import open_session
from wnlb.runtime.profile.work import Work

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
SUM = "sum"  # the model that measures memory, beside those of the precisions
WARM_UP, RUNS = 2, 20
_SHORTEST_S, _WANTED_S = 0.005, 0.01  # what starts a run may take some of a shorter one
# Rows. Two CPU cores reach the most on small matrices, 227 GFLOP/s (one of 1024 rows lies badly in caches: 197), a
# large GPU on large ones. Multiples of 128, the tile of GPU kernels.
_PRODUCT_SIZES = (640, 10240)
_SUM_SIZES = (64, 256)  # MiB of an array: more than caches hold; three fit into a small GPU
_SCALE = 1 / 127  # of int8 inputs below 1

# Opens an ONNX file in a backend; what it yields runs the file once, on inputs of its own, and returns the seconds.
# It raises WnlbError where the backend cannot.
RunOf = Callable[[Path], AbstractContextManager[Callable[[], float]]]


@dataclass(frozen=True)
class Peaks:
    """FLOP/s by precision, "fp32" among them, and bytes/s of memory, reads and writes together."""

    flops_per_s: dict[str, float]
    bytes_per_s: float

    def floor_ms(self, work: Work) -> float:
        """The time below which a stage cannot come while it moves its bytes through memory.

        A precision without a peak counts with FP32's. A stage whose tensors all stay in a cache may be faster.
        """
        return 1e3 * max(self._seconds(work))

    def bound(self, work: Work) -> str:
        """What the floor comes from: "compute" or "memory"."""
        compute, memory = self._seconds(work)
        return "compute" if compute >= memory else "memory"

    def _seconds(self, work: Work) -> tuple[float, float]:
        fp32 = self.flops_per_s["fp32"]
        compute = sum(count / self.flops_per_s.get(precision, fp32) for precision, count in work.flops.items())
        return compute, work.bytes / self.bytes_per_s


@dataclass(frozen=True)
class PeakModel:
    """A small static ONNX file and what one run of it does: FLOPs, or bytes for ``SUM``."""

    path: Path
    amount: float


def measure_peaks(run_of: RunOf, precisions: Sequence[str]) -> Peaks:
    """The fastest of ``RUNS`` runs of each model, after a warm-up; FP32 is always measured.

    Where a run is short, a larger model is measured too, and the better counts. A precision that the backend cannot run
    is left out.

    Args:
        precisions: among ``PRECISIONS``.

    Raises:
        ValueError: another precision.
        WnlbError: the backend cannot run FP32.
    """
    if not set(precisions) <= set(PRECISIONS):
        raise ValueError(f"precisions are {', '.join(precisions)}; expected some of {', '.join(PRECISIONS)}")
    flops_per_s = {"fp32": _peak(run_of, "fp32")}
    for precision in precisions:
        with contextlib.suppress(WnlbError):
            flops_per_s[precision] = flops_per_s.get(precision) or _peak(run_of, precision)
    return Peaks(flops_per_s, _peak(run_of, SUM))


def peak_model(folder: Path, what: str, size: int) -> PeakModel:
    """Write the model that measures a peak into ``folder``.

    Args:
        what: a precision, for a product of two [size, size] matrices of that type, the second constant; for int8 both
            come from DequantizeLinear as in files of 'wnlb convert', input and output are float32. Or ``SUM``, for a
            sum of two float32 arrays of ``size`` MiB.
    """
    import onnx
    from onnx import helper

    path = folder / f"{what}.{size}.onnx"
    graph = _sum(size) if what == SUM else _product(what, size)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return PeakModel(path, 3.0 * size * 2**20 if what == SUM else 2.0 * size**3)


def run_in_onnxruntime(device: str, threads: int) -> RunOf:
    """ONNX Runtime; inputs and outputs stay on the device. See ``open_session`` for the arguments.

    FP16 on a CPU without such kernels is what ONNX Runtime makes of it there, float32 and casts. Inputs in BF16 are
    not supported.
    """

    @contextlib.contextmanager
    def run_of(path: Path) -> Iterator[Callable[[], float]]:
        session = open_session(path, device=device, threads=threads)
        binding = _bound(session, path)

        def run() -> float:
            started = time.perf_counter()
            try:
                session.run_with_iobinding(binding)
                binding.synchronize_outputs()
            except Exception as error:  # its exception types are not public
                raise WnlbError(f"model {path} does not run in ONNX Runtime: {_first_line(error)}") from error
            return time.perf_counter() - started

        yield run

    return run_of


def _peak(run_of: RunOf, what: str) -> float:
    """FLOPs or bytes per second."""
    (size, most), power = (_SUM_SIZES, 1) if what == SUM else (_PRODUCT_SIZES, 3)
    seconds, amount = _fastest(run_of, what, size)
    peak = amount / seconds
    if seconds < _SHORTEST_S:
        doublings = math.ceil(math.log2(_WANTED_S / seconds) / power)
        seconds, amount = _fastest(run_of, what, min(size << doublings, most))
    return max(peak, amount / seconds)


def _fastest(run_of: RunOf, what: str, size: int) -> tuple[float, float]:
    """Seconds of the fastest run, and what it did."""
    with tempfile.TemporaryDirectory() as folder:
        model = peak_model(Path(folder), what, size)
        with run_of(model.path) as run:
            seconds = [run() for _ in range(WARM_UP + RUNS)]
    return min(seconds[WARM_UP:]), model.amount


def random_values(shape: Sequence[int], kind: DTypeLike) -> NDArray[Any]:
    """In [0.5, 1): neither zero nor denormal, on which processors are faster or slower, and always the same.

    Args:
        kind: float32, float16, or uint16 for the bits of BF16, the upper half of a float32.
    """
    values = (np.random.default_rng(0).random(shape, np.float32) / 2 + 0.5).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16) if kind == np.uint16 else values.astype(kind)


# The models


def _sum(mebibytes: int) -> Any:
    from onnx import TensorProto, helper

    a, b, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [mebibytes, 2**18]) for name in "aby")
    return helper.make_graph([helper.make_node("Add", ["a", "b"], ["y"])], SUM, [a, b], [y])


def _product(precision: str, size: int) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    kinds = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
    x, y = (helper.make_tensor_value_info(n, kinds.get(precision, TensorProto.FLOAT), [size, size]) for n in "xy")
    constants, nodes, factors = [_weight(precision, size)], [], ["x", "w"]
    if precision == "int8":
        pair = ["scale", "zero"]
        constants.append(numpy_helper.from_array(np.array(_SCALE, np.float32), "scale"))
        constants.append(numpy_helper.from_array(np.zeros((), np.int8), "zero"))
        nodes.append(helper.make_node("QuantizeLinear", ["x", *pair], ["x.int8"]))
        nodes.append(helper.make_node("DequantizeLinear", ["x.int8", *pair], ["x.dequantized"]))
        nodes.append(helper.make_node("DequantizeLinear", ["w", *pair], ["w.dequantized"]))
        factors = ["x.dequantized", "w.dequantized"]
    nodes.append(helper.make_node("MatMul", factors, ["y"]))
    return helper.make_graph(nodes, precision, [x], [y], constants)


def _weight(precision: str, size: int) -> Any:
    from onnx import TensorProto, numpy_helper

    shape = (size, size)
    if precision == "bf16":
        halves = random_values(shape, np.uint16)
        return TensorProto(name="w", data_type=TensorProto.BFLOAT16, dims=shape, raw_data=halves.tobytes())
    if precision == "int8":
        return numpy_helper.from_array(np.rint(random_values(shape, np.float32) / _SCALE).astype(np.int8), "w")
    return numpy_helper.from_array(random_values(shape, np.float16 if precision == "fp16" else np.float32), "w")


def _bound(session: Any, path: Path) -> Any:
    """An ``IOBinding`` with random inputs and room for the outputs."""
    from onnxruntime import OrtValue

    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    device = "cuda" if session.get_providers()[0] == "CUDAExecutionProvider" else "cpu"
    binding = session.io_binding()
    for value in (*session.get_inputs(), *session.get_outputs()):
        if value.type not in kinds:
            raise WnlbError(f"model {path}: {value.name} is a {value.type}; expected float or float16")
    for value in session.get_inputs():
        data = OrtValue.ortvalue_from_shape_and_type(value.shape, kinds[value.type], device, 0)
        data.update_inplace(random_values(value.shape, kinds[value.type]))  # a copy: ortvalue_from_numpy borrows
        binding.bind_ortvalue_input(value.name, data)
    for value in session.get_outputs():
        room = OrtValue.ortvalue_from_shape_and_type(value.shape, kinds[value.type], device, 0)
        binding.bind_ortvalue_output(value.name, room)
    return binding


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
