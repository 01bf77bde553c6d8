"""Train the sample model on night scenes that are made on the fly: a compact Mask R-CNN with weighted non-local blocks.

    python scripts/train_sample.py -o out/trunk --blocks none --steps 2500 --decay 0
    python scripts/train_sample.py -o out/weighted --start out/trunk/sample.pth --first-scene 10000 --steps 1000
    python scripts/train_sample.py -o out/unweighted --start out/trunk/sample.pth --first-scene 10000 --steps 1000 \\
        --blocks unweighted
    python scripts/train_sample.py -o out/none --start out/trunk/sample.pth --first-scene 10000 --steps 1000 \\
        --blocks none
    python scripts/train_sample.py -o out/full --backbone resnet50 --steps 6000        # the full network; wants a GPU

The first line trains a network without blocks at a constant learning rate. The others start from it, with blocks put
in (a fresh block is the identity) and the rate falling to zero: the same budget for each, as the paper puts its blocks
into a trained Mask R-CNN.

Writes resume.pth now and then (started again with the same folder, training goes on from there), log.csv, curve.png,
and at the end sample.pth and sample.safetensors: FP32 weights, and FP16 weights with the configuration inside. Training
uses the scenes of seed 1, in order; seeds from 1000 on are for evaluation and are never trained on. Convolutions and
attention run in BF16 under autocast.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from counts import from_
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torchvision.models.detection import MaskRCNN
from tqdm import tqdm

from wnlb.calibration.scenes.camera import Camera, expose
from wnlb.calibration.scenes.scene import make_scene
from wnlb.calibration.scenes.shapes import CLASSES
from wnlb.export.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from wnlb.export.model import ModelConfig, model_from_config
from wnlb.runtime.errors import WnlbError, exit_code
from wnlb.runtime.files import atomic_path, make_folder

TRAIN_SEED = 1
DARKEST, BRIGHTEST = 8.0, 1200.0  # photo-electrons at white; drawn evenly in stops
SIZE = 320
Target = dict[str, Tensor]


def sample_config(blocks: str, backbone: str = "resnet18") -> ModelConfig:
    """The compact network, on ResNet-50 the full one; ``blocks`` is weighted, unweighted or none."""
    full = ModelConfig(
        num_classes=len(CLASSES) + 1,
        backbone=backbone,
        levels=() if blocks == "none" else ("c2", "c3", "c4", "c5"),
        weighted=blocks != "unweighted",
        anchor_sizes=(20, 40, 80, 160, 256),
        class_names=CLASSES,
    )
    if backbone == "resnet50":
        return full
    return dataclasses.replace(full, fpn_channels=128, box_features=256, mask_channels=(64, 64, 64), mask_hidden=64)


class NightScenes(IterableDataset):
    """Images ``[3, H, W]`` from 0 to 1 with torchvision's targets, scene after scene from ``first`` on."""

    def __init__(self, first: int, count: int) -> None:
        self.first, self.count = first, count

    def __iter__(self) -> Iterator[tuple[Tensor, Target]]:
        worker = torch.utils.data.get_worker_info()
        start, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for index in range(self.first + start, self.first + self.count, step):
            yield training_sample(index)


def training_sample(index: int) -> tuple[Tensor, Target]:
    """Scene ``index`` of the training series at a darkness of its own."""
    rng = np.random.default_rng([TRAIN_SEED, index, 2])
    electrons = DARKEST * (BRIGHTEST / DARKEST) ** rng.random()
    cast = tuple(rng.uniform(0.85, 1.15, 3))
    scene = make_scene(TRAIN_SEED, index, SIZE, SIZE)
    camera = Camera(electrons, color_cast=cast, read_noise=rng.uniform(1, 3), row_noise=rng.uniform(0, 1))
    picture = expose(scene.light, camera, rng)
    image = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
    masks = np.array([item.mask for item in scene.objects]).reshape(-1, SIZE, SIZE)
    boxes = [_box(mask) for mask in masks]
    return image, {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([item.label for item in scene.objects], dtype=torch.int64),
        "masks": torch.from_numpy(masks.astype(np.uint8)),
    }


