"""``segue score`` and ``segue tune-scales`` from outside: rows that the functions give, their tables, refusals before work."""

import json
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from tiny_checkpoint import save_tiny
from typer.testing import CliRunner

from segue import Engine, parse_rule
from segue.__main__ import app
from segue.bench.quality.judges import named_judge, short_name
from segue.bench.quality.rows import RowForm
from segue.bench.quality.score_command import equal_cfg
from segue.bench.quality.tables import score_table
from segue.bench.quality.time_limit import OutOfTimeError, TimeLimit
from segue.bench.quality.trial import networks_of
from segue.bench.rows import read_rows
from segue.bench.suites import UNFINISHED
from segue.bench.timing import once

SMALL = ("--samples", "10", "--steps", "2", "--out", "rows.jsonl")
PANEL = ("--judge", "stand_in_eye:eye", "--judge", "colours", "--real", "real.npz")


class Eye:
    """Five classes, by the mean colour."""

    def features(self, pictures):
        return pictures.mean(dim=(2, 3))

    def __call__(self, pictures):
        return self.features(pictures) @ torch.randn(3, 5, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture
def segue(model, tmp_path, monkeypatch):
    """Runs a command in a folder with real pictures; ``--model`` is the tiny one where ``model`` is true."""
    monkeypatch.chdir(tmp_path)
    found = ModuleType("stand_in_eye")
    found.eye = Eye()
    monkeypatch.setitem(sys.modules, "stand_in_eye", found)
    pixels = np.random.default_rng(1).integers(0, 256, (30, 8, 12, 3), dtype=np.uint8)
    np.savez("real.npz", pixels, np.arange(30) % 5)

    def run(*arguments, code=0, own=True):
        result = CliRunner().invoke(app, [*arguments, *(["--model", str(model)] if own else [])])
        assert result.exit_code == code, result.stderr or result.exception
        return result

    return run


def test_rules_are_scored_of_the_samples_that_the_options_name(segue, model, tmp_path):
    said = segue("score", "-g", "none", "-g", "cfg:scale=2", *SMALL, "--seed", "7", *PANEL).stdout
    rows = read_rows(tmp_path / "rows.jsonl")
    assert "10 samples from seed 7, 2 steps, euler, beside 30 of real.npz " in rows[0].case
    engine = Engine.from_pretrained(model, device="cpu")
    rule = parse_rule("cfg:scale=2", engine.spec)
    run = engine.sample([i % 5 for i in range(10)], rule.guidance, steps=2, seeds=7)
    (accuracy,) = (row for row in rows if row.variant == "cfg:scale=2" and row.metric == "accuracy by stand_in_eye:eye")
    found = Eye()(run.latents.clamp(-1, 1)).argmax(dim=1)
    assert accuracy.value == pytest.approx(float((found == torch.arange(10) % 5).double().mean()))
    assert said.endswith("\nrows in rows.jsonl\n")
    assert score_table(rows) in said and "| none | 1.00x | 1.00 |" in said


def test_the_same_command_goes_on_and_draws_nothing_that_is_there(segue, tmp_path, monkeypatch):
    arguments = ("score", *SMALL, *PANEL)
    segue(*arguments, "-g", "none", "--json")
    first = (tmp_path / "rows.jsonl").read_text()
    rows = json.loads(segue(*arguments, "-g", "none", "-g", "cfg:scale=2", "--json").stdout)
    text = (tmp_path / "rows.jsonl").read_text()
    assert text.startswith(first) and [json.loads(line) for line in text.splitlines()] == rows
    monkeypatch.setattr(Engine, "sample", None)  # who would draw would fail
    segue(*arguments, "-g", "none", "-g", "cfg:scale=2")
    assert (tmp_path / "rows.jsonl").read_text() == text
    assert (
        score_table(read_rows(tmp_path / "rows.jsonl")) in segue("score", "--report", "--out", "rows.jsonl", own=False).stdout
    )


def test_rows_go_into_the_folder_out_unless_a_file_is_named(segue, tmp_path):
    """Committed rows lie in bench/results: who tries a command in the checkout leaves them as they are."""
    told = segue("score", "--report", own=False, code=2).stderr
    assert "there is no result file out/quality.jsonl: segue score makes it" in told
    said = segue("score", "-g", "none", "--samples", "10", "--steps", "1", "--no-effective-scale", *PANEL).stdout
    assert "rows in out/quality.jsonl" in said
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["out"]
    assert score_table(read_rows(tmp_path / "out" / "quality.jsonl")) in segue("score", "--report", own=False).stdout


def test_by_default_all_rules_with_numbers_are_scored_that_the_networks_allow(segue, tmp_path, monkeypatch):
    """The tiny model has the name and the blocks of the bundled one, and no weaker sibling."""
    monkeypatch.setattr("segue.bench.quality.score_command.default_rules", lambda spec: ("cfg:scale=2", "ag:weight=1"))
    said = segue("score", *SMALL, *PANEL, "--no-effective-scale").stdout
    assert {row.variant for row in read_rows(tmp_path / "rows.jsonl")} == {"none", "cfg:scale=2"}
    assert "ag:weight=1 is left out: no network named 'weak'" in said
    assert "no network named 'weak'" in segue("score", "-g", "ag:weight=1", *SMALL, *PANEL, code=2).stderr


def test_a_weaker_network_of_its_own_file_guides_and_usual_numbers_are_named(segue, tmp_path):
    weak = save_tiny(tmp_path / "weak.safetensors", seed=5)
    named = save_tiny(tmp_path / "mine.safetensors", name="mine")
    common = (*SMALL, *PANEL, "--no-effective-scale", "--model", str(named), "--weak", str(weak))
    said = segue("score", "-g", "none", "-g", "ag", *common, own=False).stdout
    rows = read_rows(tmp_path / "rows.jsonl")
    (rule,) = {row.variant for row in rows} - {"none"}
    assert rule.startswith("ag:weight=") and f"note: no tuned numbers of ag for mine, using {rule.removeprefix('ag:')}" in said
    engine = Engine.from_pretrained(named, device="cpu", models={"weak": weak})
    assert rows[0].case.startswith(f"{networks_of(engine)}, ")


def test_cfg_at_the_effective_scale_of_a_rule_is_scored_beside_it(segue, tmp_path, monkeypatch, environment):
    form = RowForm(environment, "a model", "float32")
    scales = {"none": 1.0, "cfg:scale=3": 3.0, "sgg": 1.4967, "exit": 1.3, "ag": 0.9, "slg": 1.302}
    scales |= {"cfg:scale=1.77 + tcfg": 1.394, "cfg:scale=2.7,window=sigma:0.44,0.8": 1.61}  # which are not CFG at that number
    rows = [form.row(rule, "effective scale", "scale", once(scale)) for rule, scale in scales.items()]
    # of equal ones one, and none below unguided
    assert equal_cfg(rows) == ["cfg:scale=1.5", "cfg:scale=1.3", "cfg:scale=1.39", "cfg:scale=1.61"]
    monkeypatch.setattr("segue.bench.quality.score_command.equal_cfg", lambda rows: ["cfg:scale=1.7"])
    segue("score", "-g", "none", "-g", "exit:weight=0.8,layer=4", "--beside-cfg", *SMALL, *PANEL)
    found = {row.variant for row in read_rows(tmp_path / "rows.jsonl")}
    assert found == {"none", "exit:weight=0.8,layer=4", "cfg:scale=1.7"}


def test_a_document_takes_the_tables_of_a_model_between_its_markers(segue, model, tmp_path, monkeypatch):
    monkeypatch.setenv("SEGUE_COMMIT", "abc")
    segue("score", "-g", "none", *SMALL, *PANEL)
    other = save_tiny(tmp_path / "other.safetensors", seed=1)
    segue("score", "-g", "cfg:scale=3", *SMALL, *PANEL, "--model", str(other), own=False)
    card = tmp_path / "card.md"
    card.write_text("Before.\n\n<!-- quality:begin -->old<!-- quality:end -->\n\nAfter.\n")
    for _ in range(2):  # the same again
        segue("score", "--report", "--out", "rows.jsonl", "--into", "card.md")
        text = card.read_text()
        own = [row for row in read_rows(tmp_path / "rows.jsonl") if row.variant == "none"]
        assert text.startswith("Before.\n\n<!-- quality:begin -->\n\n**herbarium ") and score_table(own) in text
        assert text.endswith("<!-- quality:end -->\n\nAfter.\n") and "old" not in text and "cfg:scale=3" not in text
    monkeypatch.setenv("SEGUE_COMMIT", "abc+changes")
    segue("score", "-g", "exit:weight=1,layer=4", *SMALL, *PANEL)
    said = segue("score", "--report", "--out", "rows.jsonl", "--into", "card.md", code=2).stderr
    assert "was measured with uncommitted changes (abc+changes)" in said and card.read_text() == text


def test_a_report_is_of_the_rows_that_are_asked_for(segue, model, tmp_path):
    segue("score", "-g", "none", *SMALL, *PANEL)
    segue("score", "-g", "cfg:scale=2", *SMALL, *PANEL, "--seed", "3", "--samples", "11")
    report = ("score", "--report", "--out", "rows.jsonl")
    both = segue(*report, own=False).stdout
    first, second = (segue(*report, *chosen).stdout for chosen in (("--samples", "10"), ("--seed", "3")))
    assert "| none |" in first and "| cfg:scale=2 |" not in first and "| cfg:scale=2 |" in second and "| none |" not in second
    assert both.rstrip("\n") == first.rstrip("\n") + "\n\n" + second.rstrip("\n")
    chosen = segue(*report, "-g", "cfg:scale=2").stdout
    assert "| cfg:scale=2 |" in chosen and "| none |" not in chosen
    assert "rows.jsonl holds no rows of cfg:scale=9" in segue(*report, "-g", "cfg:scale=9", code=2).stderr
    assert "--report knows the numbers of rules by a --model" in segue(*report, "-g", "cfg", own=False, code=2).stderr
    said = segue(*report, "--samples", "12", code=2).stderr
    assert f"rows.jsonl holds no rows of quality of the weights of {model} of samples: 12" in said


def test_an_interruption_keeps_what_was_scored_and_exits_with_130(segue, tmp_path, monkeypatch):
    sample, calls = Engine.sample, []

    def stops(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample(*arguments, **options)

    monkeypatch.setattr(Engine, "sample", stops)
    segue("score", "-g", "none", "-g", "cfg:scale=2", *SMALL, *PANEL, "--no-effective-scale", code=130)
    assert {row.variant for row in read_rows(tmp_path / "rows.jsonl")} == {"none"}


def test_a_rule_without_time_is_left_for_the_same_command(segue, tmp_path, monkeypatch):
    def check(limit, what, work):
        assert limit.minutes == 5
        if what != "none":
            raise OutOfTimeError(f"{what}: not begun")

    monkeypatch.setattr(TimeLimit, "check", check)
    said = segue("score", "-g", "none", "-g", "cfg:scale=2", *SMALL, *PANEL, "--limit-minutes", "5", code=UNFINISHED).stdout
    assert "cfg:scale=2: not begun; the same command goes on there" in said and "| none | 1.00x |" in said
    assert {row.variant for row in read_rows(tmp_path / "rows.jsonl")} == {"none"}


def test_pictures_that_exist_are_scored_with_their_labels_and_mistakes(segue, tmp_path):
    pixels = np.random.default_rng(2).integers(0, 256, (15, 8, 12, 3), dtype=np.uint8)
    np.savez("made.npz", pixels, np.arange(15) % 5)
    said = segue("score", "made.npz", "--out", "rows.jsonl", *PANEL, "--confusion", "2", own=False).stdout
    rows = read_rows(tmp_path / "rows.jsonl")
    pictures = torch.tensor(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    right = (Eye()(pictures).argmax(dim=1) == torch.arange(15) % 5).double().mean()
    assert next(row.value for row in rows if row.metric.startswith("accuracy by")) == pytest.approx(float(right))
    assert {row.variant.split()[0] for row in rows} == {"made.npz"} and said.count("| stand_in_eye:eye | class ") == 2


def test_numbers_are_searched_judged_by_others_and_printed(segue, tmp_path):
    options = ("--samples", "10", "--judge-samples", "12", "--steps", "2", "--out", "rows.jsonl", "--real", "real.npz")
    arguments = ("tune-scales", "-g", "cfg:scale=3", *options, "--extractor", "stand_in_eye:eye", "--judge", "colours")
    said = segue(*arguments).stdout
    text = (tmp_path / "rows.jsonl").read_text()
    found = json.loads(segue(*arguments, "--json").stdout)
    assert (tmp_path / "rows.jsonl").read_text() == text  # nothing is drawn twice
    rule = found["numbers"]["cfg"]
    assert rule.startswith("cfg:scale=") and f'"cfg": "{rule}"' in said
    judged = [row for row in read_rows(tmp_path / "rows.jsonl") if "12 samples from seed 100000" in row.case]
    assert {row.variant for row in judged} == {"none", rule} and all("stand_in_eye" not in row.metric for row in judged)
    searched = [row for row in read_rows(tmp_path / "rows.jsonl") if "10 samples from seed 0," in row.case]
    assert {row.metric for row in searched if " by " in row.metric and "colours" in row.metric} == set()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("score", "-g", "magic", *SMALL, *PANEL), "unknown guidance rule 'magic'"),
        (("score", *SMALL, "--judge", "colours"), "herbarium draws no leaves of the herbarium: name real samples by --real"),
        (("score", *SMALL, "--judge", "nobody", "--real", "real.npz"), "there is no judge 'nobody'"),
        (("score", *SMALL, *PANEL, "--samples", "9"), "samples must be a whole number of at least 10, got 9"),
        (("score", *SMALL, *PANEL, "--samples", "31"), "31 samples need as many real ones beside them, got 30"),
        (("score", *SMALL, *PANEL, "--real-samples", "31"), "real.npz holds 30 pictures, and 31 are asked for"),
        (("score", *SMALL, *PANEL, "--batch", "0"), "batch must be a whole number of at least 1, got 0"),
        (("score", *SMALL, *PANEL, "--steps", "0"), "steps must be a whole number of at least 1, got 0"),
        (("score", *SMALL, *PANEL, "--solver", "magic"), "unknown solver 'magic'"),
        (("score", *SMALL, *PANEL, "--device", "tpu"), "unknown device 'tpu'"),
        (("score", *SMALL, *PANEL, "--confusion", "-1"), "confusion must be at least 0, got -1"),
        (("score", *SMALL, *PANEL, "--limit-minutes", "0"), "limit-minutes must be positive, got 0.0"),
        (("score", *SMALL[:-1], "rows.csv", *PANEL), "the result file must end in .jsonl"),
        (("score", "real.npz", "--out", "rows.jsonl", *PANEL), "real.npz was drawn already: leave --model"),
        (("score", *SMALL, *PANEL, "--beside-cfg", "--no-effective-scale"), "--beside-cfg goes by effective scales"),
        (("score", *SMALL, *PANEL, "--into", "card.md"), "--into card.md goes with --report"),
        (("score", "--report", "--out", "rows.jsonl"), "there is no result file rows.jsonl"),
        (("score", "--report", "--json"), "--report shows rows that are there: leave --json out"),
        (("score", "--report", "--limit-minutes", "5"), "--report shows rows that are there: leave --limit-minutes 5.0 out"),
        (("score", "--report", "--real-samples", "20"), "--report shows rows that are there: leave --real-samples 20 out"),
        (("score", "--report", "--confusion", "3"), "--report shows rows that are there: leave --confusion 3 out"),
        (("score", "--report", "--beside-cfg"), "--report shows rows that are there: leave --beside-cfg out"),
        (("score", "--report", "--no-effective-scale"), "leave --no-effective-scale out"),
        (
            ("tune-scales", "-g", "cfg:scale=2", "-g", "cfg:scale=3", *SMALL, *PANEL),
            "cfg can have one set of numbers, and is given",
        ),
        (("tune-scales", "-g", "none", *SMALL, *PANEL), "none has no scale and no weight to search"),
        (
            ("tune-scales", "-g", "cfg", *SMALL, "--extractor", "colours", *PANEL),
            "colours chooses the numbers",
        ),
        (("tune-scales", "-g", "cfg", *SMALL, "--write", *PANEL), "numbers are kept for bundled models (herbarium), not for '"),
        (("tune-scales", "-g", "cfg", *SMALL, "--judge-seed", "5", *PANEL), "what is searched on must not judge: seeds 5 to 9"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_sentence_before_any_work(segue, tmp_path, monkeypatch, arguments, said):
    monkeypatch.setattr(Engine, "sample", None)
    result = segue(*arguments, code=2)
    assert said in result.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "rows.jsonl").exists()


def test_numbers_of_other_weights_do_not_keep_a_search_from_beginning(segue, tmp_path, monkeypatch):
    def stale(model):
        raise ValueError(f"the numbers of {model} were made for other weights")

    aside = []
    monkeypatch.setattr("segue.bench.quality.tune_command.tuned_rules", stale)
    monkeypatch.setattr("segue.bench.quality.tune_command.set_aside", aside.append)
    said = segue("tune-scales", "-g", "exit:weight=1,layer=4", *SMALL, "--judge-samples", "11", "--real", "real.npz").stdout
    assert "made for other weights; the search begins without it" in said and aside == ["herbarium"]


def test_where_nobody_is_named_one_chooses_and_others_judge(segue, tmp_path):
    segue("tune-scales", "-g", "exit:weight=1,layer=4", *SMALL, "--judge-samples", "11", "--real", "real.npz")
    judges = {}
    for row in read_rows(tmp_path / "rows.jsonl"):
        judges.setdefault(row.case.split(" samples")[0][-2:], set()).update(row.metric.split(" by ")[1:])
    assert judges["10"] == {"colours"} and {short_name(judge) for judge in judges["11"]} == {"textures"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("real.npz", "--beside-cfg"), "real.npz was drawn already: leave --beside-cfg out"),
        (("real.npz", "--no-effective-scale"), "real.npz was drawn already: leave --no-effective-scale out"),
        (("real.npz", "--limit-minutes", "5"), "real.npz was drawn already: leave --limit-minutes 5.0 out"),
        (("--report", "--dtype", "bfloat16"), "--report reads weights of a --model alone: leave --dtype bfloat16 out"),
        (("--report", "--weak", "weak.safetensors"), "of a --model alone: leave --weak weak.safetensors out"),
    ],
)
def test_options_without_effect_are_refused(segue, tmp_path, arguments, said):
    result = segue("score", *arguments, *([] if "--report" in arguments else PANEL), "--out", "rows.jsonl", code=2, own=False)
    assert said in result.stderr and not (tmp_path / "rows.jsonl").exists()


def test_pictures_of_another_size_need_real_ones(segue):
    result = segue("score", "real.npz", "--out", "rows.jsonl", "--judge", "colours", code=2, own=False)
    assert "pictures of 8x12 are no leaves of the herbarium" in result.stderr


def test_who_judges_is_on_the_device_that_is_asked_for():
    assert named_judge("textures", torch.device("meta")).features(torch.zeros(2, 3, 8, 8)).device.type == "meta"
