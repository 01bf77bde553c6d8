"""Engines of exported models; see ``wnlb.runtime.engine.engine`` for how they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.contract import Contract
from wnlb.runtime.engine.engine import TensorRtEngine
from wnlb.runtime.engine.manifest import Manifest, read_manifest
from wnlb.runtime.errors import ContractError


class TensorRtBackend:
    """Runs an engine that ``wnlb build`` wrote; see ``wnlb.runtime.backend.Backend``.

    The arrays that ``run`` returns are the engine's own buffers: the next run overwrites them.

    Args:
        trust: the ONNX file that an engine without a manifest was built from, by trtexec for instance; it gives the
            contract. Opening an engine is running code: only for one whose origin you know.

    Raises:
        WnlbError: engine, manifest, this machine's library, GPU or plugin do not fit; says which, and what to do.
    """

    takes_device_arrays = True
    at_once = 1

    def __init__(self, path: Path | str, *, trust: Path | None = None) -> None:
        path = Path(path)
        manifest = None if trust else read_manifest(path)
        self.contract = _trusted_contract(trust) if trust else _contract(path, manifest)
        plugin = any("plugin" in form for form in self.contract.attention.values())
        counted = frozenset(["masks"]) if self.contract.masks == "frame" else frozenset[str]()
        self._engine = TensorRtEngine(path, manifest, plugin, counted=counted)
        try:
            self._check()
        except ContractError:
            self.close()
            raise

    @property
    def description(self) -> str:
        return self._engine.description

    @property
    def device_bytes(self) -> int:
        """See ``TensorRtEngine.device_bytes``."""
        return self._engine.device_bytes

    def run(self, inputs: dict[str, Any]) -> dict[str, NDArray]:
        found = self._engine.run(inputs)
        return {name: found[name] for name in self.contract.output_shapes}

    def timed(self, transfers: bool, cuda_graph: bool, spin_wait: bool) -> dict[str, float]:
        """See ``TensorRtEngine.timed``."""
        return self._engine.timed(transfers, cuda_graph, spin_wait)

    def layer_times(self, runs: int) -> list[tuple[str, float]]:
        """See ``TensorRtEngine.layer_times``."""
        return self._engine.layer_times(runs)

    def close(self) -> None:
        self._engine.close()

    def _check(self) -> None:
        """That the engine's inputs and outputs, and the frames that it was built for, are the contract's."""
        batches = None if self.contract.min_batch is None else self.contract.batches
        if (built := self._engine.batches) != batches:
            takes = f"{built[0]}-{built[-1]}" if built else "one number of"
            raise ContractError(
                f"engine {self._engine.path} takes {takes} frames, unlike its contract: {self.contract.batch_text}"
            )
        shapes = {**self.contract.input_shapes, **self.contract.output_shapes}
        wanted = {name: (shape, np.dtype(self.contract.types[name])) for name, shape in shapes.items()}
        for name, array in {**self._engine.inputs, **self._engine.outputs}.items():
            if wanted.pop(name, None) != (array.shape, array.dtype):
                shown = f"{name} is {array.dtype} {list(array.shape)}"
                raise ContractError(f"engine {self._engine.path}: {shown}, unlike its contract")
        if wanted:
            raise ContractError(f"engine {self._engine.path} has no {', '.join(wanted)}, unlike its contract")


def _contract(path: Path, manifest: Manifest | None) -> Contract:
    contract = manifest.read_contract() if manifest else None
    if contract is None:
        raise ContractError(
            f"engine {path} was built from {manifest.onnx if manifest else '?'}, which is not ours: it has no wnlb "
            "contract to say how frames are prepared; expected a file that 'wnlb export' wrote"
        )
    return contract


def _trusted_contract(trust: Path) -> Contract:
    from wnlb.runtime.onnx_file import read_model

    return read_model(trust)[1]
