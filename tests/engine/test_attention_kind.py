"""ProbSparse attention as an option: what it draws, what it costs, and where it is told of."""

import copy
import json

import pytest
import torch
from naive_sampler import NaiveSampler
from PIL import Image
from tiny_models import tiny_sit
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from segue import CFG, Engine, SkipLayer
from segue.__main__ import app
from segue.kernels.record import DIFFERENTIABLE
from segue.models.attention_kind import ProbSparse, parse_attention, with_attention
from segue.models.sizes import dit_spec
from segue.models.weights import load_network, save_model

RULE, SPARSE = CFG(2.0) + SkipLayer(0.7, (2, 3)), "probsparse:queries=6,keys=5"


def test_a_run_is_that_of_a_network_that_attends_so(seed):
    """The naive sampler in fp64 on a network that was made with it; full budgets are the plain run."""
    model = tiny_sit(seed)
    engine = Engine(model, device="cpu", attention=SPARSE)
    plan = engine.plan(RULE, steps=3)
    noise, labels = engine.draw_noise(plan, [1, 2]), torch.tensor([0, 4])
    found = engine.sample(labels.tolist(), RULE, steps=3, noise=noise).latents
    naive = NaiveSampler({"main": copy.deepcopy(engine.models["main"]).double()}, RULE, labels, list(plan.schedule.sigmas))
    assert torch.allclose(found, naive.run("euler", noise).to(found), atol=2e-5)  # three calls in fp32
    plain = Engine(model, device="cpu").sample(labels.tolist(), RULE, steps=3, noise=noise).latents
    assert not torch.allclose(found, plain, atol=1e-2)
    full = Engine(model, device="cpu", attention="probsparse:queries=15,keys=15")
    assert torch.allclose(full.sample(labels.tolist(), RULE, steps=3, noise=noise).latents, plain, atol=1e-6)


def test_the_callers_network_stays_as_it_is(seed):
    model = tiny_sit(seed)
    engine = Engine(model, device="cpu", attention=SPARSE)
    assert model.spec.attention == "full" and model.blocks[0].attn.sparse is None
    own = engine.models["main"]
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(own.parameters(), model.parameters(), strict=True))
    assert with_attention(own, "full").spec == model.spec and with_attention(own, SPARSE) is own


@pytest.mark.parametrize(("pixels", "saved"), ((256, 2.9), (512, 12.2), (1024, 36.6)))
def test_the_most_that_it_saves_of_a_block_of_dit_xl(pixels, saved):
    """Of the FLOPs that a plan counts, in percent."""
    dense = dit_spec("XL/2", pixels)
    sparse = dit_spec("XL/2", pixels, attention="probsparse")
    tokens = dense.tokens(dense.height, dense.width)
    assert round(100 * (1 - sparse.block_flops(0, tokens) / dense.block_flops(0, tokens)), 1) == saved


@pytest.mark.parametrize("attention", ("full", "probsparse", SPARSE))
def test_the_flops_of_a_block_are_those_that_it_makes(attention, seed):
    """Counted by PyTorch at every product of a forward, where attention is written as two of them."""
    model = tiny_sit(seed, attention=attention, height=12, width=10)
    tokens, dim = 30, model.spec.dim

    def products(q, k, v):
        return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)

    def sparse(q, k, v, queries, keys):
        return DIFFERENTIABLE.sparse_attention(q, k, v, queries, keys, attend=products)

    kernels = copy.copy(DIFFERENTIABLE)
    object.__setattr__(kernels, "attention", products)
    object.__setattr__(kernels, "sparse_attention", sparse)
    with FlopCounterMode(display=False) as counted:
        model.blocks[0](torch.ones(1, tokens, dim), torch.ones(1, 6 * dim), kernels)
    assert counted.get_total_flops() == model.spec.block_flops(0, tokens)


def test_it_is_trained_as_it_samples(seed, tmp_path):
    model = with_attention(tiny_sit(seed), SPARSE).requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    x, time = torch.randn(2, 4, 6, 10, generator=generator), torch.rand(2, generator=generator)
    model(x, time, torch.tensor([0, 1])).square().mean().backward()
    assert all(block.attn.qkv.weight.grad.abs().sum() > 0 for block in model.blocks)
    save_model(model, tmp_path / "sparse.safetensors")
    assert load_network(tmp_path / "sparse.safetensors")[0].blocks[0].attn.sparse == ProbSparse(6, 5)


def test_it_is_told_of(seed):
    engine = Engine(tiny_sit(seed), device="cpu", attention=SPARSE)
    assert f"attention {SPARSE}, an approximation: 6 of 15 queries attend, found by 5 keys" in engine.explain()
    plan = engine.plan(RULE, steps=2)
    assert f"attention {SPARSE} (approximate)" in str(plan).splitlines()[0]
    plain = Engine(tiny_sit(seed), device="cpu").plan(RULE, steps=2)
    assert plan.cost.flops < plain.cost.flops and "approximate" not in str(plain)


def test_a_picture_is_drawn_again_with_the_attention_that_it_records(seed, tmp_path):
    checkpoint = tmp_path / "small.safetensors"
    save_model(tiny_sit(seed, channels=3), checkpoint)
    drawn, again = tmp_path / "a.png", tmp_path / "again"
    command = ["sample", "--model", str(checkpoint), "-g", "cfg:scale=2", "--classes", "1", "--steps", "2"]
    result = CliRunner().invoke(app, [*command, "--attention", SPARSE, "--out", str(drawn)])
    assert result.exit_code == 0, result.stderr
    assert json.loads(Image.open(drawn).text["segue"])["origin"]["attention"] == SPARSE
    result = CliRunner().invoke(app, ["sample", "--from", str(drawn), "--out", str(again)])
    assert result.exit_code == 0 and "identical to" in result.stdout, result.stderr
    result = CliRunner().invoke(app, ["sample", "--from", str(drawn), "--attention", "full"])
    assert result.exit_code == 2 and "--from takes --attention from the picture" in result.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    (
        ("sparse", "attention must be full, probsparse, or probsparse with budgets, .*; got 'sparse'"),
        ("probsparse:queries=0", "queries of probsparse attention must be a positive integer, got 0"),
        ("probsparse:tokens=3", "got 'probsparse:tokens=3'"),
        ("probsparse:keys=3,keys=4", "got 'probsparse:keys=3,keys=4'"),
    ),
)
def test_what_is_no_attention_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        Engine.from_pretrained("herbarium", attention=text)


def test_texts_are_read_as_they_are_written():
    for kind in (ProbSparse(), ProbSparse(queries=3), ProbSparse(keys=9), ProbSparse(40, 30)):
        assert parse_attention(str(kind)) == kind
    assert parse_attention("full") is None
