"""Stands in for Triton's onnxruntime backend, which is not in the server of the tests: the same file, the same tensors.

A python-based backend: Triton takes it for ``backend: "onnxruntime"`` where it lies in the folder of that name.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from wnlb.runtime.onnxruntime_backend import OnnxRuntimeBackend


class TritonPythonModel:
    """Runs the requests of a batch together."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        self._model = OnnxRuntimeBackend(folder / config["default_model_filename"])
        self._inputs = [value["name"] for value in config["input"]]
        self._gate = Path(os.environ["WNLB_GATES"]) / config["name"]

    def execute(self, requests: list[Any]) -> list[Any]:
        if self._gate.exists():
            inside = self._gate.with_name(f"{self._gate.name}.inside")
            inside.touch()
            while self._gate.exists():
                time.sleep(0.01)
            inside.unlink()
        given = [[triton.get_input_tensor_by_name(each, name).as_numpy() for name in self._inputs] for each in requests]
        together = {name: np.concatenate([arrays[i] for arrays in given]) for i, name in enumerate(self._inputs)}
        outputs = self._model.run(together)
        ends = np.cumsum([len(arrays[0]) for arrays in given])
        return [
            triton.InferenceResponse(
                [
                    triton.Tensor(name, np.ascontiguousarray(value[end - len(arrays[0]) : end]))
                    for name, value in outputs.items()
                ]
            )
            for arrays, end in zip(given, ends, strict=True)
        ]
