"""Calibrations: what leaving calls out predicts, what a search keeps to, files and commands, refusals beside anything else."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_checkpoint import save_tiny
from tiny_models import tiny_sit
from typer.testing import CliRunner

from segue import APG, CFG, SGG, Engine, SkipLayer, Window, parse_rule
from segue.__main__ import app
from segue.bench.calibration.calibrate import Budget, Calibrator
from segue.bench.calibration.finished import Finished, distances, error, error_interval
from segue.bench.calibration.left_out import measure_left_out
from segue.bench.calibration.placement import Placement, Placements
from segue.bench.calibration.search import Search, Wanted
from segue.bench.quality.draw import Draw
from segue.bench.rows import read_rows
from segue.engine.rules.calibration import Calibration, read_calibration
from segue.engine.rules.rule_text import rule_text
from segue.models.fingerprint import rounded_fingerprint

RULE = SGG(CFG(2.0), SkipLayer(1.0, (1, 3)), 0.5)
STEPS = 10


@pytest.fixture(scope="module")
def engine():
    return Engine(tiny_sit(), device="cpu")


@pytest.fixture(scope="module")
def placements(engine):
    return Placements(engine.plan(RULE, steps=STEPS))


@pytest.fixture(scope="module")
def left_out(engine, placements):
    return measure_left_out(engine, placements, Draw(5, 0, 3))


@pytest.fixture(scope="module")
def calibrated(engine):
    """A calibrator on few samples, and what it found."""
    budget = Budget(Draw(6, 0, 6), Draw(5, 100, 5), tries=3)
    calibrator = Calibrator(engine, engine.plan(RULE, steps=STEPS), budget, lambda line: None)
    placement = calibrator.best(Wanted(cost=1.3))
    return calibrator, calibrator.calibration(calibrator.judged(calibrator.placements.rule(placement)))


def test_a_placement_costs_what_the_plan_of_its_rule_does(engine, placements, seed):
    rng = np.random.default_rng(seed)
    for _ in range(10):
        calls = tuple(
            tuple(call for call in own if call in needed or rng.random() < 0.5)
            for own, needed in zip(placements.weighed, placements.needed, strict=True)
        )
        placement = Placement(calls, tuple(rng.integers(0, 3, 2).tolist()))
        plan = engine.plan(placements.rule(placement), steps=STEPS)
        assert tuple(map(tuple, (np.flatnonzero(own) for own in plan.evaluated.T))) == calls
        everywhere = all(len(own) == len(all_) for own, all_ in zip(calls, placements.weighed, strict=True))
        assert everywhere or plan.cost.relative == pytest.approx(placements.cost(placement), rel=1e-12)


def test_one_call_left_out_is_predicted_as_it_was_measured(engine, placements, left_out):
    """Exactly: it is what the prediction is made of; and nothing left out is no error."""
    assert left_out.predicted(placements.all_calls(order=2)) == 0.0
    finished = Finished(engine, placements.exact, Draw(5, 0, 3))
    exact = finished.samples(RULE)
    unguided = distances(finished.samples(None), exact)
    for branch, call in placements.changes[::3]:
        placement = placements.all_calls().without(branch, call)
        found = error(distances(finished.samples(placements.rule(placement)), exact), unguided)
        # both are differences of fp32 samples, some 1e-3 of these, whose rounding is 1e-6
        assert left_out.predicted(placement) == pytest.approx(found, rel=0.01)


def test_many_calls_left_out_are_predicted_about(engine, placements, left_out):
    """To first order: half the calls held, and extrapolated, within a third of what finished samples say."""
    finished = Finished(engine, placements.exact, Draw(5, 0, 3))
    exact = finished.samples(RULE)
    unguided = distances(finished.samples(None), exact)
    for order in (0, 1):
        placement = Placement(tuple(calls[::2] for calls in placements.weighed), (order, order))
        found = error(distances(finished.samples(placements.rule(placement)), exact), unguided)
        assert left_out.predicted(placement) == pytest.approx(found, rel=0.34)


@pytest.mark.parametrize("wanted", [Wanted(cost=1.25), Wanted(cost=1.4), Wanted(error=0.05), Wanted(error=0.2)], ids=str)
def test_a_search_keeps_to_what_is_wanted_and_no_exchange_is_better(placements, left_out, wanted):
    search = Search(placements, left_out.predicted)
    best = search.best(wanted)[0]
    assert all(set(needed) <= set(calls) for needed, calls in zip(placements.needed, best.calls, strict=True))
    if wanted.cost is not None:
        assert placements.cost(best) <= wanted.cost
        assert all(left_out.predicted(other) >= left_out.predicted(best) for other in search.neighbours(best, wanted))
    else:
        assert left_out.predicted(best) <= wanted.error
    dearer = Wanted(cost=1.5) if wanted.cost is not None else Wanted(error=wanted.error / 2)
    other = search.best(dearer)[0]
    assert left_out.predicted(other) <= left_out.predicted(best) and placements.cost(other) >= placements.cost(best)


def test_the_best_of_each_order_is_tried_early(placements, left_out):
    """Of one order everywhere, as low as its calls allow; after what is best of all."""
    search, wanted = Search(placements, left_out.predicted), Wanted(cost=1.4)
    found = search.best(wanted)
    assert len(set(found)) == len(found) and left_out.predicted(found[0]) == min(map(left_out.predicted, found))
    for order in (0, 1, 2, 3):
        pure = [
            own
            for own in found[:5]
            if all(mine in (order, len(calls) - 1) for mine, calls in zip(own.orders, own.calls, strict=True))
        ]
        assert pure and placements.cost(pure[0]) <= 1.4


def test_what_an_exchange_leaves_of_the_cost_is_for_one_call_more(placements):
    """Of a branch that is cheap: no exchange of one call for one reaches it."""
    search, fewest = Search(placements, lambda placement: -sum(map(len, placement.calls))), placements.fewest((0, 0))
    call = placements.free(1)[0]
    richer = fewest.with_call(1, call)
    assert richer in search.neighbours(fewest, Wanted(cost=placements.cost(richer)))
    assert richer not in search.neighbours(fewest, Wanted(cost=(placements.cost(fewest) + placements.cost(richer)) / 2))


def test_a_climb_begins_with_other_orders_of_the_same_calls(placements):
    """In which predictions err most; none that the number of calls does not allow, and no exchange is lost."""
    search = Search(placements, lambda placement: float(sum(placement.orders)))
    few, many = placements.fewest((0, 0)), placements.all_calls(order=1)
    wanted = Wanted(cost=placements.cost(many))
    found = search.neighbours(many, wanted)
    assert [other.orders for other in found[:4]] == [(0, 1), (1, 0), (2, 1), (1, 2)]
    assert all(other.calls == many.calls for other in found[:4]) and all(other.orders == (1, 1) for other in found[4:])
    one, others = few.with_call(0, placements.free(0)[0]), search.neighbours(few, wanted)
    assert all(other.calls != few.calls for other in others) and one in others


def test_a_climb_moves_calls_of_every_branch_in_turn(placements, left_out):
    """Each in the order of the predictions; nothing is lost."""
    search, wanted = Search(placements, left_out.predicted), Wanted(cost=1.4)
    best = search.best(wanted)[0]
    found = [other for other in search.neighbours(best, wanted) if other.calls != best.calls]
    moved = [tuple(mine != own for mine, own in zip(other.calls, best.calls, strict=True)) for other in found]
    kinds = len(set(moved))
    assert kinds > 1 and len(set(moved[:kinds])) == kinds
    assert set(found) >= {other for other in search._exchanges(best) if placements.cost(other) <= 1.4}
    for kind in set(moved):
        errors = [left_out.predicted(other) for other, own in zip(found, moved, strict=True) if own == kind]
        assert errors == sorted(errors)


@pytest.mark.parametrize("steady", [0.12, 0.0])
def test_a_search_for_an_error_goes_on_past_rounds_with_nothing_new(engine, monkeypatch, steady):
    """Where finished samples err a little more than was wanted: until a placement has the error, or nothing is left out."""
    calibrator = Calibrator(engine, engine.plan(RULE, steps=STEPS), Budget(Draw(5, 0), Draw(5, 100), 99), lambda line: None)
    everything, wanted = calibrator.placements.all_calls(), Wanted(error=0.2)
    cheap, better = (everything.with_calls(0, everything.calls[0][:count]) for count in (1, 2))
    errors = {calibrator.placements.rule(cheap): 0.202, calibrator.placements.rule(better): 0.1}

    def best(aim):
        if aim.error > 0.15:
            return [cheap]
        return [better] if aim.error < steady else [everything] if aim.error < 0.01 else [cheap]

    monkeypatch.setattr(calibrator, "_search", SimpleNamespace(best=best, neighbours=lambda placement, wanted: []))
    monkeypatch.setattr(calibrator, "error", lambda rule, draw: errors.get(rule, 0.3))  # that of all calls, by rounding, too
    assert calibrator.best(wanted) == (better if steady else cheap)


@pytest.mark.parametrize(("tries", "chosen"), [(2, 0), (3, 2), (4, 4), (99, 4)])
def test_calls_are_moved_from_the_best_that_was_found(engine, monkeypatch, tries, chosen):
    calibrator = Calibrator(engine, engine.plan(RULE, steps=STEPS), Budget(Draw(5, 0), Draw(5, 100), tries), lambda line: None)
    every = calibrator.placements.all_calls()
    made = [every.with_calls(0, every.calls[0][:count]) for count in range(1, 6)]
    errors = dict(zip(map(calibrator.placements.rule, made), (0.5, 0.6, 0.4, 0.7, 0.3), strict=True))
    near = {made[0]: [made[1], made[2], made[3]], made[2]: [made[4], made[3]], made[4]: []}
    found = SimpleNamespace(best=lambda aim: [made[0]], neighbours=lambda placement, wanted: near[placement])
    monkeypatch.setattr(calibrator, "_search", found)
    monkeypatch.setattr(calibrator, "error", lambda rule, draw: errors.pop(rule))  # of each once
    assert calibrator.best(Wanted(cost=1.3)) == made[chosen]


def test_the_error_is_a_ratio_of_medians_with_an_interval_of_sets():
    moved, unguided = torch.arange(1.0, 11.0), torch.full((10,), 20.0)
    found = error_interval(moved, unguided)
    assert found.value == error(moved, unguided) == 5.0 / 20.0  # torch's median is the lower one
    assert 0.0 <= found.low < found.value < found.high


def test_a_calibration_file_holds_the_calls_and_the_plan_tells_its_error(engine, calibrated, tmp_path):
    calibrator, made = calibrated
    (tmp_path / "own.json").write_text(made.to_json())
    rule = RULE.calibrated(tmp_path / "own.json")
    assert read_calibration(tmp_path / "own.json") == made == rule.calibration
    plan = engine.plan(rule, steps=STEPS)
    assert plan.cost.relative == pytest.approx(made.cost) and made.cost <= 1.3 < made.exact_cost
    shown = f"exact {made.exact_cost:.3f}x, calibrated {made.cost:.3f}x unguided, error {made.error:.3f}"
    assert shown in str(plan) and shown in plan._repr_html_()
    assert plan.to_dict()["calibration"]["error"] == made.error
    again = parse_rule(rule_text(rule)).guidance  # what a record keeps: the calls themselves
    assert again == replace(rule, calibration=None)
    run = {"steps": STEPS, "seeds": [100, 101]}
    assert torch.equal(engine.sample([0, 1], rule, **run).latents, engine.sample([0, 1], again, **run).latents)
    found = calibrator.judged(again)
    assert found.interval().value == made.error


def refusals(engine, made):
    other = Engine(tiny_sit(9), device="cpu")
    rule = RULE.calibrated(made)
    return {
        "model": (lambda: other.plan(rule, steps=STEPS), f"tiny with weights and attention {made.weights}, and this is tiny"),
        "rule": (lambda: CFG(2.0).calibrated(made), "made for the rule sgg:.*, and this one is cfg:scale=2"),
        "steps": (
            lambda: engine.plan(rule, steps=STEPS + 1),
            "of 10 steps, and the levels of this run, 11 steps",
        ),
        "schedule": (lambda: engine.plan(rule, steps=STEPS, schedule="shift=3"), "schedule linear of 10 steps"),
        "solver": (lambda: engine.plan(rule, steps=STEPS, solver="heun"), "for the solver euler, and this run goes by heun"),
        "size": (lambda: engine.plan(rule, steps=STEPS, height=8), "made for 6 x 10, and this run is 8 x 10"),
        "batch": (
            lambda: engine.plan([rule, rule], steps=STEPS),
            "for all samples, and a batch of 2 has one for each",
        ),
        "sum": (lambda: rule + CFG(2.0), "a calibration is of the whole rule sgg:.*: add <Guidance cfg:scale=2> before it"),
        "foreign loop": (lambda: engine.denoiser(rule, [0], schedule=[1.0, 0.5, 0.0]), "made for the schedule"),
        "low cost": (lambda: check(engine, Wanted(cost=1.01)), "the wanted cost must lie between .*, got 1.01"),
        "high cost": (lambda: check(engine, Wanted(cost=3.0)), "that of the exact rule, got 3"),
        "both": (lambda: Wanted(cost=1.2, error=0.1), "a wanted cost or a wanted error, got both"),
        "neither": (Wanted, "got neither"),
        "error": (lambda: Wanted(error=1.5), "the wanted error must be above 0 and below 1, got 1.5"),
        "unguided": (lambda: Placements(engine.plan(None, steps=4)), "evaluates no branch twice in a row"),
        "reused": (lambda: Placements(engine.plan(RULE.reused(2), steps=4)), "begins with the exact rule"),
        "reference": (lambda: Placements(engine.plan(CFG(2.0) + APG(0.0, 1.0, 0.0), steps=4)), "needs its reference"),
        "seeds": (
            lambda: Budget(Draw(6, 0), Draw(5, 5)),
            "what is searched on must not judge: seeds 5 to 5 are in both, 6 from 0 and 5 from 5",
        ),
        "name": (lambda: RULE.calibrated("nowhere.json"), "no calibration 'nowhere.json': neither a file nor one of sgg"),
    }


def check(engine, wanted):
    Calibrator(engine, engine.plan(RULE, steps=STEPS), Budget(Draw(5, 0), Draw(5, 9)), print).check(wanted)


def test_a_calibration_is_refused_beside_anything_else(engine, calibrated):
    for what, (make, words) in refusals(engine, calibrated[1]).items():
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            make()
            pytest.fail(what)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "its format is 2, not 1"),
        ({"error": "small"}, "its error is 'small'"),
        ({"error": float("nan")}, "its error is nan"),
        ({"error": -1}, "its error is -1"),
        ({"cost": float("inf")}, "its cost is inf"),
        ({"error": 0.5, "low": 0.6, "high": 0.7}, "its error 0.5 is not between 0.6 and 0.7"),
        ({"reuse": [{"refresh": 1, "order": 9, "calls": None}]}, "order must lie between 0 and 3, got 9"),
        ({"sigmas": [1.0]}, r"its sigmas are \[1\.0\]"),
        ({"solver": None}, "its solver is None"),
    ],
)
def test_a_damaged_file_is_refused(calibrated, tmp_path, change, words):
    record = json.loads(calibrated[1].to_json())
    (tmp_path / "own.json").write_text(json.dumps(record | change))
    with pytest.raises(ValueError, match=f"own.json holds no calibration: {words}"):
        read_calibration(tmp_path / "own.json")
    del record["low"]
    with pytest.raises(ValueError, match="it lacks 'low'"):
        Calibration.from_dict(record, "own.json")
    for text in ("{", 100_000 * "["):
        (tmp_path / "own.json").write_text(text)
        with pytest.raises(ValueError, match=r"own\.json holds no calibration"):
            read_calibration(tmp_path / "own.json")
    short = replace(calibrated[1], reuse=calibrated[1].reuse[:1])
    with pytest.raises(ValueError, match="the calibration is for 1 terms, and its rule has 2"):
        RULE.calibrated(short)


def test_a_calibration_is_of_one_kind_of_attention(calibrated, tmp_path):
    """Which is in no tensor, and changes what every call gives."""
    model = save_tiny(tmp_path / "tiny.safetensors")
    whole = Engine.from_pretrained(model, device="cpu")
    own = replace(calibrated[1], weights=rounded_fingerprint(whole.models), height=8, width=12)
    rule = RULE.calibrated(own)
    assert whole.plan(rule, steps=STEPS).calibration == own
    sparse = Engine.from_pretrained(model, device="cpu", attention="probsparse:queries=1,keys=1")
    with pytest.raises(ValueError, match="the calibration was made for tiny with weights"):
        sparse.plan(rule, steps=STEPS)


def test_the_same_weights_in_half_precision_are_the_same_model(calibrated):
    bf16 = Engine(tiny_sit(), device="cpu", dtype="bfloat16")
    assert bf16.plan(RULE.calibrated(calibrated[1]), steps=STEPS).calibration == calibrated[1]


def test_commands_write_a_calibration_and_go_by_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "mine.safetensors")

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == code, result.stderr or result.exception
        return result

    rule = "sgg:scale=2,weight=1,layers=1,switch=0.5"
    common = ("--model", "mine.safetensors", "--steps", "4")
    few = ("--samples", "6", "--judge-samples", "5", "--tries", "2", "--batch", "6")
    text = run("calibrate", "-g", rule, "--cost", "1.6", *common, *few, "--out", "own.json").stdout
    assert "wrote own.json" in text and "by 5 samples of other seeds" in text
    assert "is there already" in run("calibrate", "-g", rule, "--cost", "1.6", *common, "--out", "own.json", code=2).stderr
    made = read_calibration("own.json")
    assert made.rule == rule and made.command.split()[0] == "segue"
    plan = json.loads(run("plan", *common, "--calibration", "own.json", "--json").stdout)
    assert plan["calibration"] == json.loads(json.dumps(made.to_dict())) and "calls=" in plan["rule"]
    run("sample", *common, "--calibration", "own.json", "--classes", "0", "--output", "latent", "--out", "drawn")
    for arguments, words in (
        (("plan", *common[:2], "--steps", "7", "--calibration", "own.json"), "the levels of this run, 7 steps"),
        (("plan", "--model", "DiT-XL/2", "--calibration", "own.json"), "of the weights of a model of classes, and DiT-XL/2"),
        (("sample", *common, "-g", "none | none", "--calibration", "own.json"), "of one rule for all samples"),
        (("plan", "--model", "herbarium", "--steps", "4", "--calibration", "own.json"), "and this is herbarium with"),
    ):
        assert words in run(*arguments, code=2).stderr


def test_an_error_that_was_not_reached_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "mine.safetensors")
    monkeypatch.setattr(Calibrator, "best", lambda calibrator, wanted: calibrator.placements.fewest((0,)))
    few = ["--samples", "6", "--judge-samples", "5", "--batch", "6", "--steps", "4", "--json"]
    arguments = ["calibrate", "--model", "mine.safetensors", "-g", "cfg:scale=2", "--error", "0.001", *few, "--out", "own.json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    error = json.loads(result.stdout)["error"]
    assert f"warning: its error is {error:.3f} on the samples that judge, and error 0.001 was wanted\n" in result.stderr


def test_rows_of_reuse_are_measured_once_and_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "mine.safetensors")
    rule = "cfg:scale=2,window=steps:1,5"
    common = ["reproduce", "reused", "--model", "mine.safetensors", "--steps", "5", "--cost", "1.5", "--out", "rows.jsonl"]
    common += ["--samples", "10", "--judge-samples", "96", "--batch", "96", "--tries", "1"]

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, [*common, *arguments])
        assert result.exit_code == code, result.stderr or result.exception
        return result.stdout

    for _ in range(2):
        shown = run("-g", rule)
    rows = [row for row in read_rows(tmp_path / "rows.jsonl") if row.suite == "reused"]
    variants = ["exact", "every 2 calls, order 0", "every 2 calls, order 1", "cost 1.5"]
    assert [row.variant for row in rows] == [name for name in variants for _ in range(2)]
    table = shown[shown.index("| directions |") :]
    assert "| every 2 calls, order 1 | 1.5" in table and f"`{rule},refresh=2,order=1`" in table and "missing" not in table
    later = run("-g", "cfg:scale=3", "--limit-minutes", "1e-9", code=3)  # nothing is begun, and what is there stays
    assert "exact: not begun" in later and table.split("\n\n")[0] in later
    again = "segue reproduce reused -g cfg:scale=3 --model mine.safetensors --steps 5 --judge-samples 96 --out rows.jsonl"
    assert "| missing (fewer than 96 samples) |" in later and f"exact | 0 | `{again}` |" in later
    assert f"cost 1.5 | 0 | `{again} --cost 1.5` |" in later and len(read_rows(tmp_path / "rows.jsonl")) == len(rows) + 1


def test_windows_with_pauses_keep_the_first_call_of_each_segment(engine):
    rule = CFG(2.0, window=Window.steps(1, 3)) + CFG(1.5, window=Window.steps(6, 8))
    found = Placements(engine.plan(rule, steps=9))
    assert found.needed == ((0, 5),) and found.free(0) == (1, 2, 6, 7)
