"""Which family of networks a foreign ONNX file is of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wnlb.export.adopt.families.foreign import ForeignFile
from wnlb.export.adopt.families.solov2_file import read_solov2
from wnlb.export.adopt.families.yolo_file import read_yolo
from wnlb.runtime.contract import METADATA_KEY
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.onnx_file import read_onnx

_CHECKPOINT = rb"PK\x03\x04|\x80[\x02-\x05]"  # how what PyTorch and pickle write begins


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
    if path.is_file():
        with open(path, "rb") as opened:
            if re.match(_CHECKPOINT, opened.read(4)):
                raise WnlbError(
                    f"{path} is a checkpoint; expected an ONNX file: where it was trained, 'yolo export "
                    f"model={path.name} format=onnx' (checkpoints of Mask R-CNN and SOLOv2 go through 'wnlb export')"
                )
    model = read_onnx(path)
    if any(entry.key == METADATA_KEY for entry in model.metadata_props):
        raise WnlbError(f"{path} is a file of ours already: it has a contract; use it as it is")
    if solov2 := read_solov2(model, path, class_names, config, overrides):
        return solov2
    file = read_yolo(model, path, class_names)
    if config or overrides:
        raise WnlbError(f"{path} is a YOLO-seg file, which tells everything itself; --config and --set are for SOLOv2")
    return file
