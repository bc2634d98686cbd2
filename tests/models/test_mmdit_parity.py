"""Our MMDiT against diffusers' SD3 transformer: the three architectures at full depth, fp32, plain and over rows."""

import pytest
import torch
from clocks import at_times
from full_depth_sd3 import ARCHITECTURES, diffusers_sd3, reference, sd3_inputs
from sweeps import first_fast

from segue.models.mmdit import TextCondition
from segue.models.mmdit_diffusers import from_diffusers
from segue.models.registry import make_rows
from segue.models.rows import FULL, SKIP, Path, RowLayout

pytest.importorskip("diffusers")

# Absolute, on outputs of unit size: up to 38 blocks of fp32 products and norms, each rounding to 6e-8, in another order.
PARITY = 2e-5
SIZES = {"native": (16, 16), "wide, 77 tokens": (14, 22), "tall, 27 tokens": (18, 6)}


def skip_sets(depth: int) -> dict[str, tuple[int, ...]]:
    return {
        "contiguous": (7, 8, 9, 10),
        "scattered": (2, 3, 9, 14, 20),
        "odd-sized": (7, 8, 9),
        "first": (0,),
        "last": (depth - 1,),
        "first and last": (0, depth - 1),
    }


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request):
    """diffusers' module and ours on the same weights."""
    theirs = diffusers_sd3(request.param, seed=3)
    return theirs, from_diffusers(theirs)


def conditions(inputs) -> list[TextCondition]:
    return [TextCondition(context, pooled) for context, pooled in zip(inputs.contexts, inputs.pooled, strict=True)]


def loaded_rows(model, inputs, height: int, width: int, row_blocks: int):
    """Rows for the prompts and negative prompts, each sample at a time of its own."""
    batch = len(inputs.x)
    settings = {"row_blocks": row_blocks, "slots": 2, "times": batch, "conditions": 2 * batch}
    rows = make_rows(model, batch, height, width, text_tokens=inputs.contexts[0].shape[1], **settings)
    rows.load(inputs.time.double(), conditions(inputs))
    return rows


def skipping(condition: int, depth: int, layers: tuple[int, ...]) -> Path:
    return Path(condition, tuple(SKIP if layer in layers else FULL for layer in range(depth)))


def test_the_references_use_every_part(pair):
    """Each branch of the tests below differs from the others by far more than the tolerance, so parity means something."""
    theirs, _ = pair
    inputs = sd3_inputs(1)
    depth = len(theirs.transformer_blocks)
    outputs = [reference(theirs, inputs), reference(theirs, inputs, 1)]
    outputs += [reference(theirs, inputs, 0, layers) for layers in skip_sets(depth).values()]
    for i, one in enumerate(outputs):
        assert 0.3 < one.std() < 3
        for other in outputs[:i]:
            assert (one - other).abs().max() > 1e-2


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_plain_forward(pair, size):
    theirs, ours = pair
    inputs = sd3_inputs(2, *SIZES[size])
    for layers in ((), *skip_sets(ours.spec.depth).values()):
        out = ours(inputs.x, inputs.time, conditions(inputs)[0], layers)
        assert (out - reference(theirs, inputs, 0, layers)).abs().max() <= PARITY, layers


@pytest.mark.parametrize("size", first_fast(reversed(SIZES)))
@torch.no_grad()
def test_every_live_branch_of_one_row_batch(pair, size):
    """Prompt, negative prompt and a weak branch run together; each equals its own pass through diffusers."""
    theirs, ours = pair
    height, width = SIZES[size]
    depth, inputs = ours.spec.depth, sd3_inputs(4, height, width)
    rows = loaded_rows(ours, inputs, height, width, 3)
    expected = [reference(theirs, inputs), reference(theirs, inputs, 1)]
    for name, layers in skip_sets(depth).items():
        layout = RowLayout((Path.full(0, depth), Path.full(1, depth), skipping(0, depth, layers)), depth)
        for i, wanted in enumerate((*expected, reference(theirs, inputs, 0, layers))):
            one_hot = torch.eye(3)[i].expand(len(inputs.x), 3)
            out = rows.forward(inputs.x, at_times(torch.arange(len(inputs.x))), layout, one_hot)
            assert (out - wanted).abs().max() <= PARITY, (name, i)


@torch.no_grad()
def test_all_weak_branches_at_once(pair):
    """Seven live branches that fork at different layers, combined before the last projection, with weights per sample."""
    theirs, ours = pair
    depth, inputs = ours.spec.depth, sd3_inputs(5, 10, 14, batch=3)
    weak = skip_sets(depth).values()
    paths = (Path.full(0, depth), *(skipping(0, depth, layers) for layers in weak), skipping(1, depth, (3, 5)))
    rows = loaded_rows(ours, inputs, 10, 14, len(paths))
    outputs = [reference(theirs, inputs), *(reference(theirs, inputs, 0, layers) for layers in weak)]
    outputs.append(reference(theirs, inputs, 1, (3, 5)))
    coefficients = torch.randn(3, len(paths), generator=torch.Generator().manual_seed(6))
    out = rows.forward(inputs.x, at_times(torch.arange(3)), RowLayout(paths, depth), coefficients)
    expected = torch.einsum("bk,kbchw->bchw", coefficients, torch.stack(outputs))
    assert (out - expected).abs().max() <= PARITY * coefficients.abs().sum(dim=1).max()
    per_channel = coefficients[:, :, None] * torch.tensor([1.0, -0.5, 2.0, 0.0])
    out = rows.forward(inputs.x, at_times(torch.arange(3)), RowLayout(paths, depth), per_channel)
    expected = torch.einsum("bkc,kbchw->bchw", per_channel, torch.stack(outputs))
    assert (out - expected).abs().max() <= PARITY * per_channel.abs().sum(dim=1).max()
