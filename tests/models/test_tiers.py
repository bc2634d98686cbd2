"""The tiered label embedding: any number of tiers, their labels, old networks as they were, and affine norms folded away."""

import copy
import json

import pytest
import torch
from naive_sampler import NaiveSampler
from tiny_models import randomize, tiny_sit

from segue import CFG, Engine
from segue.kernels.adaln import modulated_norm
from segue.models.sit import SiT
from segue.models.spec import SiTSpec
from segue.models.weights import load_network, read_spec, save_model

TREE = {"num_classes": 7, "parents": (0, 0, 1, 1, 2, 3, 3), "tiers": ((0, 0, 1, 1, 1, 0, 0), (0, 0, 0, 0, 0, 0, 0))}


def states(seed, batch):
    """Noise [B, C, H, W] and times [B], of other numbers than the weights."""
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randn(batch, 4, 6, 10, generator=generator), torch.rand(batch, generator=generator)


def test_the_embedding_is_the_sum_over_the_tiers(seed):
    """Against the definition, one label at a time: classes, members of each tier, the null label."""
    model = tiny_sit(seed, **TREE, class_weight=0.7)
    embedder, spec = model.embedders[0].y_embedder, model.spec
    tables = [embedder.parent_table, *embedder.tier_tables]
    assert [table.num_embeddings for table in tables] == [5, 3, 2] and spec.null_label == 7 + 4 + 2 + 1

    def expected(rows: list[int | None], own: int | None) -> torch.Tensor:
        parts = [table.weight[-1 if row is None else row] for table, row in zip(tables, rows, strict=True)]
        return sum(parts) + 0.7 * embedder.class_table.weight[-1 if own is None else own]

    for label in range(7):
        rows = [tier[label] for tier in spec.ancestors]
        found = embedder(torch.tensor([label, *(spec.parent_label(label, tier) for tier in (1, 2, 3)), spec.null_label]))
        wanted = [expected(rows, label), expected(rows, None), expected([None, *rows[1:]], None)]
        wanted += [expected([None, None, rows[2]], None), expected([None] * 3, None)]
        assert torch.allclose(found, torch.stack(wanted), atol=1e-6)  # a sum of four numbers near 1 in fp32


def test_one_tier_is_what_it_was(seed):
    """The two tables of old networks, their names, their labels and the order of their sum: to the bit."""
    model = tiny_sit(seed)
    embedder, parents = model.embedders[0].y_embedder, model.spec.parents
    assert [name for name in model.state_dict() if "y_embedder" in name] == [
        "embedders.0.y_embedder.parent_table.weight",
        "embedders.0.y_embedder.class_table.weight",
    ]
    parent_of = torch.tensor([*parents, 0, 1, 2])
    class_of = torch.tensor([*range(6), 6, 6, 6])
    expected = embedder.parent_table.weight[parent_of] + embedder.class_table.weight[class_of]
    assert torch.equal(embedder(torch.arange(9)), expected)
    assert not {"tiers", "class_weight", "affine_norms"} & model.spec.to_dict().keys(), "files are as they were"


def test_files_keep_tiers_and_affine_norms(seed, tmp_path):
    model = tiny_sit(seed, **TREE, class_weight=0.5, affine_norms=True)
    save_model(model, tmp_path / "tiered.safetensors")
    again, _ = load_network(tmp_path / "tiered.safetensors")
    assert again.spec == model.spec and read_spec(json.loads(json.dumps(model.spec.to_dict())), "it") == model.spec
    x, time, labels = *states(seed, 3), torch.tensor([0, 9, 14])
    assert torch.equal(again(x, time, labels), model(x, time, labels))


def test_siblings_are_identical_without_a_table_of_their_own(seed):
    model = tiny_sit(seed, **TREE)
    for parameter in model.embedders[0].y_embedder.class_table.parameters():
        parameter.zero_()
    run = Engine(model, device="cpu").sample([0, 1, 2, 5, 6], CFG(2.0), steps=3, seeds=[4] * 5)
    assert torch.equal(run.latents[0], run.latents[1]) and torch.equal(run.latents[3], run.latents[4])
    assert not torch.allclose(run.latents[0], run.latents[2]), "cousins differ"
    parent = Engine(model, device="cpu").sample([0], CFG(3.0, condition="parent"), steps=3, seeds=4)
    plain = Engine(model, device="cpu").sample([0], steps=3, seeds=4)
    assert torch.allclose(parent.latents, plain.latents, atol=1e-5), "its superclass is all that a class is"


