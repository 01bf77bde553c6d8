import hashlib
import json

import onnx
import pytest
from onnx import TensorProto, helper

from wnlb.runtime.contract import METADATA_KEY, Contract


def test_json_tells_what_the_file_holds(wnlb, small_model_path):
    ran = wnlb("inspect", small_model_path, "--json")
    assert (ran.code, ran.err) == (0, "")
    facts = json.loads(ran.out)
    data = small_model_path.read_bytes()
    assert facts["file"] == str(small_model_path)
    assert facts["bytes"] == len(data)
    assert facts["sha256"] == hashlib.sha256(data).hexdigest()
    assert facts["inputs"] == {"image": "uint8 [1, 64, 96, 3]", "content": "int32 [1, 2]"}
    assert list(facts["outputs"].items()) == [
        ("boxes", "float32 [1, 100, 4]"),
        ("scores", "float32 [1, 100]"),
        ("labels", "int32 [1, 100]"),
        ("masks", "float32 [1, 100, 28, 28]"),
        ("count", "int32 [1]"),
    ]
    assert facts["opsets"]["ai.onnx"] == 18
    model = onnx.load_from_string(data)
    assert sum(facts["operators"].values()) == facts["nodes"] == len(model.graph.node)
    text = next(entry.value for entry in model.metadata_props if entry.key == METADATA_KEY)
    assert Contract.from_json(json.dumps(facts["contract"])) == Contract.from_json(text)
    assert facts["contract"]["class_names"][:3] == ["bicycle", "chair", "dining table"]


def test_text_tells_the_same(wnlb, small_model_path):
    ran = wnlb("inspect", small_model_path)
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[0].startswith(f"{small_model_path}: ")
    assert lines[1] == f"sha256 {hashlib.sha256(small_model_path.read_bytes()).hexdigest()}"
    assert "input   image   uint8 [1, 64, 96, 3]" in lines
    assert "output  masks   float32 [1, 100, 28, 28]" in lines
    assert any(line.startswith("attention: c2 embedded/standard, ") for line in lines)
    assert any(line.split()[:1] == ["class_names"] and "dining table, bottle" in line for line in lines)


def test_a_file_of_somebody_else(wnlb, planted_model, tmp_path):
    path = planted_model(tmp_path / "foreign.onnx", producer="someone")
    assert json.loads(wnlb("inspect", path, "--json").out)["contract"] is None
    ran = wnlb("inspect", path)
    assert ran.code == 0
    assert "\nattention: none that our kernel computes\n" in ran.out
    assert "contract: none; this file was not written by 'wnlb export' or 'wnlb adopt'." in ran.out


def test_dynamic_and_untyped_values(wnlb, tmp_path):
    graph = helper.make_graph(
        [
            helper.make_node("SequenceConstruct", ["x"], ["list"]),
            helper.make_node("Mystery", ["x"], ["y"], domain="org.example"),
        ],
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["N", 3, None])],
        [helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None), onnx.ValueInfoProto(name="y")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("org.example", 2)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), tmp_path / "odd.onnx")
    ran = wnlb("inspect", tmp_path / "odd.onnx", "--json")
    assert (ran.code, ran.err) == (0, "")
    facts = json.loads(ran.out)
    assert facts["inputs"] == {"x": "float16 [N, 3, ?]"}
    assert facts["outputs"] == {"list": "sequence_type", "y": "unknown"}
    assert facts["operators"] == {"SequenceConstruct": 1, "org.example.Mystery": 1}
    assert facts["opsets"] == {"ai.onnx": 18, "org.example": 2}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.onnx", "does not exist"),
        ("folder", "is a folder"),
        ("empty.onnx", "not a readable ONNX file"),
        ("truncated.onnx", "not a readable ONNX file"),
        ("garbage.onnx", "not a readable ONNX file"),
        ("detections.json", "not a readable ONNX file"),  # onnx.load would take it for ONNX in JSON
        ("checkpoint.pth", "not a readable ONNX file"),
        ("newer.onnx", "format is 99"),
    ],
)
def test_a_bad_file_is_one_line(wnlb, planted_model, planted_model_path, tmp_path, name, said):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "truncated.onnx").write_bytes(planted_model_path.read_bytes()[:300])
    (tmp_path / "garbage.onnx").write_bytes(bytes(range(256)))
    (tmp_path / "detections.json").write_text('{"images": []}')
    (tmp_path / "checkpoint.pth").write_bytes(b"PK\x03\x04" + bytes(100))
    planted_model(tmp_path / "newer.onnx", **{METADATA_KEY: json.dumps({"format": 99})})
    assert said in wnlb("inspect", name, cwd=tmp_path).refused()


def test_the_framework_is_told(wnlb, tmp_path, planted_model, make_contract):
    contract = make_contract(framework="mmdetection", checkpoint_settings={"style": "caffe"})
    path = planted_model(tmp_path / "m.onnx", contract)
    told = wnlb("inspect", path).out
    assert "trained in: mmdetection, style caffe" in told
    assert "anchors not rounded, RoIAlign aligned" in told
    assert json.loads(wnlb("inspect", path, "--json").out)["conventions"]["mask_paste"] == "sampled"
