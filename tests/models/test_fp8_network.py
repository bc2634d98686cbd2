"""Networks with fp8 linears against naive networks whose linear layers quantise their operands in fp64."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from clocks import at_times
from naive_fp8 import NaiveFp8Linear, replace_linears
from tiny_models import tiny_sit
from torch import nn

from segue.kernels.contracts import FP8_STEP
from segue.kernels.record import OPERATIONS, REFERENCE, Kernels
from segue.models.fp8_linear import Fp8Linear
from segue.models.fp8_network import Fp8Layers, quantize_linears, with_fp8_linears
from segue.models.mmdit import TextCondition
from segue.models.mmdit_diffusers import from_diffusers
from segue.models.registry import make_rows
from segue.models.rows import FULL, SKIP, Path, RowLayout

# Root mean square of a sample, relative: five or six blocks of fp32 products and norms in another order.
ORDER = 1e-5
# What fp8 itself does to an output: both factors of a product are off by at most FP8_STEP.
FP8_ERROR = 2 * FP8_STEP
SAMPLES = 7


def deviations(value, reference):
    """Of every sample."""
    return (value.double() - reference.double()).flatten(1).norm(dim=1) / reference.double().flatten(1).norm(dim=1)


def check_same(value, reference):
    """Where another order of sums carries a value over a rounding boundary of e4m3 (about one sample in twenty), that sample
    moves as fp8 moves it; the others must agree."""
    found = deviations(value, reference)
    assert found.median() <= ORDER and found.max() < 2 * FP8_ERROR, found  # one sample may err by more than all together


def check_moved(value, plain):
    """fp8 has an effect, of the size that its rounding can have."""
    assert deviations(value, plain).min() > 100 * ORDER
    assert (value - plain).norm() < FP8_ERROR * plain.norm()


def in_block(name: str) -> bool:
    return "blocks." in name and any(part in name for part in (".qkv", ".proj", ".fc1", ".fc2"))


# --- SiT ---------------------------------------------------------------------------------------------------------------


def naive_block(block, h, modulation):
    """adaLN-Zero as the paper writes it; the layers of ``block`` may be naive ones."""
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation[:, None].chunk(6, dim=-1)
    n = F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale_a) + shift_a
    q, k, v = (part.unflatten(-1, (block.attn.heads, -1)).transpose(1, 2) for part in block.attn.qkv(n).chunk(3, dim=-1))
    mixed = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1) @ v
    h = h + gate_a * block.attn.proj(mixed.transpose(1, 2).flatten(2))
    n = F.layer_norm(h, h.shape[-1:], eps=block.mlp_norm_eps) * (1 + scale_m) + shift_m
    return h + gate_m * block.mlp.fc2(F.gelu(block.mlp.fc1(n), approximate="tanh"))


def naive_tokens(model, x, time, labels, skipped=()):
    """Hidden state after all blocks, in fp64."""
    modulation = model.modulation(time.double(), labels)
    h = model.embed(x.double())
    for layer, (block, vectors) in enumerate(zip(model.blocks, model.split_modulation(modulation)[0], strict=True)):
        h = h if layer in skipped else naive_block(block, h, vectors)
    return h


@pytest.fixture(scope="module")
def sit():
    """(plain network, its fp8 copy, the naive fp64 network)."""
    model = tiny_sit(3)
    naive = replace_linears(copy.deepcopy(model).double(), in_block)
    assert sum(isinstance(module, NaiveFp8Linear) for module in naive.modules()) == 4 * model.spec.depth
    return model, with_fp8_linears(model), naive


@pytest.fixture
def inputs(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SAMPLES, 4, 6, 10, generator=generator), torch.linspace(0.1, 0.9, SAMPLES), torch.arange(SAMPLES) % 6


@torch.no_grad()
def test_a_sit_equals_the_naive_network(sit, inputs):
    model, fp8, naive = sit
    h = naive_tokens(naive, *inputs)
    final = naive.split_modulation(naive.modulation(inputs[1].double(), inputs[2]))[1]
    tokens = naive.final_layer(h, final)
    patches = tokens.unflatten(1, (3, 5)).unflatten(-1, (2, 2, 4)).permute(0, 5, 1, 3, 2, 4).reshape(-1, 4, 6, 10)
    out = fp8(*inputs)
    check_same(out, patches)
    check_moved(out, model(*inputs))


@torch.no_grad()
def test_rows_of_a_sit_equal_branches_evaluated_alone(sit, inputs):
    """Condition, negative and a fork share one buffer: each row is quantised by itself, so its branch is as if alone."""
    _, fp8, _ = sit
    x, time, labels = inputs
    depth = fp8.spec.depth
    paths = (Path.full(0, depth), Path.full(1, depth), Path(0, (FULL, FULL, SKIP, FULL, SKIP)))
    rows = make_rows(fp8, SAMPLES, 6, 10, row_blocks=3, slots=2, times=SAMPLES, conditions=7)
    rows.load(time.double(), [labels, torch.full_like(labels, fp8.spec.null_label)])
    index = torch.arange(SAMPLES)
    for i, one in enumerate(paths):
        together = rows.forward(x, at_times(index), RowLayout(paths, depth), torch.eye(3)[i].expand(SAMPLES, 3))
        alone = rows.forward(x, at_times(index), RowLayout((one,), depth), torch.ones(SAMPLES, 1))
        check_same(together, alone)
    check_same(rows.forward(x, at_times(index), RowLayout(paths[:1], depth), torch.ones(SAMPLES, 1)), fp8(x, time, labels))


# --- MMDiT -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd3", "sd3.5-medium", "sd3.5-large"])
@torch.no_grad()
def test_an_mmdit_equals_diffusers_with_naive_layers(kind, seed):
    """diffusers' own modules with naive linears in the places of ours: single and dual blocks, and the text's last block."""
    pytest.importorskip("diffusers")
    from tiny_sd3 import tiny_transformer

    transformer = tiny_transformer(kind, 5)
    model = from_diffusers(transformer, share=False)
    fp8 = with_fp8_linears(model)

    def chosen(name: str) -> bool:
        return name.startswith("transformer_blocks.") and ".norm1" not in name

    naive = replace_linears(copy.deepcopy(transformer).double(), chosen)
    assert not Fp8Layers.of(fp8).kept
    generator = torch.Generator().manual_seed(seed)
    x, time = torch.randn(SAMPLES, 4, 8, 8, generator=generator), torch.linspace(100, 900, SAMPLES)
    context, pooled = torch.randn(SAMPLES, 7, 24, generator=generator), torch.randn(SAMPLES, 20, generator=generator)
    expected = naive(x.double(), context.double(), pooled.double(), time.double(), return_dict=False)[0]
    out, plain = (network(x, time, TextCondition(context, pooled)) for network in (fp8, model))
    check_same(out, expected)
    check_moved(out, plain)


def fp8_mmdit(kind: str):
    pytest.importorskip("diffusers")
    from tiny_sd3 import tiny_transformer

    return quantize_linears(from_diffusers(tiny_transformer(kind, 6), share=False))


def evaluations(fp8, seed: int, paths, kernels: Kernels = REFERENCE, joined=None):
    """``evaluate(paths)``: what rows that hold the branches ``paths`` give for some of them, a branch at a time."""
    depth, generator = fp8.spec.depth, torch.Generator().manual_seed(seed)
    x = torch.randn(SAMPLES, 4, 8, 8, generator=generator)
    texts = [
        TextCondition(torch.randn(SAMPLES, 7, 24, generator=generator), torch.randn(SAMPLES, 20, generator=generator))
        for _ in range(2)
    ]
    capacity = {"row_blocks": len(paths), "slots": 2, "times": SAMPLES, "conditions": 2 * SAMPLES, "text_tokens": 7}
    capacity |= {"text_blocks": sum(RowLayout(paths, depth, joined).texts)} if joined else {}
    rows = make_rows(fp8, SAMPLES, 8, 8, kernels=kernels, **capacity)
    rows.load(torch.linspace(100, 900, SAMPLES).double(), texts)
    more = {"normalized": torch.tensor([5.0, 2.5, 0.25]).expand(SAMPLES, 3)} if joined else {}

    def evaluate(some):
        layout, numbers = RowLayout(tuple(some), depth, joined), torch.eye(len(some))
        time = at_times(torch.arange(SAMPLES))
        return [rows.forward(x, time, layout, each.expand(SAMPLES, -1), **more) for each in numbers]

    return evaluate


def mmdit_paths(depth: int):
    """A condition, another, and branches of the first that perturb blocks, dual ones and others."""

    def perturbed(operation: str) -> Path:
        return Path(0, tuple(operation if layer in (1, 4) else FULL for layer in range(depth)))

    return Path.full(0, depth), Path.full(1, depth), *map(perturbed, (SKIP, "attention_skip", "attention_identity_image"))


@pytest.mark.parametrize("kind", ["sd3", "sd3.5-medium"])
@torch.no_grad()
def test_rows_of_an_mmdit_equal_branches_evaluated_alone(kind, seed):
    fp8 = fp8_mmdit(kind)
    paths = mmdit_paths(fp8.spec.depth)[:3]
    evaluate = evaluations(fp8, seed, paths)
    for together, one in zip(evaluate(paths), paths, strict=True):
        check_same(together, evaluate([one])[0])


# norms and GELUs are written in fp32, the dtype of these networks, and every layer quantises what it reads by itself
APART = replace(
    REFERENCE,
    **{name: getattr(REFERENCE, name.removesuffix("_fp8")) for name in OPERATIONS if name.endswith("_fp8")},
    quantize_streams=lambda gelu, *streams: tuple(F.gelu(x, approximate="tanh") if gelu else x for x in streams),
)


@pytest.mark.parametrize("joined", [None, {0: 1}], ids=["one text", "two texts"])
@pytest.mark.parametrize("kind", ["sd3", "sd3.5-medium"])
@torch.no_grad()
def test_inputs_that_are_quantised_by_what_makes_them_are_those_quantised_apart(kind, joined, seed):
    """To the bit, whatever the rows do; only the MLP of the last block, whose text stream has ended, is quantised alone."""
    fp8 = fp8_mmdit(kind)
    paths, counts = mmdit_paths(fp8.spec.depth), {}

    def counted(name: str):
        def call(*arguments, **options):
            counts[name] = counts.get(name, 0) + 1
            return getattr(REFERENCE, name)(*arguments, **options)

        return call

    watched = replace(REFERENCE, **{name: counted(name) for name in OPERATIONS if "norm" in name or "quantize" in name})
    fused = evaluations(fp8, seed, paths, watched, joined)
    together = fused(paths)
    for ours, apart in zip(together, evaluations(fp8, seed, paths, APART, joined)(paths), strict=True):
        assert torch.equal(ours, apart)
    counts.clear()
    fused(paths[1:2])
    depth, dual = fp8.spec.depth, len(fp8.spec.dual_layers)
    norms = {name: count for name, count in counts.items() if name.endswith("_fp8")}
    assert sum(norms.values()) == 4 * depth - 1  # two a block and stream; the text's last is before the attention
    assert (
        sum(count for name, count in norms.items() if "norm2" in name) == norms.get("residual2_modulated_norm_fp8", 0) == dual
    )
    assert (counts["quantize_streams"], counts["quantize_rows"]) == (2 * depth - 1, 1)


# --- which layers, and whose memory ------------------------------------------------------------------------------------


def test_only_the_large_layers_of_blocks_are_quantised_and_everything_else_is_shared(sit):
    model, fp8, _ = sit
    quantized = {name for name, module in fp8.named_modules() if isinstance(module, Fp8Linear)}
    assert quantized == {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and in_block(name)}
    assert with_fp8_linears(fp8) is fp8
    shared = {tensor.data_ptr() for tensor in model.state_dict().values()}
    for name, tensor in fp8.state_dict().items():
        assert (name.rpartition(".")[0] in quantized and not name.endswith("bias")) or tensor.data_ptr() in shared, name
    assert not any(isinstance(module, Fp8Linear) for module in model.modules())
    found = Fp8Layers.of(fp8)
    assert found.quantized == 20 and not found.kept
    assert found.weights == 5 * 12 * 32**2 and found.bytes_before == 4 * found.weights
    assert found.bytes == found.weights + 4 * 5 * (3 + 1 + 4 + 1) * 32


def test_in_place_the_old_weights_are_freed():
    import weakref

    model = tiny_sit(1)
    watched = [weakref.ref(block.attn.qkv.weight) for block in model.blocks]
    quantize_linears(model)
    assert not any(reference() is not None for reference in watched)


@torch.no_grad()
def test_layers_of_other_sizes_stay_and_are_named(inputs):
    """A width of 24 fits nowhere; an MLP of 36 in a network of 32 leaves QKV and out-projection."""
    with pytest.raises(ValueError, match=r"no block linear that fp8 can take: .* multiples of 16"):
        quantize_linears(tiny_sit(dim=24, heads=3))
    model = tiny_sit(2, mlp_ratio=36 / 32)
    fp8 = with_fp8_linears(model)
    assert Fp8Layers.of(fp8).quantized == 10
    assert Fp8Layers.of(fp8).kept == {(32, 36): 5, (36, 32): 5}
    check_moved(fp8(*inputs), model(*inputs))


def test_a_cast_of_the_network_leaves_fp8_alone(sit):
    _, fp8, _ = sit
    cast = copy.deepcopy(fp8).to(torch.bfloat16)
    for one, other in zip(fp8.modules(), cast.modules(), strict=True):
        if isinstance(one, Fp8Linear):
            assert torch.equal(one.values.float(), other.values.float()) and other.values.dtype == one.values.dtype
            assert torch.equal(one.scale, other.scale) and other.scale.dtype == torch.float32
            assert other.bias.dtype == torch.bfloat16
