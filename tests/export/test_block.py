import math
import subprocess
import sys

import pytest
import torch
from small_models import small_model
from torch import nn

from wnlb.export.block import MODES, WeightedNonLocalBlock
from wnlb.export.graph.attention import DeployedBlock, plan_attention
from wnlb.export.graph.pyramid import plan_blocks
from wnlb.export.options import ExportOptions
from wnlb.runtime.errors import WnlbError


def lively_block(
    mode: str, channels: int = 6, weighted: bool = True, inner: int | None = None
) -> WeightedNonLocalBlock:
    torch.manual_seed(3)
    block = WeightedNonLocalBlock(channels, mode, inner, weighted)
    for norm in (block.W_z[1],):
        nn.init.uniform_(norm.weight, -1, 1)
        nn.init.uniform_(norm.bias, -1, 1)
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    if block.w is not None:
        nn.init.constant_(block.w, 0.4)
    return block.eval()


def by_loops(block: WeightedNonLocalBlock, x: torch.Tensor) -> torch.Tensor:
    """z = (1 - w) x + w BN(W_z y), position by position in float64, from the formulas of Wang et al., 2018."""
    state = {name: value.double() for name, value in block.state_dict().items()}

    def conv(name: str, position: torch.Tensor) -> torch.Tensor:
        return state[f"{name}.weight"][:, :, 0, 0] @ position + state[f"{name}.bias"]

    out = torch.empty(x.shape, dtype=torch.float64)
    for n, image in enumerate(x.double()):
        positions = list(image.flatten(1).T)
        for i, xi in enumerate(positions):
            logits = []
            for xj in positions:
                if block.mode == "gaussian":
                    logits.append(xi @ xj)
                elif block.mode == "concatenate":
                    both = torch.cat([conv("theta", xi), conv("phi", xj)])
                    logits.append(torch.relu(conv("W_f.0", both)[0]))
                else:
                    logits.append(conv("theta", xi) @ conv("phi", xj))
            pair = torch.stack(logits)
            weights = pair / len(positions) if block.mode in ("dot", "concatenate") else torch.softmax(pair, 0)
            y = sum(weight * conv("g", xj) for weight, xj in zip(weights, positions, strict=True))
            z = (conv("W_z.0", y) - state["W_z.1.running_mean"]) / torch.sqrt(state["W_z.1.running_var"] + 1e-5)
            z = z * state["W_z.1.weight"] + state["W_z.1.bias"]
            w = state.get("w")
            out[n].flatten(1)[:, i] = xi + z if w is None else (1 - w) * xi + w * z
    return out


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weighted", [True, False])
def test_block_and_its_deployed_form_equal_the_formula(mode: str, weighted: bool) -> None:
    block = lively_block(mode, weighted=weighted)
    x = torch.randn(2, 6, 3, 5)
    expected = by_loops(block, x)
    with torch.no_grad():
        torch.testing.assert_close(block(x).double(), expected, atol=1e-5, rtol=1e-5)
        for rows in (15, 4, 1):  # one chunk, chunks that do not divide 15, single rows
            plan = plan_attention("c2", block, 3, 5, batch=2, memory_bytes=2**30)
            deployed = DeployedBlock(block, plan)
            deployed.rows = rows
            torch.testing.assert_close(deployed(x).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_fresh_block_is_the_identity_and_trains(mode: str) -> None:
    block = WeightedNonLocalBlock(8, mode)
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(block(x), x, atol=0, rtol=0)
    optimizer = torch.optim.SGD(block.parameters(), 0.1)
    for _ in range(3):  # w moves first, then the batch norm, then the projections
        optimizer.zero_grad()
        (block(x) - x.roll(1, 3)).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for n, p in block.named_parameters() if n != "W_f.0.bias")
    assert block.W_z[1].num_batches_tracked == 4


def test_parameter_names_are_the_authors() -> None:
    names = set(dict(WeightedNonLocalBlock(8, "concatenate").named_parameters()))
    assert {n.removesuffix(".weight").removesuffix(".bias") for n in names} == {
        *("theta", "phi", "g", "W_z.0", "W_z.1", "w", "W_f.0")
    }
    assert not {n for n, _ in WeightedNonLocalBlock(8, "gaussian").named_parameters() if n[:5] in ("theta", "phi.w")}


