"""The loop: callbacks, stopping, exceptions, finite checks, seeds and noise."""

from contextlib import contextmanager

import pytest
import torch
from tiny_models import tiny_sit

from segue import CFG, Engine, NonFiniteError, SkipLayer
from segue.kernels.philox import normal_noise, philox4x32

RULE = CFG(2.0) + SkipLayer(1.0, (3,))


@pytest.fixture
def engine():
    return Engine(tiny_sit(), device="cpu")


def test_a_callback_sees_every_call_in_order(engine):
    seen = []
    run = engine.sample([0, 1], RULE, steps=5, seeds=0, solver="heun", callback=lambda info: seen.append(info))
    assert [info.call for info in seen] == list(range(9))
    assert [info.sigma for info in seen] == run.plan.sigmas.tolist()
    assert [info.step for info in seen] == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert run.calls == 9


def test_a_callback_may_change_the_state_and_stop_the_run(engine):
    def freeze(info):
        info.x.zero_()
        return info.call < 1

    run = engine.sample([0], RULE, steps=5, seeds=0, callback=freeze)
    assert run.calls == 2
    assert not run.latents.any()


def test_a_run_stopped_in_its_second_batch_names_the_samples_it_holds(engine):
    calls = []
    options = {"steps": 3, "seeds": 7, "max_batch": 2}
    run = engine.sample([0, 1, 2, 3, 4], RULE, callback=lambda info: calls.append(info) or len(calls) < 4, **options)
    assert (run.calls, run.labels, run.seeds) == (1, (0, 1, 2, 3), (7, 8, 9, 10))
    whole = engine.sample([0, 1, 2, 3, 4], RULE, **options).latents
    assert torch.equal(run.latents[:2], whole[:2])
    assert len(run.latents) == 4


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_failed_run_leaves_the_engine_usable(engine, error):
    expected = engine.sample([0, 1], RULE, steps=5, seeds=0).latents

    def fail(info):
        if info.call == 2:
            raise error

    with pytest.raises(error):
        engine.sample([0, 1], RULE, steps=5, seeds=0, callback=fail)
    assert torch.equal(engine.sample([0, 1], RULE, steps=5, seeds=0).latents, expected)


def test_check_finite_names_the_call_and_the_branch(engine):
    """Block 3 is the first one that the skip-layer branch alone does not run: poison it and only that branch is finite."""
    block = engine.models["main"].blocks[3]

    def poison(info):
        if info.call == 1:
            block.mlp.fc2.bias.fill_(float("nan"))

    with pytest.raises(NonFiniteError, match=r"after call 3 of 5 .*first in branch cond, uncond$"):
        engine.sample([0, 1], RULE, steps=5, seeds=0, callback=poison, check_finite=True)


def test_check_finite_changes_nothing_when_all_is_well(engine):
    plain = engine.sample([0, 1], RULE, steps=5, seeds=0).latents
    assert torch.equal(engine.sample([0, 1], RULE, steps=5, seeds=0, check_finite=True).latents, plain)


def test_random_seeds_are_recorded_and_repeat(engine):
    run = engine.sample([0, 1], RULE, steps=2)
    assert run.seeds[0] != run.seeds[1]
    assert torch.equal(engine.sample([0, 1], RULE, steps=2, seeds=run.seeds).latents, run.latents)


def test_initial_noise_is_the_seeds_own_and_can_be_given(engine):
    noise = torch.stack([torch.randn(4, 6, 10, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6)])
    given = engine.sample([0, 1], RULE, steps=3, seeds=[5, 6], noise=noise)
    assert torch.equal(given.latents, engine.sample([0, 1], RULE, steps=3, seeds=[5, 6]).latents)


