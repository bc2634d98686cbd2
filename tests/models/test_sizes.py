"""The published sizes: parameter counts and FLOPs as the DiT paper prints them."""

from dataclasses import replace

import pytest
import torch

from segue.models.checkpoint_files import model_name
from segue.models.mmdit import MMDiT
from segue.models.parameterization import Parameterization
from segue.models.sd3_sizes import published_size, sd3_spec
from segue.models.sit import SiT
from segue.models.sizes import dit_spec, family_spec, repa_spec, sit_spec

# arXiv 2212.09748, table 4: millions of parameters; G multiply-adds of one forward at 256 px
PAPER = {"S/2": (33, 6.06), "B/2": (130, 23.01), "L/2": (458, 80.71), "XL/2": (675, 118.64), "XL/4": (675, 29.05)}


@pytest.mark.parametrize("size", PAPER)
def test_parameters_and_flops_are_the_papers(size):
    spec = dit_spec(size)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in SiT(spec).parameters())
    millions, multiply_adds = PAPER[size]
    assert round(count / 1e6) == millions
    # the paper also counts the conditioning, which we compute once for all calls: under one percent
    assert 0.99 * multiply_adds < spec.forward_flops(spec.height, spec.width) / 2e9 < multiply_adds


def test_families_differ_in_convention_and_outputs():
    assert [spec("B/4").out_channels for spec in (dit_spec, sit_spec, repa_spec)] == [8, 8, 4]
    times = [Parameterization(spec("B/4")).network_time([1.0])[0] for spec in (dit_spec, sit_spec, repa_spec)]
    assert times == [999, 0, 1]
    assert sit_spec("XL/2", 512).tokens(64, 64) == 1024
    assert dit_spec("S/2", channels=3).out_channels == 6
    assert dit_spec("S/2", out_channels=4).out_channels == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dit", "XXL/2"), "unknown size 'XXL/2'; write one of S, B, L, XL and a patch of 2, 4 or 8"),
        (("dit", "XL/3"), "unknown size 'XL/3'"),
        (("dit", "XL"), "unknown size 'XL'"),
        (("vit", "XL/2"), "unknown model family 'vit'; known: dit, sit, repa"),
        (("dit", "XL/8", 200), "image_size must be a positive multiple of 64, got 200"),
        (("dit", "XL/2", 256.0), "image_size must be a positive integer, got 256.0"),
    ],
)
def test_bad_sizes_are_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")) as caught:
        family_spec(*arguments)
    assert "\n" not in str(caught.value)


# Stability's model cards: billions of parameters of the transformer, its position table counted
SD3_CARDS = {"sd3-medium": 2.0, "sd3.5-medium": 2.5, "sd3.5-large": 8.1}


@pytest.mark.parametrize("size", SD3_CARDS)
def test_sd3_sizes_have_the_published_parameters_and_are_recognised(size):
    spec = sd3_spec(size)
    with torch.device("meta"):
        count = sum(tensor.numel() for tensor in MMDiT(spec).state_dict().values())
    assert count / 1e9 == pytest.approx(SD3_CARDS[size], rel=0.05)
    assert published_size(replace(spec, name="anything")) == size
    assert published_size(replace(spec, depth=spec.depth - 1, dual_layers=())) is None
    assert sd3_spec(size, 512).tokens(64, 64) == 1024
    with pytest.raises(ValueError, match="multiple of 16, got 1000"):
        sd3_spec(size, 1000)
    with pytest.raises(ValueError, match=r"unknown size 'sd4'; known: sd3-medium, sd3\.5-medium"):
        sd3_spec("sd4")


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("/a/tiny", "tiny"),
        ("/a/tiny/transformer", "tiny"),
        ("/hub/models--stabilityai--sd-3.5/snapshots/0f1e", "sd-3.5"),
        ("/hub/models--stabilityai--sd-3.5/snapshots/0f1e/transformer", "sd-3.5"),
        ("/transformer", "transformer"),
    ],
)
def test_a_folder_names_its_model(folder, name):
    assert model_name(folder) == name
