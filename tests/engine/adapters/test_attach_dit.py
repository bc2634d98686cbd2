"""A rule attached to diffusers' `DiTPipeline`, and an engine of it, draw what the pipeline draws: it guides all channels."""

import pytest
import torch
from naive_sampler import variance_preserving_levels
from tiny_dit import tiny_dit_pipeline

import segue
from segue import CFG, Engine, SkipLayer, Window

diffusers = pytest.importorskip("diffusers")

CLASSES = 1000  # the pipeline's null label is that number
SEEDS = (3, 4)
# relative to the largest value: one network in another order of fp32 sums, over up to six calls and a scale of 4
ERROR = 2e-5
SCHEDULERS = {
    "ddim": lambda: diffusers.DDIMScheduler(clip_sample=False),
    "ddpm": lambda: diffusers.DDPMScheduler(clip_sample=False),
    "dpm++": lambda: diffusers.DPMSolverMultistepScheduler(),
    "pndm": lambda: diffusers.PNDMScheduler(skip_prk_steps=True),
    "euler-a": lambda: diffusers.EulerAncestralDiscreteScheduler(timestep_spacing="leading"),
}


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_dit_pipeline(seed=5, classes=CLASSES)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(autouse=True)
def clean(pipe):
    yield
    pipe.scheduler = SCHEDULERS["ddim"]()
    if "_segue_attachment" in vars(pipe):
        segue.detach(pipe)


def draw(pipe, scale=4.0, labels=(7, 512), steps=6, seeds=SEEDS):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    given = {"guidance_scale": scale, "num_inference_steps": steps, "generator": generators, "output_type": "np"}
    torch.manual_seed(9)  # the pipeline gives its scheduler no generator
    return torch.as_tensor(pipe(class_labels=list(labels), **given).images)


def error(ours, theirs) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("name", SCHEDULERS)
def test_an_attached_rule_draws_what_the_pipeline_draws(pipe, name):
    pipe.scheduler = SCHEDULERS[name]()
    plain = draw(pipe)
    attachment = segue.attach(pipe, CFG(4.0))
    for scale in (4.0, 9.0):  # it has no effect, whatever it is
        assert error(draw(pipe, scale), plain) < ERROR
    if name not in ("ddpm", "euler-a"):  # their noise is another for a batch without the second half
        assert error(draw(pipe, 1.0), plain) < ERROR
    assert attachment.plan.calls == len(pipe.scheduler.timesteps)
    assert "branches cond | uncond" in attachment.explain()
    segue.detach(pipe)
    assert torch.equal(draw(pipe), plain)
    assert error(draw(pipe, 1.0), plain) > 0.01


def test_unguided_is_the_pipeline_without_guidance(pipe):
    plain = draw(pipe, 1.0)
    attachment = segue.attach(pipe, None)
    assert error(draw(pipe, 4.0), plain) < ERROR
    assert attachment.plan.cost.evaluations == 6


def test_a_window_leaves_the_other_calls_unguided(pipe):
    """The pipeline's own guidance switched by a hand-written loop, against a rule with a window."""
    rule = CFG(4.0, window=Window.steps(1, 3))

    def loop(scale_at):
        pipe.scheduler.set_timesteps(6)
        x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
        labels, null = torch.tensor([7, 512]), torch.tensor([CLASSES] * 2)
        with torch.no_grad():
            for index, t in enumerate(pipe.scheduler.timesteps):
                output = pipe.transformer(torch.cat([x, x]), t.expand(4), torch.cat([labels, null])).sample[:, :4]
                c, u = output.chunk(2)
                x = pipe.scheduler.step(u + scale_at(index) * (c - u), t, x).prev_sample
        return x

    expected = loop(lambda index: 4.0 if index < 3 else 1.0)
    attachment = segue.attach(pipe, rule)
    assert error(loop(lambda index: 7.0), expected) < ERROR
    assert attachment.plan.live == ((0, 1),) * 3 + ((0,),) * 3


def test_weights_that_changed_between_runs_are_those_of_the_next(pipe):
    attachment = segue.attach(pipe, CFG(4.0))
    before = draw(pipe)
    weight = pipe.transformer.transformer_blocks[1].attn1.to_k.weight  # copied by the network
    kept = weight.clone()
    try:
        with torch.no_grad():
            weight.mul_(1.5)
        changed = draw(pipe)
        segue.detach(pipe)
        assert error(changed, draw(pipe)) < ERROR
        assert error(changed, before) > 1e-3
    finally:
        weight.copy_(kept)
    assert attachment.plan is None


def test_a_run_that_was_broken_off_is_followed_by_a_new_one(pipe):
    plain = draw(pipe)
    segue.attach(pipe, CFG(4.0))

    class BrokenOff(diffusers.DDIMScheduler):
        def step(self, output, timestep, *given, **options):
            if int(timestep) < 400:
                raise KeyboardInterrupt
            return super().step(output, timestep, *given, **options)

    pipe.scheduler = BrokenOff(clip_sample=False)
    with pytest.raises(KeyboardInterrupt):
        draw(pipe)
    pipe.scheduler = SCHEDULERS["ddim"]()
    assert error(draw(pipe), plain) < ERROR


