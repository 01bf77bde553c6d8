"""What Triton's python backend loads as ``model.py`` of ``--variant full``; it is copied into the repository.

Needs this package in the Python that Triton's stub runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from wnlb.runtime.serving.config import FILE_KEY, PICTURE, SCORE_KEY
from wnlb.runtime.serving.picture_model import PictureModel


class TritonPythonModel:
    """The interface that https://github.com/triton-inference-server/python_backend describes."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        folder = Path(args["model_repository"]) / args["model_version"]
        score_threshold = float(parameters[SCORE_KEY]["string_value"])
        self._model = PictureModel(folder / parameters[FILE_KEY]["string_value"], score_threshold)

    def execute(self, requests: list[Any]) -> list[Any]:
        import triton_python_backend_utils as triton

        asked = [triton.get_input_tensor_by_name(request, PICTURE).as_numpy().ravel() for request in requests]
        responses = []
        for answer in self._model.answers(asked):
            if isinstance(answer, Exception):
                error = triton.TritonError(str(answer), triton.TritonError.INVALID_ARG)
                responses.append(triton.InferenceResponse(error=error))
            else:
                tensors = [triton.Tensor(name, np.ascontiguousarray(value)) for name, value in answer.items()]
                responses.append(triton.InferenceResponse(tensors))
        return responses

    def finalize(self) -> None:
        self._model.close()
