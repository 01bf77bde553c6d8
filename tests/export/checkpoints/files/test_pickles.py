"""Pickles as data: what is made of them, and that nothing of them runs."""

import argparse
import collections
import contextlib
import functools
import io
import os
import pathlib
import pickle
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wnlb.export.checkpoints.files.container import open_container
from wnlb.export.checkpoints.files.pickles import Inert, read_pickle
from wnlb.export.checkpoints.files.tensors import KNOWN, loaded
from wnlb.runtime.errors import CheckpointError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class HistoryBuffer:
    """As mmengine's: arrays, numbers and functions in an object of a class that is not there when it is read."""

    def __init__(self) -> None:
        self.log, self.count, self.statistics = np.arange(5.0), 3, {"mean": np.mean}


class OddDict(dict):
    """As addict's and OmegaConf's: a mapping of its own class."""


class Colour:
    __slots__ = ("name",)

    def __init__(self) -> None:
        self.name = "dark"


def beside() -> dict[str, Any]:
    """What training loops put beside the weights."""
    return {
        "scalar": np.float64(0.5),
        "path": pathlib.PurePosixPath("/data/nights"),
        "counter": collections.Counter("abca"),
        "default": collections.defaultdict(list, a=[1]),
        "deque": collections.deque([1, 2], maxlen=3),
        "sets": ({1, 2}, frozenset({3})),
        "bytes": (b"a\xff", bytearray(b"b"), "ä", 2**70, -1, 1.5, True, None, 1 + 2j),
        "random": (random.getstate(), np.random.get_state(), torch.get_rng_state()),  # noqa: NPY002
        "generator": np.random.default_rng(1),
        "history": HistoryBuffer(),
        "slots": Colour(),
        "namespace": argparse.Namespace(lr=0.1, folder=pathlib.PurePosixPath("out")),
        "config": OddDict(model=OddDict(type="MaskRCNN")),
        "partial": functools.partial(max, 1),
        "function": os.path.join,
        "torch": (torch.float16, torch.device("cuda:1"), torch.Size([1, 2])),
    }


def tensors() -> dict[str, Any]:
    """Every way in which a tensor lies in its storage, and the kinds of numbers."""
    row = torch.arange(100.0)
    return collections.OrderedDict(
        [
            ("turned", torch.randn(3, 4).t()),
            ("half", torch.randn(5).half()),
            ("brain", torch.randn(5).bfloat16()),
            ("long", torch.tensor(7)),
            ("bool", torch.tensor([True, False])),
            ("unsigned", torch.tensor([1, 60000], dtype=torch.uint16)),
            ("part", row[10:20]),
            ("other part", row[5:50:5]),
            ("one number", torch.ones(1).expand(4)),
            ("empty", torch.empty(0, 3)),
            ("parameter", torch.nn.Parameter(torch.randn(2, 2))),
            ("strange parameter", strange_parameter()),
        ]
    )


def strange_parameter() -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(torch.randn(3))
    parameter.learning_rate = 0.1  # type: ignore[attr-defined]
    return parameter


def assert_read(path: Path, expected: dict[str, Any], others: dict[str, Any]) -> None:
    content = open_container(path).content
    assert content.keys() == {"weights", *others}
    assert content["weights"].keys() == expected.keys()
    for name, value in expected.items():
        read = loaded(content["weights"][name])
        value = torch.as_tensor(value).detach()
        assert read.dtype == value.dtype, name
        assert torch.equal(read, value), name


