"""``segue reproduce inference`` and ``sd3`` from outside: what is missing is drawn once, pages, one sentence for bad input."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tiny_models import randomize
from tiny_sd3 import tiny_pipeline
from training_fixtures import TINY_SPEC

from segue.bench.quality.origins import DISTILLED, origins
from segue.bench.quality.real_samples import leaves
from segue.bench.quality.source_samples import source_samples
from segue.bench.quality.trial import networks_of
from segue.bench.reproduction import sd3_page
from segue.bench.reproduction.claims import AGREES
from segue.bench.reproduction.sd3_page import paired, scores_by_prompt, sd3_content
from segue.bench.rows import make_row, read_rows
from segue.bench.scores.intervals import mean_interval
from segue.bench.timing import once
from segue.engine.engine import Engine
from segue.engine.images import read_png
from segue.engine.prompts.engine import PromptEngine
from segue.models.adapted import AdaptedSiT, AdapterSpec
from segue.models.adapter_file import AdapterFacts, save_adapter
from segue.models.fingerprint import fingerprint
from segue.models.low_rank import LowRankSpec
from segue.models.sit import SiT
from segue.models.weights import load_model, save_model

SMALL = ("--samples", "10", "--steps", "2", "--search-samples", "10", "--out", "rows.jsonl")
PANEL = ("--judge", "textures", "--real", "real.npz")


def test_every_rule_has_numbers_of_a_search_and_cfg_beside_it_and_nothing_is_drawn_twice(segue, tmp_path, monkeypatch):
    monkeypatch.setattr("segue.bench.reproduction.rule_list.NAMES", ("none", "cfg in an interval", "sgg", "ag"))
    monkeypatch.setattr("segue.bench.reproduction.rule_list.tune", lambda scorer, rule: rule.at((2.0, 0.8, 0.25)))
    common = ("inference", "--model", "mine.safetensors", *SMALL, *PANEL, "--switch", "0.25", "--switch", "0.75")
    said = segue(*common, "--into", "pages").stdout
    assert "ag is left out: no network named 'weak'" in said
    rows = read_rows(tmp_path / "rows.jsonl")
    variants = list(dict.fromkeys(row.variant for row in rows if row.suite == "quality"))
    sgg = [rule for rule in variants if rule.startswith("sgg:")]
    assert "none" in variants and "cfg:scale=2,window=sigma:0.2,0.8" in variants
    assert [rule.rpartition("=")[2] for rule in sgg] == ["0.25", "0.75"] and all("scale=2,weight=0.8" in rule for rule in sgg)
    page = (tmp_path / "pages" / "inference.md").read_text()
    assert "| rule |" not in page and "| none | 10 | `segue score --model mine.safetensors --samples 10" in page
    monkeypatch.setattr(Engine, "sample", None)  # who would draw would fail
    segue(*common)
    assert read_rows(tmp_path / "rows.jsonl") == rows


def save_adapter_of(path: Path, out: Path, rule: str) -> None:
    """A random adapter of the network in ``path`` that says it stands for ``rule``."""
    network, spec = load_model(path)[0], AdapterSpec(LowRankSpec(2), None)
    weights = fingerprint({"main": network})
    adapted = AdaptedSiT(network.float(), spec)
    generator = torch.Generator().manual_seed(3)
    for value in adapted.parameters():
        if value.requires_grad:
            value.data = torch.randn(value.shape, generator=generator) / 5
    save_adapter(adapted, out, AdapterFacts("mine", weights, rule, 4, "euler", (1.0, 0.0), spec))


def test_an_adapter_stands_beside_the_rule_that_it_says_and_the_unguided(segue, tmp_path, monkeypatch):
    rule = "cfg:scale=2"
    save_adapter_of(tmp_path / "mine.safetensors", tmp_path / "guided.safetensors", rule)
    common = ("distilled", "--model", "mine.safetensors", "--adapter", "guided.safetensors", *PANEL, "--distance-samples", "11")
    common = (*common, "--samples", "10", "--steps", "2", "--out", "rows.jsonl")
    segue(*common, "--into", "pages")
    rows = read_rows(tmp_path / "rows.jsonl")
    base = Engine.from_pretrained(tmp_path / "mine.safetensors", device="cpu")
    adapted = Engine.from_pretrained(tmp_path / "mine.safetensors", adapter=tmp_path / "guided.safetensors", device="cpu")
    (origin,) = origins(rows, networks_of(base))
    assert (origin.networks, origin.kind, origin.name) == (networks_of(adapted), DISTILLED, rule)
    judged = {(row.case.partition(",")[0], row.variant) for row in rows if " by textures" in row.metric}
    assert judged == {(networks_of(base), "none"), (networks_of(base), rule), (networks_of(adapted), "none")}
    scales = {(row.case.partition(",")[0], row.variant): row.value for row in rows if row.metric == "effective scale"}
    assert scales[networks_of(base), "none"] == 1 and scales[networks_of(base), rule] == pytest.approx(2, abs=1e-4)
    assert scales[networks_of(adapted), "none"] != 1  # along the direction of the network without it
    assert [row.n for row in rows if row.suite == "distilled"] == [11, 11]
    page = (tmp_path / "pages" / "distilled.md").read_text()
    assert (
        f"| exact `{rule}` | 10 |" in page
        and "| distance of none | 11 |" in page
        and "| its adapter, unguided | 1.00x" not in page
    )
    monkeypatch.setattr(Engine, "sample", None)
    segue(*common)
    assert read_rows(tmp_path / "rows.jsonl") == rows


def test_objectives_are_trained_and_scored_by_the_command(segue, tmp_path, monkeypatch):
    save_model(randomize(SiT(TINY_SPEC), 0), tmp_path / "tiny.safetensors")
    monkeypatch.setattr("segue.bench.quality.source_samples.source_samples", lambda *arguments: leaves(20))
    lengths = ("--train-steps", "2", "--batch-size", "3", "--samples", "10", "--steps", "2", "--seeds", "1")
    common = (
        "training",
        "--from",
        "tiny.safetensors",
        "--objective",
        "none",
        "--judge",
        "colours",
        "-g",
        "cfg:scale=2",
        *lengths,
    )
    segue(*common, "--out", "rows.jsonl", "--into", "pages", "--device", "cpu")
    (origin,) = origins(read_rows(tmp_path / "rows.jsonl"))
    assert (origin.name, origin.steps, origin.facts["learning_rate"]) == ("none", 2, 3e-4)
    assert (tmp_path / "runs" / "reproduction" / "training" / "none-seed-0.safetensors").is_file()
    said = segue("training", "--objective", "sgg", "--device", "cpu", code=2).stderr
    assert "unknown objective 'sgg'; there are: none, uncond, layer-skip, branch, separate, segmented" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--switch", "1.5"), "a switch is a noise level inside (0, 1), got 1.5"),
        (("--page", "a/b"), "the name of a page is of letters, digits and hyphens, got 'a/b'"),
        (("--seed", "5"), "what is searched on must not judge"),
        (("--data", "herbarium"), "--data herbarium brings real samples: leave --real real.npz out"),
        (("--into", "real.npz"), "the pages are written into a folder, got the file real.npz"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(segue, tmp_path, arguments, said):
    before = sorted(tmp_path.iterdir())
    result = segue("inference", "--model", "mine.safetensors", *SMALL, *PANEL, *arguments, code=2)
    assert said in result.stderr and sorted(tmp_path.iterdir()) == before


def test_real_samples_of_a_source_are_all_of_it_once(tmp_path):
    from PIL import Image

    generator, held = np.random.default_rng(0), []
    for index in range(7):
        held.append(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        (tmp_path / f"class{index % 2}").mkdir(exist_ok=True)
        Image.fromarray(held[-1]).save(tmp_path / f"class{index % 2}" / f"{index}.png")
    real = source_samples(str(tmp_path))
    found = np.concatenate([batch.numpy() for batch in real.batches()])
    assert real.count == len(found) == 7 and real.size == (3, 8, 8)
    sums = sorted(float(picture.sum()) for picture in found)
    expected = sorted(float((pixels / 127.5 - 1).sum()) for pixels in held)
    assert sums == pytest.approx(expected, abs=1e-2)  # fp32 sums of 192 numbers
    assert source_samples(str(tmp_path), count=3).count == 3
    with pytest.raises(ValueError, match="holds 7 pictures, and 8 are asked for"):
        source_samples(str(tmp_path), count=8)


# --- prompts -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-sd3"
    tiny_pipeline("sd3.5-medium").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def stub(monkeypatch):
    """A scorer of pictures: their mean, and how many letters the prompt has."""
    module, calls = ModuleType("stub_scores"), []

    def mean(images, prompts):
        calls.append(len(images))
        return [float(np.asarray(image).mean()) + len(prompt) for image, prompt in zip(images, prompts, strict=True)]

    module.mean, module.short, module.nothing = mean, lambda images, prompts: [1.0], 7
    monkeypatch.setitem(sys.modules, "stub_scores", module)
    return calls


def test_pictures_and_scores_are_made_once_and_a_killed_run_goes_on(segue, pipeline, stub, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("a red leaf\n\ntwo leaves\na tree\n")
    rules = ("-g", "none", "-g", "cfg:scale=3")
    common = ("sd3", "--model", pipeline, "--prompts", "prompts.txt", "--steps", "2", "--batch", "2", "--images", "images")
    common = (*common, "--out", "rows.jsonl", "--scorer", "stub_scores:mean", "--device", "cpu")
    generate, drawn = PromptEngine.generate, []

    def killed(self, prompts, **options):
        if len(drawn) == 1:
            raise KeyboardInterrupt
        drawn.append(len(prompts))
        return generate(self, prompts, **options)

    monkeypatch.setattr(PromptEngine, "generate", killed)
    segue(*common, *rules, code=130)
    assert len(list(tmp_path.glob("images/none/*.png"))) == 2
    monkeypatch.setattr(PromptEngine, "generate", generate)
    page = segue(*common, *rules, "--into", "pages") and (tmp_path / "pages" / "sd3.md").read_text()
    assert "| none | 3 |" in page and "| cfg:scale=3 | 3 |" in page  # too few for a table
    engine = Engine.from_pretrained(pipeline, device="cpu")
    expected = engine.generate(["a red leaf", "two leaves", "a tree"], guidance="cfg:scale=3", steps=2, seeds=[0, 1, 2]).images
    rows = [row for row in read_rows(tmp_path / "rows.jsonl") if row.metric == "stub_scores:mean"]
    scored = [row.value for row in rows if row.variant == "cfg:scale=3"]
    means = [float(np.asarray(image).mean()) + size for image, size in zip(expected, (10, 10, 6), strict=True)]
    assert scored == pytest.approx(means, abs=0.02)  # other batches round otherwise: a few of 768 pixels by 1
    assert read_png(tmp_path / "images" / "none" / "00002.png")[1]["prompt"] == "a tree"
    monkeypatch.setattr(PromptEngine, "generate", None)
    stub.clear()
    segue(*common, *rules)
    assert not stub and [row for row in read_rows(tmp_path / "rows.jsonl") if row.metric == "stub_scores:mean"] == rows
    said = segue(*common, *rules, "--seed", "1", code=2).stderr
    assert "is a picture of another run" in said


def test_published_rules_are_the_default(segue, pipeline, stub, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("a red leaf\n")
    found = []
    kept = lambda own: found.append({name: rule.text for name, rule in own.rules.items()}) or 0
    monkeypatch.setattr("segue.bench.reproduction.sd3.PromptComparison.run", kept)
    common = ("sd3", "--model", pipeline, "--prompts", "prompts.txt", "--images", "images", "--out", "rows.jsonl")
    segue(*common, "--scorer", "stub_scores:mean")
    assert list(found[0]) == ["none", "cfg", "slg", "s2", "sgg"]
    assert found[0]["slg"].startswith("slg:") and "+" not in found[0]["slg"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--scorer", "stub_scores"), "a scorer is named as module:function, got 'stub_scores'"),
        (("--scorer", "stub_scores:other"), "stub_scores has no other"),
        (("--scorer", "stub_scores:nothing"), "must be callable, got int"),
        (("--count", "2"), "count must lie between 1 and 1"),
        (("--prompts", "none.txt"), "there is no file of prompts none.txt"),
        (("--batch", "0"), "batch at least 1, got 0 and 0"),
    ],
)
def test_bad_input_of_prompts_is_one_sentence(segue, pipeline, stub, tmp_path, arguments, said):
    (tmp_path / "prompts.txt").write_text("a red leaf\n")
    common = ("sd3", "--model", pipeline, "--prompts", "prompts.txt", "--images", "images", "--out", "rows.jsonl")
    before = sorted(tmp_path.iterdir())
    assert said in segue(*common, *arguments, code=2).stderr and sorted(tmp_path.iterdir()) == before


def test_differences_are_paired_by_prompt(environment):
    case, pictures = "a case", [f"picture {index}" for index in range(sd3_page.LEAST)]
    generator = np.random.default_rng(3)
    base = generator.normal(20, 5, len(pictures))
    rows = []
    for rule, shift in (("none", -1.0), ("cfg", 0.0), ("sgg", 0.1)):
        values = base + shift + generator.normal(0, 0.01, len(base))
        for picture, value in zip(pictures, values, strict=True):
            rows.append(make_row(environment, "prompts", picture, rule, "hps", "score", once(float(value)), "float32"))
        rows.append(
            make_row(environment, "prompts", case, rule, "cost relative to unguided", "x", once(2), "float32", note=rule)
        )
    content = sd3_content(rows, case, pictures, ["none", "cfg", "sgg", "slg"], ["hps"], "segue reproduce sd3")
    text = content.text()
    # 5 of spread over 960 prompts hide a tenth; pairs do not
    assert [claim.verdict for claim in content.claims] == [AGREES, AGREES]
    by_rule = {rule: scores_by_prompt(rows, rule, "hps") for rule in ("cfg", "sgg")}
    difference = paired(by_rule["sgg"], by_rule["cfg"])
    assert difference.value == pytest.approx(0.1, abs=0.002) and difference.low > 0.09
    assert mean_interval(list(by_rule["cfg"].values())).high - mean_interval(list(by_rule["cfg"].values())).low > 0.5
    assert "| 29.74 | 5.72 |" in text and "| slg | 0 | `segue reproduce sd3` |" in text
    assert text.count("published") == 2
