"""In-loop noise: the words to the bit, the numbers to rounding."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segue.kernels.philox import normal_noise, normal_noise_triton, random_words, random_words_triton
from segue.kernels.triton_runtime import observe_launches

SEEDS = (0, 1, 0xFFFFFFFF, 2**32, 2**63 - 1, 123456789012345, -1, -(2**63))  # the last two: 2^64 - 1 and 2^63 as 64 bits


@pytest.mark.parametrize("numel", [1, 4, 63, 1030])
def test_words_are_the_same_to_the_bit(numel, device):
    seeds = torch.tensor(SEEDS, device=device)
    calls = torch.tensor([0, 1, 2, 999, 2**31, 7, 3, 3], device=device)
    with observe_launches() as launches:
        ours = random_words_triton(seeds, calls, numel)
    assert [launch.name for launch in launches] == ["philox_kernel"]
    assert torch.equal(ours, random_words(seeds, calls, numel))


def test_known_words_of_the_published_generator(device):
    """Counter and key zero, from the test vectors that Random123 publishes for philox4x32-10."""
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    expected = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert random_words_triton(zero, zero, 4).tolist() == [expected]


def test_noise_equals_the_reference_to_rounding(device):
    seeds = torch.tensor(SEEDS, device=device)
    calls = torch.arange(len(SEEDS), device=device)
    ours, theirs = normal_noise_triton(seeds, calls, 1025), normal_noise(seeds, calls, 1025)
    # the angle, below 2 pi, rounds to 2^-22; a radius is below 6
    assert (ours - theirs).abs().max() < 6 * 2**-22 + 1e-6
    assert abs(float(ours.mean())) < 0.06 and abs(float(ours.std()) - 1) < 0.06


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(-(2**63), 2**63 - 1), call=st.integers(0, 2**31 - 1), numel=st.integers(1, 40), batch=st.integers(1, 4))
def test_a_sample_does_not_depend_on_its_batch(device, seed, call, numel, batch):
    seeds = torch.tensor([seed] + [seed ^ i for i in range(1, batch)], device=device)
    calls = torch.full_like(seeds, call)
    alone = normal_noise_triton(seeds[:1], calls[:1], numel)
    assert torch.equal(normal_noise_triton(seeds, calls, numel)[0], alone[0])
    assert torch.equal(random_words_triton(seeds, calls, numel), random_words(seeds, calls, numel))
