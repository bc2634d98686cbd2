"""What is compiled ahead of time is what Triton compiles for the launch: the same entry of its cache."""

import types

import pytest
import torch

from segue.kernels.adaln import modulated_norm_triton
from segue.kernels.catalogue import SIZES, cases
from segue.kernels.resources import ARCHITECTURES, Specialisation, case_launches, runs_on, target, traced
from segue.kernels.triton_runtime import Launch, interpreting, launch_options, trace_launches, triton

pytestmark = pytest.mark.skipif(
    triton is None or interpreting(), reason="needs Triton's compiler: Triton installed, TRITON_INTERPRET not set"
)


class Compilation(Exception):
    """Raised in place of a compilation, with the key by which its result would be cached."""


def cache_key(source, where, options: dict) -> str:
    from triton.compiler import make_backend
    from triton.compiler.compiler import get_cache_key

    backend = make_backend(where)
    return get_cache_key(source, backend, backend.parse_options(dict(options)), env_vars={})


@pytest.fixture
def jit_key(monkeypatch):
    """By Triton's own launcher, with a device that is there in name only."""

    def compile_nothing(source, target=None, options=None, **_):
        raise Compilation(cache_key(source, target, options))

    monkeypatch.setattr("triton.compiler.compile", compile_nothing)
    touched = {}

    def key(launch: Launch, architecture: str) -> str:
        device = f"a device of {architecture}"
        driver = types.SimpleNamespace(
            get_current_device=lambda: device,
            get_current_stream=lambda device: 0,
            get_current_target=lambda: target(architecture),
        )
        touched[launch.kernel, device] = getattr(launch.kernel, "compile", None)
        monkeypatch.setattr(triton.runtime.driver, "_active", driver)
        with pytest.raises(Compilation) as caught:
            options = launch_options(launch.warps, launch.stages)
            launch.kernel.run(grid=launch.grid, warmup=True, **launch.arguments, **options)
        return str(caught.value)

    yield key
    for (kernel, device), compile_before in touched.items():
        kernel.device_caches.pop(device, None)
        kernel.compile = compile_before


def own_key(launch: Launch, architecture: str) -> str:
    specialisation = Specialisation.of(launch, architecture)
    options = launch_options(launch.warps, launch.stages)
    return cache_key(specialisation.source(launch.kernel), target(architecture), options)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_launch_of_the_catalogue_is_found_in_the_cache(architecture, jit_key):
    found = traced(architecture)
    keys = {specialisation: own_key(launch, architecture) for specialisation, (launch, _) in found.items()}
    launched = {jit_key(launch, architecture) for launch, _ in found.values()}
    assert set(keys.values()) == launched
    assert len(launched) == len(found) > 100  # none is compiled twice under two names


def test_no_two_launches_of_the_catalogue_are_told_apart_only_by_triton(jit_key):
    """The other way round: launches that count as one specialisation are one for Triton too."""
    seen: dict[Specialisation, str] = {}
    for case in cases(SIZES[2]):
        if runs_on(case, "sm_90") and not case.vendor:
            for launch in case_launches(case, "sm_90"):
                key = jit_key(launch, "sm_90")
                assert seen.setdefault(Specialisation.of(launch, "sm_90"), key) == key


@pytest.mark.parametrize("width, offset, tokens", [(64, 0, 16), (72, 0, 7), (72, 8, 1), (8, 3, 333), (1, 0, 3)])
def test_odd_sizes_and_addresses(width, offset, tokens, jit_key):
    """Strides of 1, of no multiple of 16, and tensors that begin anywhere."""
    states = torch.empty(2, tokens + 1, width, dtype=torch.bfloat16, device="meta").view(-1)[offset:]
    h = states[: 2 * tokens * width].view(2, tokens, width)
    vectors = torch.empty(2, 1, 2 * width + offset, dtype=torch.bfloat16, device="meta")[..., offset:]
    with trace_launches("sm_90") as launches:
        modulated_norm_triton(h, *vectors.chunk(2, dim=-1))
    (launch,) = launches
    assert own_key(launch, "sm_90") == jit_key(launch, "sm_90")


def test_the_comparison_can_fail(jit_key):
    """Another constant, another alignment, another number of warps: other entries of the cache."""
    (launch,) = case_launches(next(case for case in cases(SIZES[0]) if case.operation == "modulated_norm"), "sm_90")
    shifted = launch.arguments["p_h"].view(-1)[1:65]
    others = [
        Launch(launch.kernel, launch.grid, launch.arguments | {"TOKENS": 3}, launch.warps, launch.stages),
        Launch(launch.kernel, launch.grid, launch.arguments | {"p_h": shifted}, launch.warps, launch.stages),
        Launch(launch.kernel, launch.grid, launch.arguments | {"h_token": 17}, launch.warps, launch.stages),
        Launch(launch.kernel, launch.grid, launch.arguments, 2 * launch.warps, launch.stages),
    ]
    keys = {jit_key(other, "sm_90") for other in (launch, *others)}
    assert len(keys) == 5
    assert {own_key(other, "sm_90") for other in (launch, *others)} == keys
