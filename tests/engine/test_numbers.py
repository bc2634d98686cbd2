"""Every number that a caller can give: NumPy's and 0-d tensors are numbers, truth values and texts are none, anywhere."""

import json

import numpy as np
import pytest
import torch
from tiny_models import tiny_sit
from tiny_sd3 import T5_TOKENS, tiny_pipeline

from segue import (
    APG,
    CFG,
    SGG,
    AutoGuidance,
    CFGZeroStar,
    EarlyExit,
    Engine,
    Guidance,
    PerturbedLayers,
    Rescale,
    Schedule,
    SkipLayer,
    Term,
    Weight,
    Window,
    euler_maruyama,
    flow_shift,
    from_extrapolation,
    from_sigmas,
    linear,
    resolution_shift,
)
from segue.engine.core import EngineCore
from segue.engine.planning.plan_text import plan_dict
from segue.engine.rules.branch import UNCOND
from segue.kernels.philox import normal_noise, random_words
from segue.models.layout import Hints
from segue.models.sizes import family_spec
from segue.training.data.source import Batches
from segue.training.objectives.label_dropout import LabelDropout
from segue.training.settings import TrainSettings

MOST = 2**64 - 1


class Context:
    """Engines that entries draw from, made once."""

    def __init__(self):
        self.engine = Engine(tiny_sit())
        self.prompts = Engine.from_pipe(tiny_pipeline("sd3"))
        self.text = self.prompts.encode("leaf", max_sequence_length=T5_TOKENS)


@pytest.fixture(scope="module")
def given():
    return Context()


def planned(plan) -> str:
    """All of a plan, as records hold it: numbers that JSON cannot write raise."""
    return json.dumps(plan_dict(plan))


def drawn(run) -> str:
    samples = (run.latents.tolist(), [int(seed) for seed in run.seeds], getattr(run, "labels", ()))
    assert all(type(seed) is int for seed in run.seeds)
    return json.dumps([planned(run.plan), samples])


def sample(given: Context, **options) -> str:
    return drawn(given.engine.sample(**({"labels": [1], "seeds": [3], "steps": 1} | options)))


def generate(given: Context, **options) -> str:
    settings = {"max_sequence_length": T5_TOKENS, "seeds": 3, "steps": 2}
    return drawn(given.prompts.generate("leaf", **(settings | options)))


