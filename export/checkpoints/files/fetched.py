"""Checkpoints by name: files, the sample, torchvision's published weights, addresses; what was fetched is kept."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from torchvision.models import get_weight

from wnlb.export.checkpoints.files.container import checkpoint_sha256
from wnlb.export.checkpoints.files.download import check_sha256, checked_address, download, hugging_face
from wnlb.runtime.errors import CheckpointError

# Trained on night scenes by scripts/train_sample.py; see calibration/README.md.
SAMPLE = Path(__file__).parents[2] / "sample.safetensors"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HUGGING_FACE = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<path>.*[^/])", re.IGNORECASE)


@dataclass(frozen=True)
class Published:
    """Weights that torchvision publishes.

    Attributes:
        weights: their name there; the file's name ends in the first digits of its SHA-256.
        overrides: fields of ``ModelConfig`` that the weights do not tell.
    """

    weights: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


PUBLISHED = {
    # maskrcnn_resnet50_fpn() itself sets eps to 0 for these weights alone (torchvision/models/detection/mask_rcnn.py).
    "coco": Published("MaskRCNN_ResNet50_FPN_Weights.COCO_V1", {"norm_eps": 0.0}),
    "coco-v2": Published("MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1"),
}


@dataclass(frozen=True)
class FetchedCheckpoint:
    """A checkpoint that lies on the disk.

    Attributes:
        path: the file, the index of shards, or their folder.
        sha256: as ``container.checkpoint_sha256`` gives it: of a single file that of its bytes.
        told: one line, where it came from.
        overrides: fields of ``ModelConfig`` that go with the name.
    """

    path: Path
    sha256: str
    told: str
    overrides: Mapping[str, Any]


def fetched_checkpoint(text: str, sha256: str | None = None, hidden: bool | None = None) -> FetchedCheckpoint:
    """Find a checkpoint, downloading it where it is not on the disk yet.

    A file comes before a name, a name before a folder (of a data set, ``coco/``). What was downloaded lies under
    ``cache_folder()`` and is taken from there the next time, without asking whether it changed.

    Args:
        text: a path, ``sample``, a name of ``PUBLISHED``, ``https://...``, or ``hf://owner/repo[@revision]/path``.
            ``http://...`` of this machine, of others with ``sha256`` only.
        sha256: what its SHA-256 must be, 64 hexadecimal digits in lower case; None for any.
        hidden: as in ``download``.

    Raises:
        CheckpointError: there is no such thing, it cannot be had, or its SHA-256 is another.
        WnlbError: the cache cannot be written.
    """
    demands = {"--sha256": sha256} if sha256 else {}
    if _SCHEME.match(text):
        return _from_address(text, demands, {}, hidden)
    if text in PUBLISHED and not Path(text).is_file():
        url, overrides = published_url(text), PUBLISHED[text].overrides
        digits = re.search(r"-([0-9a-f]{8,64})\.\w+$", url)
        demands |= {"its published name": digits[1]} if digits else {}
        return _from_address(url, demands, overrides, hidden)
    path, what = _local(text)
    found = checkpoint_sha256(path)
    check_sha256(f"checkpoint {text}", found, demands)
    return FetchedCheckpoint(path, found, f"checkpoint: {what}, sha256 {found}", {})


def published_url(name: str) -> str:
    """Where torchvision publishes the weights of a name of ``PUBLISHED``."""
    return get_weight(PUBLISHED[name].weights).url


def cache_folder() -> Path:
    """``$WNLB_CACHE/checkpoints``; without it ``wnlb/checkpoints`` in ``$XDG_CACHE_HOME``, without that in ~/.cache."""
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
        return Path(os.environ.get("WNLB_CACHE") or caches / "wnlb").expanduser() / "checkpoints"
    except RuntimeError as error:  # a user without a home
        raise CheckpointError(f"there is no folder to keep downloads in ({error}); set WNLB_CACHE") from error


def _local(text: str) -> tuple[Path, str]:
    """A path, and what it is."""
    path = Path(text)
    if text == "sample" and not path.is_file():
        return SAMPLE, "sample, which knows synthetic night scenes only"
    if path.exists():
        return path, text
    names = ("sample", *PUBLISHED)
    near = difflib.get_close_matches(text, names, 1)
    raise CheckpointError(
        f"checkpoint {text} does not exist; expected a file, https://..., hf://owner/repo/path, or one of the names "
        + ", ".join(names)
        + (f"; near to {near[0]}" if near else "")
    )


def _from_address(
    text: str, demands: Mapping[str, str], overrides: Mapping[str, Any], hidden: bool | None
) -> FetchedCheckpoint:
    url = checked_address(_resolved(text), "--sha256" in demands)
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    if name in ("", ".", "..") or not name.isprintable():
        raise CheckpointError(f"address {text} does not end in the name of a file")
    if name.endswith(".index.json"):
        raise CheckpointError(f"address {text} is the index of several files; download all into a folder and give that")
    path = cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    if path.is_file():
        found = checkpoint_sha256(path)
        check_sha256(f"{path}, downloaded before (delete it to download it again),", found, demands)
        return FetchedCheckpoint(path, found, f"checkpoint: cached {path}, sha256 {found}", overrides)
    found = download(url, path, demands=demands, hidden=hidden)
    return FetchedCheckpoint(path, found, f"checkpoint: downloaded to {path}, sha256 {found}", overrides)


def _resolved(text: str) -> str:
    """The address of an ``hf://``; others stay what they are."""
    if not text.lower().startswith("hf://"):
        return text
    parts = _HUGGING_FACE.fullmatch(text)
    if not parts:
        raise CheckpointError(
            f"address {text} is not complete; expected hf://owner/repo/path or hf://owner/repo@revision/path"
        )
    revision = quote(unquote(parts["revision"] or "main"), safe="")  # refs%2Fpr%2F1, as huggingface_hub has it
    return f"{hugging_face()}/{parts['repo']}/resolve/{revision}/{quote(parts['path'])}"
