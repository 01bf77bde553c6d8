"""Checkpoint files of every kind, opened: nested dictionaries with tensors that are read when they are needed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import struct
import sys
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch

from wnlb.export.checkpoints.files.pickles import Builder, Name, read_pickle
from wnlb.export.checkpoints.files.tensors import KNOWN, Storage, storage_type
from wnlb.runtime.errors import CheckpointError, WnlbError
from wnlb.runtime.files import sha256_of

CONFIG_KEY = "wnlb.config"
_INDEX = ".index.json"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# How files begin that are given as checkpoints by mistake, and what to do then.
_NO_CHECKPOINTS = (
    (rb"\Z", "empty; expected weights, as torch.save or safetensors wrote them"),
    (rb"version https://git-lfs", "a pointer of Git LFS; get the file itself with 'git lfs pull'"),
    # The version of the format, then the producer's name, or the graph at once.
    (
        rb"\x08[\x01-\x20][\x12\x3a]",
        "an ONNX file; expected weights. One of ours is used as it is, one of a YOLO-seg goes through 'wnlb adopt'",
    ),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|BM|RIFF....WEBP", "a picture; expected weights"),
    (
        rb"\s*<(!doctype|html|\?xml)",
        "a web page; expected weights: download the file itself, not the page that shows it",
    ),
    (rb"\x1f\x8b", "compressed by gzip; unpack it with gunzip"),
)
Source = Callable[[], IO[bytes]]  # opens the file, or what lies in memory


@dataclass(frozen=True)
class Container:
    """What a checkpoint holds.

    Attributes:
        content: nested dictionaries, lists and numbers; ``Inert`` objects; ``tensors.Weight`` among them.
        settings: JSON text of our configuration, where one is stored.
    """

    content: Any
    settings: Any = field(default="{}")


def open_container(path: Path) -> Container:
    """Open a checkpoint; its format is told by its content.

    Reads what ``torch.save`` wrote (zip, and the format before it), other pickles of tensors or NumPy arrays,
    safetensors, and either of them in shards, by the index file or the folder that holds it. Nothing that a file
    contains is ever run.

    Raises:
        CheckpointError: it is not there, damaged, or of another kind.
    """
    first, *shards = checkpoint_files(path)
    if not shards:
        return _open_file(first)
    parts = [_open_file(shard) for shard in shards]
    content: dict[Any, Any] = {}
    for part in parts:
        content.update(part.content if isinstance(part.content, dict) else {})
    return Container(content, next((part.settings for part in parts if part.settings != "{}"), "{}"))


def checkpoint_files(path: Path) -> list[Path]:
    """All files of a checkpoint: itself, or the index of a sharded one and its shards.

    Raises:
        CheckpointError: one of them is not there.
    """
    if path.is_dir():
        path = _index_of(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    if not path.name.endswith(_INDEX):
        return [path]
    with damage_told(path):
        names = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    if outside or not names:
        raise CheckpointError(f"checkpoint {path} names the shards {names}; expected files beside it")
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"checkpoint {path} is not whole: of {len(names)} shards {', '.join(missing)} missing")
    return [path, *(path.parent / name for name in names)]


def checkpoint_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file; of a sharded checkpoint that of the names and hashes of its files."""
    files = checkpoint_files(path)
    if len(files) == 1:
        return sha256_of(files[0])
    return hashlib.sha256("\n".join(f"{file.name} {sha256_of(file)}" for file in files).encode()).hexdigest()


@contextlib.contextmanager
def damage_told(path: Path, kind: str = "checkpoint file") -> Iterator[None]:
    """Whatever a damaged file makes a library raise, as one line.

    Raises:
        CheckpointError: anything was raised inside that is no error of ours.
    """
    try:
        with warnings.catch_warnings():  # an odd escape in a damaged text
            warnings.simplefilter("ignore")
            yield
    except WnlbError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        raise CheckpointError(
            f"checkpoint {path} is not a readable {kind}: damaged, or no such file ({reason})"
        ) from error


def _index_of(folder: Path) -> Path:
    found = sorted(folder.glob(f"*{_INDEX}"))
    if len(found) == 1:
        return found[0]
    if (folder / ".metadata").is_file():
        raise CheckpointError(
            f"checkpoint {folder} is a folder of torch.distributed.checkpoint; make one file of it: "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER checkpoint.pth"
        )
    listed = f"{len(found)} files" if found else "none"
    raise CheckpointError(
        f"checkpoint {folder} is a folder; expected a file, or one *{_INDEX} in it: there is {listed}"
    )


def _open_file(path: Path) -> Container:
    with open(path, "rb") as file:
        start = file.read(512)
    length = struct.unpack("<Q", start[:8])[0] if len(start) > 8 else 0
    for begins, what in _NO_CHECKPOINTS:
        if start[8:9] != b"{" and re.match(begins, start, re.DOTALL | re.IGNORECASE):
            raise CheckpointError(f"checkpoint {path} is {what}")
    if path.suffix == ".safetensors" or (start[8:9] == b"{" and length < path.stat().st_size):
        with damage_told(path, ".safetensors file"):
            with safetensors.safe_open(path, framework="pt") as opened:
                settings = (opened.metadata() or {}).get(CONFIG_KEY, "{}")
            return Container(safetensors.torch.load_file(path), settings)
    with damage_told(path, "PyTorch file"):
        content = _read_torch(lambda: path.open("rb"), path)
        return Container(content, content.get(CONFIG_KEY, "{}") if isinstance(content, dict) else "{}")


