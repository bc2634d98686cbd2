"""References drawn from the prompts of classes: on a tiny SD3, against a loop over samples with diffusers' own transformer."""

import pytest
import torch
from attached_runs import PATHS, forced, relative_error
from counted_rows import counted_rows
from naive_draws import choice, waving_classifier
from step_trace import check_step
from tiny_sd3 import T5_TOKENS, tiny_pipeline

import segue
from segue import CFG, GFCG, ICG, Engine, SkipLayer
from segue.engine.prompts.class_pools import drawn_prompts
from segue.engine.prompts.encoding import PromptEmbeddings
from segue.engine.rules.drawn import ClassPrompts
from segue.engine.running.draws import other_classes
from tests.tolerances import ATTACHED_RUN

NAMES, TEMPLATE = ("an oak", "an elm", "a bay"), "see {}, so"
PROMPTS, OWN, SEEDS, STEPS = ["see an elm", "old an oak", "a bay"], [1, 0, 2], [5, 6, 7], 4
CLASSES = {"classes": NAMES, "template": TEMPLATE}
CLASSIFIER = waving_classifier(len(NAMES), seed=1, waves=2.0)


@pytest.fixture(scope="module")
def engine():
    return Engine.from_pipe(tiny_pipeline(seed=4))


def generate(engine, rule, **options):
    settings = {"steps": STEPS, "seeds": SEEDS, "max_sequence_length": T5_TOKENS, "negative_prompt": "dull", "output": "latent"}
    return engine.generate(PROMPTS, guidance=rule, **(settings | options))


@torch.no_grad()
def naive(engine, rule, sigmas):
    """The latents by Euler's method, and the labels used at every call (3 stands for the plain prompt)."""
    pipe, (term,) = engine.pipe, rule.terms
    draw, own = term.branch.condition, engine.encode(PROMPTS, "dull", max_sequence_length=T5_TOKENS)
    pool = engine.encode([TEMPLATE.replace("{}", name) for name in NAMES], None, max_sequence_length=T5_TOKENS).positive
    plain = own.negative if getattr(draw, "form", "") == "cfg-swap" else own.positive

    def velocity(x, sigma, texts):
        context, pooled = torch.stack([c for c, _ in texts]), torch.stack([p for _, p in texts])
        time = torch.full((len(x),), 1000 * sigma)
        return pipe.transformer(x, context, pooled, time, return_dict=False)[0]

    x = torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS])
    chosen, used = [(None, 1.0 if getattr(draw, "form", "") != "rival" else 0.0)] * 3, []
    for call, (sigma, following) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        conditional = velocity(x, sigma, list(zip(own.positive.context, own.positive.pooled, strict=True)))
        found = (
            [choice(row, k, draw) for row, k in zip(CLASSIFIER(x - sigma * conditional).tolist(), OWN, strict=True)]
            if (hasattr(draw, "lag"))
            else [(int(other_classes(seed, len(sigmas) - 1, k, 3)[call]), 1.0) for seed, k in zip(SEEDS, OWN, strict=True)]
        )
        if not getattr(draw, "lag", 0):
            chosen = found
        texts = [
            (plain.context[i], plain.pooled[i]) if k is None else (pool.context[k], pool.pooled[k])
            for i, (k, _) in enumerate(chosen)
        ]
        used.append([3 if k is None else k for k, _ in chosen])
        factors = torch.tensor([factor for _, factor in chosen])[:, None, None, None]
        guided = conditional + term.weight.base * factors * (conditional - velocity(x, sigma, texts))
        x, chosen = x + (following - sigma) * guided, found
    return x, used


