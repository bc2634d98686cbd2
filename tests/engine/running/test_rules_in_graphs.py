"""The step of every named rule could be captured once and replayed, and nothing of it crosses between device and host."""

from typing import Any

import pytest
import torch
from correction_texts import ON_CFG, PLAIN
from live_sets import engine_of, load, networks
from step_trace import OnDevice, check_step

from segue import GFCG, parse_rule
from segue.engine.planning.condition_labels import condition_labels
from segue.engine.rules.rule_names import NAMES
from segue.engine.running.program import Program
from segue.engine.running.program_key import ProgramKey

META = torch.device("meta")
STEPS, BATCH = 4, 2


def first_values(clean):  # without a tensor of its own, so on any device
    return 5 * clean.flatten(1)[:, :6]


RULES: dict[str, Any] = {
    "none": "none",
    "cfg": PLAIN,
    "cfgpp": "cfgpp:scale=0.6",
    **{name: f"{name}:weight=1,layers=1" for name in ("slg", "tpg", "pag", "pag-image", "stg", "seg")},
    "s2": "s2:weight=1",
    "exit": "exit:weight=1,layer=2",
    "ag": "ag:weight=1",
    "nag": "nag:scale=5",
    "gfcg": GFCG(0.8, classifier=first_values, form="cfg-swap", lag=0),
    "icg": "icg:scale=2",
    "sgg": "sgg:scale=2.5,weight=1,layers=1,switch=0.5",
    "sgg-exit": "sgg-exit:scale=2.5,weight=1,layer=2,switch=0.5",
    "perp-neg": f"{PLAIN} + cfg:scale=1.8,reference=1 + perp-neg",
    **{name: f"{PLAIN} + {name}" + (f":{numbers}" if numbers else "") for name, numbers in ON_CFG.items()},
}
FURTHER: dict[str, Any] = {  # with the options that change a step
    "held": f"{PLAIN},refresh=2",
    "line": f"{PLAIN},refresh=2,order=1",
    "parabola": f"{PLAIN},refresh=2,order=2",
    "held, rescaled": f"{PLAIN},refresh=2 + slg:weight=1,layers=1 + rescale:phi=0.6",
    "stops": f"{PLAIN},stop=0.9",
    "stops, rescaled": f"{PLAIN},stop=0.9 + slg:weight=1,layers=1 + rescale:phi=0.6",
    "gfcg, lag 1": GFCG(0.8, classifier=first_values, form="ag-swap", gain=1.0),
    "corrections": f"{PLAIN} + fresca:low=0.5 + tcfg + apg:momentum=-0.5,radius=2,eta=0.3 + renorm + refine:beta=0.4",
}
OF_PROMPTS = ("nag", "pag-image")  # whose layers have a text


def test_no_rule_is_left_out():
    assert RULES.keys() == NAMES.keys()
    for name, rule in RULES.items():
        assert name == "gfcg" or parse_rule(rule).parts[-1].name == name


@pytest.fixture(scope="module")
def engines():
    return {architecture: engine_of(architecture, device="cpu") for architecture in ("sit", "sd3")}


@pytest.fixture(scope="module")
def without_values():
    """The same networks on the meta device, whose host the CPU is."""
    return {
        architecture: {name: network.to(META) for name, network in networks(architecture).items()}
        for architecture in ("sit", "sd3")
    }


@pytest.mark.parametrize("name", [*RULES, *FURTHER])
def test_a_step_could_be_captured_and_needs_no_host(engines, without_values, name):
    architecture = "sd3" if name in OF_PROMPTS else "sit"
    engine, models = engines[architecture], without_values[architecture]
    plan = engine.plan({**RULES, **FURTHER}[name], steps=STEPS)
    program = load(engine, plan, BATCH)
    for live in filter(None, plan.live_sets):  # a silent call has the solver's update alone
        assert len(check_step(program, live).operations) > 50
    program = Program(ProgramKey.of(plan, BATCH), plan, models, META)
    if architecture == "sit":  # draws know their samples by a run; prompts without values cannot be told apart
        program.load(plan, program.x, condition_labels(plan.spec, plan.conditions, [0] * BATCH), [0] * BATCH)
    for live in plan.live_sets:
        program.step(live)  # which makes what is made once and kept for all steps, as before a capture
        with OnDevice(META):
            program.step(live)


@pytest.mark.parametrize("name", [*RULES, *FURTHER])
def test_a_rule_that_lets_the_host_look_between_calls_says_so(engines, name):
    plan = engines["sd3" if name in OF_PROMPTS else "sit"].plan({**RULES, **FURTHER}[name], steps=STEPS)
    assert bool(plan.adaptive) == ("the host polls between calls" in str(plan)) == name.startswith("stops")
