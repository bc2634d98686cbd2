"""Peers: what is missing is said in one line, what draws something else is not timed, and the rest still runs."""

import importlib.util

import pytest
import torch
from tiny_models import tiny_sit

from segue.bench import peers
from segue.bench.cases import BenchModel, Workload
from segue.bench.diffusers_loop import DiffusersLoop, bypassed
from segue.bench.diffusers_modules import diffusers_module, with_weights_of
from segue.bench.peers import Peer, PeerMissing, make_peers, missing_packages
from segue.bench.suites import run_suite

SIT, SD3 = "sit-s/2@64:48", "sd3.5-medium@64:16"


def workload_of(text: str) -> Workload:
    return Workload.make(BenchModel.parse(text), 2, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def sit() -> Workload:
    return workload_of(SIT)


def test_absent_packages_give_one_line_and_the_others_still_run(monkeypatch, make_session, scripted_timer):
    present = importlib.util.find_spec

    def find_spec(name, *rest):
        return None if name in ("diffusers", "cache_dit", "xfuser") else present(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    session = make_session(scripted_timer([1.0, 2.0]), models=(SIT,))
    run_suite("e2e", session)
    for group in peers.GROUPS:
        assert sum(line.startswith(f"peer {group}: not run, ") for line in session.lines) == 1
    own = {"segue modules none", "segue modules cfg", "segue modules sgg as published"}  # plain PyTorch, always measured
    assert {row.variant for row in session.rows} >= {"segue none", "segue sgg", *own}
    metrics = {(row.variant, row.metric) for row in session.rows}
    for rule in ("none", "cfg"):
        assert (f"segue {rule}", f"speed-up over segue modules {rule}") in metrics
        assert ("segue sgg", f"time relative to segue modules {rule}") in metrics


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda: 1 / 0, "not run, it raised ZeroDivisionError: division by zero"),
        (lambda: torch.ones(3) + 1e-3, "not timed, it draws something else"),
        (lambda: torch.full((3,), torch.nan), "not timed, what it draws is not finite"),
    ],
)
def test_a_peer_that_fails_or_draws_something_else_is_left_out(monkeypatch, sit, draw, said):
    good = Peer("good", "none", "", lambda: torch.ones(3), lambda: (torch.ones(3), torch.ones(3)))
    bad = Peer("bad", "none", "", draw, lambda: (draw(), torch.ones(3)))
    monkeypatch.setitem(peers.GROUPS, "some", ((), lambda _workload, _calls: [bad, good]))
    lines: list[str] = []
    assert make_peers("some", sit, 2, lines.append) == [good]
    assert len(lines) == 1
    assert said in lines[0]


@pytest.mark.slow
def test_half_precision_does_not_reject_a_peer_for_its_rounding():
    """A trained model in bfloat16: four guided calls with a state in half precision end in another picture."""
    pytest.importorskip("diffusers")
    workload = Workload.make(BenchModel.parse("herbarium"), 2, torch.device("cpu"), torch.bfloat16)
    lines: list[str] = []
    assert [peer.rule for peer in make_peers("eager", workload, 4, lines.append)] == ["none", "cfg", "sgg"]
    assert lines == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PeerMissing("it draws on paper only"), "it draws on paper only"),
        (TypeError("unexpected keyword"), "it raised TypeError: unexpected keyword"),
    ],
)
def test_a_group_that_cannot_be_made_says_why(monkeypatch, sit, error, said):
    def refuse(_workload, _calls):
        raise error

    monkeypatch.setitem(peers.GROUPS, "some", ((), refuse))
    lines: list[str] = []
    assert make_peers("some", sit, 2, lines.append) == []
    assert lines == [f"peer some: not run, {said}"]


def test_xdit_is_reported_and_not_run(sit):
    lines: list[str] = []
    assert make_peers("xdit", sit, 2, lines.append) == []
    assert "several GPUs" in lines[0]
    assert missing_packages("xdit") == ["xfuser"] or importlib.util.find_spec("xfuser")


def test_an_unknown_peer_is_refused_before_any_work(make_session):
    session = make_session(None, models=(SIT,), peers=("nobody",))
    with pytest.raises(ValueError, match="unknown peer 'nobody'; known: published on our modules, eager"):
        run_suite("e2e", session)


# --- the diffusers loop ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[SIT, SD3])
def loop(request) -> DiffusersLoop:
    pytest.importorskip("diffusers")
    model, device = BenchModel.parse(request.param), torch.device("cpu")
    module = diffusers_module(model.spec, device, torch.float32)
    return DiffusersLoop(module, model, 2, 4, device, torch.float32)


