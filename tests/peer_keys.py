"""Names and shapes of Mask R-CNN as mmdetection and detectron2 save it, without weights."""

from __future__ import annotations

UNITS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
Shapes = dict[str, tuple[int, ...]]


def norm(name: str, channels: int, counter: bool = True) -> Shapes:
    shapes = {f"{name}.{kind}": (channels,) for kind in ("weight", "bias", "running_mean", "running_var")}
    return {**shapes, **({f"{name}.num_batches_tracked": ()} if counter else {})}


def resnet(depth: int, groups: int = 1, width: int = 64, d2: bool = False) -> Shapes:
    shapes: Shapes = {}

    def conv(name: str, after: str, out: int, inp: int, size: int) -> None:
        shapes[f"{name}.weight"] = (out, inp, size, size)
        shapes.update(norm(f"{name}.norm" if d2 else after, out, counter=not d2))

    root = "backbone.bottom_up." if d2 else "backbone."
    conv(f"{root}stem.conv1" if d2 else f"{root}conv1", f"{root}bn1", 64, 3, 7)
    inp = 64
    for stage, count in enumerate(UNITS[depth]):
        planes = 64 << stage
        mid, out = (planes * width // 64 * groups, 4 * planes) if depth >= 50 else (planes, planes)
        for unit in range(count):
            path = f"{root}res{stage + 2}.{unit}." if d2 else f"{root}layer{stage + 1}.{unit}."
            three = [(mid, inp, 1), (mid, mid // groups, 3), (out, mid, 1)]
            for i, sizes in enumerate(three if depth >= 50 else [(out, inp, 3), (out, out, 3)], 1):
                conv(f"{path}conv{i}", f"{path}bn{i}", *sizes)
            if inp != out:
                conv(f"{path}shortcut" if d2 else f"{path}downsample.0", f"{path}downsample.1", out, inp, 1)
            inp = out
    return shapes


def layer(name: str, *shape: int, bias: int | None = None) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": (shape[0] if bias is None else bias,)}


def mmdet_keys(
    depth: int = 50, classes: int = 8, groups: int = 1, width: int = 64, neck: int = 256, fc: int = 1024
) -> Shapes:
    shapes = resnet(depth, groups, width)
    first = 256 if depth >= 50 else 64
    for i in range(4):
        shapes |= layer(f"neck.lateral_convs.{i}.conv", neck, first << i, 1, 1)
        shapes |= layer(f"neck.fpn_convs.{i}.conv", neck, neck, 3, 3)
        shapes |= layer(f"roi_head.mask_head.convs.{i}.conv", neck, neck, 3, 3)
    return {
        **shapes,
        **layer("rpn_head.rpn_conv", neck, neck, 3, 3),
        **layer("rpn_head.rpn_cls", 3, neck, 1, 1),
        **layer("rpn_head.rpn_reg", 12, neck, 1, 1),
        **layer("roi_head.bbox_head.fc_cls", classes + 1, fc),
        **layer("roi_head.bbox_head.fc_reg", 4 * classes, fc),
        **layer("roi_head.bbox_head.shared_fcs.0", fc, 49 * neck),
        **layer("roi_head.bbox_head.shared_fcs.1", fc, fc),
        **layer("roi_head.mask_head.upsample", neck, neck, 2, 2),
        **layer("roi_head.mask_head.conv_logits", classes, neck, 1, 1),
    }


def detectron2_keys(
    depth: int = 50, classes: int = 8, groups: int = 1, width: int = 64, neck: int = 256, fc: int = 1024
) -> Shapes:
    shapes = resnet(depth, groups, width, d2=True)
    first = 256 if depth >= 50 else 64
    for i in range(4):
        shapes |= layer(f"backbone.fpn_lateral{i + 2}", neck, first << i, 1, 1)
        shapes |= layer(f"backbone.fpn_output{i + 2}", neck, neck, 3, 3)
        shapes |= layer(f"roi_heads.mask_head.mask_fcn{i + 1}", neck, neck, 3, 3)
    return {
        **shapes,
        **layer("proposal_generator.rpn_head.conv", neck, neck, 3, 3),
        **layer("proposal_generator.rpn_head.objectness_logits", 3, neck, 1, 1),
        **layer("proposal_generator.rpn_head.anchor_deltas", 12, neck, 1, 1),
        **layer("roi_heads.box_head.fc1", fc, 49 * neck),
        **layer("roi_heads.box_head.fc2", fc, fc),
        **layer("roi_heads.box_predictor.cls_score", classes + 1, fc),
        **layer("roi_heads.box_predictor.bbox_pred", 4 * classes, fc),
        **layer("roi_heads.mask_head.deconv", neck, neck, 2, 2),
        **layer("roi_heads.mask_head.predictor", classes, neck, 1, 1),
    }


def lis_keys(depth: int = 50, smooth: bool = True) -> Shapes:
    """What LIS adds to mmdetection's ResNet: downsampling, and smooth convolutions in all units."""
    shapes: Shapes = {}
    for i in (1, 2, 3):
        path, channels = f"backbone.AdaD.{i}", (256 if depth >= 50 else 64) << i - 1
        shapes[f"{path}.weight_net.0.weight"] = (9 * channels, 1, 3, 3)
        shapes |= norm(f"{path}.weight_net.1", 9 * channels)
        shapes[f"{path}.channel_net.1.weight"] = (channels // 4, channels, 1, 1)
        shapes[f"{path}.channel_net.3.weight"] = (channels, channels // 4, 1, 1)
    for stage, count in enumerate(UNITS[depth] if smooth else ()):
        for unit in range(count):
            path, planes = f"backbone.layer{stage + 1}.{unit}", 64 << stage
            shapes[f"{path}.learnable_conv1.weight"] = (planes, planes, 1, 1)
            shapes[f"{path}.llpf.weight"] = (planes, 1, 3, 3)
    return shapes


def weighted_block(path: str, channels: int) -> Shapes:
    """The authors' block."""
    shapes: Shapes = {f"{path}.w": (1,)}
    for name in ("g", "theta", "phi"):
        shapes |= layer(f"{path}.{name}", channels // 2, channels, 1, 1)
    return {**shapes, **layer(f"{path}.W_z.0", channels, channels // 2, 1, 1), **norm(f"{path}.W_z.1", channels)}


def mmcv_block(path: str, channels: int) -> Shapes:
    """mmcv's NonLocal2d with a norm."""
    shapes: Shapes = {}
    for name in ("g", "theta", "phi"):
        shapes |= layer(f"{path}.{name}.conv", channels // 2, channels, 1, 1)
    shapes[f"{path}.conv_out.conv.weight"] = (channels, channels // 2, 1, 1)
    return {**shapes, **norm(f"{path}.conv_out.bn", channels)}
