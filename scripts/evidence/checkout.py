"""This checkout as the package ``wnlb``, on a machine where nothing can be installed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("calibration", "export", "plugins", "runtime")


def mount(folder: Path) -> Path:
    """Make ``folder`` one that gives ``import wnlb`` from this checkout when it stands first on PYTHONPATH."""
    (folder / "wnlb").mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        link = folder / "wnlb" / part
        if not link.exists():
            link.symlink_to(ROOT / part)
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    info = folder / f"wnlb_deploy-{version[1] if version else '0'}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: wnlb-deploy\nVersion: {version[1] if version else '0'}\n"
    )
    return folder


def commit() -> str:
    """The commit of this checkout, ``+`` behind it where files differ from it; "" outside a repository."""

    def git(*words: str) -> str:
        try:
            ran = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
        except OSError:
            return ""
        return ran.stdout.strip() if ran.returncode == 0 else ""

    found = git("rev-parse", "HEAD")
    return f"{found}+" if found and git("status", "--porcelain") else found
