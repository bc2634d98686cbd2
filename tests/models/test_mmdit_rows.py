"""The rows of an MMDiT: the work that runs is the work that was planned, perturbed branches, whole runs, cost."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from clocks import at_times
from full_depth_sd3 import TEXT_TOKENS, diffusers_sd3, reference, sd3_inputs
from step_trace import HOST_SYNCHRONISING, trace_step
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from segue import CFG, PerturbedLayers, SkipLayer, Window, flow_shift
from segue.engine.core import EngineCore
from segue.engine.planning.compile import compile_plan
from segue.kernels.attention import PERTURBATIONS
from segue.models.mmdit import MMDiT, TextCondition
from segue.models.mmdit_diffusers import from_diffusers
from segue.models.mmdit_spec import MMDiTSpec
from segue.models.registry import make_rows
from segue.models.rows import FULL, SKIP, Path, RowLayout

pytest.importorskip("diffusers")

# Absolute, on outputs of unit size: 24 blocks of fp32 products and norms, each rounding to 6e-8, in another order.
PARITY = 2e-5
# Relative to the largest latent: the error of a forward, through 9 guided steps with weights up to 3.5.
RUN_PARITY = 2e-5
SGG = CFG(4.5, window=Window.steps(1, 14)) + SkipLayer(3.0, (7, 8, 9), window=Window.steps(15, 28))


@pytest.fixture(scope="module")
def pair():
    """diffusers' SD3.5-medium and ours on the same weights: dual attention, norms of queries and keys, 24 blocks."""
    theirs = diffusers_sd3("sd3.5-medium", seed=8)
    return theirs, from_diffusers(theirs)


def conditions(inputs) -> list[TextCondition]:
    return [TextCondition(context, pooled) for context, pooled in zip(inputs.contexts, inputs.pooled, strict=True)]


def rows_for(model, inputs, **changes):
    batch, _, height, width = inputs.x.shape
    settings = {"row_blocks": 4, "slots": 2, "times": batch, "conditions": 2 * batch, "text_tokens": TEXT_TOKENS}
    return make_rows(model, batch, height, width, **(settings | changes))


def path(condition: int, depth: int, layers=(), operation: str = SKIP) -> Path:
    return Path(condition, tuple(operation if layer in layers else FULL for layer in range(depth)))


def attention_flops(q, k, v, *_, out_shape=None, **__) -> int:
    return sdpa_flop_count(q, k, v)


CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}  # PyTorch counts the CUDA ones


class CountedRows:
    """Rows that enter each block, by forward hooks."""

    def __init__(self, model: MMDiT):
        self.rows = [0] * model.spec.depth
        self.handles = [block.register_forward_pre_hook(self._hook(i)) for i, block in enumerate(model.joint_blocks)]

    def _hook(self, layer: int):
        def count(_, args):
            assert len(args[0]) == len(args[1])  # the two streams of a row run together
            self.rows[layer] += len(args[0])

        return count

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


# --- the work of one call ---------------------------------------------------------------------------------------------


LAYOUTS = {
    "cond": [(0,)],
    "cfg": [(0,), (1,)],
    "skip": [(0,), (0, (7, 8, 9))],
    "all": [(0,), (1,), (0, (7, 8, 9)), (0, (2, 11, 23))],
    "skips of the negative": [(0,), (1, (0, 23)), (1,)],
    "weak alone": [(0, (4,))],
}


@torch.no_grad()
def test_only_planned_rows_run_and_nothing_stays_in_the_buffers(pair):
    """Each layout executes its own count of rows at every layer, whatever ran in the same buffers before."""
    _, model = pair
    inputs, depth = sd3_inputs(1, 10, 14, batch=3), model.spec.depth
    rows = rows_for(model, inputs)
    rows.load(inputs.time.double(), conditions(inputs))
    first = {}
    for name in [*LAYOUTS, *reversed(LAYOUTS)]:
        layout = RowLayout(tuple(path(branch[0], depth, *branch[1:]) for branch in LAYOUTS[name]), depth)
        coefficients = torch.full((3, len(layout.paths)), 1 / len(layout.paths))
        with CountedRows(model) as counted:
            out = rows.forward(inputs.x, at_times(torch.arange(3)), layout, coefficients)
        assert counted.rows == [3 * layer.active for layer in layout.layers]
        assert sum(counted.rows) == 3 * layout.block_rows
        assert torch.equal(out, first.setdefault(name, out)), name


