"""What a user may choose at export."""

from __future__ import annotations

from dataclasses import dataclass

from wnlb.runtime.contract import INTERPOLATIONS, MASKS, RESIZES
from wnlb.runtime.errors import WnlbError

MAX_TOP_K = 3840  # TensorRT's limit for TopK


@dataclass(frozen=True)
class ExportOptions:
    """Size, counts and thresholds of an exported file. None keeps what the model itself has."""

    height: int  # input pixels, a multiple of 32 from 64 up
    width: int
    batch: int = 1
    pre_nms_top_n: int | None = None  # anchors per pyramid level that enter NMS (torchvision: 1000)
    post_nms_top_n: int | None = None  # proposals per image (torchvision: 1000)
    detections: int | None = None  # rows of the outputs (torchvision: 100)
    score_threshold: float | None = None  # (torchvision: 0.05)
    nms_threshold: float | None = None  # IoU above which the weaker of two detections goes (torchvision: 0.5)
    candidates: int = 1000  # (proposal, class) pairs that enter the last NMS
    nms_rounds: int = 32  # longest chain of boxes that the unrolled NMS resolves
    masks: str = "box"  # "box": 28 x 28 probabilities inside each box; "none": no mask head
    attention_memory: int = 256 * 2**20  # bytes that a chunk of an attention matrix may take
    resize: str = "fit"
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            value = getattr(self, name)
            if value < 64 or value % 32:
                raise WnlbError(f"input {name} is {value}; expected a multiple of 32 from 64 up")
        counts = ("batch", "pre_nms_top_n", "post_nms_top_n", "detections", "candidates", "nms_rounds")
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise WnlbError(f"{name} is {value}; expected at least 1")
        for name in ("pre_nms_top_n", "post_nms_top_n", "detections", "candidates"):
            value = getattr(self, name)
            if value is not None and value > MAX_TOP_K:
                raise WnlbError(f"{name} is {value}; expected at most {MAX_TOP_K}, TensorRT's limit for TopK")
        for name in ("score_threshold", "nms_threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise WnlbError(f"{name} is {value}; expected a number from 0 to 1")
        for name, allowed in (("masks", MASKS), ("resize", RESIZES), ("interpolation", INTERPOLATIONS)):
            if getattr(self, name) not in allowed:
                raise WnlbError(f"{name} is {getattr(self, name)!r}; expected {' or '.join(allowed)}")
        if self.attention_memory < 2**20:
            raise WnlbError(f"attention memory is {self.attention_memory} bytes; expected at least 1 MiB")
