"""Rules as text: names and options mean the same as the constructors, and a rule's own text repeats it exactly."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_sit

from segue import (
    APG,
    CFG,
    SGG,
    AutoGuidance,
    Branch,
    CFGZeroStar,
    EarlyExit,
    Engine,
    Exit,
    Guidance,
    PerturbedLayers,
    Rescale,
    SkipLayer,
    Term,
    Unguided,
    Weight,
    Window,
    compile_plan,
    flow_shift,
    parse_rule,
)
from segue.engine.cli.selection import pair_samples
from segue.engine.labels import parse_labels
from segue.engine.rules.correction import FREQUENCIES
from segue.engine.rules.integers import parse_integers
from segue.engine.rules.preset_numbers import DEFAULTS, RECIPES, WITHHELD, preset_name
from segue.engine.rules.presets import KINDS, NamedRule, ParsedRule, default_options
from segue.engine.rules.rule_text import rule_text
from segue.models.sd3_sizes import SD3_SIZES, sd3_spec
from segue.models.sizes import dit_spec, repa_spec, sit_spec

EQUAL = [
    ("none", Unguided()),
    ("cfg:scale=4.5", CFG(4.5)),
    ("cfg:scale=2,delta=0.5,window=steps:1-14", CFG(2.0, delta=0.5, window=Window.steps(1, 14))),
    ("cfg:scale=2,reference=parent,channels=3", CFG(2.0, condition="parent", channels=3)),
    ("cfg:scale=2,reference=7", CFG(2.0, condition=7)),
    ("slg:weight=3,layers=7-9", SkipLayer(3.0, (7, 8, 9))),
    ("slg:layers=9,7,weight=3", SkipLayer(3.0, (7, 9))),
    ("pag:weight=1,layers=3", PerturbedLayers(1.0, (3,), kind="attention_identity")),
    ("pag-image:weight=1,layers=3", PerturbedLayers(1.0, (3,), kind="attention_identity_image")),
    ("stg:weight=1,layers=3", PerturbedLayers(1.0, (3,), kind="attention_skip")),
    ("seg:weight=1,layers=3", PerturbedLayers(1.0, (3,), kind="attention_blur")),
    ("exit:weight=0.5,layer=4,window=sigma:0.1,0.6", EarlyExit(0.5, 4, window=Window.sigma(0.1, 0.6))),
    ("ag:weight=1.5,model=small", AutoGuidance(1.5, model="small")),
    ("sgg:scale=3,weight=2,layers=7,8,switch=0.6", SGG(CFG(3.0), SkipLayer(2.0, (7, 8)), 0.6)),
    ("sgg-exit:scale=3,weight=1,layer=4,switch=0.6", SGG(CFG(3.0), EarlyExit(1.0, 4), 0.6)),
    ("sgg:scale=3,weight=2,layers=7,8,switch=0.6,refresh=2", SGG(CFG(3.0), SkipLayer(2.0, (7, 8)), 0.6).reused(2)),
    ("cfg:scale=3,refresh=2,order=1", CFG(3.0).reused(2, order=1)),
    ("slg:weight=2,layers=7,order=2,calls=1-3,7", SkipLayer(2.0, (7,)).reused(calls=(7, 1, 2, 3), order=2)),
    ("cfg:scale=7+rescale:phi=0.7", CFG(7.0) + Rescale(0.7)),
    ("cfg:scale=7 + zero-star:zero_steps=2", CFG(7.0) + CFGZeroStar(2)),
    ("apg:momentum=-0.5,radius=inf,eta=0 + cfg:scale=4", CFG(4.0) + APG(-0.5, float("inf"), 0.0)),
    ("cfg:scale=1e+0 + slg : weight = 2 , layers = 7", CFG(1.0) + SkipLayer(2.0, (7,))),
    ("cfg:scale=-2,window=fraction:0-0.5+none", CFG(-2.0, window=Window.fraction(0.0, 0.5))),
]


@pytest.mark.parametrize(("text", "guidance"), EQUAL, ids=[text for text, _ in EQUAL])
def test_a_rule_as_text_is_the_rule_as_code(text, guidance):
    assert parse_rule(text).guidance == guidance


numbers = st.floats(-1e6, 1e6, allow_nan=False)
layer_sets = st.lists(st.integers(0, 40), min_size=1, max_size=5, unique=True).map(tuple)
bounds = st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda pair: pair[0] != pair[1]).map(sorted)
windows = st.one_of(
    st.just(Window()),
    bounds.map(lambda pair: Window.sigma(*pair)),
    bounds.map(lambda pair: Window.fraction(*pair)),
    st.tuples(st.integers(1, 60), st.integers(0, 60)).map(lambda pair: Window.steps(pair[0], sum(pair))),
)
switches = st.floats(0.001, 0.999) | st.floats(0.001, 0.999).map(lambda part: Window.fraction(0.0, part))
VALUES = {
    "scale": numbers,
    "weight": numbers,
    "delta": numbers,
    "layers": layer_sets,
    "layer": st.integers(1, 40),
    "share": st.floats(0.01, 0.99),
    "seed": st.integers(0, 2**40),
    "protected": layer_sets | st.just(()),
    "switch": switches,
    "window": windows,
    "reference": st.sampled_from(["uncond", "parent", 0, 23]),
    "channels": st.integers(1, 16),
    "model": st.sampled_from(["weak", "small"]),
    "refresh": st.integers(1, 50),
    "stop": st.floats(-0.99, 0.99),
    "order": st.integers(0, 3),
    "calls": st.sets(st.integers(1, 60), min_size=1).map(sorted).map(tuple),
    "phi": st.floats(0, 1),
    "zero_steps": st.integers(0, 50),
    "momentum": st.floats(-1, 1),
    "radius": st.floats(0, 1e38, exclude_min=True) | st.just(float("inf")),
    "eta": numbers,
    "tau": st.floats(1, 1e6),
    "alpha": st.floats(0, 1),
    "a": st.floats(1, 9),
    "b": st.floats(1, 9),
    "gamma": numbers,
    "max_angle": st.floats(0, 3),
    "low": st.floats(0, 1),
    "high": st.floats(0, 1),
    "cutoff": st.floats(0, 1),
    "levels": st.integers(2, 8),
    "pi": st.floats(0.5, 0.99),
    "start": st.floats(0, 0.99),
    "peak": st.floats(0, 1),
    "most": st.floats(1.01, 1e3),
    "rho": st.floats(1, 9),
    "k": st.floats(0.01, 9),
    "width": st.floats(0.01, 9),
    "factor": st.floats(0.2, 9),
    "beta": st.floats(0, 4),
    "classifier": st.sampled_from(["herbarium-classifier", "timm:resnet18.a1", "mine.safetensors"]),
    "gain": st.floats(0, 100),
    "lag": st.sampled_from([0, 1]),
    "source": st.sampled_from(["cond", "weak", "uncond"]),
    "every": st.integers(1, 9),
    "interval": windows,
    "temperature": st.floats(0.01, 100),
    "form": st.just("ag-swap"),
    "classes": st.just(("an oak", "an elm")),
    "template": st.sampled_from(["{}", "a leaf of {}, in autumn"]),
}
NEEDS = {"gain": "form", "template": "classes"}  # options that mean nothing without another
OF_ONE_RULE = {
    ("nag", "scale"): st.floats(1, 1e6), ("cfgpp", "scale"): st.floats(0.01, 10),
    ("higs", "low"): st.floats(0, 0.35), ("higs", "high"): st.floats(0.5, 1),
}  # fmt: skip


@st.composite
def named_rules(draw):
    name = draw(st.sampled_from(sorted(KINDS)))
    kind = KINDS[name]
    chosen = [*kind.needed, *(option for option in kind.optional if draw(st.booleans()))]
    chosen = [option for option in chosen if NEEDS.get(option, option) in chosen]
    if "stop" in chosen:  # a term that stops is evaluated at every call before
        chosen = [option for option in chosen if option not in ("calls", "refresh", "order")]
    if "calls" in chosen and "refresh" in chosen:
        chosen.remove(draw(st.sampled_from(["calls", "refresh"])))
    if "order" in chosen and not {"calls", "refresh"} & set(chosen):  # it is of directions between calls
        chosen.remove("order")
    return NamedRule(name, tuple((option, draw(OF_ONE_RULE.get((name, option), VALUES[option]))) for option in chosen))


def adds_up(rule: ParsedRule) -> bool:
    """Whether its corrections may follow one another."""
    corrections = [correction for part in rule.parts for correction in part.guidance.corrections]
    places = [correction.place for correction in corrections]
    once = len(set(map(type, corrections))) == len(corrections) and places.count(FREQUENCIES) <= 1
    return once and places == sorted(places)


sums = st.lists(named_rules(), min_size=1, max_size=3).map(lambda parts: ParsedRule(tuple(parts)))


@given(sums.filter(adds_up))
def test_the_text_of_a_rule_repeats_it_exactly_whatever_the_defaults(rule):
    assert parse_rule(rule.text).guidance == rule.guidance
    assert parse_rule(rule.text, "herbarium").text == rule.text


@given(sums.filter(adds_up))
def test_a_rule_has_a_text_that_makes_it_again(rule):
    assert parse_rule(rule_text(rule.guidance)).guidance == rule.guidance
    assert repr(rule.guidance) == f"<Guidance {rule_text(rule.guidance)}>"


@pytest.mark.parametrize(("text", "guidance"), EQUAL, ids=[text for text, _ in EQUAL])
def test_the_text_of_a_rule_is_no_longer_than_what_it_was_written_as(text, guidance):
    assert len(rule_text(guidance)) <= len(parse_rule(text).text)


@pytest.mark.parametrize(
    ("rule", "why", "shown"),
    [
        (CFG(lambda sigma: 3.0), "the weight of uncond is a function of sigma", "cfg:scale=<function>"),
        (
            SGG(CFG(2.0), SkipLayer(lambda sigma: 2.0, (1,)), 0.5),
            "the weight of cond skip 1 is",
            "cfg:scale=2,window=sigma:0.5,1 + slg:weight=<function>,layers=1,window=sigma:0,0.5",
        ),
        (
            Guidance((Term(Branch("uncond", Exit(2)), Weight(1.0)),)),
            "no named rule has the branch uncond exit 2",
            "<uncond exit 2>",
        ),
        (Guidance((Term(Branch(model="weak"), Weight(1.0), channels=3),)), "cond of weak on some channels", "<cond of weak>"),
        (Guidance((Term(Branch(model="a=b"), Weight(1.0)),)), "the branch cond of a=b", "<cond of a=b>"),
        (Guidance((Term(Branch("uncond"), Weight(1e-20)),)), "no scale has the weight 1e-20", "cfg:scale=1"),
    ],
)
def test_a_rule_without_a_text_says_what_has_none_and_shows_itself_all_the_same(rule, why, shown):
    with pytest.raises(ValueError, match=f"no text that makes it again: .*{why}"):
        rule_text(rule)
    assert repr(rule) == f"<Guidance {shown}>"


def single(model: str, name: str) -> bool:
    """Whether the name alone is one rule whose options all have defaults."""
    withheld = {option for other, option in WITHHELD if other == model}
    return name not in RECIPES.get(model, {}) and not withheld & set(KINDS[name].needed)


@pytest.mark.parametrize(
    ("model", "name"), [(model, name) for model, rules in DEFAULTS.items() for name in rules if single(model, name)]
)
def test_every_default_is_complete_and_named_options_replace_it(model, name):
    rule, numbers = parse_rule(name, model), default_options(model, name)
    assert dict(rule.parts[0].options) == numbers and numbers.keys() == DEFAULTS[model][name].keys()
    first = KINDS[name].needed[0]
    changed = parse_rule(f"{name}:{first}=1.25", model).parts[0].options
    assert dict(changed) == numbers | {first: 1.25}
    assert changed == parse_rule(name, model, {first: "1.25"}).parts[0].options


@pytest.mark.parametrize("size", SD3_SIZES)
def test_sd3_checkpoints_are_known_by_their_size_whatever_their_name(size):
    for name in ("mine", "herbarium", *SD3_SIZES):
        assert preset_name(replace(sd3_spec(size), name=name)) == size
        other = replace(sd3_spec(size), name=name, depth=22)
        assert parse_rule("cfg", other).notes == (
            f"no tuned numbers of cfg for {name}, 22 blocks of width {other.dim}, using scale=4.5",
        )
    assert parse_rule("cfg", replace(sd3_spec(size), name="mine")) == parse_rule("cfg:scale=4.5")


def test_the_sd3_default_is_the_published_recipe_at_28_steps():
    """CFG 4.5 on steps 1-14, blocks 7, 8, 9 skipped with weight 3 on steps 15-28 (SGG, arXiv 2603.20584)."""
    engine = Engine(tiny_sit(depth=24, exits=()), device="cpu")
    published = CFG(4.5, window=Window.steps(1, 14)) + SkipLayer(3.0, (7, 8, 9), window=Window.steps(15, 28))
    expected = engine.plan(published, schedule=flow_shift(28, 3.0))
    for model in ("sd3-medium", "sd3.5-medium"):
        plan = engine.plan(parse_rule("sgg", model).guidance, schedule=flow_shift(28, 3.0))
        assert plan.branches == expected.branches
        assert np.array_equal(plan.weights, expected.weights)
        half = engine.plan(parse_rule("sgg", model).guidance, schedule=flow_shift(50, 3.0))
        assert half.live == ((0, 1),) * 25 + ((0, 2),) * 25  # and it keeps its proportions at other step counts


@pytest.mark.parametrize("model", ["sd3-medium", "sd3.5-medium"])
@pytest.mark.parametrize("steps", [5, 6, 7, 28, 40, 50, 101])
def test_slg_alone_is_stabilitys_recipe_on_sd3(model, steps):
    """diffusers' StableDiffusion3Pipeline: guidance at every step i from 0, and the weak branch where .01 n < i < .2 n."""
    plan = compile_plan(parse_rule("slg", model).guidance, flow_shift(steps), "euler", sd3_spec(model))
    skipped = [0.01 * steps < i < 0.2 * steps for i in range(steps)]
    assert plan.live == tuple((0, 1, 2) if skip else (0, 1) for skip in skipped)
    assert [str(branch) for branch in plan.branches] == ["cond", "uncond", "cond skip 7,8,9"]
    assert plan.weights.tolist() == [[3.5, 2.8 if skip else 0.0] for skip in skipped]


