"""Which family of networks a foreign ONNX file is of."""

from __future__ import annotations

import re
from pathlib import Path

from wnlb.export.adopt.yolo_file import YoloFile, read_yolo
from wnlb.runtime.contract import METADATA_KEY
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.onnx_file import read_onnx

_CHECKPOINT = rb"PK\x03\x04|\x80[\x02-\x05]"  # how what PyTorch and pickle write begins


def recognised(path: Path, class_names: tuple[str, ...] = ()) -> YoloFile:
    """What a file is, of those that can be adopted.

    Args:
        class_names: in the place of those that the file tells.

    Raises:
        WnlbError: it is not there, ours already, or of no family that is known; says what was found and expected.
    """
    if path.is_file():
        with open(path, "rb") as file:
            if re.match(_CHECKPOINT, file.read(4)):
                raise WnlbError(
                    f"{path} is a checkpoint; expected an ONNX file: where it was trained, 'yolo export "
                    f"model={path.name} format=onnx' (checkpoints of Mask R-CNN and SOLOv2 go through 'wnlb export')"
                )
    model = read_onnx(path)
    if any(entry.key == METADATA_KEY for entry in model.metadata_props):
        raise WnlbError(f"{path} is a file of ours already: it has a contract; use it as it is")
    return read_yolo(model, path, class_names)
