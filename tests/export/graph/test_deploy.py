import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from model_inputs import whole
from small_models import small_model
from torchvision.models.detection import MaskRCNN

from wnlb.export.backbone import BACKBONES, OTHER_RESNEXTS, PLACEMENTS
from wnlb.export.block import MODES
from wnlb.export.graph.deploy import DeployGraph
from wnlb.export.graph.pyramid import limits
from wnlb.export.onnx_file.export_onnx import configure
from wnlb.export.onnx_file.reference import Arrays, eager_detections, match
from wnlb.export.options import ExportOptions
from wnlb.runtime.errors import GraphError

NAMES = ("boxes", "scores", "labels", "masks", "count")


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    """Exactness is tested in float64, where an untrained network cannot blow rounding up to a pixel."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def images(height: int, width: int, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)


def static_detections(
    model: MaskRCNN, options: ExportOptions, pictures: np.ndarray, content: np.ndarray | None = None
) -> Arrays:
    inputs = whole(pictures) if content is None else {"image": pictures, "content": content}
    configure(model, options)
    with torch.no_grad():
        outputs = DeployGraph(model, options)(*map(torch.from_numpy, inputs.values()))
    return {name: value.numpy() for name, value in zip(NAMES, outputs, strict=False)}


def assert_same(model: MaskRCNN, options: ExportOptions, least: int = 1, content: np.ndarray | None = None) -> Arrays:
    """The static graph finds what torchvision's eager model finds, for every image of a batch."""
    pictures = images(options.height, options.width, options.batch)
    ours = static_detections(model, options, pictures, content)
    eager, _ = eager_detections(model, pictures, content)
    for i, found in enumerate(eager):
        own = {name: value[i] for name, value in ours.items()}
        heads = model.roi_heads
        pairs, missing, extra = match(found, own, heads.score_thresh, nms_threshold=heads.nms_thresh)
        assert len(found["scores"]) >= least
        assert (missing, extra, int(own["count"])) == (0, 0, len(found["scores"]))  # ties of scores may go either way
        assert found["boxes"].dtype == own["boxes"].dtype == np.float64
        for a, b in pairs:
            for name in ("boxes", "scores", "masks"):
                np.testing.assert_allclose(own[name][b], found[name][a], atol=1e-7, rtol=0)
        count = int(own["count"])
        assert (np.diff(own["scores"]) <= 0).all()
        assert all(not own[name][count:].any() for name in NAMES[:4])
        assert ((own["labels"][:count] >= 1) & (own["scores"][:count] > model.roi_heads.score_thresh)).all()
    return ours


