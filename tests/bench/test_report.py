"""Reports come from rows alone: the same rows give the same bytes, and the README changes between its markers only."""

from dataclasses import replace
from pathlib import Path

import pytest

from segue.bench.readme_block import markers, readme_block, seconds_block, update_block, update_document
from segue.bench.report import report_text, write_report
from segue.bench.rows import append_rows, latest, make_row, read_rows
from segue.bench.summary import summary_tables
from segue.bench.timing import Statistic

BEGIN, END = markers("bench")
SECONDS_BEGIN, SECONDS_END = markers("seconds")

GAIN = "speed-up over the published algorithm"


@pytest.fixture
def rows(environment):
    def row(suite, case, variant, metric, unit, value, expected=None):
        statistic = Statistic(value, 0.95 * value, 1.04 * value, 7)
        made = make_row(environment, suite, case, variant, metric, unit, statistic, "float32", expected)
        return replace(made, date="2030-01-02T03:04:05+00:00")

    guided = "cost relative to unguided"
    made = [
        row("cost", "model b1", "sgg", guided, "x", 1.83, 1.821),
        row("cost", "model b1", "sgg", GAIN, "x", 1.37, 1.343),
        row("e2e", "model b1, eager", "segue sgg", "latency of a batch", "s", 0.5),
        row("e2e", "model b1, eager", "segue sgg", "throughput", "images/s", 2.0),
        row("e2e", "model b1, eager", "segue sgg", "speed-up over diffusers eager sgg as published", "x", 1.9),
        row("step", "model b1, sgg", "cond + uncond", "cost relative to an unguided call", "x", 2.01, 2.0),
        row("kernels", "ceilings", "large copy", "bandwidth", "TB/s", 0.02),
        row("kernels", "ceilings", "large product, bfloat16", "rate", "TFLOP/s", 1.5),
        row("kernels", "norm", "reference", "arithmetic intensity", "FLOP/byte", 2.0),
        row("kernels", "norm", "reference", "bandwidth", "TB/s", 0.01, 0.02),
        row("cold", "model b1, sgg", "segue", "time to the first image", "s", 9.0),
        row("scaling", "model b1, by batch", "sgg", "exponent of time over batch", "1", 0.9, 1.0),
    ]
    for stage, gain in (("as published", 1.0), ("+ live branches only", 1.2)):
        made.append(row("step", "model b1, sgg", stage, "time of a run", "s", 1 / gain))
        made.append(row("step", "model b1, sgg", stage, GAIN, "x", gain, gain))
    for axis, values in (("switch", (0, 0.5, 1)), ("batch", (1, 2))):
        made += [row("scaling", f"model b1, by {axis}", f"sgg, {axis} {v:g}", guided, "x", 1.5 + v / 9, 1.5) for v in values]
    return made


def test_every_figure_of_the_tables_is_a_figure_of_a_row(rows):
    text = report_text(rows)
    assert "| model b1 | sgg | 7 | 1.83 (1.74-1.9)x | 1.821x | +0.5% | 1.37 (1.3-1.42)x |" in text
    assert "| model b1, sgg | + live branches only | 7 | 0.833 (0.792-0.867) | 1.2 (1.14-1.25)x | 1.200x |" in text
    assert "| norm | reference | 0.01 (0.0095-0.0104) TB/s | 50% |" in text
    for word in ("test machine, float32", "commit abc", "2030-01-02", "torch 0"):
        assert word in text


def test_only_suites_with_rows_have_a_section(rows):
    text = report_text([row for row in rows if row.suite == "cold"])
    assert "### Cold start" in text
    assert text.count("###") == 1


