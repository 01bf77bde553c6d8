"""``wnlb triton``: serve models with NVIDIA's Triton Inference Server."""

from __future__ import annotations

import argparse
from pathlib import Path

from wnlb.runtime.engine.manifest import LIBRARIES
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.onnxruntime_backend import DEVICES
from wnlb.runtime.served_model import PORT, ServedModel, file_of
from wnlb.runtime.serving import probe
from wnlb.runtime.serving.config import VARIANTS, Queue
from wnlb.runtime.serving.repository import How, Served, read_models, start_of, write_repository
from wnlb.runtime.serving.starting import COMPOSE, CONTAINER, MATRIX, UNIT, Start, as_line

_DESCRIPTION = """\
Write a model repository for NVIDIA's Triton Inference Server, and print the command that starts it.

  wnlb triton model.onnx -o repository/
  wnlb triton day.engine night.engine -o repository/ --container 25.08 --listen 0.0.0.0
  wnlb run triton://server:8001/night rtsp://camera/night --serve 127.0.0.1:8080
  wnlb triton --probe http://server:8000             # exit code 1 where a model does not answer

--variant net (default): the file itself, in Triton's onnxruntime or tensorrt backend. predict, run,
evaluate, profile and label take triton://HOST:8001/MODEL where they take a file; the client prepares and pastes.
--variant full: encoded pictures in (JPEG, PNG), boxes, scores, class names and masks as COCO RLE out, for slow links
and clients without this package; needs this package in the container.

Files of --batch 1-8 are batched by the server. A full queue refuses requests (HTTP 503, gRPC UNAVAILABLE).
The repository also gets probe.py (a real inference by each model), compose.yaml and a systemd unit.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument(
        "models", nargs="*", type=file_of, metavar="MODEL", help=".onnx of 'wnlb export', .engine of 'build'"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="REPOSITORY", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a repository that is there")
    parser.add_argument("--variant", choices=VARIANTS, default="net", help="see above (default: net)")
    parser.add_argument(
        "--device", choices=DEVICES, default="auto", help="of .onnx files (default: cuda, but cpu for --target cpu)"
    )
    parser.add_argument(
        "--instances", type=int, default=0, metavar="N", help="of each model at a time (default: 2 on a GPU, else 1)"
    )
    parser.add_argument("--max-queue", type=int, default=64, metavar="N", help="requests that may wait (default: 64)")
    parser.add_argument(
        "--queue-timeout", type=float, default=10.0, metavar="S", help="how long a request may wait (default: 10)"
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.5,
        metavar="S",
        help="of --variant full: leave out detections below S (default: 0.5)",
    )
    parser.add_argument(
        "--container",
        metavar="YY.MM",
        help=f"of nvcr.io/nvidia/tritonserver (default: {CONTAINER}; to be named for engines, which fit one TensorRT)",
    )
    parser.add_argument(
        "--listen", default="127.0.0.1", metavar="IP", help="whom to answer; 0.0.0.0: the network (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--probe", metavar="URL", help="let each model of a server make an inference, e.g. " + probe.URL
    )
    parser.add_argument("--timeout", type=float, default=probe.TIMEOUT_S, metavar="S", help="of --probe (default: 30)")


def run(arguments: argparse.Namespace) -> int:
    if arguments.probe:
        return _probe(arguments)
    if not arguments.models or not arguments.output:
        raise WnlbError("no model or no output was given; expected MODEL... -o REPOSITORY, or --probe URL")
    queue = Queue(arguments.max_queue, arguments.queue_timeout)
    how = How(arguments.variant, arguments.device, arguments.instances, arguments.score_threshold, queue)
    models = read_models(arguments.models, how.variant)
    engine = next((model for model in models if model.manifest), None)
    if how.variant == "net" and engine and engine.manifest and not arguments.container:
        raise WnlbError(
            f"engine {engine.path} needs the container with TensorRT {engine.manifest.version}; look it up in {MATRIX} "
            "and name it, e.g. --container 25.08"
        )
    start = start_of(models, how, arguments.container or CONTAINER, arguments.listen)
    write_repository(models, how, start, arguments.output, arguments.overwrite)
    print(_summary(models, how, start, arguments.output))
    return 0


def _probe(arguments: argparse.Namespace) -> int:
    if arguments.models or arguments.output:
        raise WnlbError("--probe asks a server; leave models and -o out")
    if not arguments.probe.startswith(("http://", "https://")):
        raise WnlbError(f"--probe is {arguments.probe!r}; expected the address of Triton's HTTP port, e.g. {probe.URL}")
    return probe.main(["--url", arguments.probe.rstrip("/"), "--timeout", str(arguments.timeout)])


def _summary(models: list[Served], how: How, start: Start, output: Path) -> str:
    host = "HOST" if start.listen in ("0.0.0.0", "::") else start.listen
    lines = [f"{output}: {len(models)} model{'s' * (len(models) != 1)}, variant {how.variant}"]
    for model in models:
        where = "GPU" if how.on_gpu(model) else "CPU"
        address = ServedModel(host, PORT, model.name) if how.variant == "net" else f"{model.name}: pictures in"
        lines.append(f"  {address}  ({model.path.name}, {where}, {model.contract.batch_text} frames a run)")
    for model in models:
        if model.manifest:
            library, at = LIBRARIES[model.manifest.library], model.manifest.compute_capability
            needs = f"{library} {model.manifest.version}" + (f" and SM {at}" if at else "")
            lines.append(f"{model.path.name} needs {needs}")
    if how.variant == "net" and any(model.manifest is None and not how.on_gpu(model) for model in models):
        lines.append(
            "on a CPU, Triton's onnxruntime backend cannot flush denormal numbers, which can make frames with lamps "
            "several times slower than 'wnlb predict'; --variant full can"
        )
    lines.append("start it:")
    if start.python:
        lines.append("  " + as_line(["pip", "wheel", "--no-deps", "-w", str(output), "CHECKOUT_OF_WNLB_DEPLOY"]))
        lines.append("  " + as_line(["docker", "build", "-t", start.image, str(output)]))
    lines += ["  " + as_line(start.docker(output)), "or, started again where a model does not answer:"]
    lines.append("  " + as_line(["docker", "compose", "-f", str(output / COMPOSE), "up", "-d"]))
    lines.append("  " + as_line(["sudo", "systemctl", "enable", "--now", str(output.resolve() / UNIT)]))
    lines.append("nothing of it is encrypted or asks for a password: keep it to networks that you trust")
    return "\n".join(lines)
