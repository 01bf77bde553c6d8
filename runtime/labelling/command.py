"""``wnlb label``: pictures and videos by the million to labels."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from wnlb.runtime.backend import open_backend
from wnlb.runtime.contract import Contract
from wnlb.runtime.depth import check_bits
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import sha256_of
from wnlb.runtime.labelling.formats import FORMATS, check_formats, write_formats
from wnlb.runtime.labelling.inputs import Input, find_inputs
from wnlb.runtime.labelling.job import Job, alone_in, check_same, read_job, start_job
from wnlb.runtime.labelling.labeller import LOWEST_SCORE, Options
from wnlb.runtime.labelling.plan import block_size, plan_workers, probe_threads
from wnlb.runtime.labelling.pool import Crew, label_all
from wnlb.runtime.labelling.processes import Machine
from wnlb.runtime.labelling.ray_actors import Cluster
from wnlb.runtime.labelling.review import write_review
from wnlb.runtime.onnxruntime_backend import DEVICES, check_threads
from wnlb.runtime.served_model import model_of
from wnlb.runtime.source import PictureSource

FAILURES_TOLD = 10
_WRITTEN = {"coco": "detections.json", "parquet": "detections.parquet", "yolo": "yolo/", "labelme": "labelme/"}
_DESCRIPTION = """\
Label pictures and videos by the million, on every core of this machine, or on a Ray cluster (--address).

  wnlb label model.onnx night/ -o labels/
  wnlb label model.onnx 'night/**/*.png' -o labels/ --format coco,yolo --min-score 0.6
  wnlb label model.engine 's3://bucket/night/*.jpg' -o labels/    # whatever fsspec opens
  wnlb label model.onnx drives.txt -o labels/ --address ray://cluster:10001

SOURCE is a folder of pictures, a glob pattern, a video, a list (.txt), a COCO file (.json), or an address.

