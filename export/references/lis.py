"""What LIS adds to mmdetection's ResNet: Chen et al., "Instance Segmentation in the Dark", IJCV 2023.

Linwei-Chen/LIS, 95de45c: mmdet/models/backbones/resnet.py and CustomConv.py; no code of theirs.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from wnlb.export.references.layers import conv, normed_conv
from wnlb.export.references.weights import Weights


def adaptive_downsampling(weights: Weights, path: str, x: Tensor, stride: int) -> Tensor:
    """``AdaDConv``: each channel's 3 x 3 windows, averaged by nine weights that channel and position have of their own.

    A softmax over the window of (normed depthwise convolution to nine channels) * (two fully connected layers over the
    channels' means). The windows overlap the edge by one pixel, where x is reflected.

    Args:
        x: ``[N, C, H, W]``.

    Returns:
        ``[N, C, h, w]``, h = ceil(H / stride), w alike.
    """
    batch, channels = x.shape[:2]
    local = normed_conv(weights, f"{path}.weight_net.0", (f"{path}.weight_net.1",), x, stride)  # [N, 9C, h, w]
    means = x.flatten(2).mean(2)[:, :, None, None]
    of_channel = conv(weights, f"{path}.channel_net.3", conv(weights, f"{path}.channel_net.1", means).relu())
    size = local.shape[2:]
    shares = (local.view(batch, channels, 9, -1) * of_channel).softmax(2)  # [N, C, 9, h*w]
    windows = F.unfold(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, stride=stride).view(batch, channels, 9, -1)
    return (shares * windows).sum(2).view(batch, channels, *size)


def smooth_convolution(weights: Weights, unit: str, x: Tensor, stride: int) -> Tensor | None:
    """What ``SmoothPriorBottleneck`` adds to its 3 x 3 convolution; None where the unit at this path is none.

    A 1 x 1 convolution of x, each of its channels blurred by 3 x 3 weights of its own, which a softmax makes sum to 1.
    """
    filters = weights.get(f"{unit}.llpf.weight")  # [C, 1, 3, 3]
    if filters is None:
        return None
    filters = filters.flatten(1).softmax(1).view_as(filters)
    return conv(weights, f"{unit}.learnable_conv1", F.conv2d(x, filters, stride=stride, padding=1, groups=x.shape[1]))
