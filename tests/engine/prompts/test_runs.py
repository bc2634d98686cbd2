"""Runs of the prompt engine: what they evaluate, what a callback sees and stops, embeddings, encoders that come and go."""

import gc
import weakref
from contextlib import contextmanager

import pytest
import torch
from attached_runs import PATHS, forced, relative_error
from counted_rows import counted_rows, planned_rows
from tiny_sd3 import T5_TOKENS, tiny_pipeline

from segue import CFG, SGG, Engine, PerturbedLayers, SkipLayer, Window
from tests.tolerances import ATTACHED_RUN

PROMPTS, SEEDS, STEPS = ["leaf", "bee", "owl"], [1, 2, 3], 5
PUBLISHED = CFG(4.5, window=Window.steps(1, 3)) + SkipLayer(3.0, (2, 3), window=Window.steps(4, 5))
RULES = {
    "unguided": None,
    "cfg": CFG(4.5),
    "published": PUBLISHED,
    "sgg": SGG(CFG(3.0), SkipLayer(2.0, (0, 5)), switch=0.6),
    "overlap": CFG(3.0, window=Window.steps(2, 4)) + SkipLayer(2.0, (1,), window=Window.steps(3, 5)),
    "hole": CFG(3.0, window=Window.steps(1, 2)) + SkipLayer(2.0, (4, 5), window=Window.steps(4, 5)),
}


@pytest.fixture(scope="module")
def engine():
    return Engine.from_pipe(tiny_pipeline(seed=4))


def generate(engine, rule=PUBLISHED, prompts=PROMPTS, **options):
    settings = {"steps": STEPS, "seeds": SEEDS[: len(prompts)]}
    if prompts is PROMPTS:
        settings |= {"negative_prompt": "dull", "max_sequence_length": T5_TOKENS}
    return engine.generate(prompts, guidance=rule, **(settings | options))


def embeddings(engine):
    return engine.encode(PROMPTS, "dull", max_sequence_length=T5_TOKENS)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", RULES)
def test_evaluations_are_those_of_the_plan(engine, name, path):
    """Calls, batch shapes and blocks, through ``generate`` and through ``sample`` in batches."""
    with forced(engine.pipe, path):
        with counted_rows() as rows:
            run = generate(engine, RULES[name])
        assert rows == planned_rows(run.plan, 3) and sum(rows) == run.plan.cost.blocks * 3
        with counted_rows() as rows:
            again = engine.sample(embeddings(engine), RULES[name], steps=STEPS, seeds=SEEDS, max_batch=2)
        assert rows == planned_rows(run.plan, 2) + planned_rows(run.plan, 1)
    assert relative_error(again.latents, run.latents) < ATTACHED_RUN


def test_only_live_branches_run(engine):
    with counted_rows() as rows:
        generate(engine, prompts=PROMPTS)
    # blocks 2 and 3 are skipped: the weak rows fork after block 1 and go through blocks 4 and 5
    assert rows == [6] * 6 * 3 + [3, 3, 3, 3, 6, 6] * 2


def test_perturbed_attention_on_modules_is_refused_before_any_work(engine, monkeypatch):
    rule = PerturbedLayers(2.0, (2,), kind="attention_identity")
    encoded, plan = embeddings(engine), engine.plan(rule, steps=2, text_tokens=7 + T5_TOKENS)
    noise = engine.draw_noise(plan, SEEDS)
    model = engine.denoiser(rule, encoded)
    expected = model(noise, torch.full((3,), 0.5))
    monkeypatch.setattr(engine.pipe, "encode_prompt", None)
    calls = [
        lambda: generate(engine, rule),
        lambda: engine.sample(encoded, rule, steps=2),
        lambda: engine.load(plan, encoded, SEEDS, noise),
        lambda: model(noise, torch.full((3,), 0.5)),
    ]
    with forced(engine.pipe, "modules"), counted_rows() as rows:
        for call in calls:
            with pytest.raises(ValueError, match="through its own modules has no attention_identity; only skip"):
                call()
        with pytest.raises(ValueError, match="numerics='diffusers' needs packed weights, and proj_out has hooks"):
            engine.sample(encoded, CFG(2.0), steps=2, numerics="diffusers")
    assert not rows
    assert torch.equal(model(noise, torch.full((3,), 0.5)), expected)


class Watch:
    """A callback that keeps what it sees, and stops the run after ``calls`` calls."""

    def __init__(self, calls=None):
        self.calls, self.seen, self.states = calls, [], []

    def __call__(self, info):
        self.seen.append((info.call, info.calls, info.live, info.sigma))
        self.states.append(info.x.clone())
        return None if self.calls is None else len(self.seen) < self.calls


@pytest.mark.parametrize("path", PATHS)
def test_a_callback_sees_every_call_and_the_last_state_is_the_result(engine, path):
    watch = Watch()
    with forced(engine.pipe, path):
        run = generate(engine, callback=watch)
    plan = run.plan
    assert watch.seen == [(call, 5, plan.live[call], float(plan.sigmas[call])) for call in range(5)]
    assert torch.equal(watch.states[-1], run.latents) and run.calls == 5


