"""Gradients through denoisers and attached transformers are the true ones: those of central differences, and diffusers' own."""

import math

import pytest
import torch
from attached_runs import relative_error
from live_runs import NEGATIVE, PROMPTS
from tiny_models import tiny_sit
from tiny_sd3 import T5_TOKENS, add_ip_adapter, tiny_pipeline
from torch.autograd import forward_ad

import segue
from segue import APG, CFG, S2, AutoGuidance, CFGZeroStar, EarlyExit, Engine, PerturbedLayers, Renorm, Rescale, SkipLayer
from segue.engine.prompts.engine import PromptEngine
from segue.models.mmdit_diffusers import from_diffusers

STEP = 2.0**-7  # of a central difference of order four in fp32: roundings are divided by it
DIFFERENCE = 1e-3
ORACLE = 2e-4  # of gradients in fp32, which sum over all tokens and layers
LABELS, LEVELS = [0, 4], (0.9, 0.6, 0.3, 0.0)
PERTURBED = [PerturbedLayers(1.5, (1,), kind=f"attention_{kind}") for kind in ("identity", "blur", "skip")]
RULES = {
    "none": None,
    "cfg": CFG(3.0),
    "no conditional": CFG(0.0),
    "skip": CFG(3.0) + SkipLayer(2.0, (1,)),
    "exit": EarlyExit(1.5, 2),
    "weak": AutoGuidance(1.5) + CFG(2.0),
    "channels": CFG(3.0, channels=3),
    "perturbed": CFG(2.0) + PERTURBED[0] + PERTURBED[1] + PERTURBED[2],
    "zero star": CFG(3.0) + CFGZeroStar(),
    "rescale": CFG(3.0) + Rescale(0.7),
    "average": CFG(3.0) + APG(-0.5, 2.0, 0.3),
    "no bounds": CFG(3.0) + APG(-0.5, math.inf, 0.3) + Renorm(math.inf),
    "dropped": CFG(2.0) + S2(1.5, share=0.4, protected=(0,)),
    "reused": CFG(3.0).reused(2) + SkipLayer(2.0, (1,)),
}


def check_difference(function, x: torch.Tensor, seed: int = 0) -> None:
    """``<grad, d>`` is the difference quotient along a random direction ``d``; both of a random sum of the outputs."""
    generator = torch.Generator().manual_seed(seed)
    direction, weights = (torch.randn(x.shape, generator=generator) for _ in range(2))
    x = x.detach()

    def summed(at):
        return (weights * function(at)).double().sum()

    with torch.no_grad():
        near, far = (summed(x + step * direction) - summed(x - step * direction) for step in (STEP, 2 * STEP))
        wanted = (8 * near - far) / (12 * STEP)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(summed(leaf), leaf)
    found = (gradient.double() * direction).sum()
    scale = gradient.double().norm() * direction.norm() / direction.numel() ** 0.5
    assert abs(found - wanted) <= DIFFERENCE * scale, (float(found), float(wanted), float(scale))


DIT = {"prediction": "epsilon", "time": "discrete", "out_channels": 8}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_denoiser_of_a_flow_model(rule):
    check_class_labels(rule)


@pytest.mark.parametrize("name", ["none", "exit", "weak", "average"])
def test_a_denoiser_of_a_model_that_predicts_noise(name):
    check_class_labels(RULES[name], **DIT)


def check_class_labels(rule, **kind):
    engine = Engine(tiny_sit(depth=3, **kind), {"weak": tiny_sit(1, depth=2, exits=(), **kind)}, device="cpu")
    x = torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(1))

    def function(at):
        """The second call of a run, after one that what the rule remembers comes from."""
        denoiser = engine.denoiser(rule, LABELS, schedule=LEVELS)
        with torch.no_grad():
            denoiser(x, torch.full((2,), LEVELS[0]))
        return denoiser(at, torch.full((2,), LEVELS[1]))

    check_difference(function, x)


def live_engine(kind):
    if kind == "checkpoint":
        pipe = tiny_pipeline(seed=21, num_layers=3, dual_attention_layers=(0,))
        return PromptEngine(from_diffusers(pipe.transformer, share=False), pipe, device="cpu")
    pipe = tiny_pipeline(seed=21, num_layers=3, dual_attention_layers=(0,))
    if kind == "modules":
        pipe.transformer.proj_out.register_forward_hook(lambda *_: None)
    return Engine.from_pipe(pipe)


