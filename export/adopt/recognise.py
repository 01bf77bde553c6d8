"""Which family of networks a foreign ONNX file is of."""

from __future__ import annotations

from pathlib import Path

from wnlb.export.adopt.yolo_file import YoloFile, read_yolo
from wnlb.runtime.contract import METADATA_KEY
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.onnx_file import read_onnx


def recognised(path: Path, class_names: tuple[str, ...] = ()) -> YoloFile:
    """What a file is, of those that can be adopted.

    Args:
        class_names: in the place of those that the file tells.

    Raises:
        WnlbError: it is not there, ours already, or of no family that is known; says what was found and expected.
    """
    model = read_onnx(path)
    if any(entry.key == METADATA_KEY for entry in model.metadata_props):
        raise WnlbError(f"{path} is a file of ours already: it has a contract; use it as it is")
    return read_yolo(model, path, class_names)