@torch.no_grad()
def test_counted_flops_equal_the_plan(pair):
    """Matrix products and attentions of a call, counted by PyTorch, are what the plan says."""
    _, model = pair
    inputs = sd3_inputs(2, 10, 14)
    spec = replace(model.spec, text_tokens=TEXT_TOKENS)
    rule = CFG(2.0) + SkipLayer(1.0, (7, 8, 9)) + SkipLayer(1.0, (23,))
    plan = compile_plan(rule, flow_shift(4), "euler", spec, 10, 14)
    rows = rows_for(model, inputs)
    rows.load(inputs.time.double(), conditions(inputs))
    for live in ((0,), (0, 1), (0, 2), (0, 3), (0, 1, 2, 3)):
        layout = plan.layout(live)
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            rows.forward(inputs.x, at_times(torch.arange(2)), layout, torch.ones(2, len(live)))
        assert counter.get_total_flops() == 2 * plan.call_cost(live)[2]


@pytest.mark.parametrize("kind", ["skip", "attention_blur"])
def test_a_step_can_be_captured(pair, kind):
    """Two steps with one live set do the same operations on the same storages, without synchronising with the host."""
    _, model = pair
    inputs, engine = sd3_inputs(2, 10, 14), EngineCore(model, device="cpu")
    rule = CFG(2.0, window=Window.steps(1, 4)) + PerturbedLayers(1.0, layers=(7, 9), kind=kind)
    plan = compile_plan(rule, flow_shift(8), "euler", replace(model.spec, text_tokens=TEXT_TOKENS), 10, 14)
    prompts = dict(zip(("cond", "uncond"), conditions(inputs), strict=True))
    program = engine.prepare(plan, prompts, [0, 0], inputs.x)
    for live in plan.live_sets:
        program.step(live)
        first, second = trace_step(program, live), trace_step(program, live)
        assert len(first.operations) > 500
        assert first.operations == second.operations
        assert not [name for name, _ in first.operations if any(word in name for word in HOST_SYNCHRONISING)]


# --- perturbed attention ----------------------------------------------------------------------------------------------


class PerturbedProcessor:
    """An attention processor for diffusers' blocks, after the definitions: V, zero, image queries blurred, alone or moved."""

    def __init__(self, kind: str):
        self.kind = kind

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        def heads(x):
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        tokens = hidden_states.shape[1]
        q = attn.norm_q(heads(attn.to_q(hidden_states)))
        k, v = attn.norm_k(heads(attn.to_k(hidden_states))), heads(attn.to_v(hidden_states))
        if self.kind == "attention_blur":
            q = q.mean(dim=2, keepdim=True).expand_as(q)
        if encoder_hidden_states is not None:
            q = torch.cat([q, attn.norm_added_q(heads(attn.add_q_proj(encoder_hidden_states)))], dim=2)
            k = torch.cat([k, attn.norm_added_k(heads(attn.add_k_proj(encoder_hidden_states)))], dim=2)
            v = torch.cat([v, heads(attn.add_v_proj(encoder_hidden_states))], dim=2)
        mask = None
        if self.kind == "attention_identity_image":  # other image tokens are forbidden to an image token
            mask = torch.zeros(q.shape[2], k.shape[2])
            mask[:tokens, :tokens] = torch.full((tokens, tokens), -torch.inf).fill_diagonal_(0)
        out = v if self.kind == "attention_identity" else F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out = out.transpose(1, 2).flatten(2)
        if self.kind == "attention_shuffle":
            order = torch.randperm(tokens, generator=torch.Generator().manual_seed(0))
            out = torch.cat([out[:, :tokens][:, order], out[:, tokens:]], dim=1)
        image, text = attn.to_out[0](out[:, :tokens]), out[:, tokens:]
        if not attn.context_pre_only and encoder_hidden_states is not None:
            text = attn.to_add_out(text)
        if self.kind == "attention_skip":
            image, text = torch.zeros_like(image), torch.zeros_like(text)
        return image if encoder_hidden_states is None else (image, text)


