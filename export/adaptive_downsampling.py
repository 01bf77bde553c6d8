"""Adaptive weighted downsampling of LIS: a 3 x 3 average whose weights follow from what it averages.

For channel c of x ``[N, C, H, W]`` and a position p of the output, the nine taps k around p:

    y[c, p] = sum_k softmax_k(g[c] w[c, k, p]) x[c, p + k],     x reflected by one pixel at its edges
    w = BN(conv3x3(x)), nine output channels for each channel alone, by the stride
    g = conv1x1(relu(conv1x1(mean of x over H and W))),     C to C/4 to C channels

The mean is that of the whole map, what the padding of the frame became included.

Chen, Fu, Wei, Zheng, Heide: "Instance Segmentation in the Dark", IJCV 2023; as computed by ``AdaDConv`` in
mmdet/models/backbones/CustomConv.py of Linwei-Chen/LIS (95de45c), whose parameters have the same names here.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import reduce

import torch
from torch import Tensor, nn

TAPS = 9  # of a 3 x 3 window, row by row


class AdaptiveDownsampling(nn.Module):
    """``[N, C, H, W]`` to ``[N, C, ceil(H / stride), ceil(W / stride)]``, H and W at least 2.

    Args:
        channels: C, at least 4.
        stride: 1 or 2.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight_net = nn.Sequential(
            nn.Conv2d(channels, TAPS * channels, 3, stride, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(TAPS * channels),
        )
        self.channel_net = nn.Sequential(  # LIS's first module is the mean, which has no parameters
            OrderedDict(
                [
                    ("1", nn.Conv2d(channels, channels // 4, 1, bias=False)),
                    ("2", nn.ReLU()),
                    ("3", nn.Conv2d(channels // 4, channels, 1, bias=False)),
                ]
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        gain = self.channel_net(x.mean((2, 3), keepdim=True)).unsqueeze(2)  # [N, C, 1, 1, 1]
        logits = (gain * self.weight_net(x).unflatten(1, (-1, TAPS))).unbind(2)  # of each tap [N, C, h, w]
        # A softmax tap by tap: over an axis that is not the last one, ONNX Runtime's transposes all nine there and
        # back. On a CPU that makes the whole module twice as fast.
        highest = reduce(torch.maximum, logits)
        shares = [(logit - highest).exp() for logit in logits]
        weighted = [share * tap for share, tap in zip(shares, self._taps(x), strict=True)]
        return reduce(torch.add, weighted) / reduce(torch.add, shares)

    def _taps(self, x: Tensor) -> list[Tensor]:
        """What lies at each of the nine places around the positions of the output, ``[N, C, h, w]`` each."""
        height, width = x.shape[2:]
        # Reflecting by one pixel, of slices alone: exporter and engines agree on them more than on modes of Pad.
        x = torch.cat((x[:, :, 1:2], x, x[:, :, -2:-1]), 2)
        x = torch.cat((x[..., 1:2], x, x[..., -2:-1]), 3)
        return [
            x[:, :, row : row + height : self.stride, column : column + width : self.stride]
            for row in range(3)
            for column in range(3)
        ]
