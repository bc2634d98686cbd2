"""Pages of reproduction: blocks made of rows, nothing of few samples in a table, nothing of uncommitted code in a document."""

from dataclasses import replace

import pytest
from made_up_scores import made_up_scores

from segue.bench.quality.rows import REAL
from segue.bench.reproduction.claims import AGREES, DIFFERS, OPEN, Claim, by_intervals, in_all, tally
from segue.bench.reproduction.durations import durations_of, timed
from segue.bench.reproduction.inference_page import inference_claims, inference_content
from segue.bench.reproduction.interval_cfg import IntervalCFG
from segue.bench.reproduction.page import LEAST, Content, check_folder, empty_block, write_page
from segue.bench.reproduction.reused_page import ERROR, SUITE, reused_content
from segue.bench.reproduction.rule_list import OwnRule
from segue.bench.reproduction.scored_rules import BETTER, LEVEL, WORSE, ScoredRules
from segue.bench.reproduction.switch_picture import draw_switch
from segue.bench.rows import append_rows, make_row
from segue.bench.scores.intervals import Interval
from segue.bench.tables import GUIDED
from segue.bench.timing import Statistic, once
from segue.engine.images import read_png
from segue.engine.rules.presets import parse_rule

JUDGE = "judge@12"
SGG = "sgg:scale=2,weight=1,layers=1,switch="
OWN = [
    OwnRule("none", "none"),
    OwnRule("cfg", "cfg:scale=2"),
    OwnRule("slg", "slg:weight=1,layers=1"),
    OwnRule("sgg", f"{SGG}0.4"),
]


def case(samples: int) -> str:
    return f"small 12ab, {samples} samples from seed 7, 3 steps, euler, beside 99 leaves"


def scored(environment, samples: int, accuracies: dict[str, float], distances: dict[str, float], scales=()):
    """Rows of rules by one judge; the interval of a distance at 60 % is a hundredth to either side."""
    from segue.bench.quality.rows import RowForm
    from segue.bench.scores.intervals import wilson

    form, rows = RowForm(environment, case(samples), "float32"), []
    for rule, distance in distances.items():
        right = round(accuracies.get(rule, 0.5) * samples)
        share = wilson(right, samples, 0.6)
        rows.append(form.row(rule, "cost relative to unguided", "x", once(1.5)))
        rows.append(form.interval_row(rule, f"accuracy by {JUDGE}", "share", share, samples))
        found = Interval(distance, distance - 0.01, distance + 0.01)
        rows.append(form.interval_row(rule, f"Frechet distance per feature by {JUDGE}", "distance", found, samples))
    return rows + [form.row(rule, "effective scale", "scale", once(scale)) for rule, scale in dict(scales).items()]


DISTANCES = {"none": 0.5, "cfg:scale=2": 0.3, "slg:weight=1,layers=1": 0.2, f"{SGG}0.4": 0.1, "cfg:scale=1.5": 0.4}
SCALES = {"none": 1.0, "cfg:scale=2": 2.0, "slg:weight=1,layers=1": 1.5, f"{SGG}0.4": 1.5}


def test_a_rule_of_too_few_samples_is_in_no_table_and_is_listed_with_its_command(environment):
    few = made_up_scores(environment, case(LEAST - 1), JUDGE)
    own = [OwnRule(name, name) for name in ("none", "cfg:scale=2")]
    text = inference_content(few, own, [], "segue score", None, case(LEAST - 1)).text()
    assert "| rule |" not in text and "0.3" not in text
    for rule in ("none", "cfg:scale=2"):
        assert f'| {rule} | {LEAST - 1} | `segue score -g "{rule}"` |' in text
    enough = inference_content(scored(environment, LEAST, {}, DISTANCES), own, [], "segue score", None, case(LEAST)).text()
    assert "| none | 1.50x |" in enough and "missing" not in enough