@pytest.mark.parametrize("kind", PERTURBATIONS)
@torch.no_grad()
def test_perturbed_attention(pair, kind):
    """A perturbed branch beside full and skipping ones, in single and dual blocks and in the last, equals diffusers' blocks."""
    theirs, model = pair
    depth, layers = model.spec.depth, (3, 12, 17, 23)
    inputs = sd3_inputs(3, 14, 10)
    rows = rows_for(model, inputs)
    rows.load(inputs.time.double(), conditions(inputs))
    paths = (path(0, depth), path(0, depth, layers, kind), path(1, depth, layers, kind), path(0, depth, (17,)))
    layout = RowLayout(paths, depth)
    expected = [reference(theirs, inputs), None, None, reference(theirs, inputs, 0, (17,))]
    original = theirs.attn_processors
    perturbed = {f"transformer_blocks.{layer}.{part}.processor" for layer in layers for part in ("attn", "attn2")}
    theirs.set_attn_processor({k: PerturbedProcessor(kind) if k in perturbed else v for k, v in original.items()})
    expected[1], expected[2] = reference(theirs, inputs), reference(theirs, inputs, 1)
    theirs.set_attn_processor(original)
    assert (expected[0] - expected[1]).abs().max() > 1e-2
    for i, wanted in enumerate(expected):
        out = rows.forward(inputs.x, at_times(torch.arange(2)), layout, torch.eye(4)[i].expand(2, 4))
        assert (out - wanted).abs().max() <= PARITY, i


# --- loading a run ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_repeated_prompts_are_modulated_once(pair):
    """One distinct negative prompt for a batch fits where two distinct ones do not; the numbers are the same."""
    theirs, model = pair
    inputs = sd3_inputs(4, 8, 8, batch=3)
    shared = replace(inputs, pooled=(inputs.pooled[0], inputs.pooled[1][:1].expand(3, -1)))
    rows = rows_for(model, inputs, conditions=4, row_blocks=2)
    rows.load(inputs.time.double(), conditions(shared))
    layout = RowLayout((path(0, 24), path(1, 24)), 24)
    for i in (0, 1):
        out = rows.forward(inputs.x, at_times(torch.arange(3)), layout, torch.eye(2)[i].expand(3, 2))
        assert (out - reference(theirs, shared, i)).abs().max() <= PARITY
    with pytest.raises(ValueError, match="3 times and 6 prompts exceed the capacity 3 and 4"):
        rows.load(inputs.time.double(), conditions(inputs))


@torch.no_grad()
def test_refused_conditions(pair):
    _, model = pair
    inputs = sd3_inputs(5, 8, 8)
    rows = rows_for(model, inputs)
    with pytest.raises(ValueError, match=r"hold 2 conditions, got 1"):
        rows.load(inputs.time.double(), conditions(inputs)[:1])
    with pytest.raises(ValueError, match=r"\(2, 7, 24\) and \(2, 20\), got \(3, 7, 24\)"):
        rows.load(inputs.time.double(), conditions(sd3_inputs(5, batch=3)))
    with pytest.raises(ValueError, match=r"got \[2, 24\] and \[2, 20\]"):
        TextCondition(inputs.contexts[0][:, 0], inputs.pooled[0])
    with pytest.raises(ValueError, match=r"at most 60 \(the position table\), got 62 x 8"):
        make_rows(model, 2, 62, 8, row_blocks=1, slots=1, times=1, conditions=2)
    with pytest.raises(ValueError, match=r"layer 24 does not exist: .* has layers 0 to 23"):
        model(inputs.x, inputs.time, conditions(inputs)[0], (24,))