RULES = {
    "rival, lag 0": GFCG(1.5, classifier=CLASSIFIER, lag=0, **CLASSES),
    "rival, lag 1": GFCG(1.5, classifier=CLASSIFIER, **CLASSES),
    "swap, lag 0": GFCG(1.5, classifier=CLASSIFIER, form="cfg-swap", lag=0, **CLASSES),
    "swap, lag 1": GFCG(1.5, classifier=CLASSIFIER, form="cfg-swap", **CLASSES),
    "random": ICG(2.5, **CLASSES),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_drawn_prompt_of_each_sample_and_call_is_that_of_a_loop(engine, rule, path):
    with forced(engine.pipe, path):
        found = []
        run = generate(engine, rule, callback=lambda info: found.append(held_labels(engine)))
        with counted_rows() as rows:
            again = generate(engine, rule, max_batch=2)
        expected, used = naive(engine, rule, list(run.plan.schedule.sigmas))
    assert relative_error(run.latents, expected) < 5 * ATTACHED_RUN  # a choice's factor adds the rounding of its logits
    assert relative_error(again.latents, expected) < 5 * ATTACHED_RUN
    first = 0 if 1 in run.plan.live[0] else 1  # a rival that nothing chose weighs nothing, and does not run
    assert found[first:] == used[first:]
    assert sum(rows) == 3 * run.plan.cost.blocks
    assert len(set(map(tuple, used))) > 1


def held_labels(engine):
    """The drawn labels of the program that runs."""
    (program,) = [reference() for reference in engine._taken.valuerefs()]
    return program.draws.labels[0].tolist()


def test_a_step_on_prompts_could_be_captured(engine):
    rule = (
        GFCG(1.0, classifier=lambda clean: clean.flatten(1)[:, :3], lag=0, **CLASSES)
        + ICG(1.5, **CLASSES)
        + SkipLayer(1.0, (1,))
    )
    embeddings = engine.encode(PROMPTS, "dull", max_sequence_length=T5_TOKENS)
    plan = engine.plan(rule, steps=STEPS, text_tokens=embeddings.positive.context.shape[1])
    program = engine.load(plan, embeddings, SEEDS, torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)))
    for live in plan.live_sets:
        assert len(check_step(program, live).operations) > 50


def test_the_prompts_of_classes_are_embedded_once(engine, monkeypatch):
    generate(engine, RULES["random"])
    encoded = []
    monkeypatch.setattr(type(engine), "encode", lambda self, *args, **options: encoded.append(args))
    embeddings = PromptEmbeddings(*[engine._pools._kept[ClassPrompts(NAMES, TEMPLATE), 13]] * 2, tuple(PROMPTS))
    engine.sample(embeddings, RULES["random"], steps=2, seeds=SEEDS)
    assert not encoded


def test_the_class_of_a_prompt_is_the_longest_name_in_it():
    classes = ClassPrompts(("oak", "red oak", "elm"))
    assert [classes.label_of(text) for text in ("a red oak leaf", "oak", "an elm")] == [1, 0, 2]
    assert classes.prompts == ["oak", "red oak", "elm"]
    with pytest.raises(ValueError, match="'a bee' names none of the rule's classes: oak, red oak, elm"):
        classes.label_of("a bee")
    for names, template, words in ((("oak",), "{}", "at least two"), (("a", "a"), "{}", "distinct"), (("a", "b"), "x", "once")):
        with pytest.raises(ValueError, match=words):
            ClassPrompts(names, template)


def test_what_prompts_cannot_do_is_one_sentence(engine):
    embedded = engine.encode(PROMPTS, None, max_sequence_length=T5_TOKENS)
    for rule, given, words in (
        (ICG(2.0), embedded, "which takes prompts, is drawn from classes"),
        (RULES["random"], PromptEmbeddings(embedded.positive), "came without texts"),
        (RULES["swap, lag 1"], embedded, "hold no negative prompt"),
        (GFCG(1.0, classifier=CLASSIFIER, classes=NAMES[:2]), embedded, "tells 3 classes apart, and the rule names 2"),
        (GFCG(1.0, classifier="herbarium-classifier", **CLASSES), embedded, "tells 48 classes apart, and the rule names 3"),
    ):
        with pytest.raises(ValueError, match=words), counted_rows() as rows:
            engine.sample(given, rule, steps=2, seeds=SEEDS)
        assert not rows
    with pytest.raises(ValueError, match="names none of the rule's classes"):
        engine.generate("a bee", guidance=RULES["random"], steps=2, max_sequence_length=T5_TOKENS, output="latent")
    with pytest.raises(ValueError, match="adds up the terms of each call, and the rule has a random label"):
        generate(engine, RULES["random"], numerics="diffusers")
    with pytest.raises(ValueError, match=r"an attached pipeline gives its own alone: use Engine.from_pipe"):
        segue.attach(engine.pipe, CFG(2.0) + RULES["random"])
    with pytest.raises(ValueError, match=r"give classes beside .a \{\}"):
        ICG(2.0, template="a {}")
    pool = engine._pools.pool(ClassPrompts(NAMES, TEMPLATE), 13, lambda texts: embedded.positive, ())
    with pytest.raises(ValueError, match="came without texts"):
        drawn_prompts(RULES["random"].terms[0].branch.condition, pool, PromptEmbeddings(embedded.positive))