def test_a_copy_of_an_attached_pipeline_is_not_attached(pipe):
    import copy

    plain = draw(pipe)
    segue.attach(pipe, SkipLayer(3.0, (1,)))
    assert torch.equal(draw(copy.deepcopy(pipe)), plain)


def test_an_engine_of_the_pipeline_draws_what_it_draws(pipe):
    plain, chain = draw(pipe), variance_preserving_levels()
    engine = Engine.from_pipe(pipe)
    levels = [chain[int(t)][1] / sum(chain[int(t)]) for t in pipe.scheduler.timesteps]
    run = engine.sample([7, 512], CFG(4.0), schedule=[*levels, 0.0], solver="ddim", seeds=SEEDS)
    pixels = torch.stack([torch.tensor(list(image.tobytes())).view(12, 12, 3) for image in run.images])
    assert (pixels / 255 - plain).abs().max() < 0.51 / 255 + 1e-4  # half a level of 8 bits
    assert torch.equal(draw(pipe), plain)  # and the pipeline is as it was


def test_what_cannot_be_followed_is_refused_in_one_sentence(pipe):
    with pytest.raises(ValueError, match="layer 3 does not exist"):
        segue.attach(pipe, SkipLayer(1.0, (3,)))
    segue.attach(pipe, CFG(4.0))
    pipe.scheduler = diffusers.EulerDiscreteScheduler(timestep_spacing="linspace")
    with pytest.raises(ValueError, match="EulerDiscreteScheduler has timesteps that are no whole numbers"):
        draw(pipe)
    pipe.scheduler = SCHEDULERS["ddim"]()
    other = diffusers.DiTPipeline(pipe.transformer, pipe.vae, SCHEDULERS["ddim"]())
    other.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="attached to another pipeline than the one that runs"):
        draw(other)
    x, t, labels = torch.zeros(1, 4, 6, 6), torch.tensor([3]), torch.tensor([1])
    with pytest.raises(ValueError, match="has no gradients: call the pipeline under"):
        pipe.transformer(x.requires_grad_(), t, labels)
    pipe.scheduler.set_timesteps(6)
    with torch.no_grad(), pytest.raises(ValueError, match="called at timestep 3, where a run of DDIMScheduler begins at"):
        pipe.transformer(x, t, labels)
    with torch.no_grad(), pytest.raises(ValueError, match="class label 1001 is out of range"):
        pipe.transformer(x, t, labels + CLASSES)


def test_weights_that_move_are_refused():
    pipe = tiny_dit_pipeline(seed=5)
    hooks = pytest.importorskip("accelerate.hooks")
    hooks.add_hook_to_module(pipe.transformer.transformer_blocks[0], hooks.AlignDevicesHook("cpu"))
    for use in (segue.attach, Engine.from_pipe):
        with pytest.raises(ValueError, match=r"transformer_blocks.0 has an accelerate hook .* and a DiT cannot be offloaded"):
            use(pipe)


def test_adapters_are_refused():
    pipe = tiny_dit_pipeline(seed=5)
    block = pipe.transformer.transformer_blocks[1]

    class Adapted(torch.nn.Linear):
        pass

    block.attn1.to_q = Adapted(48, 48)
    with pytest.raises(ValueError, match=r"transformer_blocks.1.attn1.to_q is a Adapted, whose weights are not those of a DiT"):
        segue.attach(pipe, CFG(4.0))


def test_a_drawn_label_is_that_of_a_loop_written_by_hand(pipe):
    """Gradient-free classifier guidance with ``lag=0``, from the state in the chain's own coordinates."""
    labels = torch.tensor([7, 512])

    def classifier(clean):
        return 4 * torch.nn.functional.interpolate(clean.flatten(1)[:, None], CLASSES)[:, 0]

    def noise_of(x, t, own):
        return pipe.transformer(x, t.expand(len(x)), own).sample[:, :4]

    def loop(guided):
        pipe.scheduler.set_timesteps(3)
        x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            for t in pipe.scheduler.timesteps:
                x = pipe.scheduler.step(guided(x, t), t, x).prev_sample
        return x

    def by_hand(x, t):
        noise, (alpha, s) = noise_of(x, t, labels), variance_preserving_levels()[int(t)]
        shares = classifier((x - s * noise) / alpha).softmax(1)
        doubt = 1 - shares[torch.arange(2), labels]
        shares[torch.arange(2), labels] = 0
        return noise + 1.5 * doubt[:, None, None, None] * (noise - noise_of(x, t, shares.argmax(1)))

    expected, plain = loop(by_hand), loop(lambda x, t: noise_of(x, t, labels))
    assert error(expected, plain) > 0.01
    attachment = segue.attach(pipe, segue.GFCG(1.5, classifier=classifier, lag=0))
    assert error(loop(lambda x, t: noise_of(x, t, labels)), expected) < 5 * ERROR  # and the rounding of a choice's share
    assert attachment.plan.cost.evaluations == 6
    with pytest.raises(ValueError, match="is for samples of a class, and the pipeline asks for class 1000 of 1000"):
        draw(pipe, labels=(7, CLASSES), scale=1.0)
