"""From the weights of a SOLOv2 checkpoint, under our names, to the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wnlb.export.checkpoints.configurations.solov2_settings import Solov2Settings
from wnlb.export.checkpoints.filling import filled
from wnlb.export.checkpoints.names.dialect import body_fields, check_adaptive_downsampling, count_of
from wnlb.export.solov2 import Solov2, Solov2Config
from wnlb.runtime.errors import CheckpointError, WnlbError


def solov2_of(
    state: Mapping[str, Tensor], settings: Solov2Settings, known: Mapping[str, Any], source: str
) -> tuple[Solov2, Solov2Config]:
    """The network with these weights.

    Args:
        state: by our names, see ``torchvision_state``.
        known: fields of ``Solov2Config`` that win over what is read.
        source: the checkpoint's name, for messages.

    Raises:
        CheckpointError: they make no SOLOv2, or are those of another configuration.
    """
    config = _config(state, {**settings.model_fields(), **known})
    settings.check_network(config.backbone, config.num_classes, source)
    model = filled(lambda: Solov2(config, settings.selection()), state, source, "SOLOv2")
    return model, config


def _config(state: Mapping[str, Tensor], known: Mapping[str, Any]) -> Solov2Config:
    try:
        read = {
            **body_fields(state),
            "num_classes": state["head.conv_cls.weight"].shape[0] + 1,
            "head_convs": count_of(state, r"head\.kernel_convs\.(\d+)\.conv\.weight"),
            "head_channels": state["head.conv_cls.weight"].shape[1],
            "kernel_channels": state["head.conv_kernel.weight"].shape[0],
            "feature_channels": state["head.conv_pred.conv.weight"].shape[1],
        }
        config = Solov2Config.from_dict({**read, **known})
    except KeyError as error:
        raise CheckpointError(f"checkpoint has no weight {error}: not a SOLOv2 with FPN") from error
    except WnlbError as error:
        raise CheckpointError(str(error)) from error
    check_adaptive_downsampling(state, config)
    return config