def test_every_rule_stands_above_cfg_at_its_effective_scale_and_sentences_go_by_the_intervals(environment):
    rows = scored(environment, LEAST, {"none": 0.5, "slg:weight=1,layers=1": 0.4, "cfg:scale=1.5": 0.6}, DISTANCES, SCALES)
    found = ScoredRules.of(rows)
    lines = [line.split(" | ")[0].strip("| ") for line in found.beside_table([rule.text for rule in OWN]).splitlines()[2:]]
    below = "&nbsp;&nbsp;cfg:scale=1.5"
    assert lines == ["none", "cfg:scale=2", "slg:weight=1,layers=1", below, f"{SGG}0.4", below]
    rules = [rule.text for rule in OWN[1:]]
    distance = "Frechet distance per feature"
    assert found.comparison(rules[1], "cfg:scale=1.5", distance, JUDGE) == BETTER
    assert found.comparison(rules[1], "cfg:scale=1.5", "accuracy", JUDGE) == WORSE  # .4 against .6 of 960
    assert found.comparison(rules[1], rules[1], distance, JUDGE) == LEVEL
    sentences = found.equal_sentences(rules)
    assert sentences[1] == f"- FD by judge: better `{rules[1]}`, `{rules[2]}`."
    assert "worse `slg:weight=1,layers=1`" in sentences[0]


def test_claims_on_sgg_are_made_of_the_rows(environment):
    switched = [f"{SGG}{level:g}" for level in (0.2, 0.4, 0.6)]
    distances = DISTANCES | {switched[0]: 0.15, switched[2]: 0.3}
    own = {rule.name: rule.text for rule in OWN}
    claims = inference_claims(ScoredRules.of(scored(environment, LEAST, {}, distances, SCALES)), own, switched)
    said = {claim.says: claim for claim in claims}
    assert len(claims) == 5 and all(claim.verdict == AGREES for claim in claims if "beats" in claim.says)
    # .1 and .15 are one hundredth wide at 60 %, three at 95 %
    assert said["the best switch lies inside the noise levels"].verdict == OPEN
    worst = inference_claims(
        ScoredRules.of(scored(environment, LEAST, {}, distances | {switched[1]: 0.6}, SCALES)), own, switched
    )
    verdicts = {claim.says: claim.verdict for claim in worst}
    assert verdicts["SGG beats cfg, each at its own best numbers"] == DIFFERS
    assert verdicts["the best switch lies inside the noise levels"] == DIFFERS  # it is the first


def test_the_picture_of_the_switch_holds_what_was_scored(environment, tmp_path):
    pytest.importorskip("matplotlib")
    switched = [f"{SGG}{level:g}" for level in (0.2, 0.4, 0.6)]
    found = ScoredRules.of(scored(environment, LEAST, {}, DISTANCES | {switched[0]: 0.15}, SCALES))
    assert draw_switch(tmp_path / "switch.png", found, switched, {"none": "none"})
    assert read_png(tmp_path / "switch.png")[1]["rules"] == switched[:2]
    assert not draw_switch(tmp_path / "none.png", found, ["sgg:scale=9,weight=1,layers=1,switch=0.5"], {})


def test_every_point_of_the_interval_search_is_an_interval():
    search = IntervalCFG()
    scale, high, low = search.axes
    for point in [(s, h, share) for s in scale.start() for h in high.start() for share in (*low.start(), *low.around(0.3, 0))]:
        rule = parse_rule(search.at(point))
        window = dict(rule.parts[0].options)["window"]
        assert 0 < window.low < window.high == point[1] and dict(rule.parts[0].options)["scale"] == point[0]


def test_verdicts_of_seeds_and_of_intervals():
    assert [in_all(holds) for holds in ([True, True], [False], [True, False], [])] == [AGREES, DIFFERS, OPEN, OPEN]
    low, high, wide = Interval(1, 0.9, 1.1), Interval(2, 1.9, 2.1), Interval(2, 0.5, 3)
    assert [by_intervals(high, low, 1), by_intervals(high, low, -1), by_intervals(wide, low, 1)] == [AGREES, DIFFERS, OPEN]
    claims = [Claim("", "", "", verdict) for verdict in (AGREES, OPEN, AGREES)]
    assert tally(claims) == "of 3 claims 2 agree, 1 cannot be told"


def test_a_page_and_the_index_get_their_blocks_and_keep_what_people_wrote(environment, tmp_path):
    (tmp_path / "README.md").write_text(f"# Index\n\n{empty_block('other')}\n\nwords\n\n{empty_block('test')}\n")
    content = Content(
        ["A table."], [Claim("figure 1", "it is so", "1 to 2", AGREES)], [], made_up_scores(environment, case(9), JUDGE)
    )
    assert write_page(tmp_path, "test", "Title", content) == [tmp_path / "test.md", tmp_path / "README.md"]
    first = (tmp_path / "test.md").read_text()
    assert first.startswith("# Title\n\n<!-- test:begin -->") and "A table." in first and "| figure 1 | it is so |" in first
    index = (tmp_path / "README.md").read_text()
    assert "of 1 claims 1 agree" in index and "words" in index and index.count("Nothing is measured yet.") == 1
    (tmp_path / "test.md").write_text(first + "\nMy words.\n")
    write_page(tmp_path, "test", "Title", replace(content, parts=["Another."]))
    again = (tmp_path / "test.md").read_text()
    assert again.endswith("\nMy words.\n") and "Another." in again and "A table." not in again