def test_eager_block_needs_no_full_matrix_at_inference() -> None:
    """20,000 positions: one N x N matrix of float32 alone would take 1.5 GiB."""
    program = """
import resource, torch
from wnlb.export.block import MODES, WeightedNonLocalBlock
x = torch.randn(1, 8, 100, 200)
blocks = [WeightedNonLocalBlock(8, mode).eval() for mode in MODES]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with torch.no_grad():
    for block in blocks:
        block(x)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 500  # MiB


def test_zero_weight_removes_the_block_from_the_plan() -> None:
    block = lively_block("embedded")
    assert plan_attention("c2", block, 8, 8, 1, 2**20).form == "standard"
    nn.init.zeros_(block.w)
    plan = plan_attention("c2", block, 8, 8, 1, 2**20)
    assert (plan.form, plan.flops, plan.chunk_bytes) == ("removed", 0, 0)


@pytest.mark.parametrize(("height", "width", "batch"), [(200, 336, 1), (80, 80, 1), (80, 80, 4), (2, 2, 1)])
def test_chunks_fit_the_memory_and_cover_every_row(height: int, width: int, batch: int) -> None:
    memory = 64 * 2**20
    plan = plan_attention("c2", lively_block("embedded"), height, width, batch, memory)
    rows = math.ceil(plan.positions / plan.chunks)
    assert plan.chunk_bytes <= memory
    assert plan.chunk_bytes == 4 * rows * plan.positions * batch
    assert rows * (plan.chunks - 1) < plan.positions <= rows * plan.chunks


def test_flops_are_those_of_the_formula() -> None:
    block, n, c, d = lively_block("embedded", 8, inner=4), 6 * 10, 8, 4
    projections = 3 * 2 * n * c * d + 2 * n * d * c
    assert plan_attention("c2", block, 6, 10, 1, 2**30).flops == projections + 4 * n * n * d
    dot = lively_block("dot", 8, inner=4)
    assert plan_attention("c2", dot, 6, 10, 1, 2**30).flops == projections + 4 * n * d * d


def test_dot_partial_sums_stay_in_the_range_of_fp16() -> None:
    """1/N is inside g: with 65,536 positions, phi^T g would overflow 65,504 if it came after the product."""
    block = lively_block("dot", 4)
    deployed = DeployedBlock(block, plan_attention("c2", block, 256, 256, 1, 2**30))
    x = torch.full((1, 4, 256, 256), 8.0)
    with torch.no_grad():
        product = deployed.phi(x).flatten(2) @ deployed.g(x).flatten(2).transpose(1, 2)
        plain = block.phi(x).flatten(2) @ block.g(x).flatten(2).transpose(1, 2)
    assert product.abs().max() < 1e3 < 65504 < plain.abs().max()


@pytest.mark.parametrize(("mode", "inner"), [("embed", None), ("dot", 0)])
def test_refusals(mode: str, inner: int | None) -> None:
    with pytest.raises(WnlbError, match="expected"):
        WeightedNonLocalBlock(8, mode, inner)


def block_of(mode: str, inner: int) -> WeightedNonLocalBlock:
    """A block whose ``w`` is not zero."""
    block = WeightedNonLocalBlock(2 * inner, mode, inner)
    nn.init.ones_(block.w)
    return block


@pytest.mark.parametrize(
    ("mode", "inner", "side", "memory", "auto"),
    [
        ("embedded", 256, 8, 2**30, "standard"),  # the whole matrix at once is faster
        ("embedded", 512, 8, 2**30, "standard"),
        ("embedded", 64, 64, 2**20, "plugin"),  # in chunks
        ("gaussian", 256, 64, 2**20, "plugin"),  # its head is 512
        ("gaussian", 1024, 64, 2**20, "standard"),  # no kernel for 2048
        ("embedded", 96, 64, 2**20, "standard"),  # nor for 96
        ("dot", 64, 64, 2**20, "standard"),
        ("concatenate", 64, 64, 2**20, "standard"),
    ],
)
def test_the_planner_takes_the_plugin_where_the_matrix_would_be_cut(
    mode: str, inner: int, side: int, memory: int, auto: str
) -> None:
    assert plan_attention("c3", block_of(mode, inner), side, side, 1, memory, "auto").form == auto
    assert plan_attention("c3", block_of(mode, inner), side, side, 1, memory, "standard").form == "standard"


@pytest.mark.parametrize(
    ("mode", "inner", "message"),
    [
        ("dot", 64, "c4 cannot be the plugin: it is made for softmax"),
        ("embedded", 96, "c4 cannot be the plugin: it has kernels for 32, 64, .* not for 96 of query and 96 of value"),
    ],
)
def test_a_plugin_that_cannot_be_is_refused(mode: str, inner: int, message: str) -> None:
    with pytest.raises(WnlbError, match=message):
        plan_attention("c4", block_of(mode, inner), 8, 8, 1, 2**30, "plugin")
    assert (
        plan_attention("c4", WeightedNonLocalBlock(2 * inner, mode, inner), 8, 8, 1, 2**30, "plugin").form == "removed"
    )


def test_forms_per_level() -> None:
    options = ExportOptions(64, 64, attention="c2=plugin, c5=auto")
    assert [options.attention_form(level) for level in ("c2", "c3", "c5")] == ["plugin", "standard", "auto"]
    assert ExportOptions(64, 64, attention="auto,c3=standard").attention_form("c2") == "auto"
    for wrong in ("fused", "c2", "c2=fused", "", "c2=plugin,"):
        with pytest.raises(WnlbError, match="expected standard, plugin, auto"):
            ExportOptions(64, 64, attention=wrong)
    with pytest.raises(WnlbError, match="attention of c7, p2 was asked for; the model has blocks at c2, c3, c4, c5"):
        plan_blocks(small_model(), ExportOptions(64, 64, attention="p2=auto,c7=plugin"))
