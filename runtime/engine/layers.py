"""The layers of a network or an engine: name, type, precision, and the nodes that they were fused from."""

from __future__ import annotations

import json
import re
from typing import Any

from wnlb.runtime.engine.tensorrt import TensorRt, make_logger

_PRECISIONS = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16"}
_WORDS = {"half": "fp16", "float": "fp32", "fp16": "fp16", "fp32": "fp32", "bf16": "bf16", "bfloat16": "bf16"}


def layers_of_network(network: Any) -> list[dict[str, str]]:
    """As parsed, before TensorRT fuses them."""
    return [_layer_of_network(network.get_layer(i)) for i in range(network.num_layers)]


def _layer_of_network(layer: Any) -> dict[str, str]:
    kind = layer.get_output_type(0).name if layer.num_outputs else ""
    precision = _PRECISIONS.get(kind, kind.lower())
    return {"name": layer.name, "type": layer.type.name, "precision": precision}


def layers_of_engine(library: TensorRt, data: memoryview) -> list[dict[str, str]] | None:
    """Layers of the engine as TensorRT fused them; None where it cannot be opened here."""
    trt = library.trt
    runtime = library.start("Runtime", make_logger(trt))
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        return None
    try:
        return layers_of_inspector(_inspected(trt, engine))
    except (ValueError, TypeError, AttributeError, LookupError):  # its JSON has been malformed before
        return None


def layers_of_inspector(text: str) -> list[dict[str, str]]:
    """Name, type and precision of each layer in the JSON of TensorRT's engine inspector, of any version."""
    layers = []  # not strict: the separators of its lists are control characters
    for entry in json.loads(text, strict=False).get("Layers", []):
        if isinstance(entry, str):  # not built with detailed verbosity
            layers.append({"name": entry, "type": "", "precision": ""})
            continue
        outputs = entry.get("Outputs") or [{}]
        stated = str(outputs[0].get("Datatype") or outputs[0].get("Format/Datatype") or "")
        precision = next((_WORDS.get(word, word) for word in _precision_words(stated)), "")
        kind = str(entry.get("LayerType", ""))
        layers.append({"name": str(entry.get("Name", "")), "type": kind, "precision": precision})
    return layers


def onnx_names_of_engine(trt: Any, engine: Any) -> dict[str, str]:
    """``onnx_names_of_inspector`` of an opened engine."""
    try:
        return onnx_names_of_inspector(_inspected(trt, engine))
    except UnicodeDecodeError:
        return {}


def onnx_names_of_inspector(text: str) -> dict[str, str]:
    """``"body.conv1/Conv + body.relu/Relu"``: the nodes that each layer was fused from, by the layer's name.

    Args:
        text: JSON of TensorRT's engine inspector. Only an engine of detailed verbosity has them; none are found in a
            text that is malformed.
    """
    found = {}
    try:
        for entry in json.loads(text, strict=False)["Layers"]:
            metadata = str(entry.get("Metadata") or "") if isinstance(entry, dict) else ""
            if metadata:
                found[str(entry["Name"])] = " + ".join(re.findall(r"\[ONNX Layer: ([^\]]*)\]", metadata)) or metadata
    except (ValueError, TypeError, LookupError):
        return {}
    return found


def _inspected(trt: Any, engine: Any) -> str:
    inspector = engine.create_engine_inspector()
    return inspector.get_engine_information(trt.LayerInformationFormat.JSON)


def _precision_words(text: str) -> list[str]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return [word for word in words if word in _WORDS or re.fullmatch(r"u?int(4|8|32|64)|fp8|bool", word)]
