"""Addresses of models on servers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wnlb.runtime.backend import open_backend
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.served_model import ServedModel, model_of, options_for


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("triton://server/night", ServedModel("server", 8001, "night")),
        ("triton://10.0.0.7:9001/night.v2?timeout=2.5", ServedModel("10.0.0.7", 9001, "night.v2", 2.5)),
        ("triton://[::1]:8001/night", ServedModel("::1", 8001, "night")),
        ("model.onnx", Path("model.onnx")),
        ("triton", Path("triton")),
    ],
)
def test_what_a_model_is_called(address: str, expected: object) -> None:
    assert model_of(address) == expected
    assert model_of(str(expected)) == expected


def test_the_target_of_grpc() -> None:
    assert model_of("triton://[::1]/night").target == "[::1]:8001"


@pytest.mark.parametrize(
    "address",
    [
        *("triton://", "triton://server", "triton://server/", "triton://server/a/b", "triton://server:port/night"),
        *("triton://server:70000/night", "triton://server/night?timeout=0", "triton://server/night?timeout=nan"),
        *(
            "triton://server/night?timeout=",
            "triton://server/night?slow=1",
            "triton://server/night?timeout=1&timeout=2",
        ),
        *("triton://user@server/night", "triton://server/night#1", "triton://[::1/night"),
    ],
)
def test_addresses_that_cannot_be_read(address: str) -> None:
    with pytest.raises(WnlbError, match=r"model address .* expected"):
        model_of(address)


def test_options_of_files_are_not_for_servers() -> None:
    served = model_of("triton://127.0.0.1:1/night")
    assert options_for(served, "cpu", 2) == options_for(Path("a.engine"), "cpu", 2) == {}
    assert options_for(Path("a.onnx"), "cpu", 2) == {"device": "cpu", "threads": 2}
    with pytest.raises(WnlbError, match="--device, --threads and --trust are for files"):
        open_backend(served, threads=2)


def test_commands_that_need_a_file_refuse_an_address(wnlb_here: Callable[..., Any], tmp_path: Path) -> None:
    for words in (["build", "-o", tmp_path / "o.engine"], ["inspect"], ["triton", "-o", tmp_path / "o"]):
        told = wnlb_here(words[0], "triton://night:8001/model", *words[1:]).refused()
        assert "error: model triton://night:8001/model is on a server; expected its file" in told
