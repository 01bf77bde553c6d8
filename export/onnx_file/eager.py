"""The eager torchvision model behind the interface of a backend: what every exported file is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from wnlb.export.checkpoints.checkpoint import load_checkpoint
from wnlb.export.checkpoints.container import checkpoint_sha256
from wnlb.export.onnx_file.export_onnx import configure
from wnlb.export.onnx_file.reference import as_outputs, eager_detections
from wnlb.export.options import ExportOptions
from wnlb.runtime.contract import CONTENT, Contract
from wnlb.runtime.errors import WnlbError


class EagerBackend:
    """A checkpoint run by torchvision; see ``wnlb.runtime.backend.Backend``.

    Args:
        checkpoint: weights, as ``load_checkpoint`` reads them.
        contract: of a file exported from them; size, preparation, thresholds and counts are taken from it, and which
            weights of several.
    """

    takes_device_arrays = False

    def __init__(self, checkpoint: Path, contract: Contract) -> None:
        same = checkpoint_sha256(checkpoint) == contract.checkpoint_sha256
        prepared = {"image_mean": contract.mean, "image_std": contract.std}
        weights = contract.checkpoint_weights if same else ""
        self.model, config = load_checkpoint(checkpoint, overrides=prepared, weights=weights or None)
        if config.num_classes != len(contract.class_names) + 1:
            raise WnlbError(
                f"checkpoint {checkpoint} has {config.num_classes - 1} classes, the files have "
                f"{len(contract.class_names)}; compare a checkpoint with what was exported from it"
            )
        options = ExportOptions(
            contract.height,
            contract.width,
            pre_nms_top_n=contract.pre_nms_top_n,
            post_nms_top_n=contract.post_nms_top_n,
            detections=contract.detections,
            score_threshold=contract.score_threshold,
            nms_threshold=contract.nms_threshold,
        )
        configure(self.model, options)
        self.contract = contract
        self.description = f"PyTorch {torch.__version__}, eager"

    def run(self, inputs: dict[str, Any]) -> dict[str, NDArray]:
        """As the exported file: rows beyond ``count`` are 0."""
        found, _ = eager_detections(self.model, inputs[self.contract.input_name], inputs.get(CONTENT))
        outputs = as_outputs(found, self.contract.detections)
        return {name: outputs[name].astype(self.contract.types[name]) for name in self.contract.output_shapes}

    def close(self) -> None:
        """Nothing to free."""