def test_a_stopped_run_returns_the_images_of_its_batch_as_far_as_they_came(engine):
    full, cut = Watch(), Watch(2)
    generate(engine, callback=full)
    run = generate(engine, callback=cut)
    assert run.calls == 2 and torch.equal(run.latents, full.states[1])
    assert len(run.images) == 3 and run.prompts == tuple(PROMPTS) and run.seeds == tuple(SEEDS)
    assert [image.tobytes() for image in run.images] == [image.tobytes() for image in engine.decode(full.states[1])]


def test_a_run_stopped_in_a_later_batch_returns_those_before_it_too(engine):
    whole = generate(engine, max_batch=1)
    run = generate(engine, max_batch=1, callback=Watch(STEPS + 2))  # in the second call of the second batch
    assert run.calls == 2 and run.prompts == ("leaf", "bee") and run.seeds == (1, 2) and len(run.images) == 2
    assert torch.equal(run.latents[0], whole.latents[0]) and relative_error(run.latents[1], whole.latents[1]) > 0.01
    assert torch.equal(generate(engine, max_batch=1).latents, whole.latents)


def test_an_error_in_a_callback_leaves_the_engine_usable(engine):
    def fail(info):
        raise RuntimeError("stop here")

    before = generate(engine).latents
    for path in PATHS:
        with forced(engine.pipe, path), pytest.raises(RuntimeError, match="stop here"):
            generate(engine, callback=fail)
    assert "forward" not in vars(engine.pipe.transformer)
    assert torch.equal(generate(engine).latents, before)


@pytest.mark.parametrize("shown", [True, False])
def test_progress_counts_the_calls_of_all_batches(engine, shown, monkeypatch):
    bars = []

    @contextmanager
    def bar(title, total, shown=True):
        bars.append([total, shown, 0])

        def advance():
            bars[-1][2] += 1

        yield advance

    monkeypatch.setattr("segue.engine.core.progress_bar", bar)
    generate(engine, max_batch=2, progress=shown)
    assert bars == [[2 * STEPS, shown, 2 * STEPS]]


def test_embeddings_in_the_place_of_prompts(engine):
    expected = generate(engine, num_images=2, seeds=range(6))
    run = generate(engine, prompts=embeddings(engine), num_images=2, seeds=range(6))
    assert torch.equal(run.latents, expected.latents) and run.prompts == ()
    assert [image.tobytes() for image in run.images] == [image.tobytes() for image in expected.images]


def test_freed_text_encoders_are_gone_and_embeddings_draw_on():
    engine = Engine.from_pipe(tiny_pipeline(seed=4))
    expected, encoded = generate(engine).latents, embeddings(engine)
    encoders = [weakref.ref(getattr(engine.pipe, name)) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")]
    engine.free_text_encoders()
    gc.collect()
    assert [encoder() for encoder in encoders] == [None] * 3
    assert torch.equal(generate(engine, prompts=encoded).latents, expected)
    with pytest.raises(
        ValueError, match=r"no text_encoder, text_encoder_2 \(freed, or never loaded\), which prompts need; pass"
    ):
        generate(engine)


@pytest.fixture
def moves(monkeypatch):
    """Make modules remember where they are told to go, as the CPU alone has no second device; returns their moves."""

    def watch(modules):
        noted = {id(module): [torch.device("cpu")] for module in modules}
        for module in modules:
            monkeypatch.setattr(module, "to", noted[id(module)].append)
            monkeypatch.setattr(type(module), "device", property(lambda module: noted[id(module)][-1]))
        return list(noted.values())

    return watch


def test_offloaded_text_encoders_come_for_an_encoding_and_leave_again(moves, monkeypatch):
    engine = Engine.from_pipe(tiny_pipeline(seed=4))
    expected, pipe = embeddings(engine), engine.pipe
    noted, here, away = (
        moves([pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3]),
        engine.device,
        torch.device("cuda:1"),
    )
    engine.offload_text_encoders("cuda:1")
    assert noted == [[here, away]] * 3
    again = embeddings(engine)
    assert noted == [[here, away] * 2] * 3
    assert torch.equal(again.positive.context, expected.positive.context)
    monkeypatch.setattr(pipe, "encode_prompt", None)
    with pytest.raises(TypeError):
        embeddings(engine)
    assert noted == [[here, away] * 3] * 3  # a failure leaves them where they rest


def test_text_encoders_that_the_pipeline_offloads_are_left_to_it():
    pytest.importorskip("accelerate")
    engine = Engine.from_pipe(tiny_pipeline(seed=4))
    expected = embeddings(engine)
    engine.pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(embeddings(engine).negative.context, expected.negative.context)
    with pytest.raises(ValueError, match="text_encoder has offload hooks of the pipeline, which move it already"):
        engine.offload_text_encoders()
