"""From a frame to its detections."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.backend import Backend, open_backend
from wnlb.runtime.detections import Detections, paste_masks
from wnlb.runtime.device_frame import as_tensor, is_on_device, prepare_tensor, synchronize
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.frame_masks import extents, paste_frame_masks
from wnlb.runtime.geometry import Placement
from wnlb.runtime.inputs import geometry_of, named_inputs
from wnlb.runtime.served_model import Model, ServedModel

AT_ONCE = 2  # frames of a folder or a video, where a CPU computes them and each may take its time


class Predictor:
    """Frames in, ``Detections`` out.

        with Predictor("model.onnx") as predictor:
            detections = predictor(cv2.imread("night.jpg"))

    Args:
        model: a model file, the address of a served model (``triton://host:8001/model``), or a backend that is already
            open (the predictor closes it).
        score_threshold: drops detections below it; the model's own threshold was applied before.
        device, threads, trust, at_once: see ``open_backend``. A predictor is for one thread at a time; see ``abreast``.
    """

    def __init__(
        self,
        model: Model | str | Backend,
        *,
        score_threshold: float = 0.0,
        device: str = "auto",
        threads: int = 0,
        trust: Path | None = None,
        at_once: int = 1,
    ) -> None:
        if not 0 <= score_threshold <= 1:
            raise WnlbError(f"score threshold is {score_threshold}; expected a number from 0 to 1")
        if isinstance(model, (str, Path, ServedModel)):
            self.backend = open_backend(model, device=device, threads=threads, trust=trust, at_once=at_once)
        else:
            self.backend = model
        self.contract = self.backend.contract
        self.geometry = geometry_of(self.contract)
        self.score_threshold = score_threshold
        self._input = np.empty(self.contract.input_shape, np.uint8)
        self._device_input: Any = None
        # Milliseconds that the last call spent in each stage.
        self.times_ms: dict[str, float] = {}

    def __call__(self, frame_bgr: Any) -> Detections:
        """Detections of one frame, in its pixels.

        Args:
            frame_bgr: uint8 BGR ``[h, w, 3]``: a NumPy array, prepared by OpenCV; or an array on the GPU (of PyTorch,
                CuPy, a decoder), prepared there by PyTorch, within one grey level of that.

        Raises:
            PictureError: it is something else.
        """
        return self.predict_batch([frame_bgr])[0]

    def predict_batch(self, frames_bgr: Sequence[Any]) -> list[Detections]:
        """As ``__call__``, for up to ``contract.batch`` frames, of any sizes, in one run of the model.

        They are all NumPy arrays or all on the GPU. A model of one fixed batch computes it whole, however few frames
        come; one that takes several numbers of frames computes those that come.
        """
        batch = self.contract.batch_for(len(frames_bgr))
        started = time.perf_counter()
        on_device = is_on_device(frames_bgr[0])
        image, placements = (self._prepared_on_device if on_device else self._prepared)(frames_bgr, batch)
        prepared = time.perf_counter()
        outputs = self.backend.run(named_inputs(self.contract, image, placements))
        inferred = time.perf_counter()
        found = [self._detections(outputs, i, placement) for i, placement in enumerate(placements)]
        pasted = time.perf_counter()
        stages = {"prepare": prepared - started, "infer": inferred - prepared, "paste": pasted - inferred}
        self.times_ms = {stage: 1e3 * seconds for stage, seconds in stages.items()}
        return found

    def abreast(self) -> list[Predictor]:
        """This one and as many others on its backend as may work at once, each in a thread; they are closed with it."""
        others = range(self.backend.at_once - 1)
        return [self, *(Predictor(self.backend, score_threshold=self.score_threshold) for _ in others)]

    def _prepared(self, frames: Sequence[Any], batch: int) -> tuple[Any, list[Placement]]:
        self._input[len(frames) :] = 0
        return self._input[:batch], [self.geometry.prepare(frame, self._input[i])[1] for i, frame in enumerate(frames)]

    def _prepared_on_device(self, frames: Sequence[Any], batch: int) -> tuple[Any, list[Placement]]:
        tensors = [as_tensor(frame) for frame in frames]
        if self._device_input is None:
            self._device_input = tensors[0].new_zeros(self.contract.input_shape, dtype=tensors[0].dtype)
        image = self._device_input[:batch]
        image[len(frames) :] = 0
        placements = [prepare_tensor(tensor, self.geometry, image[i]) for i, tensor in enumerate(tensors)]
        if not self.backend.takes_device_arrays:
            return image.cpu().numpy(), placements
        synchronize(image)  # the backend has a stream of its own
        return image, placements

    def _detections(self, outputs: dict[str, NDArray], i: int, placement: Placement) -> Detections:
        count = int(outputs["count"][i])
        scores = outputs["scores"][i, :count]
        count = int((scores >= self.score_threshold).sum())  # they descend
        conventions = self.contract.conventions
        how = conventions.mask_paste
        # In float32 131 of 248 million pixels were others than the frameworks' paste sets in float64; in float64 none.
        precision = np.float64 if how == "sampled" else np.float32
        exact = placement.boxes_to_frame(outputs["boxes"][i, :count].astype(precision))
        boxes = exact.astype(np.float32)
        height, width = placement.frame_height, placement.frame_width
        x1, y1, x2, y2 = boxes.T
        kept = ((x2 > x1) & (y2 > y1)) | (not conventions.drops_empty)
        masks = None
        if self.contract.masks == "box":
            masks = paste_masks(outputs["masks"][i, :count][kept], exact[kept], height, width, how)
        elif self.contract.masks == "frame":
            pasted = paste_frame_masks(outputs["masks"][i, :count], boxes, placement, how)
            if conventions.drops_empty:
                kept = np.array([mask.pixels.any() for mask in pasted], bool)
            boxes = extents(pasted) if conventions.boxes_of_masks else boxes
            masks = tuple(mask for mask, keep in zip(pasted, kept.tolist(), strict=True) if keep)
        return Detections(height, width, boxes[kept], scores[:count][kept], outputs["labels"][i, :count][kept], masks)

    def close(self) -> None:
        """Free the backend."""
        self.backend.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