def rows_of(loop: DiffusersLoop, rule: str) -> list[int]:
    """Rows that entered each block, over a whole draw."""
    rows: list[int] = []

    def count(_module, arguments, keywords):
        rows.append((arguments[0] if arguments else keywords["hidden_states"]).shape[0])

    blocks = loop.module.transformer_blocks
    handles = [block.register_forward_pre_hook(count, with_kwargs=True) for block in blocks]
    loop.draw(rule)()
    for handle in handles:
        handle.remove()
    return rows


def test_the_published_algorithm_on_diffusers_modules_runs_two_rows_always_and_a_weak_pass(loop):
    depth, batch = loop.model.spec.depth, 2
    assert rows_of(loop, "none") == [batch] * depth * 4
    assert rows_of(loop, "cfg") == [2 * batch] * depth * 4
    segment = [2 * batch] * depth
    assert rows_of(loop, "sgg") == segment * 2 + (segment + [batch] * (depth - len(loop.model.layers))) * 2


def test_both_predictions_in_one_forward_equal_two_forwards(loop):
    with torch.no_grad():
        unconditional, conditional = loop.both(loop.noise, 1)
        assert torch.allclose(conditional, loop.output(loop.noise, 1, loop.cond), atol=1e-4)
        assert torch.allclose(unconditional, loop.output(loop.noise, 1, loop.uncond), atol=1e-4)
    assert (conditional - unconditional).abs().max() > 1e-2


def test_a_weak_pass_differs_and_leaves_the_module_as_it_was(loop):
    with torch.no_grad():
        before = loop.output(loop.noise, 2, loop.cond)
        weak = loop.output(loop.noise, 2, loop.cond, loop.model.layers)
        assert torch.equal(loop.output(loop.noise, 2, loop.cond), before)
    assert (weak - before).abs().max() > 1e-2
    with pytest.raises(RuntimeError), bypassed(loop.module, (0,)):
        raise RuntimeError
    assert len(loop.module.transformer_blocks) == loop.model.spec.depth


def test_the_module_has_the_sizes_of_the_spec(loop):
    """Parameters by PyTorch's count, against the same network of ours without what diffusers lays out otherwise."""
    spec = loop.model.spec
    blocks = sum(p.numel() for name, p in loop.module.named_parameters() if ".attn" in name and "weight" in name)
    own = sum(
        p.numel()
        for name, p in loop.model.build(torch.device("cpu"))[0].named_parameters()
        if ".attn" in name and "weight" in name
    )
    assert blocks == own
    assert loop.draw("cfg")().shape == (2, spec.channels, spec.height, spec.width)


@pytest.mark.parametrize("text", [SIT, SD3, "dit-xl/2@72:48", pytest.param("sd3-medium@64:48", marks=pytest.mark.slow)])
def test_a_peer_with_our_weights_draws_our_sample(text):
    """Two independent codes on the same weights, noise and levels: every rule, to fp32 rounding."""
    pytest.importorskip("diffusers")
    lines: list[str] = []
    made = make_peers("eager", workload_of(text), 4, lines.append)
    assert [peer.rule for peer in made] == ["none", "cfg", "sgg"]
    assert lines == []


def test_a_flat_table_replaces_a_tiered_embedding():
    pytest.importorskip("diffusers")
    model = tiny_sit(height=6, width=6, parents=(0, 1, 0, 1, 1), num_classes=5).eval()
    module = with_weights_of(model)
    x = torch.randn(8, model.spec.channels, model.spec.height, model.spec.width, generator=torch.Generator().manual_seed(3))
    labels, time = torch.arange(8), torch.linspace(0.1, 0.9, 8)
    with torch.no_grad():
        theirs = module(hidden_states=x, timestep=time, class_labels=labels, return_dict=False)[0]
        ours = model(x, time, labels)
    assert (theirs - ours).abs().max() < 1e-5 * ours.abs().max()


def test_a_network_that_diffusers_does_not_have_is_said_in_one_line():
    pytest.importorskip("diffusers")
    for changes, said in (({}, "draws squares"), ({"qk_norm": True}, "query norms")):
        with pytest.raises(ValueError, match=said):
            with_weights_of(tiny_sit(**changes))


def test_only_the_rules_asked_for_are_drawn(sit):
    pytest.importorskip("diffusers")
    assert [peer.rule for peer in make_peers("eager", sit, 2, print, rules=("none", "slg:weight=1,layers=3"))] == ["none"]


def test_modular_guiders_run_where_they_draw_the_right_thing(sit):
    """Skip-layer in a window without CFG evaluates the full model on the negative prompt upstream: it must not be timed."""
    pytest.importorskip("diffusers.guiders")
    lines: list[str] = []
    made = make_peers("modular", sit, 4, lines.append)
    assert [peer.name for peer in made] == ["modular guider cfg"]
    assert any(line.startswith("peer modular guider sgg: not") for line in lines)


def test_the_diffusers_loop_refuses_a_rule_it_does_not_know(loop):
    with pytest.raises(ValueError, match="knows none, cfg and sgg, got 'slg'"):
        loop.draw("slg")
