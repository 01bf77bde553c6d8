"""TensorRT-RTX as a judge of exported files."""

from __future__ import annotations

from pathlib import Path

import pytest


def build_in_tensorrt_rtx(file: Path) -> int:
    """Parse and build on the CPU; returns the engine's size in bytes."""
    pytest.importorskip(
        "tensorrt_rtx_libs", reason="TensorRT-RTX is not installed: pip install 'wnlb-deploy[tensorrt-rtx]'"
    )
    import tensorrt_rtx_bindings.tensorrt_rtx as trt

    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    parsed = parser.parse_from_file(str(file))
    assert parsed, [str(parser.get_error(i)) for i in range(parser.num_errors)]
    engine = builder.build_serialized_network(network, builder.create_builder_config())
    assert engine is not None
    return int(engine.nbytes)
