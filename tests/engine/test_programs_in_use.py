"""A program has one user at a time."""

import threading

import pytest
import torch
from attached_runs import draw
from tiny_models import tiny_sit
from tiny_sd3 import tiny_pipeline

import segue
from segue import APG, CFG, Engine, SkipLayer
from segue.engine.sampler import run_program

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
