"""The least time that each stage can take on this machine, beside what it takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from wnlb.runtime.engine.build import BuildOptions, build_engine
from wnlb.runtime.engine.engine import TensorRtEngine
from wnlb.runtime.engine.manifest import read_manifest
from wnlb.runtime.engine.mask_cut import split_masks, with_rows
from wnlb.runtime.errors import MissingDependency, WnlbError
from wnlb.runtime.profile.peaks import PRECISIONS, Peaks, RunOf, measure_peaks, random_values, run_in_onnxruntime
from wnlb.runtime.profile.report import Row
from wnlb.runtime.profile.stages import place_of
from wnlb.runtime.profile.variants import ONNX_RUNTIME, Variant
from wnlb.runtime.profile.work import Work, work_by_stage
from wnlb.runtime.profile.worker import How


def add_floors(
    variants: list[Variant], rows: dict[str, Row], how: How, progress: Callable[[str], object]
) -> dict[str, Peaks]:
    """Fill in the rows' ``floor``; returns the peaks by backend.

    An engine whose ONNX file is not known has none; neither has a file that is not ours, for its layers tell no stages.
    """
    peaks: dict[str, Peaks] = {}
    for variant in variants:
        row = rows[variant.name]
        if row.failure or not row.stages or variant.onnx is None:
            continue
        progress(variant.name)
        try:
            work = _work(variant, row)
            if row.backend not in peaks:
                peaks[row.backend] = measure_peaks(_run_of(row.backend, how), PRECISIONS)
            row.floor = {stage: _entry(own, peaks[row.backend]) for stage, own in work.items()}
        except WnlbError as error:
            row.warnings.append(f"no floor: {error}")
    return peaks


def _work(variant: Variant, row: Row) -> dict[str, Work]:
    """Of masks, what was found alone, where the file computes no more of one frame."""
    try:
        from wnlb.runtime.onnx_file import contract_of, read_onnx

        assert variant.onnx is not None
        model = read_onnx(variant.onnx)
        contract = contract_of(model)
    except ModuleNotFoundError as error:
        raise MissingDependency("onnx is not installed: pip install 'wnlb-deploy[calibration]'") from error
    path = variant.path if isinstance(variant.path, Path) else None
    in_parts = path and path.suffix == ".engine" and read_manifest(path).mask_rows
    cut = split_masks(model, contract) if contract and in_parts else None
    if cut is None:
        return work_by_stage(model, row.batch, row.found if row.batch == 1 else 0)
    works = work_by_stage(cut[0], row.batch)
    for stage, own in work_by_stage(with_rows(cut[1], row.found)).items() if row.found else ():
        works[stage] = works[stage] + own if stage in works else own
    return {stage: works[stage] for stage in sorted(works, key=place_of)}


def _entry(work: Work, peaks: Peaks) -> dict[str, object]:
    return {
        "ms": peaks.floor_ms(work),
        "flops": sum(work.flops.values()),
        "bytes": work.bytes,
        "bound": peaks.bound(work),
    }


def _run_of(backend: str, how: How) -> RunOf:
    if backend == ONNX_RUNTIME:
        return run_in_onnxruntime(how.device, how.threads)
    return run_in_tensorrt(backend)


def run_in_tensorrt(library: str) -> RunOf:
    """TensorRT or TensorRT-RTX on the GPU at hand: the time of its compute, by the GPU's clock."""

    @contextlib.contextmanager
    def run_of(path: Path) -> Iterator[Callable[[], float]]:
        engine = path.with_suffix(".engine")
        build_engine(path, engine, BuildOptions(target=library))
        opened = TensorRtEngine(engine, read_manifest(engine), mapped=False)
        try:
            for array in opened.inputs.values():
                array[...] = random_values(array.shape, array.dtype)
            yield lambda: opened.timed(False, True, True)["gpu"] / 1e3
        finally:
            opened.close()

    return run_of