def test_the_same_rows_write_the_same_bytes(tmp_path, rows):
    pytest.importorskip("matplotlib")
    source = tmp_path / "rows.jsonl"
    append_rows(source, rows)
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{BEGIN}\nold figures\n{END}\n\nAfter.\n")
    written = write_report([source], tmp_path / "a", readme)
    first = {path.name: path.read_bytes() for path in written}
    again = {path.name: path.read_bytes() for path in write_report([source], tmp_path / "a", readme)}
    assert again == first
    assert set(first) == {
        "report.md",
        "README.md",
        "cost-against-switch.svg",
        "cost-against-batch.svg",
        "waterfall.svg",
        "roofline.svg",
    }
    text = readme.read_text()
    assert text.startswith("# Title\n\n")
    assert text.endswith("\n\nAfter.\n")
    assert "old figures" not in text
    beside = "| diffusers eager | model b1 | - | - | 1.9 (1.8-1.98)x | - | - | 7 |"
    assert beside in text
    report = (tmp_path / "a" / "report.md").read_text()
    assert beside in report
    assert "| model b1 | 1.83 (1.82) | 1.37 (1.3-1.42)x | 7 |" in report
    assert "| model b1, sgg | + live branches only | 1.2 (1.14-1.25)x | 1.20x | exact | 7 |" in report


def test_the_newest_row_counts(tmp_path, rows):
    source = tmp_path / "rows.jsonl"
    append_rows(source, rows)
    append_rows(source, [replace(rows[0], value=1.5, p20=1.5, p80=1.5)])
    write_report([source], tmp_path)
    assert "1.5 (1.5-1.5)x" in (tmp_path / "report.md").read_text()
    assert len(read_rows(source)) == len(rows) + 1