LONGER = {"resnet101", "resnet152", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet101_2", *OTHER_RESNEXTS}


def combinations() -> Iterator[Any]:
    """All of one kind of backbone; of the other, each mode and each placement; groups and widths once.

    In slow runs the rest, and longer forms of the same units.
    """
    for mode, placement, backbone in itertools.product(MODES, PLACEMENTS, BACKBONES):
        first = (mode == "embedded") + (placement == "inline")
        usual = first >= {"resnet18": 0, "resnet50": 1}.get(backbone, 2) and backbone not in LONGER
        yield pytest.param(mode, placement, backbone, marks=[] if usual else pytest.mark.slow)


@pytest.mark.parametrize(("mode", "placement", "backbone"), list(combinations()))
def test_every_mode_placement_and_backbone(mode: str, placement: str, backbone: str) -> None:
    model = small_model(mode=mode, placement=placement, backbone=backbone)
    assert_same(model, ExportOptions(64, 96, post_nms_top_n=100, attention_memory=2**20))


@pytest.mark.parametrize("size", [(64, 64), (64, 256), (224, 96), (160, 160)])
def test_sizes(size: tuple[int, int]) -> None:
    assert_same(small_model(), ExportOptions(*size))


def test_batch_of_two_equals_two_single_images() -> None:
    model = small_model()
    ours = assert_same(model, ExportOptions(64, 96, batch=2))
    assert not np.array_equal(ours["boxes"][0], ours["boxes"][1])


FEWER = {"pre_nms_top_n": 300, "post_nms_top_n": 100}  # proposals, of five pictures
CONTENT = np.array([[64, 70], [41, 96], [37, 59], [64, 96], [21, 96]], np.int32)


def test_pictures_that_do_not_fill_their_frames() -> None:
    """Noise beside them is not seen, and boxes end where they end; in the middle of cells and strides, too."""
    ours = assert_same(small_model(), ExportOptions(64, 96, batch=5, **FEWER), 1, CONTENT)
    for boxes, count, (height, width) in zip(ours["boxes"], ours["count"], CONTENT, strict=True):
        assert (boxes[:count, 2:].max(0) == [width, height]).all()


def test_what_lies_beside_the_picture_does_not_matter() -> None:
    model, options = small_model(), ExportOptions(64, 96, batch=5, **FEWER)
    pictures = images(64, 96, 5)
    expected = static_detections(model, options, pictures, CONTENT)
    for picture, (height, width) in zip(pictures, CONTENT, strict=True):
        picture[height:], picture[:, width:] = 255, 0
    for name, value in static_detections(model, options, pictures, CONTENT).items():
        np.testing.assert_array_equal(value, expected[name])


def test_no_picture_has_no_detections() -> None:
    content = np.array([[0, 0], [64, 96]], np.int32)
    model, options = small_model(), ExportOptions(64, 96, batch=2)
    pictures = images(64, 96, 2)
    ours = static_detections(model, options, pictures, content)
    assert ours["count"][0] == 0
    assert not any(ours[name][0].any() for name in NAMES)
    alone = static_detections(model, ExportOptions(64, 96), pictures[1:])
    np.testing.assert_allclose(ours["boxes"][1], alone["boxes"][0], atol=1e-7)


@pytest.mark.parametrize("batch", [1, 2])
def test_for_a_cpu(batch: int) -> None:
    """The mask head by Winograd's minimal filtering finds what the convolutions find."""
    model = small_model()
    ours = assert_same(model, ExportOptions(64, 96, batch=batch, target="cpu"))
    assert ours["masks"].std() > 0


def test_for_a_cpu_of_wide_maps() -> None:
    """Those of the FPN and of the RPN's head in tiles as well."""
    model = small_model(fpn_channels=256, placement="fpn", rpn_convs=2)
    assert_same(model, ExportOptions(160, 160, batch=2, target="cpu"))


def test_for_a_cpu_the_mask_head_must_be_plain() -> None:
    model = small_model()
    model.roi_heads.mask_head[1][0].dilation = (2, 2)
    with pytest.raises(GraphError, match="export with --target gpu"):
        DeployGraph(model, ExportOptions(64, 96, target="cpu"))


@pytest.mark.parametrize("fields", [{"weighted": False}, {"levels": ()}, {"levels": ("c3",)}, {"norm": "frozen"}])
def test_other_networks(fields: dict[str, object]) -> None:
    assert_same(small_model(**fields), ExportOptions(64, 96))


def test_deeper_rpn_and_other_anchors() -> None:
    fields = {"rpn_convs": 2, "anchor_sizes": (16, 24, 48, 96, 128), "aspect_ratios": (1.0, 3.0)}
    assert_same(small_model(**fields), ExportOptions(64, 96))


def test_more_candidates_than_proposals_and_more_rows_than_candidates() -> None:
    model = small_model()
    options = ExportOptions(64, 64, post_nms_top_n=3, detections=50, candidates=3000)
    ours = assert_same(model, options)
    assert ours["scores"].shape == (1, 50)
    assert ours["count"][0] <= 24  # three proposals, eight classes


def test_few_rows_hold_the_best_detections() -> None:
    assert_same(small_model(), ExportOptions(64, 96, detections=5))


def test_ties_keep_the_order_of_torchvision() -> None:
    """Equal scores everywhere: what survives is decided by the order of anchors and classes alone."""
    model = small_model()
    with torch.no_grad():
        for head in (model.rpn.head.cls_logits, model.roi_heads.box_predictor.cls_score):
            head.weight.zero_()
            head.bias.zero_()
    pictures = images(64, 64)
    options = ExportOptions(64, 64, candidates=3840, detections=20, post_nms_top_n=200)
    ours = static_detections(model, options, pictures)
    eager, _ = eager_detections(model, pictures)
    assert np.unique(ours["scores"][0]).size == 1
    np.testing.assert_allclose(ours["scores"][0], eager[0]["scores"], atol=1e-6)
    assert ours["count"][0] == len(eager[0]["scores"]) == 20


def test_nothing_above_the_threshold() -> None:
    model = small_model()
    ours = static_detections(model, ExportOptions(64, 96, score_threshold=1.0), images(64, 96))
    assert ours["count"].tolist() == [0]
    assert not any(ours[name].any() for name in NAMES)


def test_proposals_at_the_border() -> None:
    """Large deltas press most boxes against the edges of the image."""
    model = small_model()
    with torch.no_grad():
        model.rpn.head.bbox_pred.weight.mul_(6)
        model.roi_heads.box_predictor.bbox_pred.weight.mul_(6)
    ours = assert_same(model, ExportOptions(64, 96))
    boxes = ours["boxes"][0, : ours["count"][0]]
    assert (boxes[:, 0] == 0).any()
    assert (boxes[:, 2] == 96).any()


def test_long_nms_chains_are_measured_and_need_their_rounds() -> None:
    model = small_model()
    options = ExportOptions(64, 96)
    configure(model, options)
    graph = DeployGraph(model, options)
    _, features = eager_detections(model, images(64, 96))
    with torch.no_grad():
        limit = limits(torch.tensor([[64.0, 96.0]]))
        boxes, _, valid = graph.rpn.ranked(features, limit)
        needed = graph.rpn.nms.chain_length(boxes.flatten(0, 1), valid.flatten(0, 1))
        right = graph.rpn(features, limit)[0]
        assert 1 < needed <= options.nms_rounds
        graph.rpn.nms.rounds = needed
        torch.testing.assert_close(graph.rpn(features, limit)[0], right, atol=0, rtol=0)
        graph.rpn.nms.rounds = 1
        assert not torch.equal(graph.rpn(features, limit)[0], right)


def test_masks_none_leaves_the_mask_head_out() -> None:
    model = small_model()
    options = ExportOptions(64, 96, masks="none")
    with torch.no_grad():
        graph = DeployGraph(model, options)
        outputs = graph(*map(torch.from_numpy, whole(images(64, 96)).values()))
    assert [tuple(o.shape) for o in outputs] == [(1, 100, 4), (1, 100), (1, 100), (1,)]
    assert not hasattr(graph.detect, "mask")


def test_the_model_itself_is_not_changed() -> None:
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    DeployGraph(model, ExportOptions(64, 64))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_unusual_parts_are_refused() -> None:
    model = small_model()
    model.rpn.score_thresh = 0.1
    with pytest.raises(GraphError, match=r"score threshold of 0\.1"):
        DeployGraph(model, ExportOptions(64, 64))
    model = small_model()
    model.roi_heads.box_roi_pool.sampling_ratio = 0
    with pytest.raises(GraphError, match="RoI pooling"):
        DeployGraph(model, ExportOptions(64, 64))