def embedded(engine):
    return engine.encode(PROMPTS, NEGATIVE, max_sequence_length=T5_TOKENS)


SKIP, BLUR = CFG(3.0) + SkipLayer(2.0, (1,)), CFG(2.0) + PERTURBED[1]


@pytest.mark.parametrize(("kind", "rule"), [("packed", SKIP), ("packed", BLUR), ("modules", SKIP), ("checkpoint", BLUR)])
def test_a_denoiser_of_a_model_for_prompts(kind, rule):
    engine = live_engine(kind)
    denoiser = engine.denoiser(rule, embedded(engine))
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    check_difference(lambda at: denoiser(at, torch.tensor([0.7, 0.4])), x)


def test_forward_mode():
    denoiser = Engine(tiny_sit(depth=2, exits=()), device="cpu").denoiser(CFG(3.0), LABELS)
    x, direction = (torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    sigma, leaf = torch.full((2,), 0.5), x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(denoiser(leaf, sigma).square().sum(), leaf)
    math = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with torch.no_grad(), math, forward_ad.dual_level():
        found = forward_ad.unpack_dual(denoiser(forward_ad.make_dual(x, direction), sigma).square().sum()).tangent
    assert abs(found - (wanted * direction).sum()) < ORACLE * wanted.norm() * direction.norm()


def test_functional_transforms_are_pytorchs_to_refuse():
    """A denoiser has a state, which they may not change."""
    denoiser = Engine(tiny_sit(depth=2, exits=()), device="cpu").denoiser(CFG(3.0), LABELS)
    with pytest.raises(RuntimeError):
        torch.func.grad(lambda at: denoiser(at, torch.full((2,), 0.5)).sum())(torch.zeros(2, 4, 6, 10))


def test_guidance_by_gradients_in_a_loop():
    """As researchers do it: the state goes down the gradient of a loss on the clean estimate, step by step."""
    network = tiny_sit(depth=2, exits=())
    denoiser = Engine(network, device="cpu").denoiser(None, LABELS, schedule=LEVELS)
    labels, target = torch.tensor(LABELS), torch.zeros(2, 4, 6, 10)
    x = found = torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(1))
    for s in LEVELS[:-1]:
        sigma = torch.full((2,), s)
        x, found = (state.detach().requires_grad_() for state in (x, found))
        wanted_loss = (x - s * network(x, sigma, labels) - target).square().sum()
        found_loss = (denoiser(found, sigma) - target).square().sum()
        x = x - 0.1 * torch.autograd.grad(wanted_loss, x)[0]
        found = found - 0.1 * torch.autograd.grad(found_loss, found)[0]
    assert relative_error(found.detach(), x.detach()) < ORACLE


# --- attached: the oracle is the guided output of diffusers' own forward -------------------------------------------------


class TrainingStep:
    """A tiny pipeline whose transformer trains, and the inputs of one call of it."""

    def __init__(self, path, rule=None):
        self.pipe = tiny_pipeline(seed=21, num_layers=3, dual_attention_layers=(0,))
        self.transformer = self.pipe.transformer.requires_grad_(True)
        if path == "modules":
            add_ip_adapter(self.transformer.requires_grad_(False))
            self.transformer.requires_grad_(True)
        self.pipe.scheduler.set_timesteps(4)
        generator = torch.Generator().manual_seed(3)

        def draw(*shape):
            return torch.randn(shape, generator=generator).requires_grad_()

        self.x, self.context, self.pooled = draw(1, 4, 8, 8), draw(1, 13, 24), draw(1, 20)
        self.inputs = {"x": self.x, "context": self.context, "pooled": self.pooled}
        self.extra = {}
        if path == "modules":
            self.inputs |= {"residual": draw(1, 16, 16), "images": draw(1, 2, 10)}
            self.extra = {
                "block_controlnet_hidden_states": [self.inputs["residual"]],
                "joint_attention_kwargs": {"ip_adapter_image_embeds": self.inputs["images"]},
            }

    def forward(self, **options):
        timestep = self.pipe.scheduler.timesteps[0].expand(1)
        call = {"timestep": timestep, "encoder_hidden_states": self.context, "pooled_projections": self.pooled}
        return self.transformer(hidden_states=self.x, return_dict=False, **call, **self.extra, **options)[0]

    def kept(self) -> int:
        """Numbers that autograd keeps of a call."""
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.update({x.data_ptr(): x.numel()}) or x, lambda x: x):
            self.forward()
        return sum(sizes.values())

    def guided(self):
        """What a rule of skipped layer 1 with weight 2 makes of diffusers' outputs."""
        full = self.forward()
        return full + 2.0 * (full - self.forward(skip_layers=[1]))

    def gradients(self, output):
        named = self.inputs | dict(self.transformer.named_parameters())
        values = torch.autograd.grad(output.square().sum(), list(named.values()), allow_unused=True)
        return dict(zip(named, values, strict=True))