@pytest.mark.parametrize("text", ["no markers", f"{BEGIN}", f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_readme_without_one_pair_of_markers_is_refused_and_kept(tmp_path, rows, text):
    source, readme = tmp_path / "rows.jsonl", tmp_path / "README.md"
    append_rows(source, rows)
    readme.write_text(text)
    with pytest.raises(ValueError, match="one pair of markers"):
        write_report([source], tmp_path / "out", readme)
    assert readme.read_text() == text
    assert not (tmp_path / "out").exists()


def test_the_block_replaces_itself(rows):
    once = update_block(f"a\n{BEGIN}{END}\nb", readme_block(rows), "README.md")
    assert update_block(once, readme_block(rows), "README.md") == once


def test_seconds_and_rates_are_those_of_a_gpu_alone(rows, environment):
    """The same rows with CUDA among their versions: seconds and TFLOP/s of the card stand in the block, and no processor's."""

    def of_card(suite, case, variant, metric, unit, value, expected=None):
        statistic = Statistic(value, 0.95 * value, 1.04 * value, 7)
        card = replace(environment, device="card", versions={"cuda": "13.0"})
        return make_row(card, suite, case, variant, metric, unit, statistic, "bfloat16", expected)

    attention = "attention, SD3.5-medium 1024"
    made = [
        of_card("e2e", "model b1, eager", "segue sgg", "latency of a batch", "s", 1.25),
        of_card("e2e", "model b1, eager", "segue sgg", "effective rate", "TFLOP/s", 440.0, 800.0),
        of_card("e2e", "model b1, eager", "diffusers eager cfg", "latency of a batch", "s", 2.5),
        of_card("kernels", attention, "cuDNN", "time of a launch", "s", 0.6e-3),
        of_card("kernels", attention, "cuDNN", "rate", "TFLOP/s", 400.0, 800.0),
        of_card("kernels", "norm, SD3.5-medium 1024", "kernel", "time of a launch", "s", 1e-5),
        of_card("step", "model b1, sgg", "fp8 linears alone", "speed-up over the exact engine", "x", 1.3),
        of_card("step", "model b1, sgg", "fp8 linears alone", "error of a run", "relative", 0.021),
    ]
    block, summary = readme_block([*rows, *made]), summary_tables(made)
    for text in (block, summary):
        assert "| model b1, eager | segue sgg | 1.25 (1.19-1.3) | 440 | 55% | 7 |" in text
        assert "| model b1, eager | diffusers eager cfg | 2.5 (2.38-2.6) | - | - | 7 |" in text
        assert text.count("| seconds |") == 1
        assert "norm" not in text
    assert "| SD3.5-medium 1024 | cuDNN | 600 | 400 | 50% | 7 |" in summary
    assert "| model b1, sgg | fp8 linears alone | 1.3 (1.23-1.35)x | 0.021 | 7 |" in summary
    assert block.index("**card, bfloat16**") < block.index(f"**{rows[0].device}, {rows[0].dtype}**")
    assert "seconds" not in readme_block(rows) + summary_tables(rows)


def test_rows_of_code_that_was_never_committed_do_not_reach_the_readme(rows):
    with pytest.raises(ValueError, match=r"uncommitted changes \(abc\+changes\)"):
        readme_block([replace(rows[0], commit="abc+changes")])
    assert "abc+changes" in report_text([replace(rows[0], commit="abc+changes")])


def test_rows_made_with_different_versions_are_told_apart(rows):
    text = report_text([rows[0], replace(rows[1], versions={"torch": "9"}, commit="def")])
    assert "1 threads, torch 0; commit abc; 2030-01-02. 1 threads, torch 9; commit def; 2030-01-02." in text


def test_no_rows_are_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no result rows"):
        write_report([tmp_path / "empty.jsonl"], tmp_path / "out")


def test_seconds_stand_by_rule_and_program(rows, environment):
    """Of cards alone: what a processor took is a figure of its load."""

    def of_card(case, variant, value):
        card = replace(environment, device="card", versions={"cuda": "13.0"})
        return make_row(card, "e2e", case, variant, "latency of a batch", "s", Statistic(value, value, value, 3), "bfloat16")

    made = [
        of_card("a batch 1, 28 calls, eager", "segue none", 0.61),
        of_card("a batch 1, 28 calls, eager", "diffusers eager sgg as published", 3.25),
        of_card("a batch 1, 28 calls, eager", "segue sgg", 1.2),
        of_card("b, eager", "segue cfg", 2.0),
    ]
    block = seconds_block([*rows, *made])
    assert block.splitlines()[:4] == [
        "| a batch 1, 28 calls; card, bfloat16 | segue | diffusers eager |",
        "| --- | --- | --- |",
        "| unguided | 0.61 s | - |",
        "| segmented guidance | 1.2 s | 3.25 s as published |",
    ]
    assert "| classifier-free guidance | 2 s |" in block and "0.5 s" not in block
    text = f"a\n{SECONDS_BEGIN}\nold\n{SECONDS_END}\nb\n{BEGIN}{END}"
    both = update_document(text, [*rows, *made], "page")
    assert block in both and readme_block([*rows, *made]) in both and "old" not in both
    with pytest.raises(ValueError, match=r"page needs one pair of markers, <!-- seconds:begin -->"):
        update_document(SECONDS_BEGIN, made, "page")


def test_the_figures_of_the_documents_are_those_of_the_committed_rows():
    root = Path(__file__).parents[2]
    rows = latest([row for path in sorted((root / "bench" / "results").glob("*.jsonl")) for row in read_rows(path)])
    for name in ("README.md", "docs/benchmarks.md"):
        page = (root / name).read_text(encoding="utf-8")
        assert update_document(page, rows, name) == page
    assert (root / "bench" / "results" / "report.md").read_text(encoding="utf-8").startswith(report_text(rows))


@pytest.mark.parametrize("card", ["h100", "h200"])
def test_what_the_readme_says_of_the_seconds_is_so(card):
    """Exact SGG below CFG, and below what eager diffusers takes unguided; the published loop above its CFG."""
    path = Path(__file__).parents[2] / "bench" / "results" / f"{card}.jsonl"
    seconds = {row.variant: row.value for row in latest(read_rows(path)) if row.metric == "latency of a batch"}
    assert seconds["segue sgg"] < seconds["segue cfg"]
    assert seconds["segue sgg"] < seconds["diffusers eager none"]
    assert seconds["diffusers eager sgg as published"] > seconds["diffusers eager cfg"]
