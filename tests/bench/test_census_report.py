"""What ``segue bench census`` prints: JSON that adds up, tables of the census, before and after, measured beside predicted."""

import json
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from segue.__main__ import app
from segue.bench.cards import CARDS, Card, card_of, find_card
from segue.bench.cases import BenchModel
from segue.bench.census import take_census
from segue.bench.census_beside import beside_text, measured_calls
from segue.bench.census_json import census_dict, changes
from segue.bench.gpu_visit import PREDICTIONS
from segue.bench.kernel_record import ATTENTION, PRODUCT, Kernel
from segue.bench.predict import COPY_SHARE, GAP, kernel_seconds, product_seconds, time_parts
from segue.bench.rows import append_rows, make_row
from segue.bench.timing import Statistic

MODEL, H100 = "sit-s/2@64:32", CARDS["h100"]


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["bench", "census", *arguments])


def words(text: str) -> list[list[str]]:
    """Cells of the lines of a table."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]


@pytest.fixture(scope="module")
def census():
    return take_census(BenchModel.parse(MODEL), H100)


@pytest.fixture
def call_row(environment):
    def make(variant: str, seconds: float, case=f"{MODEL} batch 1, 28 calls, sgg", dtype="bfloat16", metric="time of a call"):
        statistic = Statistic(seconds, 0.9 * seconds, 1.1 * seconds, 7)
        return make_row(environment, "step", case, variant, metric, "s", statistic, dtype)

    return make


@pytest.fixture
def ceiling_rows(environment):
    rates = {"large copy": 2.0, "large product, bfloat16": 500.0}
    return [
        make_row(environment, "kernels", "ceilings", name, "rate", "T/s", Statistic(value, value, value, 7), "bfloat16")
        for name, value in rates.items()
    ]


def test_json_adds_up_and_gives_what_was_counted(census):
    result = invoke(MODEL, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found == json.loads(json.dumps(census_dict(census)))
    assert [step["branches"] for step in found["live_sets"]] == [["cond"], ["cond", "uncond"], ["cond", "cond skip 7,8,9"]]
    for step, counted in zip(found["live_sets"], census.steps, strict=True):
        for name in ("kernels", "flops", "bytes"):
            operations = [item for item in step["operations"] if name != "kernels" or item["kind"] != "copy"]
            each = [item["count"] * (1 if name == "kernels" else item[name]) for item in operations]
            assert sum(each) == step[name] == getattr(counted.total(), name)
        assert sum(kind["kernels"] for kind in step["kinds"].values()) == step["kernels"]
    assert found["seconds"] == pytest.approx(sum(step["calls"] * step["seconds"] for step in found["live_sets"]))


def test_tables_show_the_census(census):
    result = invoke(MODEL, "--top", "3")
    assert result.exit_code == 0, result.output
    cells = words(result.stdout)
    for step in census.steps:
        total = step.total()
        line = next(line for line in cells if line[0] == " + ".join(step.branches) and len(line) > 8)
        assert line[1:3] == [str(step.calls), str(total.kernels)] and f"{total.seconds * 1e3:.3f}" in line
    slowest = max(census.steps[1].kernels, key=lambda kernel: census.steps[1].kernels[kernel] * census.kernel_seconds(kernel))
    assert f"next bottleneck: {slowest.name}" in result.stdout
    assert "a model's, not measured" in result.stdout
    shares = re.search(r"the run's time: (.*?) \(", result.stdout)[1]
    assert sum(int(share) for share in re.findall(r"(\d+)%", shares)) == pytest.approx(100, abs=2)


def test_linears_in_fp8_are_named_and_have_no_measured_rows(call_row, tmp_path):
    """The suite times native ones."""
    found = invoke(MODEL, "--linears", "fp8")
    assert f"{MODEL}, batch 1, bfloat16, fp8 linears, 28 calls under sgg" in found.stdout, found.output
    assert json.loads(invoke(MODEL, "--linears", "fp8", "--json").stdout)["linears"] == "fp8"
    rows = tmp_path / "rows.jsonl"
    append_rows(rows, [call_row("cond", 1.0)])
    assert invoke(MODEL, "--beside", str(rows)).exit_code == 0
    refused = invoke(MODEL, "--linears", "fp8", "--beside", str(rows))
    assert refused.exit_code == 2 and "bfloat16, fp8 linears, sgg" in refused.stderr


def test_against_names_what_came_and_went(tmp_path):
    before = tmp_path / "before.json"
    before.write_text(invoke(MODEL, "--kernels", "linear_gelu=reference", "--json").stdout)
    result = invoke(MODEL, "--kernels", "linear_gelu=cublaslt", "--against", str(before))
    assert result.exit_code == 0, result.output
    lines = [line for line in words(result.stdout) if line[1:2] in (["gelu"], ["_addmm_activation"], ["addmm"])]
    assert ["pytorch", "gelu", "1 x 4 x 256", "12", "0", "-12"] in lines
    assert ["product", "_addmm_activation", "4 x 64 -> 256", "0", "12", "+12"] in lines
    same = invoke(MODEL, "--kernels", "linear_gelu=reference", "--against", str(before))
    assert same.stdout.count("the same operations") == 3
    found = json.loads(invoke(MODEL, "--kernels", "linear_gelu=cublaslt", "--against", str(before), "--json").stdout)
    changed = {(change["name"], change["before"], change["after"]) for change in found["live_sets"][0]["changes"]}
    assert ("gelu", 12, 0) in changed and ("_addmm_activation", 0, 12) in changed


def test_changes_are_what_two_steps_do_not_share():
    def step(**counts):
        return {"operations": [{"kind": "own", "name": n, "sizes": "1", "count": c} for n, c in counts.items()]}

    found = changes(step(a=3, b=1, c=2), step(a=1, b=1, d=4))
    assert [(change.name, change.before, change.after) for change in found] == [("a", 3, 1), ("c", 2, 0), ("d", 0, 4)]


def test_beside_compares_the_rows_of_the_same_case(census, call_row, tmp_path):
    predicted = {" + ".join(step.branches): step.total().seconds for step in census.steps}
    rows = [call_row("cond", 9.0), call_row("cond", 2 * predicted["cond"]), call_row("cond + uncond", 1.0)]
    others = [
        call_row("cond", 5.0, case=f"{MODEL} batch 2, 28 calls, sgg"),
        call_row("cond", 5.0, case="sit-s/2@64:64 batch 1, 28 calls, sgg"),
        call_row("cond", 5.0, dtype="float32"),
        call_row("cond", 5.0, metric="cost relative to an unguided call"),
    ]
    found = measured_calls(census, rows + others)
    assert {name: row.value for name, row in found.items()} == {"cond": 2 * predicted["cond"], "cond + uncond": 1.0}
    path = tmp_path / "rows.jsonl"
    append_rows(path, rows + others)
    result = invoke(MODEL, "--beside", str(path))
    assert result.exit_code == 0, result.output
    line = next(line for line in words(result.stdout) if line[0] == "cond" and line[4:5] == ["2.00"])
    assert line[3] == f"{predicted['cond'] * 1e3:.3f}"
    steps = json.loads(invoke(MODEL, "--beside", str(path), "--json").stdout)["live_sets"]
    assert [step.get("measured_seconds") for step in steps] == [2 * predicted["cond"], 1.0, None]


def test_a_visit_prints_every_measured_case(call_row, ceiling_rows, environment):
    rows = [call_row("cond", 1e-3), call_row("cond", 2e-3, case=f"{MODEL} batch 2, 2 calls, cfg")]
    assert "no census" in beside_text(rows) and environment.device in beside_text(rows)
    on_card = [row.__class__(**(vars(row) | {"device": "NVIDIA H100 80GB HBM3"})) for row in rows + ceiling_rows]
    text = beside_text(on_card)
    assert text.count("Measured on NVIDIA H100") == 2 and f"{MODEL}, batch 2" in text
    assert beside_text([]) == ""
    assert "other, bfloat16: no census, its name does not tell" in beside_text([call_row("cond", 1.0, case="other")])


def test_the_process_that_a_visit_starts_prints_them(call_row, tmp_path):
    rows = [call_row("cond", 1e-3), call_row("cond", 1.0, case="other")]
    path = tmp_path / "rows.jsonl"
    append_rows(path, rows)
    done = subprocess.run([sys.executable, "-m", PREDICTIONS, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == beside_text(rows)
    assert "other, bfloat16: no census, its name does not tell" in done.stdout


def test_cards(ceiling_rows, tmp_path):
    rows = [row.__class__(**(vars(row) | {"device": "NVIDIA H200"})) for row in ceiling_rows]
    append_rows(tmp_path / "rows.jsonl", rows)
    measured = find_card("measured", tmp_path / "rows.jsonl")
    assert (measured.copy, measured.rate("bfloat16"), measured.chip) == (2e12, 500e12, CARDS["h200"].chip)
    assert card_of("NVIDIA H200", []) is CARDS["h200"]
    with pytest.raises(ValueError, match="no rate of float32 products is known for NVIDIA H200"):
        measured.rate("float32")
    with pytest.raises(ValueError, match="positive number of bytes per second, got 0"):
        Card("none", H100.chip, 0.0)
    with pytest.raises(ValueError, match="rate of float32 products must be positive, got -1"):
        Card("none", H100.chip, 1.0, {"float32": -1})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nope",), "unknown model 'nope'"),
        ((MODEL, "--card", "a100"), "unknown card 'a100'; known: h100, h200, measured"),
        ((MODEL, "--card", "measured"), "--card measured needs --ceilings"),
        ((MODEL, "--ceilings", "rows.jsonl"), "--ceilings goes with --card measured, got --card h100"),
        ((MODEL, "--card", "measured", "--ceilings", "none.jsonl"), "there is no result file none.jsonl"),
        ((MODEL, "--batch", "0"), "batch must be at least 1, got 0"),
        ((MODEL, "--dtype", "int4"), "unknown dtype 'int4'"),
        ((MODEL, "--dtype", "float64"), "no rate of float64 products is known for h100"),
        ((MODEL, "--rule", "magic"), "unknown guidance rule 'magic'"),
        ((MODEL, "--kernels", "fast"), "unknown backend 'fast'"),
        ((MODEL, "--top", "0"), "top must be at least 1, got 0"),
        ((MODEL, "--json", "--markdown"), "choose --json or --markdown, not both"),
        ((MODEL, "--against", "none.json"), "none.json holds no census"),
        ((MODEL, "--beside", "none.jsonl"), "there is no result file none.jsonl"),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_sentence(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr.strip().splitlines()[-1] and not result.stdout


def test_a_file_that_is_no_census_is_refused(tmp_path):
    path = tmp_path / "before.json"
    path.write_text('{"live_sets": [{"branches": ["cond"]}]}')
    result = invoke(MODEL, "--against", str(path))
    assert result.exit_code == 2 and "a live set lacks" in result.stderr


def test_rows_without_the_case_are_refused(tmp_path, call_row):
    append_rows(tmp_path / "rows.jsonl", [call_row("cond", 1.0, dtype="float32")])
    result = invoke(MODEL, "--beside", str(tmp_path / "rows.jsonl"))
    assert result.exit_code == 2 and "the rows hold no time of a call of" in result.stderr


def product(m: int, k: int, n: int, count: int = 1) -> Kernel:
    moved = 2 * count * (m * k + k * n + m * n)
    return Kernel(PRODUCT, "addmm", "", 2 * count * m * k * n, moved, "bfloat16", PRODUCT, ((count, m, k, n),))


def test_a_product_whose_tiles_fill_whole_waves_runs_at_the_rate_of_the_card():
    whole = product(128 * 132, 4096, 256)
    assert product_seconds(whole, H100, 128, 256, 1.0) == pytest.approx(whole.flops / 798e12)
    assert product_seconds(product(128 * 132 + 1, 4096, 256), H100, 128, 256, 1.0) == pytest.approx(2 * whole.flops / 798e12)


@pytest.mark.parametrize(("rows", "efficiency"), [(4096, 0.73), (8192, 0.97)])
def test_waves_of_an_out_projection(rows, efficiency):
    """192 and 384 tiles on 132 multiprocessors."""
    one = product(rows, 1536, 1536)
    assert one.flops / 798e12 / product_seconds(one, H100, 128, 256, 1.0) == pytest.approx(efficiency, abs=0.005)


def test_small_work_is_bound_by_what_it_moves_and_by_the_launch():
    thin = product(1, 1152, 4608)
    assert kernel_seconds(thin, H100) == pytest.approx(GAP + max(thin.bytes / (COPY_SHARE * 3e12), 0), rel=0.5)
    nothing = Kernel("own", "gather_kernel", "", 0, 16, "float32")
    assert kernel_seconds(nothing, H100) == pytest.approx(GAP, rel=1e-3)
    pass_ = Kernel("own", "adaln_kernel", "", 0, 3 * 10**9, "bfloat16")
    assert time_parts(pass_, H100)["memory"] == pytest.approx(1e-3 / COPY_SHARE)


def test_an_attention_with_few_queries_leaves_multiprocessors_idle():
    def one(heads: int) -> Kernel:
        return Kernel(ATTENTION, "cudnn attention", "", 10**12 * heads, 0, "bfloat16", ATTENTION, ((heads, 128, 128, 64),))

    assert time_parts(one(66), H100)["idle"] > time_parts(one(132), H100)["idle"] > 0
    assert kernel_seconds(one(66), H100) == pytest.approx(kernel_seconds(one(132), H100))
    assert kernel_seconds(one(264), H100) - GAP == pytest.approx(2 * (kernel_seconds(one(132), H100) - GAP))
