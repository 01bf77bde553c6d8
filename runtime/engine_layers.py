"""The layers of a network or an engine: name, type and precision."""

from __future__ import annotations

import json
import re
from typing import Any

from wnlb.runtime.tensorrt_library import TensorRt, make_logger

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
    runtime = trt.Runtime(make_logger(trt))
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        return None
    inspector = engine.create_engine_inspector()
    try:
        return layers_of_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    except (ValueError, TypeError, AttributeError, LookupError):  # its JSON has been malformed before
        return None


def layers_of_inspector(text: str) -> list[dict[str, str]]:
    """Name, type and precision of each layer in the JSON of TensorRT's engine inspector, of any version."""
    layers = []
    for entry in json.loads(text).get("Layers", []):
        if isinstance(entry, str):  # not built with detailed verbosity
            layers.append({"name": entry, "type": "", "precision": ""})
            continue
        outputs = entry.get("Outputs") or [{}]
        stated = str(outputs[0].get("Datatype") or outputs[0].get("Format/Datatype") or "")
        precision = next((_WORDS.get(word, word) for word in _precision_words(stated)), "")
        kind = str(entry.get("LayerType", ""))
        layers.append({"name": str(entry.get("Name", "")), "type": kind, "precision": precision})
    return layers


def _precision_words(text: str) -> list[str]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return [word for word in words if word in _WORDS or re.fullmatch(r"u?int(4|8|32|64)|fp8|bool", word)]