def test_options_of_a_recipe_go_to_the_rule_that_has_them():
    whole = "cfg:scale=6 + slg:weight=2,layers=3,window=fraction:0.01,0.2"
    assert parse_rule("slg", "sd3-medium", {"scale": "6", "weight": "2", "layers": "3"}) == parse_rule(whole)
    windowed = parse_rule("slg", "sd3-medium", {"window": "steps:1,3"})
    assert windowed == parse_rule("cfg:scale=4.5 + slg:weight=2.8,layers=7-9,window=steps:1,3")
    assert parse_rule("slg:weight=2", "sd3-medium") == parse_rule("slg:weight=2,layers=7-9")  # with a colon, the one rule
    for text in (whole, "slg:weight=2,layers=7-9", windowed.text):
        assert parse_rule(text, "sd3-medium").guidance == parse_rule(text).guidance
    with pytest.raises(ValueError, match="slg has no option 'layer'"):
        parse_rule("slg", "sd3-medium", {"layer": "3"})


def test_the_delta_that_a_range_is_refused_with_goes_from_one_number_to_the_other():
    for option, rule, ends in (("scale", "cfg", (3, 1)), ("weight", "slg:layers=1", (0.25, 2))):
        given = f"{rule}{',' if ':' in rule else ':'}{option}="
        with pytest.raises(ValueError, match="along the steps: ") as caught:
            parse_rule(f"{given}{ends[0]}-{ends[1]}")
        written = str(caught.value).split("along the steps: ")[1].removeprefix(f"{option}=")
        weights = compile_plan(parse_rule(given + written).guidance, flow_shift(5), "euler", sd3_spec("sd3-medium")).weights
        off = 1 if option == "scale" else 0
        assert weights[[0, -1], 0].tolist() == pytest.approx([end - off for end in ends])


