"""The published algorithm on our modules draws what the engine draws, and does the work that it is billed for."""

import pytest
from tiny_models import randomize, tiny_sit

from segue import CFG, SkipLayer
from segue.bench.cases import BenchModel, Workload
from segue.bench.correctness import FP32_BOUND, relative_error
from segue.bench.published import PUBLISHED, WATERFALL, StagedSampler, Stages, passes, stage_flops
from segue.engine.core import EngineCore
from segue.engine.rules.presets import parse_rule
from segue.models.mmdit import MMDiT
from segue.models.mmdit_spec import MMDiTSpec

CALLS, BATCH = 4, 3
HALF = "switch=fraction:0.5"
RULES = {
    "none": "none",
    "cfg": "cfg:scale=3",
    "slg": "slg:weight=2,layers=1,3",
    "sgg": f"sgg:scale=3,weight=2,layers=2,3,{HALF}",
    "sgg-exit": f"sgg-exit:scale=3,weight=2,layer=2,{HALF}",
    "both": "cfg:scale=3 + slg:weight=2,layers=3",
    "perturbed": "cfg:scale=2,window=fraction:0,0.5 + pag:weight=1,layers=1,window=fraction:0.25,1",
    "channels": "cfg:scale=3,channels=2",
}


def tiny_mmdit() -> MMDiT:
    sizes = {"channels": 4, "height": 6, "width": 10, "patch": 2, "dim": 32, "depth": 5, "heads": 2}
    text = {"text_dim": 12, "pooled_dim": 9, "position_size": 7, "dual_layers": (0, 1), "text_tokens": 7}
    return randomize(MMDiT(MMDiTSpec(name="tiny", qk_norm=True, **sizes, **text)), 3)


def tiny_dit():
    changes = {"prediction": "epsilon", "time": "discrete", "out_channels": 8, "frequency_shift": 1.0}
    return tiny_sit(1, **changes)


NETWORKS = {"sit": tiny_sit, "dit": tiny_dit, "mmdit": tiny_mmdit}


def workload_of(network, **others) -> Workload:
    return Workload(BenchModel("tiny", "tiny", network.spec), EngineCore(network, others, device="cpu"), BATCH)


@pytest.fixture(scope="module", params=NETWORKS)
def workload(request) -> Workload:
    return workload_of(NETWORKS[request.param]())


def check_stages(workload: Workload, rule: str) -> None:
    """Every stage of the waterfall draws the engine's sample."""
    plan = workload.plan(parse_rule(rule).guidance, CALLS)
    wanted = workload.sampler(plan)().clone()
    for name, stages in WATERFALL.items():
        sampler = StagedSampler(workload.engine.models, plan, BATCH, stages)
        assert relative_error(sampler.run(workload.conditions(plan), workload.state(plan)), wanted) < FP32_BOUND, name
    assert wanted.std() > 0.1


@pytest.mark.parametrize("rule", RULES)
def test_every_stage_draws_what_the_engine_draws(workload, rule):
    if rule != "sgg-exit" or workload.engine.spec.exits:
        check_stages(workload, RULES[rule])


def test_every_stage_can_run_with_a_second_network():
    pair = workload_of(tiny_sit(), weak=tiny_sit(9, depth=2, exits=()))
    check_stages(pair, "ag:weight=1 + slg:weight=2,layers=3")


def test_a_solver_that_looks_back_three_rows(workload):
    plan = workload.engine.plan(parse_rule(RULES["cfg"]).guidance, 6, solver="unipc(order=3)")
    assert plan.table[:, 8].any()
    drawn = StagedSampler(workload.engine.models, plan, BATCH).run(workload.conditions(plan), workload.state(plan))
    assert relative_error(drawn, workload.sampler(plan)().clone()) < FP32_BOUND


@pytest.mark.parametrize("rule", ["sgg", "both", "perturbed"])
def test_the_blocks_that_run_are_the_blocks_that_are_counted(workload, rule):
    """Rows entering the blocks, counted by hooks, against the layouts that ``stage_flops`` sums over."""
    plan = workload.plan(parse_rule(RULES[rule]).guidance, CALLS)
    model = workload.engine.models["main"]
    blocks = model.joint_blocks if isinstance(model, MMDiT) else model.blocks
    rows: list[int] = []
    handles = [block.register_forward_pre_hook(lambda _, a: rows.append(a[0].shape[0])) for block in blocks]
    for name, stages in WATERFALL.items():
        rows.clear()
        sampler = StagedSampler(workload.engine.models, plan, BATCH, stages)
        sampler.run(workload.conditions(plan), workload.state(plan))
        planned = sum(one.layout.block_rows for live in plan.live for one in passes(plan, live, stages))
        assert sum(rows) == BATCH * planned, name
        if name == "+ early combination":
            assert planned == plan.cost.blocks
    for handle in handles:
        handle.remove()


def test_the_published_recipe_costs_what_was_published():
    """Two rows always and a whole weak pass without its skipped blocks: 2, then 2 + 21/24 forwards of blocks."""
    engine = EngineCore(tiny_sit(depth=24, exits=()), device="cpu")
    rule = parse_rule(f"sgg:scale=4.5,weight=3,layers=7-9,{HALF}").guidance
    plan = engine.plan(rule, 28)
    blocks = [sum(one.layout.block_rows for one in passes(plan, live, PUBLISHED)) for live in plan.live]
    assert blocks == [48] * 14 + [48 + 21] * 14
    # relative to unguided sampling: three embeddings and projections at most, the rest are blocks
    ratio = stage_flops(plan, PUBLISHED) / (28 * engine.spec.forward_flops(plan.height, plan.width))
    assert ratio == pytest.approx((2 + 2 + 21 / 24) / 2, rel=2e-3)


def test_each_stage_saves_work_and_the_last_one_is_the_plan(workload):
    plan = workload.plan(parse_rule(RULES["sgg"]).guidance, CALLS)
    costs = [stage_flops(plan, stages) for stages in WATERFALL.values()]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > costs[1] > costs[3]
    assert costs[-1] == plan.cost.flops


def test_a_fork_needs_rows_of_the_same_batch():
    with pytest.raises(ValueError, match="needs batch=True"):
        Stages(fork=True)


def test_noise_in_the_loop_is_refused():
    engine = EngineCore(tiny_sit(), device="cpu")
    plan = engine.plan(CFG(2.0) + SkipLayer(1.0, (2,)), 4, solver="euler-maruyama")
    with pytest.raises(ValueError, match="euler-maruyama"):
        StagedSampler(engine.models, plan, 1)
