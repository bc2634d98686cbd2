"""The published sizes: parameter counts and FLOPs as the DiT paper prints them."""

import pytest
import torch

from segue.models.parameterization import Parameterization
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
        (("dit", "XL/2", 256.0), "image_size must be a positive multiple of 16, got 256.0"),
    ],
)
def test_bad_sizes_are_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")) as caught:
        family_spec(*arguments)
    assert "\n" not in str(caught.value)