# --- whole runs -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_run_equals_the_published_algorithm_on_diffusers(pair):
    """CFG with a negative prompt per sample, then skip-layer guidance; planned rows and layers are what runs."""
    theirs, model = pair
    batch, steps = 3, 9
    inputs = sd3_inputs(6, 10, 14, batch)
    guidance = CFG(3.5, window=Window.steps(1, 5)) + SkipLayer(2.0, (7, 8, 9), window=Window.steps(4, 9))
    spec = replace(model.spec, text_tokens=TEXT_TOKENS)
    plan = compile_plan(guidance, flow_shift(steps), "euler", spec, 10, 14)
    engine = EngineCore(model, device="cpu")
    with CountedRows(engine.models["main"]) as counted:
        prompts = dict(zip(("cond", "uncond"), conditions(inputs), strict=True))
        latents, calls = engine.run(plan, prompts, [0] * batch, inputs.x)
    assert calls == steps
    assert sum(counted.rows) == batch * plan.cost.blocks
    x, sigmas = inputs.x.clone(), flow_shift(steps).sigmas
    for i in range(steps):
        now = replace(inputs, x=x, time=torch.full((batch,), 1000 * sigmas[i]))
        strong = reference(theirs, now)
        velocity = strong.clone()
        if i < 5:
            velocity += 2.5 * (strong - reference(theirs, now, 1))
        if i >= 3:
            velocity += 2.0 * (strong - reference(theirs, now, 0, (7, 8, 9)))
        x = x + (sigmas[i + 1] - sigmas[i]) * velocity
    assert (latents - x).abs().max() <= RUN_PARITY * x.abs().max()


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch_nor_on_the_prompt_length_before(pair):
    _, model = pair
    inputs = sd3_inputs(7, 8, 12, batch=4)
    engine = EngineCore(model, device="cpu")

    def sample(part: slice, tokens: int, **options):
        spec = replace(model.spec, text_tokens=tokens)
        rule = CFG(3.0) + PerturbedLayers(1.0, layers=(5,), kind="attention_identity")
        plan = compile_plan(rule, flow_shift(3), "euler", spec, 8, 12)
        prompts = [TextCondition(each.context[part, :tokens], each.pooled[part]) for each in conditions(inputs)]
        table = dict(zip(("cond", "uncond"), prompts, strict=True))
        return engine.run(plan, table, [0] * len(prompts[0]), inputs.x[part], **options)[0]

    together, short = sample(slice(None), TEXT_TOKENS), sample(slice(None), 3)
    bound = RUN_PARITY * together.abs().max()
    assert (together - short).abs().max() > 100 * bound
    for i in range(4):
        assert (sample(slice(i, i + 1), TEXT_TOKENS) - together[i]).abs().max() <= bound
        assert (sample(slice(i, i + 1), 3) - short[i]).abs().max() <= bound
    assert (sample(slice(None), TEXT_TOKENS, max_batch=3) - together).abs().max() <= bound


# --- cost -------------------------------------------------------------------------------------------------------------


def published(depth: int, heads: int, dual: int = 0) -> MMDiTSpec:
    sizes = {"channels": 16, "height": 128, "width": 128, "patch": 2, "dim": 64 * heads, "depth": depth, "heads": heads}
    return MMDiTSpec(name="published", dual_layers=tuple(range(dual)), **sizes)


@pytest.mark.parametrize(
    ("spec", "tera", "suffix", "relative"),
    [
        (published(24, 24), 8.904, 0.582, 1.791),
        (published(24, 24, dual=13), 11.250, 0.509, 1.755),
        (published(38, 38), 31.121, 0.736, 1.868),
    ],
    ids=["SD3-medium", "SD3.5-medium", "SD3.5-large"],
)
def test_published_costs(spec, tera, suffix, relative):
    """1024 x 1024 with 333 text tokens, SGG on 14 + 14 steps with blocks 7 to 9 skipped, to three digits or more."""
    plan = compile_plan(SGG, flow_shift(28), "euler", spec)
    module = spec.module_flops(128, 128)
    weak = plan.call_cost(plan.live[27])[2] - plan.call_cost((0,))[2]
    assert round(module / 1e12, 3) == tera
    assert round(weak / module, 3) == suffix
    assert round(plan.cost.relative, 3) == relative
    assert plan.cost.evaluations == 14 * 2 + 14 * 2
    assert plan.cost.blocks == 28 * spec.depth + 14 * spec.depth + 14 * (spec.depth - 10)


def test_refused_specs():
    base = published(4, 2)
    for changes, message in [
        ({"exits": (2,)}, "no early-exit heads"),
        ({"out_channels": 32}, "takes 16 channels and gives 32; it must give as many as it takes"),
        ({"dual_layers": (4,)}, "blocks 0 to 3, got 4"),
        ({"text_tokens": 0}, "text_tokens must be a positive integer, got 0"),
        ({"position_size": 32}, "at most 64"),
    ]:
        with pytest.raises(ValueError, match=message):
            replace(base, **changes)