def test_sd35_large_has_no_default_layers_and_says_why():
    for rule in ("sgg", "slg", "slg:weight=1", "cfg + slg"):
        with pytest.raises(ValueError, match=r"needs layers: .*because the blocks 7, 8 and 9 .* damage its pictures"):
            parse_rule(rule, "sd3.5-large")
    assert parse_rule("sgg", "sd3.5-large", {"layers": "11-13"}) == parse_rule(
        "sgg:scale=4.5,weight=3,layers=11-13,switch=fraction:0.5"
    )


# --- numbers and classes by text -------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 20), st.integers(1, 5)), min_size=1, max_size=4))
def test_ranges_include_their_ends(pieces):
    text = ", ".join(f"{low}-{low + length}:{stride}" for low, length, stride in pieces)
    expected = [number for low, length, stride in pieces for number in range(low, low + length + 1, stride)]
    assert parse_integers(text) == expected


def test_labels_by_number_name_genus_and_all():
    names = ("Rosa alba", "Rosa nigra", "Acer alba", "Acer")
    assert parse_labels("2,0-1", 4, names, "m") == [2, 0, 1]
    assert parse_labels("acer", 4, names, "m") == [3]  # a whole name goes before a genus
    assert parse_labels("ROSA, acer ALBA", 4, names, "m") == [0, 1, 2]
    assert parse_labels("all,1", 4, names, "m") == [0, 1, 2, 3, 1]
    for text in ("4", "alba", "Rosa rubra", "", "1,,2", "-1", "1.5"):
        with pytest.raises(ValueError, match=r"class|numbers"):
            parse_labels(text, 4, names, "m")
    with pytest.raises(ValueError, match="its classes have no names"):
        parse_labels("rose", 4, (), "m")


