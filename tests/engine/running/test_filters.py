"""Frequencies of a state by matrices, against the whole transform; and the matrices in runs with gradients."""

import pytest
import torch
from naive_corrections import cosine_high, pyramid_low

from segue.engine.running.filters import cosine_high_part, fourier_part, pyramid_part, raised_part
from segue.kernels.attention import token_order

CUTOFF = torch.tensor([0.25, 0.5])


@pytest.mark.parametrize("size", ((8, 8), (7, 9), (6, 5)), ids=str)
def test_refinement_raises_each_frequency_by_its_gain(size, seed):
    """Against the gain applied to the whole transform; nothing at beta 0, nothing below the radius, not the mean."""
    x = torch.randn(3, 2, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    beta, radius = torch.tensor([0.0, 0.6, -0.5]), torch.tensor([0.5, 0.3, 0.0])
    change = raised_part(x, beta, radius)
    assert not change[0].any()
    rows = torch.fft.fftfreq(size[0], 0.5, dtype=torch.float64)[:, None]
    r = (rows.square() + torch.fft.fftfreq(size[1], 0.5, dtype=torch.float64)[None].square()).sqrt()
    for own in (1, 2):
        t = ((r - radius[own]) / (1 - radius[own])).clamp(0, 1)
        gain = 1 + beta[own] * t**2 * (3 - 2 * t)
        expected = torch.fft.ifft2(torch.fft.fft2(x[own]) * gain).real
        assert torch.allclose(x[own] + change[own], expected, atol=1e-6)  # cutoff and beta are fp32
    assert torch.allclose(change.mean((2, 3)), torch.zeros(3, 2, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("size", ((8, 8), (7, 9), (6, 5), (1, 3)), ids=str)
def test_low_and_high_parts_are_those_of_the_published_transforms(size, seed):
    """Of odd and of even sizes: a pyramid of images, the whole Fourier transform, a cosine transform written as its sum."""
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for levels in (2, 3):
        assert torch.allclose(pyramid_part(x, levels), pyramid_low(x, levels), atol=1e-6)  # matrices in fp32
    shares = [torch.fft.fftfreq(length, dtype=torch.float64).abs() * 2 for length in size]
    fourier, cosine = fourier_part(x, CUTOFF.double()), cosine_high_part(x, CUTOFF.double())
    for own, cutoff in enumerate(CUTOFF.tolist()):
        kept = (shares[0] <= cutoff)[:, None] & (shares[1] <= cutoff)[None]
        assert torch.allclose(fourier[own], torch.fft.ifft2(torch.fft.fft2(x[own]) * kept).real, atol=1e-9)
        assert torch.allclose(cosine[own], cosine_high(x[own], cutoff), atol=1e-9)


@pytest.mark.parametrize("made", (pyramid_part, fourier_part, cosine_high_part, raised_part), ids=lambda made: made.__name__)
def test_matrices_that_a_run_without_gradients_made_serve_one_with_them(made, seed):
    """They are kept: a run in inference mode, the first to need one, must not leave a tensor that autograd refuses."""
    numbers = {pyramid_part: (2,), raised_part: (torch.ones(2), CUTOFF)}.get(made, (CUTOFF,))
    x = torch.randn(2, 3, 11, 13, generator=torch.Generator().manual_seed(seed))  # sizes that no other test has
    with torch.inference_mode():
        without = made(x, *numbers)
    scale = torch.ones((), requires_grad=True)
    made(x * scale, *numbers).square().sum().backward()
    assert torch.allclose(scale.grad, 2 * without.square().sum())  # all are linear


def test_the_order_of_tokens_serves_both_kinds_of_run(seed):
    with torch.inference_mode():
        token_order(29, torch.device("cpu"))
    x = torch.ones(1, 29, 2, requires_grad=True)
    x[:, token_order(29, x.device)].sum().backward()
    assert torch.equal(x.grad, torch.ones(1, 29, 2))
