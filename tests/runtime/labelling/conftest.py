"""Night pictures whose labels are known, and workers that work in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from wnlb.runtime.labelling import command
from wnlb.runtime.labelling.inputs import Block, Input
from wnlb.runtime.labelling.labeller import Facts, Labelled, Labeller, Options

SIZE = (32, 48)  # of the pictures: half of the planted model's input


@pytest.fixture
def picture() -> Callable[..., Path]:
    """Writes a picture of one value: the planted lamp's score is its 255th, the dark cat's half of it."""

    def write(path: Path, value: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(path.suffix, np.full((*SIZE, 3), value, np.uint8))[1].tobytes())
        return path

    return write


class Inline:
    """A crew and a pool of one worker in this process."""

    cores, gpus, memory, partial, runs = 1, 0, 0, 0, 0

    def __init__(self) -> None:
        self._given: list[Block] = []

    @property
    def idle(self) -> int:
        return 1 - len(self._given)

    def facts(self, options: Options, first: Input) -> Facts:
        with Labeller(options) as labeller:
            return labeller.facts(first)

    def pool(self, options: Options, workers: int) -> Inline:
        type(self).runs += 1
        self._labeller = Labeller(options)
        return self

    def give(self, block: Block) -> None:
        self._given.append(block)

    def wait(self) -> list[Labelled]:
        return [self._labeller.label(self._given.pop())]

    def close(self) -> None:
        pass


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> type[Inline]:
    """``wnlb label`` without processes; ``runs`` counts how often workers were asked for."""
    crew = type("Counted", (Inline,), {"runs": 0})
    monkeypatch.setattr(command, "Machine", crew)
    return crew


@pytest.fixture
def label(wnlb_here: Callable[..., Any], planted_model_path: Path, inline: type[Inline]) -> Callable[..., Any]:
    """``wnlb label PLANTED SOURCE -o DIR ...`` in this process."""

    def run(source: object, output: Path, *words: object) -> Any:
        return wnlb_here("label", planted_model_path, source, "-o", output, *words)

    return run
