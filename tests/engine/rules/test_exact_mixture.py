"""Every named rule where the velocity is known exactly, against the naive sampler over the mixture itself in fp64."""

from dataclasses import dataclass

import pytest
import torch
from correction_texts import ON_CFG, PLAIN
from naive_draws import NaiveDraws, waving_classifier
from naive_sampler import branch_labels

from segue import GFCG, ICG, Engine, Guidance, parse_rule
from segue.engine.rules.branch import Exit
from segue.engine.rules.drawn import Draw
from segue.engine.rules.rule_names import NAMES
from segue.engine.running.draws import other_classes
from segue.training.mixture_network import leaf_network

CLASSES, DEPTH, STEPS = 4, 3, 8
LABELS, SEEDS = [0, 3, 1, 2, 0], [5, 6, 7, 8, 9]
ERROR = 2e-5  # of the fp32 state of a run; the network is fp64
HIGH = "window=sigma:0.4,1"  # below, the class is known, and the direction to it less than the rounding of fp32
RULES = {
    "none": parse_rule("none"),
    "cfg": parse_rule(PLAIN),
    "cfgpp": parse_rule("cfgpp:scale=0.6"),
    "exit": parse_rule("exit:weight=0.8,layer=1"),
    "ag": parse_rule("ag:weight=0.8"),
    "sgg-exit": parse_rule("sgg-exit:scale=2.5,weight=0.8,layer=2,switch=0.5"),
    "gfcg": GFCG(1.2, classifier=waving_classifier(CLASSES), form="cfg-swap", lag=0),
    "icg": ICG(1.8),
    "perp-neg": parse_rule(f"cfg:scale=2.5,{HIGH} + cfg:scale=1.8,reference=1,{HIGH} + perp-neg"),
    **{name: parse_rule(f"{PLAIN} + {name}:{numbers}" if numbers else f"{PLAIN} + {name}")
       for name, numbers in ON_CFG.items()},
}  # fmt: skip
OF_BLOCKS = {  # what a mixture has none of
    **{name: f"{name}:weight=1,layers=1" for name in ("slg", "tpg", "pag", "pag-image", "stg", "seg")},
    "sgg": "sgg:scale=2,weight=1,layers=1,switch=0.5",
    "s2": "s2:weight=1",
}
OF_PIXELS = ("fresca", "refine")  # a point has one frequency, the lowest


@dataclass
class ExactSampler(NaiveDraws):
    """The branches of a rule as the mixtures say."""

    def all_channels(self, branch, y, sigma):
        network = self.models[branch.model]
        mixture = network.levels[branch.network.layer - 1 if isinstance(branch.network, Exit) else -1]
        return mixture.velocity(y[:, :, 0, 0], sigma, branch_labels(branch, self.labels, network.spec))[..., None, None]


@pytest.fixture(scope="module")
def networks():
    return {"main": leaf_network(CLASSES, DEPTH), "weak": leaf_network(CLASSES, DEPTH, blur=0.2, confusion=0.1)}


@pytest.fixture(scope="module")
def engine(networks):
    return Engine(networks["main"], {"weak": networks["weak"]}, device="cpu")


def test_no_rule_is_left_out():
    assert RULES.keys() | OF_BLOCKS.keys() | {"nag"} == NAMES.keys()


@pytest.mark.parametrize("solver", ("euler", "heun"))
@pytest.mark.parametrize("name", RULES)
def test_a_rule_equals_the_naive_sampler_over_the_mixture(engine, networks, name, solver):
    rule = RULES[name] if isinstance(RULES[name], Guidance) else RULES[name].guidance
    plan = engine.plan(rule, steps=STEPS, solver=solver)
    noise = engine.draw_noise(plan, SEEDS)
    found = engine.sample(LABELS, rule, steps=STEPS, solver=solver, noise=noise, seeds=SEEDS).latents
    drawn = tuple(term for term in rule.terms if isinstance(term.branch.condition, Draw))
    rest = Guidance(tuple(term for term in rule.terms if term not in drawn), rule.corrections)
    naive = ExactSampler(
        networks,
        rest,
        torch.tensor(LABELS),
        list(plan.schedule.sigmas),
        drawn,
        waving_classifier(CLASSES),
        tuple(plan.steps.tolist()),
        [other_classes(seed, plan.calls, own, CLASSES)[plan.steps].tolist() for seed, own in zip(SEEDS, LABELS, strict=True)],
    )
    expected = naive.run(solver, noise)
    assert (found - expected).abs().max() < ERROR * expected.abs().max()
    if name not in ("none", *OF_PIXELS):
        plain = engine.sample(LABELS, PLAIN if name in ON_CFG else None, steps=STEPS, solver=solver, noise=noise).latents
        assert (plain - expected).abs().max() > 1e-2, "the rule does something"


@pytest.mark.parametrize("name", OF_BLOCKS)
def test_rules_of_blocks_are_refused(engine, name):
    with pytest.raises(ValueError, match="a mixture has no layers to perturb"):
        engine.sample(LABELS, OF_BLOCKS[name], steps=2, seeds=SEEDS)
