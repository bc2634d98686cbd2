"""A table of modulations that holds the next calls of every sample only, against one that holds the whole run."""

import numpy as np
import pytest
import torch
from tiny_models import randomize, tiny_sit

from segue import CFG, ICG, SGG, Engine, SkipLayer
from segue.engine.core import EngineCore
from segue.engine.velocity import GuidedVelocity
from segue.models import modulation_table
from segue.models.mmdit import MMDiT, TextCondition
from segue.models.mmdit_spec import MMDiTSpec
from segue.models.modulation_table import LEAST_AHEAD

BATCH, STEPS = 3, 11
RULE = SGG(CFG(3.0), SkipLayer(2.0, (1,)), 0.5)
# fp32: linear layers over another number of rows sum in another order, and the differences pass through every call
ERROR = 1e-5


@pytest.fixture
def ring(monkeypatch):
    """Tables that hold as few calls as they may; a list of the times that were computed."""
    monkeypatch.setattr(modulation_table, "LARGEST", 0)
    looked: list[np.ndarray] = []
    look = modulation_table.ModulationTable.look_ahead

    def counted(table, time):
        found = look(table, time)
        if found is not None:
            looked.append(found[1])
        return found

    monkeypatch.setattr(modulation_table.ModulationTable, "look_ahead", counted)
    return looked


def sit() -> Engine:
    return Engine(tiny_sit(), device="cpu")


def prompts(count: int = BATCH) -> dict[str, TextCondition]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: TextCondition(torch.randn(count, 3, 8, generator=generator), torch.randn(count, 8, generator=generator))
        for name in ("cond", "uncond")
    }


def mmdit() -> EngineCore:
    size = {"channels": 4, "height": 4, "width": 6, "patch": 2, "dim": 16, "depth": 3, "heads": 2}
    spec = MMDiTSpec(name="tiny", **size, text_dim=8, pooled_dim=8, position_size=4, text_tokens=3)
    return EngineCore(randomize(MMDiT(spec), 3), device="cpu")


def given(engine) -> dict:
    """Prompts, or labels, of an engine."""
    if isinstance(engine.models["main"], MMDiT):
        return prompts()
    return {"cond": torch.tensor([0, 3, 1]), "uncond": torch.full((BATCH,), engine.spec.num_classes)}


def drawn(engine, solver: str = "euler", rule=RULE, steps: int = STEPS, callback=None):
    """Latents of a run by an engine of labels or of prompts."""
    plan = engine.plan(rule, steps=steps, solver=solver)
    noise = torch.randn(BATCH, 4, plan.height, plan.width, generator=torch.Generator().manual_seed(2))
    conditions = given(engine)
    conditions |= {name: torch.zeros(BATCH, dtype=torch.int64) for name in plan.conditions if name not in conditions}
    return engine.run(plan, conditions, list(range(BATCH)), noise, callback=callback)[0]


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((found - wanted).abs().max() <= ERROR * wanted.abs().max())


@pytest.mark.parametrize("solver", ["euler", "heun", "dpm++2m", "euler-maruyama"])
@pytest.mark.parametrize("make", [sit, mmdit])
def test_a_run_equals_that_of_a_whole_table(make, solver, request):
    wanted = drawn(make(), solver)
    looked = request.getfixturevalue("ring")
    engine = make()
    assert close(drawn(engine, solver), wanted)
    (program,) = engine._programs.values()
    table = program.rows["main"].table
    assert table.is_ring and table.ahead == LEAST_AHEAD and len(table.rows) == LEAST_AHEAD * 2 * BATCH
    times = np.concatenate([each[:, 0] for each in looked])
    assert sorted(times) == list(range(len(np.unique(program._given[0]))))  # each once, although Heun's calls meet some twice


def test_drawn_labels_stand_beside_a_ring(request):
    wanted = drawn(sit(), rule=ICG(2.0) + CFG(1.5))
    request.getfixturevalue("ring")
    assert close(drawn(sit(), rule=ICG(2.0) + CFG(1.5)), wanted)


@pytest.mark.parametrize("make", [sit, mmdit])
def test_samples_may_be_at_any_calls(make, request, seed):
    """As in a loop that is not ours, and as requests that share steps are."""
    generator = np.random.default_rng(seed)
    order = generator.integers(0, STEPS, (20, BATCH))
    x = torch.randn(20, BATCH, 4, *((4, 6) if make is mmdit else (8, 12)), generator=torch.Generator().manual_seed(seed))

    def velocities():
        engine = make()
        conditions = given(engine)
        plan = engine.plan(RULE, steps=STEPS)
        found = GuidedVelocity(engine, RULE, lambda plan: conditions, *x.shape[3:], sigmas=plan.schedule)
        found.load(x[0])
        return torch.stack([found.at_calls(own, calls) for own, calls in zip(x, order, strict=True)])

    wanted = velocities()
    request.getfixturevalue("ring")
    assert close(velocities(), wanted)


@pytest.mark.parametrize("make", [sit, mmdit])
def test_weights_that_change_within_a_run_are_followed(make, request):
    def changing(info):
        if info.call == 1:
            for name, parameter in engine.models["main"].named_parameters():
                if "adaLN" in name:
                    parameter.data.mul_(1.5)

    engine = make()
    wanted = drawn(engine, callback=changing)
    request.getfixturevalue("ring")
    engine = make()
    assert close(drawn(engine, callback=changing), wanted)


def test_what_is_not_held_is_nan_and_not_another_call(ring):
    """Should anybody step without looking ahead."""
    engine = sit()
    plan = engine.plan(RULE, steps=STEPS)
    program = engine.load(plan, [0] * BATCH, list(range(BATCH)), torch.randn(BATCH, 4, plan.height, plan.width))
    for _ in range(LEAST_AHEAD):
        program.step_on_device(plan.live[0])
        assert program.x.isfinite().all()
    program.step_on_device(plan.live[0])
    assert program.x.isnan().all()


def test_a_table_is_whole_where_it_is_small_and_never_larger_than_allowed(monkeypatch):
    like = torch.zeros(1)
    assert not modulation_table.ModulationTable(like, 8, 32, 5, 2, 3).is_ring
    monkeypatch.setattr(modulation_table, "LARGEST", 4 * 8 * 60)
    table = modulation_table.ModulationTable(like, 8, 32, 5, 2, 3)
    assert table.is_ring and table.ahead == 10 and table.rows.numel() * 4 <= modulation_table.LARGEST
    assert table.index.tolist() == [[0, 1, 2], [3, 4, 5]]
