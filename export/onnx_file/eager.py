"""The eager model behind the interface of a backend: what every exported file is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from wnlb.export.checkpoints.checkpoint import read_checkpoint
from wnlb.export.checkpoints.files.container import checkpoint_sha256
from wnlb.export.onnx_file.export_onnx import configure
from wnlb.export.onnx_file.reference import Eager, as_outputs
from wnlb.export.options import ExportOptions
from wnlb.runtime.contract import CONTENT, Contract
from wnlb.runtime.errors import WnlbError


class EagerBackend:
    """A checkpoint run as its own framework runs it; see ``wnlb.runtime.backend.Backend``.

    Args:
        checkpoint: weights, as ``read_checkpoint`` reads them.
        contract: of a file exported from them; size, preparation, thresholds and counts are taken from it, and which
            weights of several.
        weights, key_map, overrides: as ``read_checkpoint`` takes them; before what the contract tells.
    """

    takes_device_arrays = False
    at_once = 1

    def __init__(
        self,
        checkpoint: Path,
        contract: Contract,
        *,
        weights: str | None = None,
        key_map: Path | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        same = checkpoint_sha256(checkpoint) == contract.checkpoint_sha256
        told = {"image_mean": contract.mean, "image_std": contract.std, **contract.checkpoint_settings}
        read = read_checkpoint(
            checkpoint,
            key_map=key_map,
            overrides={**told, **(overrides or {})},
            weights=weights or (contract.checkpoint_weights if same else "") or None,
        )
        self.eager, config = Eager(read.model, read.origin), read.config
        if self.eager.framework != contract.framework:
            raise WnlbError(
                f"checkpoint {checkpoint} is of {self.eager.framework}, the files are of {contract.framework}; compare "
                "a checkpoint with what was exported from it"
            )
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
        configure(read.model, options)
        self.contract = contract
        self.description = f"PyTorch {torch.__version__}, eager"

    def run(self, inputs: dict[str, Any]) -> dict[str, NDArray]:
        """As the exported file: rows beyond ``count`` are 0."""
        found, _ = self.eager.detections(inputs[self.contract.input_name], inputs.get(CONTENT))
        outputs = as_outputs(found, self.contract.detections)
        return {name: outputs[name].astype(self.contract.types[name]) for name in self.contract.output_shapes}

    def close(self) -> None:
        """Nothing to free."""