@pytest.mark.parametrize("path", ["packed", "modules"])
def test_gradients_through_an_attached_transformer_are_those_of_diffusers(path):
    """With respect to latents, prompts, every parameter, and what a ControlNet and an IP-Adapter bring."""
    step = TrainingStep(path)
    wanted_output = step.guided()
    wanted = step.gradients(wanted_output)
    attachment = segue.attach(step.pipe, SkipLayer(2.0, (1,)))
    output = step.forward()
    assert ("packed weights" in attachment.explain()) == (path == "packed")
    assert relative_error(output, wanted_output) < ORACLE
    found = step.gradients(output)
    assert len(found) > 90
    for name, gradient in wanted.items():
        assert (gradient is None) == (found[name] is None), name
        assert gradient is None or relative_error(found[name], gradient) < ORACLE or not gradient.any(), name


@pytest.mark.parametrize("path", ["packed", "modules"])
def test_gradient_checkpointing_is_the_transformers(path):
    step = TrainingStep(path)
    segue.attach(step.pipe, SkipLayer(2.0, (1,)))
    wanted, before = step.gradients(step.forward()), step.kept()
    step.transformer.enable_gradient_checkpointing()
    found = step.gradients(step.forward())
    assert step.kept() < 0.7 * before
    assert all(value is None or torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("path", ["packed", "modules"])
def test_fine_tuning_through_an_attached_transformer(path):
    """Three steps of SGD: what one changes, the next computes with."""
    plain, attached = TrainingStep(path), TrainingStep(path)
    segue.attach(attached.pipe, SkipLayer(2.0, (1,)))
    losses = []
    for step, function in ((plain, plain.guided), (attached, attached.forward)):
        optimizer = torch.optim.SGD(step.transformer.parameters(), lr=1e-4)
        for _ in range(3):
            loss = function().square().mean()
            losses.append(float(loss))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert losses[3:] == pytest.approx(losses[:3], rel=1e-4) and losses[0] > 1.01 * losses[1]


# --- refused, in one sentence --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error:Converting a tensor with requires_grad=True")
def test_what_has_no_gradient_is_refused():
    pipe = tiny_pipeline(seed=21, num_layers=2, dual_attention_layers=(0,))
    live, fp8 = Engine.from_pipe(pipe), Engine.from_pipe(pipe, linears="fp8")
    embeddings, sigma = embedded(live), torch.full((2,), 0.5)
    x = torch.zeros(2, 4, 8, 8, requires_grad=True)
    with pytest.raises(ValueError, match="linears='fp8' rounds every activation and has no gradient"):
        fp8.denoiser(CFG(2.0), embeddings)(x, sigma)
    with pytest.raises(ValueError, match=r"the noise level, .* has no gradient, and sigma requires one"):
        live.denoiser(CFG(2.0), embeddings)(x, sigma.requires_grad_())
    step = TrainingStep("packed")
    segue.attach(step.pipe)
    with pytest.raises(ValueError, match="has no gradient, and timestep requires one"):
        step.transformer(step.x, step.context, step.pooled, timestep=torch.tensor([1000.0], requires_grad=True))


def test_nothing_is_recorded_where_nobody_asks():
    """Without a gradient to want, or under ``no_grad``, the program steps in its buffers."""
    engine = live_engine("packed")
    denoiser = engine.denoiser(CFG(2.0), embedded(engine))
    x, sigma = torch.randn(2, 4, 8, 8), torch.full((2,), 0.5)
    plain = denoiser(x, sigma)
    with torch.no_grad():
        assert torch.equal(denoiser(x.clone().requires_grad_(), sigma), plain)
    recorded = denoiser(x.clone().requires_grad_(), sigma)
    assert not plain.requires_grad and recorded.requires_grad
    assert relative_error(recorded.detach(), plain) < ORACLE