@pytest.mark.parametrize("protocol", PROTOCOLS[2:])  # torch.save has 2 and cannot 0
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_in_all_protocols_and_both_formats(tmp_path: Path, protocol: int, zipped: bool) -> None:
    values, others = tensors(), beside()
    others["random"] = others["random"][:2]
    content = {"weights": values, **others}
    torch.save(content, tmp_path / "c", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert_read(tmp_path / "c", values, others)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_pickles_of_tensors_and_arrays(tmp_path: Path, protocol: int) -> None:
    """As detectron2's model zoo has them."""
    rng = np.random.default_rng(0)
    arrays = {
        "rows": rng.normal(size=(2, 3)).astype(np.float32),
        "columns": np.asfortranarray(rng.normal(size=(2, 3))),
        "turned": rng.normal(size=(2, 3)).T,
        "strange order": np.array([1, 2], ">i4"),
        "scalar": np.array(3),
        "none": np.zeros((0, 4)),
        "tensor": torch.randn(3),
    }
    expected = {k: np.asarray(v, v.dtype.newbyteorder("=")) if k != "tensor" else v for k, v in arrays.items()}
    others = beside()
    if protocol < 2:
        del others["slots"]
    (tmp_path / "c.pkl").write_bytes(pickle.dumps({"weights": arrays, **others}, protocol))
    assert_read(tmp_path / "c.pkl", expected, others)


def test_bytes_of_python_2_are_numbers(tmp_path: Path) -> None:
    """Zoo files hold arrays whose bytes are text in latin-1."""
    array = np.arange(200, dtype=np.uint8)
    text = array.tobytes().decode("latin-1").encode("latin-1")
    state = b"(I1\n(I200\ntcnumpy\ndtype\n(Vu1\nI0\nI1\ntRI00\nT" + struct.pack("<I", 200) + text + b"tb"
    made = b"(dVweights\n(dVa.b\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR" + state + b"ss."
    (tmp_path / "c.pkl").write_bytes(b"\x80\x02" + made)
    read = loaded(open_container(tmp_path / "c.pkl").content["weights"]["a.b"])
    assert torch.equal(read, torch.from_numpy(array))


def test_checksums_count_unless_pytorch_left_them_out(tmp_path: Path) -> None:
    torch.save({"a.b": torch.arange(1000)}, tmp_path / "c.pth")
    data = bytearray((tmp_path / "c.pth").read_bytes())
    place = data.index(struct.pack("<qqq", 500, 501, 502))
    data[place] ^= 1
    (tmp_path / "flipped.pth").write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        loaded(open_container(tmp_path / "flipped.pth").content["a.b"])
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a.b": torch.arange(1000)}, tmp_path / "without.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(loaded(open_container(tmp_path / "without.pth").content["a.b"]), torch.arange(1000))


class Runs:
    """Makes a file when it is unpickled by anything that runs what it reads."""

    def __init__(self, made: Path, how: int) -> None:
        self.made, self.how = made, how

    def __reduce__(self) -> tuple[Any, ...]:
        touch = f"open({str(self.made)!r}, 'w')"
        return (
            (os.system, (f"touch {self.made}",)),
            (eval, (touch,)),
            (exec, (touch,)),
            (functools.partial(open, str(self.made), "w"), ()),
            (pathlib.Path.touch, (pathlib.PurePosixPath(self.made),)),
            (getattr, (os.path.join, "__globals__")),
            (map, (eval, [touch])),
            (torch.load, (str(self.made),)),
            (torch.hub.load, (str(self.made), "model")),
            (collections.OrderedDict, ([(Runs(self.made, 0), Runs(self.made, 1))],)),
        )[self.how]


@pytest.mark.parametrize("how", range(10))
@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_in_a_file_runs(tmp_path: Path, how: int, protocol: int) -> None:
    bait = tmp_path / "bait"
    content = {"model": {"a.b": torch.ones(2)}, "bad": Runs(bait, how)}
    for name, zipped in (("zip.pth", True), ("old.pth", False)):
        torch.save(content, tmp_path / name, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        assert loaded(open_container(tmp_path / name).content["model"]["a.b"]).tolist() == [1, 1]
    (tmp_path / "c.pkl").write_bytes(pickle.dumps({"bad": Runs(bait, how)}, protocol))
    open_container(tmp_path / "c.pkl")
    assert not bait.exists()


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


HANDMADE = {
    "INST": b"(" + _text("touch {bait}") + b"ios\nsystem\n.",
    "OBJ": b"(cos\nsystem\n" + _text("touch {bait}") + b"o.",
    "a dotted name": b"\x80\x04" + _text("torch") + _text("os.system") + b"\x93" + _text("touch {bait}") + b"\x85R.",
    "a known function, wrong arguments": b"ccollections\nOrderedDict\n(cos\nsystem\ntR.",
    "NEWOBJ": b"\x80\x02cos\nsystem\n" + _text("touch {bait}") + b"\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04cos\nsystem\n" + _text("touch {bait}") + b"\x85}\x92.",
    "the result of a call is called": b"cbuiltins\ngetattr\n(cos\n__name__\n"
    + _text("system")
    + b"tR"
    + _text("touch {bait}")
    + b"\x85R.",
    "state of a class": b"ctorch\nTensor\n}" + _text("__setstate__") + b"cos\nsystem\nsb.",
    "state of a builder": b"ctorch._utils\n_rebuild_tensor_v2\n(N}" + _text("__code__") + b"Nstb.",
    "a persistent id": _text("touch {bait}") + b"Q.",
    "the registry": b"\x82\x01.",
}


@pytest.mark.parametrize("case", HANDMADE)
def test_tricks_of_handmade_pickles(tmp_path: Path, case: str) -> None:
    bait = tmp_path / "b"
    data = (
        HANDMADE[case].replace(b"touch {bait}", f"touch {bait}".encode().ljust(12))
        if case == "INST"
        else (HANDMADE[case].replace(_text("touch {bait}"), _text(f"touch {bait}")))
    )
    (tmp_path / "c.pkl").write_bytes(data)
    before = torch._utils._rebuild_tensor_v2.__code__
    with contextlib.suppress(CheckpointError):
        assert not callable(open_container(tmp_path / "c.pkl").content)
    assert torch._utils._rebuild_tensor_v2.__code__ is before
    assert not bait.exists()


def test_every_builder_takes_hostile_arguments() -> None:
    """They make data or raise; one that called or imported what it is given would show here."""
    calls: list[object] = []
    hostile: list[Any] = [
        calls.append,
        "os",
        2**62,
        -1,
        b"x" * 9,
        Inert("a"),
        None,
        [calls.append],
        {"a": calls.append},
    ]
    for builder in KNOWN.values():
        for value in hostile:
            for count in range(9):
                try:
                    made = builder(*[value] * count)
                except Exception:
                    continue
                assert made is value or not callable(made)
    assert calls == []


def test_a_file_stands_behind_its_pickle() -> None:
    file = io.BytesIO(pickle.dumps([1, 2]) + b"rest")
    assert read_pickle(file, KNOWN) == [1, 2]
    assert file.read() == b"rest"