Whatever ends it (Ctrl-C, a full disk, a power cut), the same command again does the rest: no picture twice, none left
out. What each picture gave lies in labels/shards/*.parquet; from there come detections.json (COCO) and the other
formats, and review.csv, the pictures most worth a person's look. A finished job is written anew with another
--format, --min-score, --review or --against without the model being run.

A picture that cannot be read is a row with the reason; the exit code is then 3.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("model", help="an .onnx of 'wnlb export', an .engine of 'build', or triton://HOST:8001/MODEL")
    parser.add_argument("source", help="folder, glob pattern (quoted), video, list, COCO file, or address for fsspec")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder of the labels")
    parser.add_argument("--images", type=Path, metavar="DIR", help="where the names of a list or COCO file start from")
    labels = parser.add_argument_group("labels")
    labels.add_argument(
        "--format", default="coco", metavar="NAME,...", help=f"{', '.join(FORMATS)}, with commas (default: coco)"
    )
    labels.add_argument(
        "--min-score", type=float, default=0.5, metavar="S", help="leave out objects below S (default: 0.5)"
    )
    labels.add_argument(
        "--review", type=int, default=100, metavar="N", help="pictures in review.csv (default: 100; 0: none)"
    )
    labels.add_argument(
        "--against", type=Path, metavar="DIR", help="labels of another model: review.csv tells where they disagree"
    )
    work = parser.add_argument_group("work")
    work.add_argument(
        "--workers", type=int, default=0, metavar="N", help="default: one per core, as memory allows; one for a GPU"
    )
    work.add_argument("--threads", type=int, default=0, metavar="N", help="of a worker (default: cores / workers)")
    work.add_argument(
        "--address", help="do it on Ray: local, HOST:PORT or ray://HOST:10001 (default: processes, without Ray)"
    )
    work.add_argument(
        "--block",
        type=int,
        default=0,
        metavar="N",
        help="pictures that are saved together (default: about 20 s of work)",
    )
    work.add_argument("--device", choices=DEVICES, default="auto", help="default: CUDA where it works, else the CPU")
    work.add_argument("--trust", type=Path, metavar="ONNX", help="as for 'wnlb predict'")
    work.add_argument("--bits", type=int, default=0, metavar="N", help="that values of 16-bit pictures have")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no summary")


def run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    import pyarrow  # noqa: F401  a missing one is told before anything is made

    with alone_in(arguments.output), contextlib.ExitStack() as stack:
        job, settings = read_job(arguments.output), _settings(arguments)
        inputs = list(job.inputs) if job else find_inputs(arguments.source, arguments.images)
        formats = check_formats(arguments.format, inputs, bool(settings["remote"]))
        against = _other(arguments.against)
        if job:
            check_same(job, settings)
            _tell_later(job, arguments)
        if job is None or job.missing():
            crew = Cluster(arguments.address) if arguments.address else Machine()
            stack.callback(crew.close)
            with contextlib.redirect_stdout(sys.stderr):  # where Ray tells of its own of workers that died
                job = _label(job, settings, inputs, crew, arguments)
        with _bar(arguments, (len(formats) + ("coco" in formats)) * job.pictures, "write") as bar:
            write_formats(job, formats, arguments.min_score, bar.update)
        listed = write_review(job, arguments.review, arguments.min_score, against) if arguments.review else 0
        return _tell(job, formats, listed, arguments)


def _label(
    job: Job | None, settings: dict[str, Any], inputs: list[Input], crew: Crew, arguments: argparse.Namespace
) -> Job:
    """Do what is missing of a job, which begins now where there is none yet."""
    found = job.bits if job else _bits(settings, inputs)
    threads = probe_threads(crew, arguments.workers, arguments.threads)
    how = {"device": arguments.device, "trust": arguments.trust, "bits": arguments.bits, "otherwise": found}
    options = Options(arguments.model, threads=threads, remote=settings["remote"], **how)
    facts = crew.facts(options, inputs[0])
    plan = plan_workers(crew, facts, arguments.workers, arguments.threads)
    if job is None:
        pictures = sum(max(one.frames or 0, 1) for one in inputs)
        block = arguments.block or block_size(facts, plan, pictures)
        names = Contract.from_json(facts.contract).class_names
        job = start_job(arguments.output, settings, names, block, found, inputs)
    told = set[str]()

    def tell(line: str) -> None:
        if line and line not in told:
            told.add(line)
            tqdm.write(f"wnlb label: {line}", file=sys.stderr)

    tell(facts.hint)
    missing = job.missing()
    left = sum(block.pictures for block in missing)
    done = 0
    with (
        contextlib.closing(crew.pool(replace(options, threads=plan.threads), min(plan.workers, len(missing)))) as pool,
        _bar(arguments, job.pictures, f"{plan.workers} x {facts.description}", job.pictures - left) as bar,
    ):

        def show() -> None:
            bar.update(job.pictures - left + done + pool.partial - bar.n)

        for block in label_all(pool, iter(missing), tell, show):
            job.write(block)
            done += block.rows
            for note in block.notes:
                tell(note)
    return job


def _bits(settings: dict[str, Any], inputs: list[Input]) -> int:
    """What 16-bit pictures of this source hold; see ``PictureSource.bits_found``."""
    pictures = [Path(one.path) for one in inputs if one.frames is None and not settings["remote"]]
    return PictureSource(pictures, settings["bits"]).bits_found() if pictures else 0


def _check(arguments: argparse.Namespace) -> None:
    """Whatever can be refused before work begins."""
    if not LOWEST_SCORE <= arguments.min_score <= 1:
        raise WnlbError(f"--min-score is {arguments.min_score}; expected {LOWEST_SCORE} to 1")
    for name, least in (("workers", 0), ("block", 0), ("review", 0)):
        if getattr(arguments, name) < least:
            raise WnlbError(f"--{name} is {getattr(arguments, name)}; expected {least} or more")
    check_threads(arguments.threads)
    check_bits(arguments.bits)
    check_formats(arguments.format, (), False)


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the rows depend on, but for what is found out when a job begins."""
    model, source = arguments.model, arguments.source
    return {
        "model": _identity(model),
        "source": source if "://" in source else os.path.abspath(source),
        "remote": source if "://" in source else "",
        "images": os.path.abspath(arguments.images) if arguments.images else "",
        "bits": arguments.bits,
        "lowest_score": LOWEST_SCORE,
    }


def _identity(model: str) -> str:
    """What must be the same for a job to go on: the file, or of a server's model its address and contract."""
    if Path(model).is_file():
        return sha256_of(model)
    served = model_of(model)
    if isinstance(served, Path):
        return model  # told where it is opened
    backend = open_backend(served)
    backend.close()
    return f"{served.target}/{served.name} {hashlib.sha256(backend.contract.to_json().encode()).hexdigest()}"


def _other(folder: Path | None) -> Job | None:
    """The job of ``--against``."""
    job = read_job(folder) if folder else None
    if folder and (job is None or not job.is_finished()):
        raise WnlbError(f"--against {folder} holds no finished labels; expected the -o of another 'wnlb label'")
    return job


def _tell_later(job: Job, arguments: argparse.Namespace) -> None:
    """Of pictures that came after the job began."""
    try:
        now = {one.name for one in find_inputs(arguments.source, arguments.images)}
    except WnlbError:  # they are gone: each becomes a row with the reason
        return
    if later := now - {one.name for one in job.inputs}:
        told = f"{len(later)} pictures came after this job began and are left out (the first: {min(later)})"
        print(f"wnlb label: {told}; label them with another -o", file=sys.stderr)


def _bar(arguments: argparse.Namespace, total: int, what: str, done: int = 0) -> Any:
    hidden = arguments.quiet or None  # None: where stderr is no terminal
    return tqdm(total=total, initial=done, desc=what, unit="picture", disable=hidden, file=sys.stderr, leave=False)


def _tell(job: Job, formats: tuple[str, ...], listed: int, arguments: argparse.Namespace) -> int:
    """The summary, and what could not be read."""
    found, failures, pictures = Counter[str](), list[str](), 0
    for row in job.rows():
        pictures += row["error"] is None
        failures += [row["error"]] if row["error"] is not None else []
        found.update(one["category"] for one in row["objects"] if one["score"] >= arguments.min_score)
    if not arguments.quiet:
        classes = ", ".join(f"{name} {count}" for name, count in found.most_common()) or "none"
        failed = f", {len(failures)} could not be read" if failures else ""
        print(f"{pictures} picture{'s' * (pictures != 1)}{failed}; labels: {classes}")
        written = [_WRITTEN[name] for name in formats] + ["review.csv"] * bool(arguments.review)
        print(f"{', '.join(written)} are in {job.folder}/; {listed} pictures to look at first")
    more = len(failures) - FAILURES_TOLD
    rest = [f"and {more} more: column error of {job.folder}/shards/"] if more > 0 else []
    for line in [*failures[:FAILURES_TOLD], *rest, *job.cut_short()]:
        print(f"wnlb label: {line}", file=sys.stderr)
    return 3 if failures else 0
