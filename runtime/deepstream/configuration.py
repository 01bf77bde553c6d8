"""What Gst-nvinfer and deepstream-app read."""

from __future__ import annotations

from dataclasses import dataclass

from wnlb.runtime.contract import Contract

MODEL, ENGINE, LABELS, LIBRARY = "model.onnx", "model.engine", "labels.txt", "libnvdsinfer_wnlb.so"
NVINFER, APP = "config_infer_wnlb.txt", "deepstream_app_wnlb.txt"
_FILTERS = {"nearest": 0, "bilinear": 1, "antialiased": 1}  # NvBufSurfTransform_Inter


@dataclass(frozen=True)
class Deployment:
    """What is not in the model.

    Attributes:
        frame: height and width of the cameras' frames, px.
        cameras: streams that are batched.
        score: detections below it are left out.
        source: address of the first camera, for the application.
    """

    frame: tuple[int, int]
    cameras: int
    score: float
    source: str


def resized(contract: Contract, frame: tuple[int, int]) -> tuple[int, int]:
    """Height and width that Gst-nvinfer gives such a frame in the input, left and top of it.

    ``get_converted_buffer`` of gst-plugins/gst-nvinfer/gstnvinfer.cpp: sides of frames are made even, those in the
    input rounded down.

    Args:
        frame: height and width, px.
    """
    if contract.resize == "stretch":
        return contract.height, contract.width
    height, width = (side // 2 * 2 for side in frame)
    fitting = contract.width * height / width
    if fitting <= contract.height:
        return int(fitting), contract.width
    return contract.height, int(contract.height * width / height)


def nvinfer_text(contract: Contract, deployment: Deployment) -> str:
    """``config_infer_wnlb.txt``."""
    outputs = ";".join(contract.output_shapes)
    return f"""\
# Gst-nvinfer for {MODEL}, whose precision is in the file: trtexec builds {ENGINE} strongly typed.
[property]
gpu-id=0
gie-unique-id=1
process-mode=1
network-type=3
network-mode=0
onnx-file={MODEL}
model-engine-file={ENGINE}
labelfile-path={LABELS}
num-detected-classes={len(contract.class_names)}
batch-size={deployment.cameras}
# RGB from 0 to 255, planar; mean and deviation are in the graph.
infer-dims=3;{contract.height};{contract.width}
model-color-format=0
net-scale-factor=1
maintain-aspect-ratio={int(contract.resize == "fit")}
symmetric-padding=0
scaling-filter={_FILTERS[contract.interpolation]}
output-blob-names={outputs}
# NMS is in the graph.
cluster-mode=4
custom-lib-path={LIBRARY}
parse-bbox-instance-mask-func-name=NvDsInferParseWnlb
output-instance-mask={int(contract.masks == "box")}
segmentation-threshold=0.5

[class-attrs-all]
pre-cluster-threshold={deployment.score:g}
"""


def app_text(contract: Contract, deployment: Deployment) -> str:
    """``deepstream_app_wnlb.txt``: the reference application, cameras side by side in a window."""
    height, width = deployment.frame
    columns = 1
    while columns * columns < deployment.cameras:
        columns += 1
    lines = -(-deployment.cameras // columns)
    sources = "\n".join(
        f"""\
[source{i}]
enable=1
# 3: an address or a file (file:///...); 1: a USB camera; 5: a Jetson's camera connector
type=3
uri={deployment.source}
num-sources=1
"""
        for i in range(deployment.cameras)
    )
    return f"""\
[application]
enable-perf-measurement=1
perf-measurement-interval-sec=5

[tiled-display]
enable={int(deployment.cameras > 1)}
rows={lines}
columns={columns}
width=1280
height=720

{sources}
[streammux]
batch-size={deployment.cameras}
batched-push-timeout=40000
# The resolution that {MODEL} was made for.
width={width}
height={height}
live-source=1

[primary-gie]
enable=1
config-file={NVINFER}

[osd]
enable=1
display-mask={int(contract.masks == "box")}
border-width=2
text-size=12

[sink0]
enable=1
type=2
sync=0
"""
