"""What a user may choose at export."""

from __future__ import annotations

from dataclasses import dataclass

from wnlb.runtime.contract import INTERPOLATIONS, MASKS, RESIZES, TARGETS
from wnlb.runtime.errors import WnlbError

ATTENTION_FORMS = ("standard", "plugin", "auto")
MAX_TOP_K = 3840  # TensorRT's limit for TopK
MAX_NUMBERS = 2**31  # of a tensor: TensorRT refuses more, and no machine that exports has the memory


@dataclass(frozen=True)
class ExportOptions:
    """Size, counts and thresholds of an exported file. None keeps what the model itself has."""

    height: int  # input pixels, a multiple of 32 from 64 up
    width: int
    batch: int = 1  # images of a run, at most
    min_batch: int | None = None  # the fewest of a run, where their number may differ; None: always ``batch``
    pre_nms_top_n: int | None = None  # anchors per pyramid level that enter NMS (torchvision: 1000)
    post_nms_top_n: int | None = None  # proposals per image (torchvision: 1000)
    detections: int | None = None  # rows of the outputs (torchvision: 100)
    score_threshold: float | None = None  # (torchvision: 0.05)
    nms_threshold: float | None = None  # IoU above which the weaker of two detections goes (torchvision: 0.5)
    mask_rows: int | None = None  # of them, the best that get a mask; None: all
    candidates: int = 1000  # (proposal, class) pairs that enter the last NMS; of SOLOv2 (cell, class) pairs
    nms_rounds: int = 32  # longest chain of boxes that the unrolled NMS resolves
    # None: as the network makes them, "box" (28 x 28 probabilities inside each) or "frame" (a quarter of its size);
    # "none": no masks
    masks: str | None = None
    # What the file is made for: "gpu" for TensorRT and FP16 or INT8 conversion; "cpu" for ONNX Runtime on a CPU, where
    # masks cost what is found. Both detect the same, and files for a GPU run everywhere.
    target: str = "gpu"
    attention_memory: int | None = None  # bytes that a chunk of an attention matrix may take; None: as the target likes
    attention: str = (
        "standard"  # form of the blocks: "standard", "plugin", "auto", or per level "c2=plugin,c3=standard"
    )
    # None: as the checkpoint was trained, where that is known; else "fit" and "bilinear"
    resize: str | None = None
    interpolation: str | None = None

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            value = getattr(self, name)
            if value < 64 or value % 32:
                raise WnlbError(f"input {name} is {value}; expected a multiple of 32 from 64 up")
        counts = ("batch", "pre_nms_top_n", "post_nms_top_n", "detections", "mask_rows", "candidates", "nms_rounds")
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise WnlbError(f"{name} is {value}; expected at least 1")
        largest = 16 * self.batch * self.height * self.width  # behind the first convolution: [N, 64, H/2, W/2]
        if largest >= MAX_NUMBERS:
            raise WnlbError(
                f"a batch of {self.batch} of {self.height}x{self.width} makes a map of {largest} numbers; expected "
                "fewer than 2^31 in a tensor, TensorRT's limit: take a smaller size or batch"
            )
        if self.min_batch is not None and not 1 <= self.min_batch < self.batch:
            raise WnlbError(f"batch is {self.min_batch}-{self.batch}; expected A-B, with A from 1 up and B above it")
        for name in ("pre_nms_top_n", "post_nms_top_n", "detections", "candidates"):
            value = getattr(self, name)
            if value is not None and value > MAX_TOP_K:
                raise WnlbError(f"{name} is {value}; expected at most {MAX_TOP_K}, TensorRT's limit for TopK")
        for name in ("score_threshold", "nms_threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise WnlbError(f"{name} is {value}; expected a number from 0 to 1")
        for name, allowed in (
            ("target", TARGETS),
            ("masks", MASKS),
            ("resize", RESIZES),
            ("interpolation", INTERPOLATIONS),
        ):
            value = getattr(self, name)
            if value not in allowed and not (value is None and name != "target"):
                raise WnlbError(f"{name} is {value!r}; expected {' or '.join(allowed)}")
        if self.mask_rows is not None and self.masks == "none":
            raise WnlbError(f"mask_rows is {self.mask_rows}, and masks are none; expected one of the two")
        self._attention_forms()
        if self.attention_memory is not None and self.attention_memory < 2**20:
            raise WnlbError(f"attention memory is {self.attention_memory} bytes; expected at least 1 MiB")

    @property
    def attention_bytes(self) -> int:
        """``attention_memory`` or its default: on a CPU, pieces that its caches hold."""
        return self.attention_memory or (32 if self.target == "cpu" else 256) * 2**20

    def attention_form(self, level: str) -> str:
        """What ``attention`` says of one level; ``standard`` where it says nothing of it."""
        forms = self._attention_forms()
        return forms.get(level, forms.get("", "standard"))

    @property
    def attention_levels(self) -> set[str]:
        """Levels that ``attention`` names."""
        return set(self._attention_forms()) - {""}

    def _attention_forms(self) -> dict[str, str]:
        """Level to form; "" stands for all the others."""
        forms = {}
        for part in self.attention.split(","):
            level, _, form = part.strip().rpartition("=")
            if form not in ATTENTION_FORMS:
                raise WnlbError(
                    f"attention is {self.attention!r}; expected {', '.join(ATTENTION_FORMS)}, or such a form for each "
                    "level: c2=plugin,c3=standard"
                )
            forms[level] = form
        return forms
