"""Every named rule by numbers that change nothing: unguided sampling, or the rule that it is added to, bit for bit."""

import pytest
import torch
from live_sets import engine_of, load
from naive_draws import waving_classifier

from segue import GFCG, Guidance, parse_rule
from segue.engine.rules.rule_names import NAMES
from segue.engine.running.sampler import run_program

STEPS, BATCH = 13, 3  # levels whose inverses round
PLAIN = "cfg:scale=1.3"  # what corrections are added to: 1 + 0.3 and 1.3 - 1 round in fp32
# A rule that may stop combines its branches one by one, after the projection, as corrections do; no cosine here comes near.
APART = f"{PLAIN},stop=0.999999"
CLOSE = {"rtol": 2e-5, "atol": 2e-5}  # branches are combined after the projection instead of before it
NEUTRAL = {
    "none": "none",
    "cfg": "cfg:scale=1",
    **{name: f"{name}:weight=0,layers=1" for name in ("slg", "tpg", "pag", "pag-image", "stg", "seg")},
    "s2": "s2:weight=0",
    "exit": "exit:weight=0,layer=2",
    "ag": "ag:weight=0",
    "nag": "nag:scale=1",
    "gfcg": GFCG(0.0, classifier=waving_classifier()),
    "icg": "icg:scale=1",
    "sgg": "sgg:scale=1,weight=0,layers=1,switch=0.5",
    "sgg-exit": "sgg-exit:scale=1,weight=0,layer=2,switch=0.5",
    "apg": "apg:momentum=0,radius=inf,eta=1",
    "mambo": "mambo:alpha=0",
    "power-law": "power-law:alpha=0",
    "beta": "beta:a=1,b=1,gamma=0",
    "perp-neg": "cfg:scale=1,reference=1 + perp-neg",  # nothing to be perpendicular
    "fdg": "fdg:low=1",
    "fresca": "fresca:low=1,high=1,cutoff=0.5",
    "rescale": "rescale:phi=0",
    "renorm": "renorm:rho=inf",
    "energy": "energy:phi=0",
    "tsr": "tsr:k=1",
    "epsilon": "epsilon:factor=1",
    "higs": "higs:weight=0,alpha=0.75,low=0.4,high=0.95,eta=1,cutoff=0.05",
    "refine": "refine:beta=0,cutoff=0.5,high=0.3",
}
NONE_NEUTRAL = {  # why none of a rule's own numbers changes nothing; but for CFG++ the scale of its term turns it off
    "cfgpp": "the share that weighs nothing is (sigma - next) / (sigma (1 - next)), another one at each step",
    "zero-star": "the reference is fitted whatever its numbers are: they say how many steps are silent",
    "tcfg": "it has no number",
    "adg": "it turns where the others go straight: no largest angle is that of the scale, and 0 turns guidance off",
    "fbg": "its own scale, p / (p - (1 - pi)), is above 1 for any p and pi",
}
WITHOUT = [name for name in NONE_NEUTRAL if NAMES[name].correction]
OF_TERMS = [name for name in NEUTRAL if not NAMES[name].correction]
CORRECTIONS = [name for name in NEUTRAL if NAMES[name].correction]
ALONE = [name for name in CORRECTIONS if parse_rule(f"none + {NEUTRAL[name]}").guidance.corrections[0].alone]


@pytest.fixture(scope="module")
def engines():
    return {architecture: engine_of(architecture, device="cpu") for architecture in ("sit", "dit", "sd3")}


def drawn(engine, rule, **schedule) -> torch.Tensor:
    program = load(engine, engine.plan(rule, **(schedule or {"steps": STEPS})), BATCH)
    run_program(program)
    latents = program.x.clone()
    engine.release(program)
    return latents


def guided_by(rule) -> Guidance:
    return rule if isinstance(rule, Guidance) else parse_rule(rule).guidance


def test_no_rule_is_left_out():
    assert not NEUTRAL.keys() & NONE_NEUTRAL.keys()
    assert NEUTRAL.keys() | NONE_NEUTRAL.keys() == NAMES.keys()


def test_the_numbers_are_those_of_samples_that_a_batch_leaves_uncorrected():
    for name in CORRECTIONS:
        if name != "perp-neg":  # which has no number
            (correction,) = guided_by(NEUTRAL[name]).corrections
            assert correction == type(correction).neutral(), name
    for name in ("perp-neg", *WITHOUT):
        (correction,) = guided_by(name).corrections
        assert type(correction).neutral() is None, name


@pytest.mark.parametrize(
    ("name", "architecture"),
    [(name, kind) for name in (*OF_TERMS, *ALONE) for kind in (("sd3",) if name == "nag" else ("sit", "dit"))],
)
def test_a_rule_that_stands_alone_is_unguided_bit_for_bit(engines, name, architecture):
    engine = engines[architecture]
    rule = f"none + {NEUTRAL[name]}" if name in ALONE else NEUTRAL[name]
    assert torch.equal(drawn(engine, rule), drawn(engine, None))


@pytest.mark.parametrize("architecture", ["sit", "dit"])
@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_correction_leaves_the_rule_that_it_is_added_to_bit_for_bit(engines, name, architecture):
    """As it is where its branches are combined one by one, which the corrected ones are, too."""
    engine, rule = engines[architecture], f"{PLAIN} + {NEUTRAL[name]}"
    found = drawn(engine, rule)
    apart = engine.plan(rule, steps=STEPS).keeps_apart((0, 1))
    assert torch.equal(found, drawn(engine, APART if apart else PLAIN))
    assert torch.allclose(found, drawn(engine, PLAIN), **CLOSE)


@pytest.mark.parametrize("name", WITHOUT)
def test_where_its_term_weighs_nothing_a_correction_is_unguided_bit_for_bit(engines, name):
    assert torch.equal(drawn(engines["sit"], f"cfg:scale=1 + {name}"), drawn(engines["sit"], None))


def test_the_share_of_cfg_plus_plus_that_weighs_nothing_is_that_of_one_step(engines):
    """1 where a step begins at pure noise or ends without any; another one between."""
    first, second, third = engines["sit"].plan("cfgpp:scale=1", schedule=(1.0, 0.6, 0.3, 0.0)).weights[:, 0].tolist()
    assert first == third == 0 and second == pytest.approx(0.6 * 0.7 / 0.3 - 1)
    assert torch.equal(*(drawn(engines["sit"], rule, schedule=(1.0, 0.6, 0.0)) for rule in ("cfgpp:scale=1", None)))