@pytest.mark.parametrize("condition", ("parent", "parent:2", "parent:3"))
def test_every_tier_is_a_reference(condition, seed):
    model, labels = tiny_sit(seed, **TREE), torch.tensor([0, 4, 6])
    rule = CFG(2.5, condition=condition)
    engine = Engine(model, device="cpu")
    text = f"cfg:scale=2.5,reference={condition}"
    plan = engine.plan(text, steps=3)
    assert condition in str(plan) and engine.plan(rule, steps=3).to_dict() == plan.to_dict()
    noise = engine.draw_noise(plan, [1, 2, 3])
    expected = NaiveSampler({"main": copy.deepcopy(model).double()}, rule, labels, list(plan.schedule.sigmas)).run(
        "euler", noise
    )
    found = engine.sample(labels.tolist(), text, steps=3, noise=noise).latents
    assert torch.allclose(found, expected.to(found), atol=2e-5)  # three calls in fp32, as the oracle test allows


@pytest.mark.parametrize(
    ("changes", "words"),
    (
        ({"tiers": ((0, 1, 0, 0, 0, 0, 0),)}, "member 0 of tier 1 has two ancestors in tier 2, 0 and 1"),
        ({"tiers": ((0, 0),)}, "tier 2 must name an ancestor of each of 7 classes, got 2"),
        ({"parents": ()}, "tiers stand above superclasses, and there are none"),
        ({"class_weight": float("nan")}, "class_weight must be finite, got nan"),
        ({"class_weight": 0.5, "parents": (), "tiers": ()}, "class_weight 0.5 weighs classes beside superclasses"),
    ),
)
def test_what_is_no_tree_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        tiny_sit(0, **TREE | changes)


@pytest.mark.parametrize(
    ("condition", "words"),
    (("parent:4", r"'parent:4' is out of range: tiny has tiers 1 to 3"), ("parent:0", "unknown condition 'parent:0'")),
)
def test_a_tier_that_is_not_there_is_refused(condition, words):
    with pytest.raises(ValueError, match=words):
        Engine(tiny_sit(0, **TREE), device="cpu").plan(CFG(2.0, condition=condition))


# --- affine norms ----------------------------------------------------------------------------------------------------


def test_affine_norms_begin_as_the_identity(seed):
    """To the bit, and the parameters beside are the same."""
    plain = tiny_sit(seed)
    affine = SiT(SiTSpec(**vars(plain.spec) | {"affine_norms": True})).eval().requires_grad_(False)
    missing = affine.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert len(missing) == 4 * plain.spec.depth and all(".norm1." in name or ".norm2." in name for name in missing)
    x, time, labels = *states(seed, 2), torch.tensor([0, 5])
    assert torch.equal(affine(x, time, labels), plain(x, time, labels))


def test_affine_norms_are_folded_into_shift_and_scale(seed):
    """``(w n + b) (1 + scale) + shift`` in fp64, as a network with norms of its own would compute it."""
    block = randomize(tiny_sit(seed, affine_norms=True).blocks[0], seed + 1).double()
    generator = torch.Generator().manual_seed(seed + 2)
    h, condition = (torch.randn(*shape, generator=generator).double() for shape in ((2, 7, 32), (2, 32)))
    plain, folded = block.adaLN_modulation(condition), block.modulation(condition)
    for own, norm in ((0, block.norm1), (3, block.norm2)):
        shift, scale = plain[:, None].chunk(6, dim=-1)[own : own + 2]
        n = torch.nn.functional.layer_norm(h, (32,), norm.weight, norm.bias, eps=1e-6)
        shift2, scale2 = folded[:, None].chunk(6, dim=-1)[own : own + 2]
        assert torch.allclose(modulated_norm(h, shift2, scale2), n * (1 + scale) + shift, atol=1e-13)
    for gate in (2, 5):
        assert torch.equal(folded.chunk(6, dim=-1)[gate], plain.chunk(6, dim=-1)[gate])


def test_a_run_follows_affine_norms_that_change(seed):
    """They are weights that a run computes with once: what changed between two runs counts in the next."""
    model = tiny_sit(seed, affine_norms=True)
    engine = Engine(model, device="cpu")
    before = engine.sample([1], CFG(2.0), steps=2, seeds=3).latents
    model.blocks[1].norm2.weight.add_(0.5)
    after = engine.sample([1], CFG(2.0), steps=2, seeds=3).latents
    assert not torch.allclose(before, after)
    assert torch.equal(after, Engine(model, device="cpu").sample([1], CFG(2.0), steps=2, seeds=3).latents)
