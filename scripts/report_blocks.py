"""What the non-local blocks bring: AP of several checkpoints by darkness, the learned w, and AP with each block off.

    wnlb scenes -o out/held_out --count 500 --seed 1000
    python scripts/report_blocks.py out/none/sample.pth out/unweighted/sample.pth out/weighted/sample.pth \\
        --annotations out/held_out/annotations.json --images out/held_out/images -o out/blocks

Each checkpoint is exported (and verified) once as it is and once for each of its blocks with that block off, that is
the identity, and scored in ONNX Runtime as 'wnlb evaluate' does. Writes report.md, report.json and darkness.png. Give
the folder again to go on after an interruption: what report.json already holds is not computed again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torchvision.models.detection import MaskRCNN
from tqdm import tqdm

from wnlb.calibration.accuracy.evaluate import evaluate
from wnlb.calibration.labels.reader import read_labels
from wnlb.calibration.scenes.writing import write_json
from wnlb.export.backbone import blocks_by_level
from wnlb.export.block import WeightedNonLocalBlock
from wnlb.export.checkpoints.checkpoint import load_checkpoint
from wnlb.export.onnx_file.export_onnx import export_onnx
from wnlb.export.options import ExportOptions
from wnlb.runtime.errors import exit_code
from wnlb.runtime.files import atomic_path, make_folder, sha256_of
from wnlb.runtime.geometry import parse_size
from wnlb.runtime.predictor import Predictor
from wnlb.runtime.table import markdown_table

Row = dict[str, Any]


def switch_off(block: WeightedNonLocalBlock) -> None:
    """Make a block the identity."""
    with torch.no_grad():
        if block.w is not None:
            block.w.zero_()
        for parameter in block.W_z[1].parameters():
            parameter.zero_()


def score(model: MaskRCNN, name: str, arguments: argparse.Namespace) -> Row:
    """AP of a model as 'wnlb evaluate' measures it, with what identifies it."""
    path = arguments.output / "model.onnx"
    export_onnx(model, path, ExportOptions(*parse_size(arguments.size)), class_names=arguments.class_names)
    labels = read_labels(arguments.annotations)
    with Predictor(path) as predictor, tqdm(total=len(labels.images), desc=name, disable=None, leave=False) as bar:
        evaluation = evaluate(predictor, labels, arguments.images, name, bar.update)
    path.unlink()
    return {key: value for key, value in dataclasses.asdict(evaluation).items() if key != "results"}


def measure(checkpoint: Path, arguments: argparse.Namespace, rows: dict[str, Row]) -> None:
    """Add the rows of one checkpoint to ``rows`` and to report.json, those that are not there yet."""
    model, config = load_checkpoint(checkpoint)
    name, origin = checkpoint.parent.name, sha256_of(checkpoint)
    arguments.class_names = config.class_names
    shares = {level: None if b.w is None else b.w.item() for level, _, b in blocks_by_level(model)}
    for off in [None, *shares] if not arguments.no_ablation else [None]:
        key = f"{name} without {off}" if off else name
        if rows.get(key, {}).get("checkpoint") == origin:
            continue
        model, _ = load_checkpoint(checkpoint)
        if off:
            switch_off(next(block for level, _, block in blocks_by_level(model) if level == off))
        rows[key] = {**score(model, key, arguments), "checkpoint": origin, "of": name, "off": off, "w": shares}
        write_json(arguments.output / "report.json", rows)
        print(f"{key}: mask AP {rows[key]['overall']['mask_ap']:.2f}, box AP {rows[key]['overall']['box_ap']:.2f}")


def report(rows: dict[str, Row]) -> str:
    """The Markdown page."""
    whole = [row for row in rows.values() if row["off"] is None]
    lines = ["AP in percent (IoU 0.50:0.95)", ""]
    bins = list(whole[0]["by_darkness"])
    for kind in ("mask_ap", "box_ap"):
        title = kind.replace("_ap", " AP")
        body = [(row["of"], row["overall"][kind], *(row["by_darkness"][key][kind] for key in bins)) for row in whole]
        lines += [*markdown_table((title, "all", *(f"luminance {key}" for key in bins)), body), ""]
    ablated = [row for row in rows.values() if row["off"] is not None]
    if ablated:
        body = []
        for row in ablated:
            full = rows[row["of"]]["overall"]
            w = row["w"][row["off"]]
            drops = [row["overall"][kind] - full[kind] for kind in ("mask_ap", "box_ap")]
            body.append((row["of"], row["off"], "-" if w is None else f"{w:+.3f}", *(f"{drop:+.2f}" for drop in drops)))
        lines += markdown_table(("model", "block off", "learned w", "mask AP", "box AP"), body)
    return "\n".join(lines) + "\n"


def plot(rows: dict[str, Row], path: Path) -> None:
    """AP against darkness, a line for each checkpoint as it is."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    for axis, kind in zip(axes, ("mask_ap", "box_ap"), strict=True):
        for row in (row for row in rows.values() if row["off"] is None):
            bins = row["by_darkness"]
            axis.plot(list(bins), [accuracy[kind] for accuracy in bins.values()], "o-", label=row["of"])
        axis.set(xlabel="mean linear luminance (left: darkest)", ylabel="AP in percent")
        axis.set_title(kind.replace("_ap", " AP"))
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0].set_ylim(bottom=0)  # both, once all lines are drawn
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", help="in folders that name them")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO annotation file")
    parser.add_argument("--images", type=Path, required=True, help="folder of its pictures")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the report")
    parser.add_argument("--size", default="320x320", metavar="HxW", help="input size (default: %(default)s)")
    parser.add_argument("--no-ablation", action="store_true", help="only score the checkpoints as they are")
    arguments = parser.parse_args()
    return exit_code(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    parse_size(arguments.size)
    read_labels(arguments.annotations)
    make_folder(arguments.output)
    stored = arguments.output / "report.json"
    rows: dict[str, Row] = json.loads(stored.read_text()) if stored.exists() else {}
    for checkpoint in arguments.checkpoints:
        measure(checkpoint, arguments, rows)
    with atomic_path(arguments.output / "report.md") as temporary:
        temporary.write_text(report(rows))
    plot(rows, arguments.output / "darkness.png")
    print(report(rows))


if __name__ == "__main__":
    sys.exit(main())