@pytest.mark.parametrize(
    ("labels", "seeds", "count", "expected"),
    [
        ([5], [7], 1, ([5], [7])),
        ([5], [7, 9], 1, ([5, 5], [7, 9])),
        ([5, 6], [7], 1, ([5, 6], [7, 8])),
        ([5, 6], [9, 7], 1, ([5, 6], [9, 7])),
        ([5, 6], [7], 2, ([5, 5, 6, 6], [7, 8, 9, 10])),
        ([5], [7], 3, ([5, 5, 5], [7, 8, 9])),
    ],
)
def test_labels_and_seeds_pair_up(labels, seeds, count, expected):
    assert pair_samples(labels, seeds, count) == expected


@pytest.mark.parametrize(("labels", "seeds", "count"), [([1, 2], [1, 2, 3], 1), ([1], [1, 2], 3), ([1, 2], [5, 6], 2)])
def test_labels_and_seeds_that_do_not_fit_are_refused(labels, seeds, count):
    with pytest.raises(ValueError, match=f"{len(seeds)} seeds do not fit {len(labels) * count} pictures"):
        pair_samples(labels, seeds, count)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (dit_spec("XL/2"), CFG(4.0, channels=3)),
        (dit_spec("S/4", 512, name="anything", frequency_shift=1.0), CFG(4.0, channels=3)),
        (sit_spec("B/2"), CFG(1.5, channels=3)),
    ],
)
def test_cfg_alone_is_that_of_the_official_samplers_of_dit_and_sit(spec, expected):
    assert parse_rule("cfg", spec).guidance == expected
    assert parse_rule("cfg:scale=2,channels=4", spec).guidance == CFG(2.0, channels=4)


@pytest.mark.parametrize("spec", [dit_spec("S/2", num_classes=10), repa_spec("S/2"), sit_spec("S/2", channels=16)])
def test_relatives_of_the_published_dit_and_sit_have_the_usual_numbers_and_say_so(spec):
    rule = parse_rule("cfg", spec)
    assert rule.guidance == CFG(1.5) and rule.notes == (f"no tuned numbers of cfg for {spec.name}, using scale=1.5",)
