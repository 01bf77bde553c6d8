import dataclasses
import json

import pytest

from wnlb.runtime.contract import METADATA_KEY, Contract
from wnlb.runtime.errors import ContractError, WnlbError

REQUIRED = {
    "batch": 1,
    "height": 64,
    "width": 96,
    "class_names": ["lamp", "dark cat"],
    "detections": 100,
    "score_threshold": 0.05,
    "nms_threshold": 0.5,
    "rpn_nms_threshold": 0.7,
    "pre_nms_top_n": 1000,
    "post_nms_top_n": 1000,
    "candidates": 1000,
    "nms_rounds": 20,
}
OPTIONAL = {
    "resize": "stretch",
    "interpolation": "nearest",
    "pad_rgb": [0, 128, 255],
    "mean": [0.1, 0.2, 0.3],
    "std": [1.0, 2.0, 3.0],
    "masks": "none",
    "precision": "int8",
    "framework": "mmdetection",
    "scale": [600, 400],
    "checkpoint_settings": {"style": "caffe"},
    "target": "cpu",
    "attention": {"c2": "embedded/standard"},
    "opset": 18,
    "tool_version": "0.1.0",
    "checkpoint_sha256": "ab",
    "checkpoint_weights": "model_ema",
}


def written(**entries: object) -> str:
    return json.dumps({"format": 1, **REQUIRED, **entries})


@pytest.mark.parametrize("entries", [REQUIRED, {**REQUIRED, **OPTIONAL}], ids=["required", "all"])
def test_json_round_trip(entries):
    contract = Contract(**entries)
    again = Contract.from_json(contract.to_json())
    assert again == contract
    assert {name: value for name, value in json.loads(again.to_json()).items() if name in entries} == entries


@pytest.mark.parametrize("version", [1, 2])
def test_files_of_all_formats_stay_readable(version):
    """These names are in files that users have: changing one needs a new format number."""
    assert METADATA_KEY == "wnlb.contract"
    fixed = {"input_name": "image", "layout": "NHWC", "color": "RGB", "format": version}
    contract = Contract.from_json(json.dumps({**REQUIRED, **OPTIONAL, **fixed}))
    assert json.loads(contract.to_json()) == {**REQUIRED, **OPTIONAL, **fixed}


ONE_STAGE = {
    **REQUIRED,
    **dict.fromkeys(("rpn_nms_threshold", "pre_nms_top_n", "post_nms_top_n")),
    "framework": "ultralytics",
    "padding": "centre",
    "masks": "frame",
}


def test_networks_without_proposals_are_written_in_format_3():
    contract = Contract(**ONE_STAGE)
    assert contract.format == 3
    assert Contract.from_json(contract.to_json()) == contract
    assert {name: json.loads(contract.to_json())[name] for name in ONE_STAGE} == ONE_STAGE
    assert contract.output_shapes["masks"] == (1, 100, 16, 24)
    assert contract.types["masks"] == "float32"
    assert dataclasses.replace(contract, precision="int8+fp32").types["masks"] == "float16"
    assert dataclasses.replace(contract, masks="none").output_shapes.keys() == {"boxes", "scores", "labels", "count"}
    without_nms = {**ONE_STAGE, "framework": "mmdetection-solov2", "padding": "corner"}
    without_nms |= dict.fromkeys(("nms_threshold", "nms_rounds"))
    assert Contract.from_json(Contract(**without_nms).to_json()).nms_rounds is None


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({**REQUIRED, "padding": "centre"}, "padding is 'centre'; expected corner"),
        ({**REQUIRED, "masks": "frame"}, "masks is 'frame'; expected box or none"),
        ({**REQUIRED, "nms_rounds": None}, "nms_rounds is None; expected a whole number"),
        ({**REQUIRED, "rpn_nms_threshold": None}, "rpn_nms_threshold is None; expected a number"),
        ({**ONE_STAGE, "masks": "box"}, "masks is 'box'; expected frame or none"),
        ({**ONE_STAGE, "post_nms_top_n": 100}, "post_nms_top_n is 100; expected none"),
        ({**ONE_STAGE, "nms_threshold": None}, "nms_rounds is 20; expected none"),
        ({**ONE_STAGE, "padding": "left"}, "padding is 'left'; expected corner or centre"),
        ({**ONE_STAGE, "format": 2}, "format is 2; expected 3, the first that knows ultralytics"),
    ],
)
def test_what_no_network_of_a_kind_has_is_refused(entries, said):
    with pytest.raises(ContractError, match=said):
        Contract(**entries)


def test_files_are_written_in_format_2_which_knows_the_content():
    contract = Contract(**REQUIRED)
    assert contract.format == 2
    assert contract.input_shapes == {"image": (1, 64, 96, 3), "content": (1, 2)}
    assert dataclasses.replace(contract, format=1, batch=3).input_shapes == {"image": (3, 64, 96, 3)}
    kinds = {"boxes": "float32", "scores": "float32", "labels": "int32", "masks": "float32", "count": "int32"}
    assert contract.types == {"image": "uint8", "content": "int32", **kinds}