def _read_torch(source: Source, path: Path) -> Any:
    """What ``torch.save`` or ``pickle.dump`` wrote."""
    with source() as file:
        if file.read(4) == b"PK\x03\x04":
            return _read_zip(source, path)
        file.seek(0)
        known = {
            **KNOWN,
            ("torch.storage", "_load_from_bytes"): lambda data: _read_torch(lambda: io.BytesIO(data), path),
        }
        if tarfile.is_tarfile(file):
            raise CheckpointError(f"checkpoint {path} has PyTorch's tar format of 2016; load and save it with PyTorch")
        file.seek(0)
        content = read_pickle(file, known)
        return _read_legacy(source, file, known) if content == _LEGACY_MAGIC else content


def _read_zip(source: Source, path: Path) -> Any:
    with source() as file, zipfile.ZipFile(file) as archive:
        records = {entry.filename.split("/", 1)[-1]: entry for entry in archive.infolist()}
        if "constants.pkl" in records:
            raise CheckpointError(
                f"checkpoint {path} is a TorchScript archive, a program; "
                'save the weights: torch.save(torch.jit.load(path).state_dict(), "weights.pth")'
            )
        if "data.pkl" not in records:
            raise CheckpointError(f"checkpoint {path} is a zip archive without data.pkl: not a readable PyTorch file")
        swapped = "byteorder" in records and _record(file, records["byteorder"]) != sys.byteorder.encode()
        instructions = _record(file, records["data.pkl"])
    if swapped:
        raise CheckpointError(
            f"checkpoint {path} was written on a machine of the other byte order; save it on this one"
        )
    storages: dict[Any, Storage] = {}

    def storage(identity: Any) -> Storage:
        _, kind, key, *_ = identity
        if key not in storages:
            entry = records[f"data/{key}"]
            storages[key] = Storage(storage_type(kind), lambda: _opened_record(source, entry))
        return storages[key]

    return read_pickle(io.BytesIO(instructions), KNOWN, storage)


def _opened_record(source: Source, entry: zipfile.ZipInfo) -> bytes:
    with source() as file:
        return _record(file, entry)


def _record(file: IO[bytes], entry: zipfile.ZipInfo) -> bytes:
    """The bytes of an entry; ``zipfile`` would refuse files that PyTorch wrote without checksums, which are 0 then."""
    if entry.compress_type != zipfile.ZIP_STORED:
        with zipfile.ZipFile(file) as archive:
            return archive.read(entry)
    file.seek(entry.header_offset)
    signature, name_length, extra_length = struct.unpack("<4s22xHH", file.read(30))
    file.seek(name_length + extra_length, io.SEEK_CUR)
    data = _exactly(file, entry.file_size)
    if signature != b"PK\x03\x04" or (entry.CRC and zlib.crc32(data) != entry.CRC):
        raise ValueError(f"{entry.filename} does not have its checksum")
    return data


def _read_legacy(source: Source, file: IO[bytes], known: Mapping[tuple[str, str], Builder]) -> Any:
    """What follows the magic number: versions, the content, and the numbers of its storages one after another."""
    read_pickle(file, known)  # the version of the format, of which there was one
    machine = read_pickle(file, known)
    if machine.get("little_endian", True) != (sys.byteorder == "little"):
        raise ValueError("written on a machine of the other byte order")
    storages: dict[Any, Storage] = {}

    def storage(identity: Any) -> Storage | Name:
        kind, what, key, *rest = identity
        if kind != "storage":  # a class, with its source text
            return what
        root = storages.setdefault(key, Storage(storage_type(what)))
        return root if len(rest) < 3 or rest[2] is None else _view(root, *rest[2])

    content = read_pickle(file, known, storage)
    for key in read_pickle(file, known):
        count = struct.unpack("=q", _exactly(file, 8))[0]
        start, length = file.tell(), count * storages[key].dtype.itemsize
        storages[key].read = lambda start=start, length=length: _slice(source, start, length)
        file.seek(start + length)
    return content


def _view(root: Storage, key: Any, offset: int, count: int) -> Storage:
    """A part of a storage, as PyTorch before 1.0 wrote them."""
    width = root.dtype.itemsize
    return Storage(root.dtype, lambda: root.bytes()[offset * width : (offset + count) * width].numpy().tobytes())


def _slice(source: Source, start: int, length: int) -> bytes:
    with source() as file:
        file.seek(start)
        return _exactly(file, length)


def _exactly(file: IO[bytes], length: int) -> bytes:
    """The next bytes. Raises ValueError where there are fewer, before memory is taken for them."""
    start = file.tell()
    left = file.seek(0, io.SEEK_END) - start
    if not 0 <= length <= left:
        raise ValueError(f"{length} bytes are expected where {left} are left")
    file.seek(start)
    return file.read(length)