# entry and argument -> (what it makes of a number, a number that it takes)
WHOLE = {
    "CFG condition": (lambda g, n: CFG(2.0, condition=n), 4),
    "CFG channels": (lambda g, n: CFG(2.0, channels=n), 3),
    "reused": (lambda g, n: CFG(2.0).reused(n), 3),
    "SkipLayer layers": (lambda g, n: SkipLayer(2.0, (n,)), 3),
    "PerturbedLayers layers": (lambda g, n: PerturbedLayers(2.0, (1, n), kind="attention_blur"), 3),
    "EarlyExit layer": (lambda g, n: EarlyExit(2.0, n), 2),
    "CFGZeroStar zero_steps": (lambda g, n: CFGZeroStar(n), 2),
    "linear steps": (lambda g, n: linear(n), 3),
    "flow_shift steps": (lambda g, n: flow_shift(n), 3),
    "resolution_shift tokens": (lambda g, n: resolution_shift(3, n), 64),
    "plan steps": (lambda g, n: planned(g.engine.plan(CFG(2.0), n)), 3),
    "plan height": (lambda g, n: planned(g.engine.plan(CFG(2.0), 2, height=n)), 8),
    "plan width": (lambda g, n: planned(g.engine.plan(CFG(2.0), 2, width=n)), 8),
    "sample labels": (lambda g, n: sample(g, labels=[n]), 2),
    "sample seeds": (lambda g, n: sample(g, seeds=[n]), 5),
    "sample steps": (lambda g, n: sample(g, steps=n), 2),
    "sample height": (lambda g, n: sample(g, height=n), 4),
    "sample width": (lambda g, n: sample(g, width=n), 4),
    "sample max_batch": (lambda g, n: sample(g, labels=[1, 2], seeds=[3, 4], max_batch=n), 2),
    "denoiser labels": (lambda g, n: g.engine.denoiser(None, [n]).shape, 2),
    "denoiser height": (lambda g, n: g.engine.denoiser(None, [1], height=n).shape, 4),
    "prompt plan steps": (lambda g, n: planned(g.prompts.plan(None, n)), 3),
    "prompt plan height": (lambda g, n: planned(g.prompts.plan(None, 2, height=n)), 6),
    "prompt plan text_tokens": (lambda g, n: planned(g.prompts.plan(None, 2, text_tokens=n)), 6),
    "prompt denoiser width": (lambda g, n: g.prompts.denoiser(None, g.text, width=n).shape, 6),
    "generate num_images": (lambda g, n: generate(g, num_images=n), 2),
    "generate height": (lambda g, n: generate(g, height=n), 12),
    "generate width": (lambda g, n: generate(g, width=n), 12),
    "generate steps": (lambda g, n: generate(g, steps=n), 2),
    "generate max_batch": (lambda g, n: generate(g, max_batch=n), 2),
    "generate max_sequence_length": (lambda g, n: generate(g, max_sequence_length=n), 4),
    "decode max_batch": (lambda g, n: [i.tobytes() for i in g.prompts.decode(torch.zeros(3, 4, 8, 8), n)], 2),
    "encode max_sequence_length": (lambda g, n: g.prompts.encode("leaf", max_sequence_length=n).positive.context.tolist(), 4),
    "embeddings repeat": (lambda g, n: len(g.text.repeat(n)), 3),
    "family_spec image_size": (lambda g, n: family_spec("sit", "S/2", n), 64),
    "hints exit_layer": (lambda g, n: Hints(exit_layer=n), 4),
    "training steps": (lambda g, n: json.dumps(vars(TrainSettings(steps=n)), default=vars), 7),
    "training seed": (lambda g, n: json.dumps(vars(TrainSettings(seed=n)), default=vars), 7),
    "Batches seed": (lambda g, n: vars(Batches(None, 3, n)), 7),
}
HALF = 0.5
REAL = {
    "CFG scale": lambda g, x: CFG(x),
    "CFG delta": lambda g, x: CFG(2.0, delta=x),
    "CFG function": lambda g, x: planned(g.engine.plan(CFG(lambda sigma: x), 2)),
    "SkipLayer weight": lambda g, x: SkipLayer(x, (1,)),
    "EarlyExit weight": lambda g, x: EarlyExit(x, 2),
    "AutoGuidance weight": lambda g, x: AutoGuidance(x),
    "Weight base": lambda g, x: Guidance((Term(UNCOND, Weight(x)),)),
    "SGG switch": lambda g, x: SGG(CFG(2.0), SkipLayer(1.0, (1,)), x),
    "Window.sigma": lambda g, x: Window.sigma(0.25, x),
    "Window.fraction": lambda g, x: Window.fraction(x, 1),
    "Rescale": lambda g, x: Rescale(x),
    "APG momentum": lambda g, x: APG(x, 1.0, 0.0),
    "APG eta": lambda g, x: APG(0.0, 1.0, x),
    "from_extrapolation": lambda g, x: CFG(2.0) + SkipLayer(from_extrapolation(x), (1,)),
    "linear start": lambda g, x: linear(3, x),
    "flow_shift shift": lambda g, x: flow_shift(3, x),
    "Schedule": lambda g, x: Schedule((1.0, x, 0.0)),
    "from_sigmas": lambda g, x: from_sigmas([1.0, x, 0.0]),
    "plan schedule": lambda g, x: planned(g.engine.plan(None, schedule=[1.0, x, 0.0])),
    "truncate": lambda g, x: linear(4).truncate(x),
    "euler_maruyama last_sigma": lambda g, x: euler_maruyama(last_sigma=x).last_sigma,
    "euler_maruyama diffusion": lambda g, x: planned(g.engine.plan(None, 2, solver=euler_maruyama(lambda sigma: x))),
    "prompt plan strength": lambda g, x: planned(g.prompts.plan(None, 4, strength=x)),
    "generate strength": lambda g, x: generate(g, latents=torch.ones(1, 4, 8, 8), strength=x),
    "training learning_rate": lambda g, x: json.dumps(vars(TrainSettings(learning_rate=x)), default=vars),
    "LabelDropout": lambda g, x: json.dumps(vars(LabelDropout(x))),
}


def kinds_of_whole(n: int) -> list:
    return [np.int64(n), np.uint8(n), np.array(n), torch.tensor(n), torch.tensor(n, dtype=torch.int32)]


def no_whole_numbers(n: int) -> list:
    truth = [True, np.True_, np.array(True), torch.tensor(True)]
    return [*truth, float(n), np.float64(n), torch.tensor(float(n)), str(n), np.array([n, n]), torch.tensor([n]), n + 0j]