def test_uncommitted_code_is_refused_before_the_work_and_again_in_the_page(environment, tmp_path):
    changed = replace(environment, commit="abc+changes")
    with pytest.raises(ValueError, match=r"uncommitted changes \(abc\+changes\)"):
        check_folder(tmp_path, changed)
    check_folder(None, changed)
    with pytest.raises(ValueError, match="uncommitted changes"):
        write_page(tmp_path, "test", "T", Content(["x"], rows=made_up_scores(changed, case(9), JUDGE)))
    assert not list(tmp_path.iterdir())


def test_runs_that_added_rows_are_timed_and_others_are_not(environment, tmp_path):
    path, clock = tmp_path / "rows.jsonl", iter([0.0, 90.0, 100.0, 130.0, 200.0])
    rows = made_up_scores(environment, case(9), JUDGE)
    with timed(path, environment, "test", lambda: next(clock)):
        append_rows(path, rows[:3])
    with pytest.raises(KeyboardInterrupt), timed(path, environment, "test", lambda: next(clock)):
        append_rows(path, rows[3:4])
        raise KeyboardInterrupt
    with timed(path, environment, "test", lambda: next(clock)):
        pass
    assert [(row.value, row.n) for row in durations_of(path, "test")] == [(90.0, 3), (30.0, 1)]
    assert "2.0 minutes in 2 runs" in Content(["x"], rows=[*rows, *durations_of(path, "test")]).text()


def test_real_samples_have_their_line(environment):
    rows = scored(environment, LEAST, {}, {REAL: 0.01, "none": 0.5})
    assert f"| {REAL} |" in inference_content(rows, OWN[:1], [], "segue score", None, case(LEAST)).text()


def test_the_page_of_reused_directions_holds_segmented_guidance_to_its_aims_by_intervals(environment):
    rule, held = "sgg:scale=2,weight=1,layers=3,switch=0.5", []
    for variant, cost, error in (("every 2 calls, order 1", 1.3, 0.02), ("cost 1.22", 1.21, 0.09), ("cost 1.15", 1.14, 0.3)):
        for case in (
            f"net 1, {rule}, 28 steps, euler",
            "net 1, cfg:scale=2, 28 steps, euler",
            f"net 1, {rule}, 14 steps, euler",
        ):
            spread = Statistic(error, error - 0.001, error + 0.001, 96)
            held.append(make_row(environment, SUITE, case, variant, GUIDED, "x", once(cost), "float32"))
            held.append(make_row(environment, SUITE, case, variant, ERROR, "relative", spread, "float32"))
    claims = reused_content(held, "net 1", {}).claims
    assert [(claim.where, claim.verdict) for claim in claims] == [(f"`{rule}`", v) for v in (AGREES, DIFFERS, DIFFERS)]
    assert claims[0].says == "every 2 calls, order 1: an error of 0.03 at most"


def test_the_page_of_reused_directions_keeps_every_case_of_the_networks_and_lists_what_is_missing(environment):
    def rows(case, variant, samples):
        error = make_row(environment, SUITE, case, variant, ERROR, "relative", Statistic(0.1, 0.08, 0.12, samples), "float32")
        return [make_row(environment, SUITE, case, variant, GUIDED, "x", once(1.5), "float32"), error]

    held = [*rows("net 1, cfg", "cost 1.5", 96), *rows("net 1, sgg", "cost 1.5", 95), *rows("net 12, ag", "cost 1.5", 96)]
    asked = {("net 1, sgg", "cost 1.5"): "again", ("net 1, sgg", "exact"): "begin", ("net 1, cfg", "cost 1.5"): "nothing"}
    text = reused_content(held, "net 1", asked).text()
    assert "**net 1, cfg**" in text and "0.100 (0.041 to 0.159)" in text  # Student's at 60 %, of 5 sets, made that at 95 %
    assert "**net 1, sgg**" not in text and "net 12" not in text
    assert "| sgg: cost 1.5 | 95 | `again` |\n| sgg: exact | 0 | `begin` |" in text and "nothing" not in text
