"""What holds arrays is equal to itself alone: numbers are compared by whoever says how, never by ``==`` on the whole."""

import dataclasses
import importlib
import inspect
import pkgutil
import re

import pytest
import torch
from tiny_models import tiny_sit

import segue.bench
import segue.engine
import segue.kernels
import segue.models
import segue.training
from segue import CFG, CallInfo, Engine

PACKAGES = (segue.kernels, segue.models, segue.engine, segue.training, segue.bench)
ARRAYS = {"Tensor", "ndarray"}


def dataclasses_of_the_package() -> dict[str, type]:
    """All that were written by ``@dataclass``, by name."""
    found = {}
    for package in PACKAGES:
        for item in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(item.name)
            kinds = (kind for kind in vars(module).values() if inspect.isclass(kind) and kind.__module__ == item.name)
            found |= {kind.__name__: kind for kind in kinds if dataclasses.is_dataclass(kind)}
    return found


def holding_arrays(kinds: dict[str, type]) -> set[str]:
    """Those with a compared field that is an array or a container of arrays; functions hold none."""
    fields = {name: [str(field.type) for field in dataclasses.fields(kind) if field.compare] for name, kind in kinds.items()}
    return {
        name
        for name, types in fields.items()
        if ARRAYS & {word for text in types if "Callable" not in text for word in re.findall(r"\w+", text)}
    }


def test_no_dataclass_compares_arrays():
    kinds = dataclasses_of_the_package()
    held = holding_arrays(kinds)
    assert {"SampleRun", "PromptRun", "Plan", "TextCondition", "CallInfo", "SpeciesTraits"} <= held
    assert sorted(name for name in held if kinds[name].__dataclass_params__.eq) == []


def test_runs_and_plans_can_be_compared_and_put_into_sets():
    engine, seen = Engine(tiny_sit(), device="cpu"), []
    runs = [engine.sample([0, 4], CFG(2.0), steps=2, seeds=5, callback=seen.append) for _ in range(2)]
    assert torch.equal(*(run.latents for run in runs))
    for made in (runs, [run.plan for run in runs], seen[:2]):
        assert made[0] == made[0] != made[1]
        assert made[1] in made and made.index(made[1]) == 1 and len(set(made)) == 2
    assert all(isinstance(info, CallInfo) for info in seen)


@pytest.mark.parametrize("count", [1, 3])
def test_what_a_person_looks_at_is_one_short_line(count):
    """However many numbers are in it."""
    engine, seen = Engine(tiny_sit(), device="cpu"), []
    run = engine.sample([0] * count, CFG(2.0), steps=2, seeds=5, callback=seen.append)
    for thing in (run, run.plan, engine, seen[0], run.plan.schedule, run.plan.solver, run.plan.guidance):
        assert len(repr(thing)) < 200 and "tensor" not in repr(thing) and "0x" not in repr(thing)