REAL_KINDS = [np.float64(HALF), np.float32(HALF), np.float16(HALF), np.array(HALF), torch.tensor(HALF)]
REAL_KINDS += [torch.tensor(HALF, dtype=torch.bfloat16), torch.tensor(HALF, requires_grad=True)]
NO_REALS = [True, np.True_, np.array(True), torch.tensor(True), "0.5", HALF + 0j, float("nan"), np.float32("nan")]
NO_REALS += [torch.tensor(float("nan")), np.array([[HALF]]), torch.tensor([[HALF]])]
SEVERAL = [[HALF], np.array([HALF]), torch.tensor([HALF])]
# one number, or one for each sample of a batch
EACH = {"CFG scale", "CFG delta", "SkipLayer weight", "EarlyExit weight", "AutoGuidance weight", "Weight base", "Rescale"}
EACH |= {"APG momentum", "APG eta", "from_extrapolation", "CFGZeroStar zero_steps"}


@pytest.mark.parametrize("entry", WHOLE)
def test_whole_numbers_of_every_kind_are_the_same(given, entry):
    make, number = WHOLE[entry]
    expected = make(given, number)
    for value in kinds_of_whole(number):
        if entry in ("hints exit_layer", "family_spec image_size") and isinstance(value, np.ndarray | torch.Tensor):
            continue  # the models below the engine take Python's and NumPy's
        assert make(given, value) == expected, repr(value)


@pytest.mark.parametrize("entry", REAL)
def test_numbers_of_every_kind_are_the_same(given, entry):
    expected = REAL[entry](given, HALF)
    for value in REAL_KINDS:
        assert REAL[entry](given, value) == expected, repr(value)


def refused(given, monkeypatch, make, value) -> None:
    """One sentence with the value, before a prompt is encoded or a program made."""
    with monkeypatch.context() as patch:
        patch.setattr(EngineCore, "prepare", lambda *_: pytest.fail(f"{value!r} got as far as a program"))
        with pytest.raises((TypeError, ValueError)) as caught:
            make(given, value)
    message, number = str(caught.value), value.item() if getattr(value, "ndim", 1) == 0 else value
    assert "\n" not in message and any(shown in message for shown in (repr(value), str(value), str(number))), message


@pytest.mark.parametrize("entry", WHOLE)
def test_what_is_no_whole_number_is_refused(given, monkeypatch, entry):
    make, number = WHOLE[entry]
    monkeypatch.setattr(given.prompts.pipe, "encode_prompt", lambda *_, **__: pytest.fail("a prompt was encoded"))
    values = no_whole_numbers(number)
    for value in values if entry not in EACH else (value for value in values if getattr(value, "ndim", 0) == 0):
        refused(given, monkeypatch, make, value)


@pytest.mark.parametrize("entry", REAL)
def test_what_is_no_number_is_refused(given, monkeypatch, entry):
    monkeypatch.setattr(given.prompts.pipe, "encode_prompt", lambda *_, **__: pytest.fail("a prompt was encoded"))
    text = (str,) if entry == "SGG switch" else ()  # which may be a window's text
    for value in NO_REALS if entry in EACH else NO_REALS + SEVERAL:
        if isinstance(value, text):
            continue
        refused(given, monkeypatch, REAL[entry], value)


@pytest.mark.parametrize("entry", sorted(EACH))
def test_a_number_for_each_sample_of_every_kind(given, monkeypatch, entry):
    make, one, other = (WHOLE[entry][0], 2, 3) if entry in WHOLE else (REAL[entry], HALF, 0.25)
    expected = make(given, [one, other])
    assert expected.samples == 2
    assert [expected.of_sample(i) for i in range(2)] == [make(given, one), make(given, other)]
    for value in ((one, other), np.array([one, other]), torch.tensor([one, other]), [np.array(one), torch.tensor(other)]):
        assert make(given, value) == expected, repr(value)
    for value in ([one, True], [one, "0.5"], (one, None), [one, [other]], np.array([True, False]), [], torch.ones(0)):
        with pytest.raises((TypeError, ValueError), match="got"):
            make(given, value)


def test_one_seed_of_any_kind_counts_up(given):
    expected = sample(given, labels=[1, 2], seeds=[5, 6])
    for value in (5, *kinds_of_whole(5), np.array([5, 6]), torch.tensor([5, 6]), range(5, 7)):
        assert sample(given, labels=[1, 2], seeds=value) == expected
    for value in (True, np.True_, torch.tensor(True), 5.0, "56", torch.tensor([[5, 6]])):
        with pytest.raises(TypeError, match="seeds must be"):
            sample(given, labels=[1, 2], seeds=value)


