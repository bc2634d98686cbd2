"""A program has one user at a time, and nothing of how its caller set up PyTorch stays in it: grad, inference, defaults."""

import threading

import pytest
import torch
from attached_runs import draw
from tiny_models import tiny_sit
from tiny_sd3 import tiny_pipeline

import segue
from segue import APG, CFG, Engine, NonFiniteError, Rescale, SkipLayer
from segue.engine.fp8_error import fp8_error
from segue.engine.running.sampler import run_program

LABELS, SEEDS = [0, 4, 5], [7, 8, 9]
RULE = CFG(3.0) + SkipLayer(1.5, (2, 3))
WITH_MEMORY = CFG(3.0) + SkipLayer(1.5, (2, 3)).reused(2) + APG(-0.5, 2.0, 0.3)


@pytest.fixture
def engine():
    return Engine(tiny_sit(), device="cpu")


@pytest.fixture(scope="module", params=[RULE, WITH_MEMORY], ids=["sum", "memory"])
def rule(request):
    return request.param


@pytest.fixture(scope="module")
def expected(rule):
    """The run that every test draws, by an engine of its own."""
    return latents(Engine(tiny_sit(), device="cpu"), rule)


def latents(engine, rule, **options):
    return engine.sample(LABELS, rule, steps=6, seeds=SEEDS, **options).latents


def test_a_callback_may_sample_from_the_engine_that_runs(engine, rule, expected):
    inner = []

    def nested(info):
        if info.call == 2:
            inner.append(latents(engine, rule))

    assert torch.equal(latents(engine, rule, callback=nested), expected)
    assert torch.equal(inner[0], expected)
    assert len(engine._programs) == 2
    latents(engine, rule, callback=nested)
    assert len(engine._programs) == 2  # both serve again


def test_threads_run_side_by_side(engine, rule, expected):
    """Each stops in the middle of its run until the other is there too."""
    barrier, results = threading.Barrier(2, timeout=60), {}

    def work(name):
        results[name] = latents(engine, rule, callback=lambda info: barrier.wait() and None)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(results[0], expected) and torch.equal(results[1], expected)


def test_a_loaded_program_is_the_callers_until_released(engine, rule, expected):
    plan = engine.plan(rule, steps=6)
    program = engine.load(plan, LABELS, SEEDS, engine.draw_noise(plan, SEEDS))
    engine.sample([1, 1, 1], rule, steps=4, seeds=0)
    assert "up to 32 calls" in engine.explain()
    run_program(program)
    assert torch.equal(program.x, expected)
    engine.release(program)
    assert engine.load(plan, LABELS, SEEDS, engine.draw_noise(plan, SEEDS)) is program


def test_a_run_that_cannot_be_loaded_leaves_its_program_free(engine):
    plan = engine.plan(RULE, steps=6)
    latents(engine, RULE)
    kept = list(engine._programs.values())
    with pytest.raises(KeyError):
        engine.prepare(plan, {}, SEEDS, engine.draw_noise(plan, SEEDS))
    assert list(engine._programs.values()) == kept


def test_a_denoiser_gives_its_program_back(engine):
    x, sigma = torch.zeros(3, 4, 6, 10), torch.full((3,), 0.5)
    for scale in (2.0, 3.0):
        denoiser = engine.denoiser(CFG(scale), LABELS)
        denoiser(x, sigma)
        assert not engine._programs and "program: batch 3" in engine.explain()
        program = denoiser.velocity.program
        del denoiser
        assert list(engine._programs.values()) == [program]


def test_runs_of_an_attached_pipeline_follow_each_other_in_one_program():
    pipe = tiny_pipeline(seed=13)
    attachment = segue.attach(pipe, SkipLayer(2.0, (2, 3)))
    programs = []
    for _ in range(3):
        draw(pipe, guidance_scale=1.0)
        programs.append(attachment._run.velocity.program)
    assert programs[0] is programs[1] is programs[2]
    segue.detach(pipe)


@pytest.mark.parametrize("first", [True, False], ids=["inside first", "outside first"])
def test_inference_mode_may_come_and_go(engine, rule, expected, first):
    for inside in (first, not first, first):
        with torch.inference_mode(inside):
            assert torch.equal(latents(engine, rule), expected)


def test_a_run_may_be_loaded_inside_inference_mode_and_stepped_outside(engine, rule, expected):
    plan = engine.plan(rule, steps=6)
    with torch.inference_mode():
        program = engine.load(plan, LABELS, SEEDS, engine.draw_noise(plan, SEEDS))
    run_program(program)
    assert torch.equal(program.x, expected)


def test_a_run_through_modules_may_be_loaded_inside_inference_mode_and_stepped_outside():
    pipe = tiny_pipeline(seed=13)
    pipe.transformer.proj_out.register_forward_hook(lambda *_: None)  # no packed weights
    engine, rule = Engine.from_pipe(pipe), SkipLayer(2.0, (2, 3))
    embeddings = engine.encode("leaf", "", max_sequence_length=6)
    plan = engine.plan(rule, steps=3, text_tokens=embeddings.positive.context.shape[1])
    expected = engine.sample(embeddings, rule, steps=3, seeds=[1]).latents
    with torch.inference_mode():
        program = engine.load(plan, embeddings, [1], engine.draw_noise(plan, [1]))
    run_program(program)
    assert torch.equal(program.x, expected)


def test_what_requires_grad_stays_outside(engine, rule, expected):
    plan = engine.plan(rule, steps=6)
    noise = engine.draw_noise(plan, SEEDS).requires_grad_()
    drawn = latents(engine, rule, noise=noise)
    assert torch.equal(drawn, expected) and not drawn.requires_grad
    latents(engine, rule, callback=lambda info: info.x.copy_(noise) is None)
    denoiser = engine.denoiser(rule, LABELS, schedule=plan.schedule)
    assert denoiser.velocity(noise, torch.ones(3)).requires_grad  # which is recorded beside its program
    with torch.no_grad():
        assert not denoiser.velocity(noise, torch.ones(3)).requires_grad
    assert not any(tensor.requires_grad for tensor in denoiser.velocity.program.state())
    del denoiser
    drawn = latents(engine, rule)
    assert torch.equal(drawn, expected) and not drawn.requires_grad


def test_default_dtype_and_device_do_not_matter(engine, rule, expected):
    before = torch.get_default_dtype()
    try:
        for dtype in (torch.bfloat16, torch.float64):
            torch.set_default_dtype(dtype)
            drawn = latents(Engine(engine.models["main"], device="cpu", dtype=torch.float32), rule)
            assert torch.equal(drawn, expected)
    finally:
        torch.set_default_dtype(before)
    with torch.device("meta"):
        drawn = latents(engine, rule)
    assert torch.equal(drawn, expected)


@pytest.mark.parametrize("rule", [SkipLayer(2.0, (2,)).reused(2) + Rescale(0.5), CFG(3.0) + APG(0.0, 2.0, 0.3)], ids=str)
def test_a_branch_that_is_kept_apart_is_found_and_compared_alone(rule):
    exact, fp8 = (Engine(tiny_sit(), device="cpu", linears=linears) for linears in ("native", "fp8"))
    plan = exact.plan(rule, steps=3)
    noise = exact.draw_noise(plan, SEEDS)
    assert 0 < fp8_error(exact, fp8, lambda engine: engine.load(plan, LABELS, SEEDS, noise)).evaluation < 0.2
    with pytest.raises(NonFiniteError, match="first in branch cond"):
        exact.sample(LABELS, rule, steps=3, seeds=SEEDS, noise=noise * 1e38, check_finite=True)