def test_loop_noise_depends_on_seed_and_call_only():
    seeds, calls = torch.tensor([3, 2**40 + 1, 3]), torch.tensor([0, 7, 1])
    together = normal_noise(seeds, calls, 63)
    for i in range(3):
        assert torch.equal(normal_noise(seeds[i : i + 1], calls[i : i + 1], 63)[0], together[i])
    assert not torch.equal(together[0], together[2])
    many = normal_noise(torch.arange(64), torch.zeros(64, dtype=torch.int64), 4097)
    assert abs(float(many.mean())) < 0.01  # 262,208 numbers: standard error 0.002
    assert abs(float(many.std()) - 1) < 0.01
    correlation = torch.corrcoef(many)
    assert float((correlation - torch.eye(64)).abs().max()) < 0.08  # 64 rows of 4,097: standard error 0.016


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_the_generator_gives_the_published_words(counter, key, words):
    """Random123's test vectors for philox4x32-10; the last one tells the words of counter and key apart."""
    found = philox4x32(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert [int(word) for word in found] == words


def test_unknown_keywords_and_bad_shapes_are_refused(engine):
    with pytest.raises(TypeError, match="step_count"):
        engine.sample([0], RULE, step_count=5)
    with pytest.raises(ValueError, match=r"noise must have shape \(1, 4, 6, 10\), got \(1, 4, 6, 6\)"):
        engine.sample([0], RULE, steps=2, noise=torch.zeros(1, 4, 6, 6))
    with pytest.raises(TypeError, match=r"the latent height must be a whole number, got 6\.0"):
        engine.sample([0], RULE, steps=2, height=6.0)
    with pytest.raises(TypeError, match="a schedule is a name, a list of noise levels"):
        engine.sample([0], RULE, schedule=28)
    with pytest.raises(TypeError, match="seeds must be a list of whole numbers, got True"):
        engine.sample([0], RULE, steps=2, seeds=True)
    with pytest.raises(ValueError, match="max_batch must be at least 1, got 0"):
        engine.sample([0], RULE, steps=2, max_batch=0)


def test_two_engines_on_one_network_do_not_disturb_each_other():
    network = tiny_sit()
    first = Engine(network, device="cpu")
    expected = first.sample([0, 1], RULE, steps=3, seeds=0).latents
    addresses = [parameter.data_ptr() for parameter in first.models["main"].parameters()]
    other = Engine(network, device="cpu", dtype=torch.float64)
    assert other.models["main"] is not network
    assert torch.equal(first.sample([0, 1], RULE, steps=3, seeds=0).latents, expected)
    assert [parameter.data_ptr() for parameter in first.models["main"].parameters()] == addresses
    assert (other.sample([0, 1], RULE, steps=3, seeds=0).latents - expected).abs().max() < 1e-4


def test_a_longer_program_serves_shorter_runs_and_the_least_used_one_goes():
    engine = Engine(tiny_sit(), device="cpu")
    engine.sample([0], RULE, steps=50, seeds=0)
    (longest,) = engine._programs.values()
    shorter = engine.sample([0], RULE, steps=28, seeds=0).latents
    assert list(engine._programs.values()) == [longest]
    assert torch.equal(shorter, Engine(tiny_sit(), device="cpu").sample([0], RULE, steps=28, seeds=0).latents)
    for batch in range(2, engine.MAX_PROGRAMS + 1):
        engine.sample([0] * batch, RULE, steps=1, seeds=0)
    engine.sample([0], RULE, steps=2, seeds=0)  # used again: the next to go is another
    engine.sample([0] * 9, RULE, steps=1, seeds=0)
    assert len(engine._programs) == engine.MAX_PROGRAMS
    assert longest in engine._programs.values()


def test_the_progress_bar_counts_calls_beside_a_callback(engine, monkeypatch):
    counted, seen = [], []

    @contextmanager
    def bar(title, total, shown):
        assert (title, total, shown) == ("tiny", 10, True)
        yield lambda: counted.append(1)

    monkeypatch.setattr("segue.engine.core.progress_bar", bar)
    engine.sample([0, 1, 2], RULE, steps=5, seeds=0, max_batch=2, progress=True, callback=lambda info: seen.append(info.call))
    assert len(counted) == 10
    assert seen == [0, 1, 2, 3, 4] * 2
