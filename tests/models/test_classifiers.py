"""Classifiers: what they compute, their files, and that the bundled ones know the leaves they judge."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from segue.models import bundled
from segue.models.classifiers import Classifier, ClassifierSpec, load_classifier
from segue.models.weights import save_model
from segue.training.data.leaves import draw_leaves
from segue.training.data.species import NUM_SPECIES, PARENTS, SPECIES
from tests.tolerances import FP32_BATCHED

CONVOLUTIONAL = ClassifierSpec(
    name="tiny", family="convolutional", channels=3, size=12, widths=(8, 16), depth=1, num_classes=5, parents=(0, 0, 1, 1, 1)
)
TRANSFORMER = replace(CONVOLUTIONAL, family="transformer", widths=(8,), heads=2, depth=2)
BOTH = pytest.mark.parametrize("spec", (CONVOLUTIONAL, TRANSFORMER), ids=lambda spec: spec.family)


def classifier(spec: ClassifierSpec, seed: int = 0) -> Classifier:
    """With a head that is not zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(spec).requires_grad_(False).eval()


def pictures(count: int, size: int = 12) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@BOTH
def test_logits_are_those_of_a_linear_head_on_the_features(spec):
    model, x = classifier(spec), pictures(3)
    features = model.features(x)
    assert features.shape == (3, spec.widths[-1])
    assert torch.equal(model(x), F.linear(features, model.head.weight, model.head.bias))
    with torch.no_grad():
        assert torch.equal(Classifier(spec).initialize()(x), torch.zeros(3, 5))


@BOTH
def test_a_picture_is_judged_alone(spec):
    model, x = classifier(spec), pictures(4)
    together = model(x)
    alone = torch.cat([model(one[None]) for one in x])
    assert (together - alone).abs().max() <= FP32_BATCHED * together.abs().max()
    assert torch.equal(model.train()(x), together)  # no statistics of a batch, no dropout


def test_attention_is_that_of_its_formula():
    model, x = classifier(TRANSFORMER).double(), pictures(2).double()
    block, tokens = model.body.blocks[0], torch.randn(2, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    q, k, v = block.qkv(block.norm1(tokens)).chunk(3, dim=-1)
    heads = []
    for part in range(2):
        cut = slice(4 * part, 4 * part + 4)
        weights = (q[..., cut] @ k[..., cut].transpose(1, 2) / 2).softmax(-1)
        heads.append(weights @ v[..., cut])
    middle = tokens + block.proj(torch.cat(heads, dim=-1))
    expected = middle + block.fc2(F.gelu(block.fc1(block.norm2(middle))))
    assert (block(tokens) - expected).abs().max() < 1e-12
    assert model(x).dtype == torch.float64


@BOTH
def test_a_file_says_what_it_holds(spec, tmp_path):
    model = classifier(spec)
    save_model(model.half(), tmp_path / "c.safetensors", {"note": "kept"})
    again = load_classifier(tmp_path / "c.safetensors")
    assert again.spec == spec and not again.training
    for name, value in again.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, model.state_dict()[name].float()), name


def test_other_files_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"herbarium\.safetensors is not a classifier; its header describes another network"):
        load_classifier(bundled.bundled_files("herbarium")["main"])
    with pytest.raises(FileNotFoundError, match="absent"):
        load_classifier(tmp_path / "absent.safetensors")
    path = tmp_path / "c.safetensors"
    save_model(classifier(CONVOLUTIONAL), path)
    tensors = load_file(path)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"c\.safetensors is not a classifier; its header states no network"):
        load_classifier(path)
    wrong = json.dumps(CONVOLUTIONAL.to_dict() | {"num_classes": 6, "parents": []})
    save_file(tensors, path, {"spec": wrong})
    with pytest.raises(ValueError, match=r"the tensors in .*c\.safetensors do not fit tiny: size mismatch for head.weight"):
        load_classifier(path)
    save_file(tensors, path, {"spec": json.dumps(CONVOLUTIONAL.to_dict() | {"widths": [7]})})
    with pytest.raises(ValueError, match=r"the spec in .* is not valid: widths must be positive multiples of 8, got \(7,\)"):
        load_classifier(path)


@pytest.mark.parametrize(
    ("change", "said"),
    (
        ({"family": "forest"}, "family must be one of convolutional, transformer, got 'forest'"),
        ({"widths": ()}, "widths must be positive multiples of 8"),
        ({"depth": 0}, "depth must be a positive integer, got 0"),
        ({"parents": (0,)}, "parents must have one entry for each of 5 classes, got 1"),
        ({"family": "transformer"}, "a transformer takes one width"),
        ({"family": "transformer", "widths": (8,), "size": 10}, "a size that is a multiple of 4"),
    ),
)
def test_sizes_that_cannot_be_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        replace(CONVOLUTIONAL, **change)


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"tiny reads pictures \[B, 3, 12, 12\], got \[1, 3, 16, 16\]"):
        classifier(CONVOLUTIONAL)(pictures(1, 16))


# --- what is bundled -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", bundled.CLASSIFIERS)
def test_a_bundled_classifier_knows_the_species(name):
    model = load_classifier(name)
    assert (model.spec.class_names, model.spec.parents, model.spec.num_classes) == (SPECIES, PARENTS, NUM_SPECIES)
    labels = torch.arange(NUM_SPECIES).repeat(8)
    leaves = draw_leaves(labels, torch.Generator().manual_seed(20))
    with torch.no_grad():
        right = (model(leaves).argmax(1) == labels).double().mean()
    assert right >= 0.98  # 99 % and more on 20,000 leaves: three errors in 384 are usual for the judge


def test_bundled_files_are_small():
    sizes = {path.name: path.stat().st_size for path in bundled.bundled_files("herbarium").values()}
    classifiers = {name: bundled.classifier_file(name).stat().st_size for name in bundled.CLASSIFIERS}
    assert max(classifiers.values()) <= 500_000 and sum((sizes | classifiers).values()) < 16_000_000


def test_what_was_made_for_another_model_is_refused(tmp_path, monkeypatch):
    files = bundled.bundled_files("herbarium") | {name: bundled.classifier_file(name) for name in bundled.CLASSIFIERS}
    for path in files.values():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(bundled, "__file__", str(tmp_path / "__init__.py"))
    assert bundled.bundled_files("herbarium")["weak"].parent == tmp_path
    main = tmp_path / "herbarium.safetensors"
    stated = bundled.digest(main)
    save_file(load_file(main), main, {"spec": "{}"})
    for made in (lambda: bundled.bundled_files("herbarium"), lambda: load_classifier("herbarium-judge")):
        with pytest.raises(ValueError, match=f"was made for a model with digest {stated}, but herbarium"):
            made()
    weak = tmp_path / "herbarium-weak.safetensors"
    save_file(load_file(weak), weak)
    with pytest.raises(ValueError, match=r"herbarium-weak.* was made for no model that it names"):
        bundled.bundled_files("herbarium")
