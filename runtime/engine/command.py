"""``wnlb build``: an ONNX file to an engine of TensorRT or TensorRT-RTX."""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from wnlb.runtime.engine.build import ATTENTION, MASK_ROWS, BuildOptions, build_engine
from wnlb.runtime.engine.manifest import LIBRARIES, Manifest, manifest_path
from wnlb.runtime.engine.tensorrt import TARGETS
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.served_model import file_of
from wnlb.runtime.table import human_bytes

_DESCRIPTION = """\
Build an engine. Precision is what the ONNX file says (wnlb convert writes FP16 and INT8 files); the network is strongly
typed. An engine fits the library version and, with TensorRT, the GPU that it was built on: build where it will run.

  wnlb build model.fp16.onnx -o model.fp16.engine
  wnlb build model.onnx -o model.engine --target tensorrt-rtx                            # needs no GPU
  wnlb build model.onnx -o model.engine --target tensorrt-rtx --compute-capability 8.9

Beside the engine stands model.engine.json: contract, versions, GPU, hashes, and every layer with its precision.
'wnlb run' and 'wnlb predict' open no engine that does not fit it. A file that is not ours builds too, if its shapes are
static.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("model", type=file_of, help="an ONNX file")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the engine to write, MODEL.engine")
    parser.add_argument(
        "--target",
        choices=("auto", *TARGETS),
        default="auto",
        help="default: TensorRT where it is installed, else TensorRT-RTX",
    )
    parser.add_argument(
        "--attention",
        choices=ATTENTION,
        default="auto",
        help="standard operators, our TensorRT plugin, or the plugin where the file has it and it can be loaded (auto)",
    )
    parser.add_argument(
        "--mask-rows",
        choices=MASK_ROWS,
        default="auto",
        help="auto: masks are computed for 8, 16, 32, 64 or all rows, as many as are found, by a second network in the "
        "same file, where the model's mask branch can be cut off; all: one network, masks for all rows (default: auto)",
    )
    parser.add_argument("--workspace", type=int, default=0, metavar="MIB", help="limit of scratch memory in MiB")
    parser.add_argument(
        "--optimization-level", type=int, default=3, metavar="0..5", help="default: 3; more takes longer"
    )
    parser.add_argument(
        "--timing-cache",
        type=Path,
        metavar="FILE",
        help="measured kernel times, kept for the next build (default: in ~/.cache/wnlb)",
    )
    parser.add_argument(
        "--compute-capability",
        action="append",
        default=[],
        metavar="X.Y",
        help="with tensorrt-rtx: build for these GPUs only (may be repeated)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=0,
        metavar="N",
        help="of a file that takes several numbers of frames, the one to be fastest with (default: the most)",
    )
    parser.add_argument("--json", action="store_true", help="print the manifest instead of a summary")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no summary")


def run(arguments: argparse.Namespace) -> int:
    output: Path = arguments.output
    if output.suffix != ".engine":
        raise WnlbError(f"output {output} has the suffix {output.suffix or 'none'!r}; expected .engine")
    for capability in arguments.compute_capability:
        if not re.fullmatch(r"\d+\.\d", capability):
            raise WnlbError(f"--compute-capability is {capability!r}; expected one like 8.9")
    options = BuildOptions(
        target=arguments.target,
        attention=arguments.attention,
        workspace=arguments.workspace,
        optimization_level=arguments.optimization_level,
        timing_cache=arguments.timing_cache,
        compute_capabilities=tuple(arguments.compute_capability),
        mask_rows=arguments.mask_rows,
        batch=arguments.batch,
    )
    with tqdm(
        total=100,
        disable=arguments.quiet or None,
        file=sys.stderr,
        leave=False,
        bar_format="{l_bar}{bar}| {elapsed}{postfix}",
    ) as bar:

        def progress(fraction: float, what: str) -> bool:
            bar.set_postfix_str(what.lower(), refresh=False)
            bar.update(100 * fraction - bar.n)
            return True

        manifest = build_engine(arguments.model, output, options, progress)
    if arguments.json:
        print(manifest.to_json(), end="")
    elif not arguments.quiet:
        print(summary(output, manifest))
    return 0


def summary(engine: Path, manifest: Manifest) -> str:
    """What a person wants to know of an engine."""
    library = LIBRARIES[manifest.library]
    where = f"{manifest.gpu} (SM {manifest.compute_capability})" if manifest.compute_capability else _portable(manifest)
    precisions = Counter(layer["precision"] or "?" for layer in manifest.layers)
    layers = ", ".join(f"{count} {name}" for name, count in precisions.most_common())
    of = "fused layers" if manifest.layers_of == "engine" else "layers, as parsed"
    rows = [
        ("engine", f"{engine}, {human_bytes(manifest.engine_bytes)}, built in {manifest.build_seconds:.1f} s"),
        ("from", manifest.onnx),
        ("with", f"{library} {manifest.version}"),
        ("for", where),
        *([("frames", _frames(manifest.options["batches"]))] if "batches" in manifest.options else []),
        *([("masks", _masks(manifest.mask_rows))] if manifest.mask_rows else []),
        ("attention", manifest.attention),
        (of, layers),
        ("manifest", manifest_path(engine)),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:{width}}  {value}" for name, value in rows]
    if not manifest.contract:
        lines += ["", "The model is not ours (no wnlb contract): inspect takes the engine, predict and run do not."]
    return "\n".join(lines)


def _frames(batches: list[int]) -> str:
    least, fastest, most = batches
    return f"{least} to {most} a run, chosen to be fast with {fastest}"


def _masks(rows: tuple[int, ...]) -> str:
    return f"for {', '.join(map(str, rows[:-1]))} or {rows[-1]} rows, as many as are found"


def _portable(manifest: Manifest) -> str:
    wanted = manifest.options.get("compute_capabilities")
    return f"compute capability {', '.join(wanted)}" if wanted else "the library's default GPUs, SM 8.0 and later"