def test_a_contract_of_several_batches():
    contract = Contract(**{**REQUIRED, "batch": 8, "min_batch": 1})
    assert Contract.from_json(contract.to_json()) == contract
    assert (contract.batches, contract.batch_text, contract.axis) == (range(1, 9), "1-8", "batch")
    assert contract.input_shapes == {"image": (8, 64, 96, 3), "content": (8, 2)}
    assert contract.stated(contract.input_shapes) == {"image": ("batch", 64, 96, 3), "content": ("batch", 2)}
    assert contract.stated(contract.output_shapes)["count"] == ("batch",)
    assert [contract.batch_for(frames) for frames in (1, 3, 8)] == [1, 3, 8]
    assert dataclasses.replace(contract, min_batch=4).batch_for(3) == 4
    for frames in (0, 9):
        with pytest.raises(WnlbError, match=rf"{frames} frames; expected 1 to 8"):
            contract.batch_for(frames)


def test_a_contract_of_few_masks():
    contract = Contract(**{**REQUIRED, "detections": 9, "mask_rows": 8})
    assert Contract.from_json(contract.to_json()) == contract
    assert contract.output_shapes["masks"] == (REQUIRED["batch"], 9, 28, 28)
    assert "mask_rows" not in json.loads(Contract(**REQUIRED).to_json())
    for rows in (0, 9, 2.0, True, "3"):
        with pytest.raises(ContractError, match=r"mask_rows is .*; expected a whole number from 1 up, below 9"):
            Contract.from_json(written(detections=9, mask_rows=rows))


def test_a_contract_of_one_batch_is_written_as_before():
    contract = Contract(**{**REQUIRED, "batch": 4})
    assert "min_batch" not in json.loads(contract.to_json())
    assert (contract.batches, contract.batch_text, contract.axis) == (range(4, 5), "4", 4)
    assert contract.stated(contract.input_shapes) == contract.input_shapes
    assert contract.batch_for(1) == 4


def test_the_luminance_that_int8_was_calibrated_on():
    """Absent where there is none, as in the files from before."""
    contract = Contract.from_json(written(precision="int8+fp16", calibrated_luminance=[0.001, 0.25]))
    assert contract.calibrated_luminance == (0.001, 0.25)
    assert Contract.from_json(contract.to_json()) == contract
    assert "calibrated_luminance" not in json.loads(Contract(**REQUIRED).to_json())
    for wrong in ([0.2, 0.1], [0.1], [-0.1, 0.1], [0.1, 1.5], ["a", "b"], 0.1):
        with pytest.raises(ContractError, match=r"calibrated_luminance is .*; expected two ascending numbers"):
            Contract.from_json(written(calibrated_luminance=wrong))


@pytest.mark.parametrize("least", [0, 8, 9, -1, 1.0, True, "1"])
def test_a_bad_smallest_batch_is_named(least):
    with pytest.raises(ContractError, match=r"min_batch is .*; expected a whole number from 1 up, below"):
        Contract.from_json(written(batch=8, min_batch=least))


def test_shapes_with_and_without_masks():
    contract = Contract(**{**REQUIRED, "batch": 3})
    assert contract.input_shape == (3, 64, 96, 3)
    expected = {"boxes": (3, 100, 4), "scores": (3, 100), "labels": (3, 100), "masks": (3, 100, 28, 28), "count": (3,)}
    assert list(contract.output_shapes.items()) == list(expected.items())
    del expected["masks"]
    assert list(dataclasses.replace(contract, masks="none").output_shapes.items()) == list(expected.items())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in ("batch", "detections", "pre_nms_top_n", "post_nms_top_n", "candidates", "nms_rounds")),
        *((name, value) for name in ("height", "width") for value in (0, 32, 65, -64, 64.0, "64", None)),
        *(
            (name, value)
            for name in ("score_threshold", "nms_threshold", "rpn_nms_threshold")
            for value in (-0.1, 1.1, float("nan"), "0.5", None)
        ),
        ("batch", 1.0),
        ("batch", True),
        ("resize", "crop"),
        ("interpolation", "cubic"),
        ("interpolation", ["bilinear"]),
        ("masks", "full"),
        ("class_names", []),
        ("class_names", "lamp"),
        ("class_names", [1, 2]),
        ("class_names", None),
        ("pad_rgb", [0, 0]),
        ("pad_rgb", [0, 0, 256]),
        ("pad_rgb", [0, 0.5, 1]),
        ("mean", [0.5]),
        ("std", 1),
        ("attention", "embedded"),
        ("input_name", ["image"]),
        ("input_name", "content"),
        ("layout", "NCHW"),
    ],
)
def test_a_bad_entry_is_named_with_what_was_got(name, value):
    with pytest.raises(ContractError) as refused:
        Contract.from_json(written(**{name: value}))
    assert name in str(refused.value)
    assert str(value).strip("[]") in str(refused.value)
    assert "expected" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "list"),
        ("3", "int"),
        ("null", "NoneType"),
        ("{}", "format is None"),
        *((json.dumps({"format": other, **REQUIRED}), f"format is {other}") for other in (0, 4, 1.5)),
        (written(colour="RGB", zoom=1), "unknown entries colour, zoom"),
        (
            json.dumps({"format": 1, **{name: REQUIRED[name] for name in REQUIRED if name != "nms_rounds"}}),
            "nms_rounds",
        ),
        (written(color="BGR"), "BGR"),
    ],
)
def test_a_text_that_is_no_contract_is_refused(text, said):
    with pytest.raises(ContractError) as refused:
        Contract.from_json(text)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
