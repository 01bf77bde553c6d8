"""What the verification takes for right and for wrong: errors of known size, in networks that do and do not amplify
rounding.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from small_models import NARROW
from torchvision.models.detection import MaskRCNN

from wnlb.export.backbone import blocks_by_level
from wnlb.export.graph.deploy import DeployGraph
from wnlb.export.model import wnlb_maskrcnn
from wnlb.export.onnx_file.export_onnx import export_onnx
from wnlb.export.onnx_file.reference import Difference, Eager, as_outputs, difference, worst
from wnlb.export.onnx_file.verify import TOLERANCES, CaseReport, Rounding, dark_scene, padded, verify, warning
from wnlb.export.options import ExportOptions
from wnlb.runtime.errors import VerificationError

OPTIONS = ExportOptions(64, 96, post_nms_top_n=100, detections=20)


def untrained(backbone: str, mode: str, gain: float, **fields: Any) -> MaskRCNN:
    """As ``wnlb_maskrcnn`` gives it, but blocks that do something: the more, the larger ``gain``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = wnlb_maskrcnn(backbone, 9, mode=mode, **fields)
    with torch.no_grad():
        for _, _, block in blocks_by_level(model):
            assert block.w is not None
            block.w.fill_(0.3)
            block.W_z[1].weight.fill_(gain)
    return model


class Exported(NamedTuple):
    path: Path
    model: MaskRCNN
    graph: DeployGraph
    cases: list[CaseReport]

    def with_error(self, output: str, error: float) -> Path:
        """A copy that errs by this much in all values of an output."""
        file = onnx.load(self.path)
        maker = next(node for node in file.graph.node if output in node.output)
        for names in (maker.output, *(node.input for node in file.graph.node)):  # inside, all goes on as before
            for i, name in enumerate(names):
                names[i] = "right" if name == output else name
        file.graph.initializer.append(numpy_helper.from_array(np.float32(error), "planted"))
        file.graph.node.append(helper.make_node("Add", ["right", "planted"], [output]))
        path = self.path.with_name(f"{output}.onnx")
        onnx.save(file, path)
        return path


def exported(path: Path, model: MaskRCNN, options: ExportOptions = OPTIONS) -> Exported:
    report = export_onnx(model, path, options)
    return Exported(path, model, DeployGraph(model, options), report.cases)


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(tmp_path_factory.mktemp("steady") / "m.onnx", untrained("resnet18", "embedded", 0.5, **NARROW))


@pytest.fixture(scope="module", params=[("embedded", 20.0), ("dot", 3.0)], ids=lambda param: param[0])
def amplifying(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    mode, gain = request.param
    return exported(tmp_path_factory.mktemp(mode) / "m.onnx", untrained("resnet18", mode, gain, **NARROW))


def test_a_network_that_does_not_amplify_is_judged_in_float32(steady: Exported) -> None:
    assert [case.rounding for case in steady.cases] == [None] * 4
    assert warning(steady.cases) == ""


@pytest.mark.parametrize("output", TOLERANCES)
def test_three_times_the_tolerance_is_refused(steady: Exported, output: str) -> None:
    path = steady.with_error(output, 3 * TOLERANCES[output])
    with pytest.raises(VerificationError, match=rf"noise: {output} differ by .*, more than {TOLERANCES[output]:g}"):
        verify(path, Eager(steady.model), steady.graph)


def test_a_network_that_amplifies_rounding_is_accepted_with_a_warning(amplifying: Exported) -> None:
    found = [case.found for case in amplifying.cases]
    assert max(one.mask_error for one in found) > TOLERANCES["masks"]  # what was refused before
    told = warning(amplifying.cases)
    assert "\n" not in told
    for side in (worst(c.rounding.file for c in amplifying.cases if c.rounding), amplifying.cases[0].rounding.eager):
        assert f"masks {side.mask_error:.2g}" in told


def test_an_error_above_its_rounding_is_refused(amplifying: Exported) -> None:
    """Masks that err by 2.5 times what eager float32 errs, besides what the file does anyhow; and scores."""
    rounding = amplifying.cases[0].rounding
    assert rounding is not None
    path = amplifying.with_error("masks", 2.5 * rounding.eager.mask_error + 1e-3)
    with pytest.raises(VerificationError, match="masks differ by"):
        verify(path, Eager(amplifying.model), amplifying.graph)
    scores = 3 * max(TOLERANCES["scores"], 2 * rounding.eager.score_error)
    with pytest.raises(VerificationError, match="scores differ by"):
        verify(amplifying.with_error("scores", scores), Eager(amplifying.model), amplifying.graph)


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "mode", "gain"), [("resnet50", "embedded", 6.0), ("resnet18", "dot", 1.5)])
def test_whole_untrained_networks(tmp_path: Path, backbone: str, mode: str, gain: float) -> None:
    exported(tmp_path / "m.onnx", untrained(backbone, mode, gain), ExportOptions(64, 96))


def case(file: Difference, eager: Difference) -> CaseReport:
    return CaseReport("noise", file, Rounding(file, eager), {}, False)


def test_what_float64_allows() -> None:
    """Twice what eager float32 errs, in numbers of detections too, and never less than the tolerances."""
    eager = Difference(100, 1, 1, 0.1, 1e-5, 0.0)
    assert case(Difference(100, 2, 2, 0.19, 0.9e-4, 0.9e-3), eager).problems(9) == []
    wrong = Difference(100, 3, 2, 0.21, 1.1e-4, 1.1e-3)
    said = case(wrong, eager).problems(9)
    assert len(said) == 4
    assert "3 are missing, and 2 are extra" in said[0]
    assert "boxes differ by 0.21, more than 0.2" in said[1]
    nan = dataclasses.replace(eager, box_error=float("nan"))
    assert "boxes differ by nan" in case(nan, eager).problems(9)[0]


def test_a_network_whose_detections_are_chance_cannot_be_verified() -> None:
    eager = Difference(100, 11, 3, 0.1, 1e-5, 0.0)
    (said,) = case(Difference(100, 0, 0, 0.0, 0.0, 0.0), eager).problems(9)
    assert "cannot be verified" in said


def test_the_worst_of_several() -> None:
    found = worst([Difference(100, 1, 0, 0.1, 0.3, 0.0), Difference(10, 0, 1, 0.2, 0.1, 0.5)])
    assert found == Difference(10, 0, 1, 0.2, 0.3, 0.5)


def test_detections_as_outputs_differ_by_nothing() -> None:
    rng = np.random.default_rng(0)
    found = [
        {
            "boxes": rng.random((rows, 4)) * 50,
            "scores": np.sort(rng.random(rows))[::-1],
            "labels": rng.integers(1, 4, rows),
            "masks": rng.random((rows, 28, 28)),
        }
        for rows in (3, 0, 5)
    ]
    outputs = as_outputs(found, 5)
    assert outputs["count"].tolist() == [3, 0, 5]
    assert outputs["masks"].shape == (3, 5, 28, 28)
    assert not outputs["scores"][0, 3:].any()
    assert difference(found, outputs, 0.0) == Difference(8, 0, 0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_padded_pictures_lie_in_noise(batch: int) -> None:
    scene = dark_scene((batch, 64, 96, 3))
    image, content = padded(scene)
    assert len({tuple(size) for size in content.tolist()}) == min(batch, 3)
    for out, own, (height, width) in zip(image, scene, content, strict=True):
        assert (height, width) != (64, 96)
        np.testing.assert_array_equal(out[:height, :width], own[:height, :width])
        assert np.concatenate([out[height:].ravel(), out[:, width:].ravel()]).mean() > 100  # noise, not night
