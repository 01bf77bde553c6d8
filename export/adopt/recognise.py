"""Which family of networks a foreign ONNX file is of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wnlb.export.adopt.families.foreign import ForeignFile
from wnlb.export.adopt.families.solov2_file import read_solov2
from wnlb.export.adopt.families.yolo_file import read_yolo
from wnlb.runtime.contract import METADATA_KEY
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.onnx_file import read_onnx


def recognised(
    path: Path,
    class_names: tuple[str, ...] = (),
    config: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> ForeignFile:
    """What a file is, of those that can be adopted.

    Args:
        class_names: in the place of those that the file tells.
        config: mmdetection's, for what a SOLOv2 file does not tell; read as data.
        overrides: the same by name; they win.

    Raises:
        WnlbError: it is not there, ours already, or of no family that is known; says what was found and expected.
    """
    model = read_onnx(path)
    if any(entry.key == METADATA_KEY for entry in model.metadata_props):
        raise WnlbError(f"{path} is a file of ours already: it has a contract; use it as it is")
    if solov2 := read_solov2(model, path, class_names, config, overrides):
        return solov2
    file = read_yolo(model, path, class_names)
    if config or overrides:
        raise WnlbError(f"{path} is a YOLO-seg file, which tells everything itself; --config and --set are for SOLOv2")
    return file