def _box(mask: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def make_model(config: ModelConfig, seed: int) -> MaskRCNN:
    """Seeded; fewer proposals than torchvision's defaults, which were made for larger pictures."""
    torch.manual_seed(seed)
    return model_from_config(
        config,
        min_size=SIZE,
        max_size=SIZE,
        rpn_pre_nms_top_n_train=600,
        rpn_post_nms_top_n_train=300,
        box_batch_size_per_image=64,
    )


def train(arguments: argparse.Namespace) -> None:
    for name, least in (("steps", 1), ("batch", 1), ("workers", 0), ("log_every", 1), ("save_every", 1)):
        if getattr(arguments, name) < least:
            raise WnlbError(f"{name} is {getattr(arguments, name)}; expected at least {least}")
    if not 0 <= arguments.decay <= 1:
        raise WnlbError(f"decay is {arguments.decay}; expected a share from 0 to 1")
    output: Path = arguments.output
    make_folder(output)
    device = torch.device(arguments.device)
    config = sample_config(arguments.blocks, arguments.backbone)
    model = make_model(config, arguments.seed)
    if arguments.start:
        _start_from(model, arguments.start)
    model = model.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), arguments.lr, weight_decay=1e-4)
    step, rows = _resume(output / "resume.pth", model, optimizer)
    todo = arguments.steps - step
    scenes = NightScenes(arguments.first_scene + step * arguments.batch, todo * arguments.batch)
    loader = DataLoader(scenes, arguments.batch, num_workers=arguments.workers, collate_fn=lambda batch: batch)
    with tqdm(total=arguments.steps, initial=step, unit="step", disable=None) as bar:
        for batch in loader:
            rate = learning_rate(step, arguments.steps, arguments.lr, arguments.decay)
            for group in optimizer.param_groups:
                group["lr"] = rate
            images = [image.to(device) for image, _ in batch]
            targets = [{name: value.to(device) for name, value in target.items()} for _, target in batch]
            with torch.autocast(device.type, torch.bfloat16):
                losses = model(images, targets)
            loss = torch.stack(list(losses.values())).sum()
            if not loss.isfinite():
                raise SystemExit(f"loss is {loss.item()} at step {step}; lower --lr")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            step += 1
            bar.update()
            if step % arguments.log_every == 0:
                rows.append({"step": step, "lr": rate, "loss": loss.item(), **{k: v.item() for k, v in losses.items()}})
                bar.set_postfix(loss=f"{loss.item():.2f}")
            if step % arguments.save_every == 0 or step == arguments.steps:
                _save(output, model, optimizer, step, rows)
    save_checkpoint(model.eval(), config, output / "sample.pth")
    save_checkpoint(model, config, output / "sample.safetensors", torch.float16)


def learning_rate(step: int, steps: int, peak: float, decay: float) -> float:
    """Linear warm-up over 300 steps (a tenth of fewer than 3000), then constant, then down to zero in a line over the
    last ``decay`` (0 to 1) of all."""
    warm = (step + 1) / min(300, max(steps // 10, 1))
    left = (steps - step) / max(steps * decay, 1)
    return peak * min(warm, left, 1.0)


def _start_from(model: MaskRCNN, path: Path) -> None:
    """Weights of another run; blocks that it lacks stay the identity."""
    missing, unexpected = model.load_state_dict(load_checkpoint(path)[0].state_dict(), strict=False)
    strange = unexpected + [name for name in missing if ".wnlb." not in name]
    if strange:
        raise WnlbError(f"{path} is no start for this model; it differs in {', '.join(strange[:5])}")


def _resume(path: Path, model: MaskRCNN, optimizer: torch.optim.Optimizer) -> tuple[int, list[dict[str, float]]]:
    if not path.exists():
        return 0, []
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise WnlbError(
            f"{path} does not fit this run: {reason}; give another folder, or delete it to start over"
        ) from error
    torch.set_rng_state(state["rng"])
    print(f"going on from step {state['step']}")
    return state["step"], state["log"]


def _save(
    output: Path, model: MaskRCNN, optimizer: torch.optim.Optimizer, step: int, rows: list[dict[str, float]]
) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "log": rows}
    with atomic_path(output / "resume.pth") as temporary:
        torch.save({**state, "rng": torch.get_rng_state()}, temporary)
    if not rows:
        return
    with atomic_path(output / "log.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    _plot(rows, output / "curve.png")


def _plot(rows: list[dict[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    steps = [row["step"] for row in rows]
    window = max(len(rows) // 50, 1)
    for name in (key for key in rows[0] if key.startswith("loss")):
        smooth = np.convolve([row[name] for row in rows], np.ones(window) / window, "valid")
        axes.plot(steps[window - 1 :], smooth, label=name)
    axes.set(xlabel="step", ylabel=f"loss (mean of {window} entries)", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder; training in it goes on where it stopped"
    )
    parser.add_argument("--start", type=Path, help="sample.pth of another run to start from")
    parser.add_argument("--steps", type=from_(1), default=6000)
    parser.add_argument("--decay", type=float, default=1.0, help="share of the steps in which the rate falls to zero")
    parser.add_argument("--first-scene", type=int, default=0, help="number of the first scene; go on where --start was")
    parser.add_argument("--batch", type=from_(1), default=4)
    parser.add_argument("--lr", type=float, default=4e-4, help="peak learning rate of AdamW")
    parser.add_argument("--blocks", choices=("weighted", "unweighted", "none"), default="weighted")
    parser.add_argument("--backbone", choices=("resnet18", "resnet50"), default="resnet18")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=from_(0), default=1, help="processes that make scenes")
    parser.add_argument("--log-every", type=from_(1), default=10)
    parser.add_argument("--save-every", type=from_(1), default=500)
    arguments = parser.parse_args()
    return exit_code(lambda: train(arguments))


if __name__ == "__main__":
    sys.exit(main())
