"""Record which names TensorRT's Python bindings have, for the test that holds our code against them.

    pip download --no-deps -d wheels tensorrt-cu12-bindings==10.3.0 tensorrt-cu13-bindings==11.4.0.106
    python scripts/record_tensorrt_api.py wheels/*.whl

The bindings' wheels need no GPU and no TensorRT: the libraries that they link to are replaced by empty ones.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from wnlb.runtime.errors import WnlbError, exit_code
from wnlb.runtime.files import atomic_path

OUTPUT = Path(__file__).parents[1] / "tests" / "data" / "tensorrt_api.json"
LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")
DUMP = """\
import ctypes, importlib.util, json, sys
for library in sys.argv[2:]:
    ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
spec = importlib.util.spec_from_file_location("tensorrt", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
def members(thing):
    return sorted(name for name in dir(thing) if not name.startswith("_"))
classes = {name: members(thing) for name, thing in vars(module).items() if isinstance(thing, type)}
print(json.dumps({"module": members(module), "classes": dict(sorted(classes.items()))}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("wheels", nargs="+", type=Path, help="tensorrt_cu*_bindings wheels for this Python")
    arguments = parser.parse_args()
    recorded = dict(sorted(record(wheel) for wheel in arguments.wheels))
    with atomic_path(OUTPUT) as temporary:
        temporary.write_text(json.dumps(recorded, indent=1) + "\n")
    for version, names in recorded.items():
        print(f"TensorRT {version}: {len(names['classes'])} classes")


def record(wheel: Path) -> tuple[str, dict[str, object]]:
    """Version and names of one wheel. Raises WnlbError where it cannot be loaded."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            zipfile.ZipFile(wheel).extractall(folder)
        except (OSError, zipfile.BadZipFile) as error:
            raise WnlbError(f"{wheel} is no readable wheel: {error}") from error
        binding = next(folder.glob("*/tensorrt.so"), None)
        if binding is None:
            raise WnlbError(f"{wheel} holds no tensorrt.so; expected a wheel of TensorRT's bindings")
        version = wheel.name.split("-")[1]
        stubs = [_stub(folder, binding, library, version.split(".")[0]) for library in LIBRARIES]
        ran = subprocess.run([sys.executable, "-c", DUMP, binding, *stubs], capture_output=True, text=True, check=False)
        if ran.returncode:
            raise WnlbError(f"{wheel} cannot be loaded: {ran.stderr.strip().splitlines()[-1]}")
        return version, json.loads(ran.stdout)


def _stub(folder: Path, binding: Path, library: str, major: str) -> Path:
    """A library of that name; the first of them has all functions that the binding wants, doing nothing."""
    names = subprocess.run(["nm", "-D", "--undefined-only", binding], capture_output=True, text=True, check=True).stdout
    wanted = [line.split()[-1] for line in names.splitlines() if line.split()[-1].startswith(("create", "get", "init"))]
    source = "".join(f'extern "C" void* {name}() {{ return nullptr; }}\n' for name in wanted if "@" not in name)
    (folder / "stub.cpp").write_text(source if library == LIBRARIES[0] else "")
    soname = f"lib{library}.so.{major}"
    command = ["g++", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", folder / soname, folder / "stub.cpp"]
    subprocess.run(command, check=True)
    return folder / soname


if __name__ == "__main__":
    sys.exit(exit_code(main))
