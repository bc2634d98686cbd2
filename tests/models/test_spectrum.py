"""Pictures in frequency: enlarged and reduced, back-projected; odd and even sizes."""

import math

import pytest
import torch

from segue.models.spectrum import back_projected, enlarge, radial_frequency, radial_spectrum, reduce

SIZES = [(5, 6, 9, 13), (6, 7, 12, 14), (8, 8, 16, 16), (7, 8, 7, 9), (1, 3, 2, 7), (32, 32, 64, 64)]


def pictures(seed: int, *shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_reducing_undoes_enlarging_and_both_keep_the_mean(sizes, seed):
    height, width, *large = sizes
    x, y = pictures(seed, 2, 3, height, width), pictures(seed + 1, 2, 3, *large)
    enlarged, reduced = enlarge(x, *large), reduce(y, height, width)
    assert torch.allclose(reduce(enlarged, height, width), x, atol=1e-12)
    assert torch.allclose(enlarged.mean((2, 3)), x.mean((2, 3)), atol=1e-12)
    assert torch.allclose(reduced.mean((2, 3)), y.mean((2, 3)), atol=1e-12)
    assert torch.allclose(reduce(back_projected(y, x), height, width), x, atol=1e-12)
    assert torch.allclose(back_projected(enlarged, x), enlarged, atol=1e-12)


@pytest.mark.parametrize(("own", "size"), ((7, 15), (8, 16), (6, 9), (9, 10)))
def test_waves_of_the_ground_stay_where_they_are(own, size):
    """A wave below the Nyquist frequency, seen at the pixel centres of both grids; also on the way back."""
    for cycles in range((own + 1) // 2):
        small, large = (
            torch.cos(2 * math.pi * cycles * (torch.arange(n, dtype=torch.float64) + 0.5) / n + 0.3)[None] for n in (own, size)
        )
        assert torch.allclose(enlarge(small, 1, size), large, atol=1e-12)
        assert torch.allclose(reduce(large, 1, own), small, atol=1e-12)


def test_frequencies_beyond_the_smaller_size_are_left_out():
    large = torch.cos(2 * math.pi * 5 * (torch.arange(16, dtype=torch.float64) + 0.5) / 16)[None]
    assert reduce(large, 1, 9).abs().max() < 1e-12, "5 cycles do not fit into 9 pixels, and are not folded either"


def test_the_radial_spectrum_is_the_power_of_a_wave(seed):
    axis = (torch.arange(16) + 0.5) / 16
    wave = torch.cos(2 * math.pi * 3 * axis)[None, None, None].expand(2, 1, 16, 16)
    spectrum = radial_spectrum(wave)
    assert spectrum.argmax() == 3 and len(spectrum) == 9
    flat = radial_spectrum(pictures(seed, 400, 1, 15, 16))
    assert torch.allclose(flat, torch.ones(8, dtype=torch.float64), atol=0.2)  # of white noise, some 16 numbers by 400
    assert radial_frequency(4, 4).max() == math.sqrt(2)


def test_other_directions_are_refused():
    with pytest.raises(ValueError, match="a picture of 8 x 8 is enlarged to no less, got 7 x 9"):
        enlarge(torch.zeros(8, 8), 7, 9)
    with pytest.raises(ValueError, match="a picture of 8 x 8 is reduced to no more, got 7 x 9"):
        reduce(torch.zeros(8, 8), 7, 9)
