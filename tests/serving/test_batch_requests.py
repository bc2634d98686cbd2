"""Rows as requests: all settled before any work, each row's fault its own, and batches in which no row pays for another."""

import pytest
from tiny_checkpoint import save_tiny

from segue.engine.cli.options import RunOptions, Source
from segue.engine.rules.batch import as_rules
from segue.engine.rules.presets import parse_rule
from segue.serving.batch_requests import Defaults, Requests
from segue.serving.batch_shards import shards_of, unfinished
from segue.serving.batch_table import Row


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return Source(str(save_tiny(tmp_path_factory.mktemp("model") / "tiny.safetensors")), device="cpu")


def rows(*values):
    return [Row(number, f"row{number}", value, {}) for number, value in enumerate(values)]


def test_a_row_says_more_than_the_command_and_the_command_more_than_the_model(source):
    requests = Requests(source, Defaults(guidance="cfg:scale=2", steps=5, first_seed=40))
    table = rows({"label": "Betulina alba"}, {"label": 4.0, "steps": "3", "seed": 2**63, "guidance": "none"}, {"label": 1})
    settled = requests.settle(table)
    (first, second, third), failures = settled.requests, settled.failures
    assert failures == () and settled.rows == tuple(table)
    assert first[0].told() == {
        "label": 2,
        "guidance": "cfg:scale=2",
        "seed": 40,
        "steps": 5,
        "negative_prompt": "",
        **dict.fromkeys(("solver", "schedule", "height", "width")),
    }
    assert (second[0].what, second[0].steps, second[0].seed, second[0].guidance) == (4, 3, 2**63, "none")
    assert third[0].seed == 42
    (unsaid,) = Requests(source, Defaults()).settle(rows({"label": 1})).requests
    assert unsaid[0].steps == 28 and unsaid[0].guidance == parse_rule("sgg", "herbarium").text  # with all its numbers


@pytest.mark.parametrize(
    ("value", "words"),
    (
        ({"label": 5}, "class 5 is out of range: herbarium has classes 0 to 4"),
        ({"label": "Betulina"}, "'Betulina' names 2"),
        ({"label": "Rosa"}, "has no class 'Rosa'"),
        ({"label": 1.5}, "label must be a whole number, got 1.5"),
        ({"label": True}, "label must be a whole number, got True"),
        ({}, "the row has no label"),
        ({"prompt": "a cat"}, "is a class-label model and takes no prompt, got 'a cat'"),
        ({"label": 1, "height": 64}, "is a class-label model and takes no height, got 64"),
        ({"label": 1, "seed": -1}, "a seed must lie in [0, 2^64), got -1"),
        ({"label": 1, "seed": "x"}, "seed must be a whole number, got 'x'"),
        ({"label": 1, "steps": 0}, "steps must be at least 1, got 0"),
        ({"label": 1, "guidance": 2}, "guidance must be text, got 2"),
        ({"label": 1, "guidance": "cfg:scle=2"}, "did you mean 'scale'?"),
        ({"label": 1, "guidance": "cfg:scale=1,2"}, "a row has one rule with one of each number, got 'cfg:scale=1,2'"),
        ({"label": 1, "guidance": "none | cfg"}, "a row has one rule with one of each number, got 'none | cfg'"),
        ({"label": 1, "guidance": "slg:weight=1,layers=12"}, "12"),
        ({"label": 1, "solver": "eulr"}, "eulr"),
        ({"label": 1, "schedule": "shfit"}, "unknown schedule 'shfit'"),
    ),
)
def test_a_row_that_cannot_be_drawn_fails_alone_with_a_sentence(source, value, words):
    settled = Requests(source, Defaults(steps=2)).settle(rows({"label": 1}, value, {"label": 2}))
    (failure,) = settled.failures
    assert [request.id for request, _ in settled.requests] == ["row0", "row2"] == list(settled.wanted)
    assert failure.id == "row1" and words in failure.reason and "\n" not in failure.reason


def test_the_digest_tells_pictures_apart_and_nothing_else(source):
    base = {"label": 1, "seed": 3, "steps": 4, "guidance": "cfg:scale=2"}
    others = [{"label": 2}, {"seed": 4}, {"steps": 5}, {"guidance": "cfg:scale=3"}, {"solver": "heun"}, {"schedule": "shift=2"}]
    requests = Requests(source, Defaults())
    first, *changed = requests.settle(rows(base, *(base | other for other in others))).requests
    same = requests.of(Row(9, "elsewhere", {"label": "1", "seed": "3", "steps": 4.0, "guidance": "cfg:scale=2.0"}, {"a": 1}))
    digests = [request.digest for request, _ in (first, *changed)]
    assert len(set(digests)) == len(digests) and same[0].digest == digests[0]


def test_rows_of_a_batch_run_what_each_would_run_alone(source):
    rules = ("none", "cfg:scale=2", "cfg:scale=3", "cfg:scale=2,window=sigma:0.5,1", "slg:weight=1,layers=7", "cfg:scale=4")
    table = rows(*({"label": index % 5, "guidance": rule, "steps": 4 + index // 12} for index, rule in enumerate(rules * 4)))
    requests = Requests(source, Defaults())
    batches = shards_of(requests.settle(table).requests, 3)
    assert sorted(request.id for batch in batches for request in batch) == sorted(row.id for row in table)
    assert len(batches) == 2 * (1 + 2 + 1 + 1)  # of each number of steps: none, cfg, windowed, slg
    for batch in batches:
        model, run = requests.model, RunOptions(batch[0].steps)
        planned = model.plan(as_rules([one.guidance for one in batch], model.main), run)
        for place, one in enumerate(batch):
            alone = model.plan(as_rules(one.guidance, model.main), run)
            assert one.steps == run.steps and alone.live == planned.live
            assert alone.cost.evaluations == planned.samples[place].cost.evaluations


def test_what_is_drawn_together_does_not_depend_on_what_is_there(source):
    settled = Requests(source, Defaults(guidance="none", steps=2)).settle(rows(*({"label": 0} for _ in range(7)))).requests
    batches = shards_of(settled, 3)
    assert [len(batch) for batch in batches] == [3, 3, 1]
    fresh, left = unfinished(batches, ()), unfinished(batches, {"row0", "row2", "row3", "row4", "row5"})
    assert [shard.name for shard in left] == [fresh[0].name, fresh[2].name]
    assert [sorted(shard.wanted) for shard in left] == [["row1"], ["row6"]]
    assert unfinished(batches, {row.id for row, _ in settled}) == []


@pytest.mark.parametrize(
    ("changes", "defaults", "words"),
    (
        ({"model": "SiT-B/2"}, {}, "is a size"),
        ({"upscale": "2"}, {}, "a table is drawn at the model's own size; --upscale 2"),
        ({}, {"negative_prompt": "blur"}, "takes no negative prompt, got 'blur'"),
        ({}, {"width": 64}, "takes no width, got 64"),
    ),
)
def test_options_that_say_nothing_of_the_model_are_refused(source, changes, defaults, words):
    with pytest.raises(ValueError, match=words):
        Requests(Source(**vars(source) | changes), Defaults(**defaults))