def test_a_level_for_every_sample_of_a_denoiser(given):
    """As a loop written by hand has it: ``sigmas[i]``, a tensor without dimensions, or a number of Python's."""
    denoiser, x = given.engine.denoiser(CFG(2.0), [1, 2]), torch.ones(2, 4, 6, 10)
    expected = denoiser(x, torch.full((2,), HALF))
    for value in (HALF, *REAL_KINDS):
        if not getattr(value, "requires_grad", False):  # a level has no gradient: refused where one is wanted
            assert torch.equal(denoiser(x, value), expected)
    for value in (True, "0.5", [HALF, HALF], None, torch.tensor(True), torch.tensor([True, True])):
        with pytest.raises(TypeError, match="sigma must be a tensor of noise levels or one number, got"):
            denoiser(x, value)


def test_a_missing_negative_prompt_is_an_empty_one_as_in_diffusers(given):
    settings = {"guidance": CFG(3.0), "seeds": 3, "steps": 2, "max_sequence_length": T5_TOKENS}
    runs = [given.prompts.generate("leaf", negative, **settings) for negative in (None, "")]
    assert torch.equal(runs[0].latents, runs[1].latents)
    pipe = given.prompts.pipe
    options = {"num_inference_steps": 2, "max_sequence_length": T5_TOKENS, "output_type": "latent", "guidance_scale": 3.0}
    theirs = pipe("leaf", negative_prompt=None, generator=torch.Generator().manual_seed(3), **options).images
    assert (runs[0].latents - theirs).abs().max() < 1e-4 * theirs.abs().max()


# --- seeds of 64 bits --------------------------------------------------------------------------------------------------


def philox(key: int, call: int) -> list[int]:
    """The four words of counter (0, call, 0, 0), in Python's integers, after the paper."""
    c, k = [0, call, 0, 0], [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        first, second = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [second >> 32 ^ c[1] ^ k[0], second & 0xFFFFFFFF, first >> 32 ^ c[3] ^ k[1], first & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


@pytest.mark.parametrize("seed_", [0, 5, 2**32 + 5, 2**63, 2**63 + 5, MOST])
def test_all_64_bits_of_a_seed_reach_the_noise_of_the_loop(given, seed_):
    engine = given.engine
    plan = engine.plan(None, 2, solver="euler-maruyama")
    program = engine.load(plan, [1], [seed_], torch.zeros(1, 4, 6, 10))
    assert [int(value) % 2**64 for value in program.seeds] == [seed_]
    assert random_words(program.seeds, torch.tensor([3]), 4).tolist() == [philox(seed_, 3)]
    engine.release(program)


def test_the_largest_seed_of_comfyui(given):
    """Alone, in a batch, of NumPy and of PyTorch: the same sample, whose noise is that of a generator with this seed."""
    options = {"solver": "euler-maruyama", "steps": 3}
    alone = given.engine.sample([1], seeds=[MOST], **options)
    for value in (np.uint64(MOST), torch.tensor(MOST, dtype=torch.uint64)):
        assert given.engine.sample([1], seeds=value, **options).seeds == alone.seeds == (MOST,)
    batch = given.engine.sample([1, 1, 1], seeds=[MOST, MOST - 2**63, 2**32 - 1], **options)
    assert (batch.latents[0] - alone.latents[0]).abs().max() < 1e-5
    assert (batch.latents[0] - batch.latents[1]).abs().max() > 0.1 and (batch.latents[0] - batch.latents[2]).abs().max() > 0.1
    noise = given.engine.draw_noise(alone.plan, [MOST])
    assert torch.equal(noise[0], torch.randn(4, 6, 10, generator=torch.Generator().manual_seed(MOST)))
    assert not torch.equal(*(normal_noise(torch.tensor([s]), torch.tensor([0]), 9) for s in (-1, 2**63 - 1)))


@pytest.mark.parametrize("seeds", [[-1], [2**64], 2**64, [10**30]])
def test_a_seed_out_of_range(given, seeds):
    with pytest.raises(ValueError, match=r"a seed must lie in \[0, 2\^64\), got (-1|18446744073709551616|1000)"):
        given.engine.sample([1], seeds=seeds)
    with pytest.raises(ValueError, match=r"got 18446744073709551616"):
        given.engine.sample([1, 2], seeds=MOST)  # counts up, and past the end
