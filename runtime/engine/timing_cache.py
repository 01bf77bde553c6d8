"""TensorRT's measured kernel times, kept for the next build."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wnlb.runtime.engine.driver import Gpu
from wnlb.runtime.engine.tensorrt import TensorRt
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import atomic_path, make_folder


@dataclass(frozen=True)
class Timings:
    """The timing cache: the file that was named, else one of the library's version and the GPU in the user's cache.

    Timings of another version or GPU, or a damaged file, count as none.
    """

    library: TensorRt
    named: Path | None
    gpu: Gpu | None

    @property
    def path(self) -> Path | None:
        if not self.library.keeps_timings or self.gpu is None:
            return None
        if self.named is not None:
            return self.named
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wnlb"
        return folder / f"tensorrt-{self.library.version}-sm{self.gpu.arch}.timing"

    def read(self, config: Any) -> None:
        """Raises WnlbError where the named file cannot be read."""
        if self.path is None:
            return
        try:
            data = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            if self.named:
                raise WnlbError(f"timing cache {self.named} cannot be read: {error.strerror}") from error
            data = b""
        cache = config.create_timing_cache(data) or config.create_timing_cache(b"")
        if not config.set_timing_cache(cache, False):
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def write(self, config: Any) -> None:
        """Raises WnlbError where the named file cannot be written; the user's cache is only a help."""
        if self.path is None:
            return
        cache = config.get_timing_cache()
        with contextlib.suppress(*() if self.named else (WnlbError,)):
            make_folder(self.path.parent)
            with atomic_path(self.path) as temporary:
                temporary.write_bytes(memoryview(cache.serialize()))
