"""The own attention kernel against SDPA and against fp64, never against itself."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interpreted import slow_interpreted
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode

from segue.kernels.attention import (
    PERTURBATIONS,
    attention,
    attention_sdpa,
    perturbed_attention,
    sdpa_order,
)
from segue.kernels.flash_attention import (
    LARGEST_SCORE,
    attention_bounded,
    attention_lse_triton,
    attention_triton,
    split_head_dim,
)
from segue.kernels.triton_runtime import observe_launches

# (R, H, queries, keys, K): odd lengths, every way a head dim is cut, a single query
SHAPES = [
    (2, 2, 1, 1, 16),
    (1, 2, 63, 63, 32),
    (1, 1, 199, 199, 64),
    (1, 2, 199, 199, 72),
    (1, 1, 333, 333, 72),
    (1, 1, 65, 129, 128),
    (2, 1, 1, 333, 40),
    (1, 1, 128, 128, 96),
    (1, 2, 17, 64, 20),
]
ALIKE = [(1, 1, 199, 199, 64), (1, 1, 333, 333, 72)]  # more blocks of what the other shapes have too


class Backends:
    """Both implementations, each of which must be the one that runs: one launch and no SDPA, or SDPA and no launch."""

    def __init__(self, monkeypatch):
        self.sdpa_calls = 0
        sdpa = F.scaled_dot_product_attention

        def counted(*arguments, **options):
            self.sdpa_calls += 1
            return sdpa(*arguments, **options)

        monkeypatch.setattr(F, "scaled_dot_product_attention", counted)

    def _ran(self, function, qkv, launched: list[str], sdpa_calls: int):
        before = self.sdpa_calls
        with observe_launches() as launches:
            out = function(*qkv)
        assert ([launch.name for launch in launches], self.sdpa_calls - before) == (launched, sdpa_calls)
        return out

    def own(self, *qkv: torch.Tensor) -> torch.Tensor:
        return self._ran(attention_triton, qkv, ["attention_kernel"], 0)

    def sdpa(self, *qkv: torch.Tensor) -> torch.Tensor:
        return self._ran(attention, qkv, [], 1)


@pytest.fixture
def backends(monkeypatch) -> Backends:
    return Backends(monkeypatch)


def token_major(normal, rows, heads, tokens, head_dim, dtype):
    """[R, H, T, K] as the head split leaves it: a view of [R, T, 3, H, K]."""
    return normal(rows, tokens, 3, heads, head_dim, dtype=dtype).unbind(2)


@pytest.mark.parametrize("shape", [slow_interpreted(s) if s in ALIKE else s for s in SHAPES], ids=str)
def test_against_fp64(shape, dtype, normal, judge, backends):
    rows, heads, queries, keys, head_dim = shape
    q = normal(rows, heads, queries, head_dim, dtype=dtype) * 2
    k, v = normal(2, rows, heads, keys, head_dim, dtype=dtype)
    judge(backends.own, backends.sdpa, q, k, v)
    assert backends.sdpa_calls == 2  # in fp64, and in the precision of the kernel


@pytest.mark.parametrize("tokens", [slow_interpreted(4096 + 333)])
def test_the_length_of_stable_diffusion_3(tokens, normal, judge, backends):
    """4096 image and 333 text tokens; in fp16, whose tiles are large enough for the interpreter."""
    q, k, v = normal(3, 1, 1, tokens, 64, dtype=torch.float16)
    judge(backends.own, backends.sdpa, q, k, v)


@pytest.mark.parametrize("head_dim", [64, 72])
def test_views_of_a_fused_projection(head_dim, dtype, normal, judge, backends):
    qkv = [x.transpose(1, 2) for x in token_major(normal, 2, 3, 33, head_dim, dtype)]
    assert not qkv[0].is_contiguous()
    judge(backends.own, backends.sdpa, *qkv)


def test_row_prefix_and_strided_channels(dtype, normal, judge, backends):
    q = normal(4, 2, 31, 64, dtype=dtype)[:2, ..., ::2]
    k, v = normal(2, 4, 2, 45, 32, dtype=dtype)[:, 1:3]
    judge(backends.own, backends.sdpa, q, k, v)


def test_keys_beyond_the_end_are_never_read(normal, backends):
    """NaN behind the last key must not reach the sum, not even times zero."""
    k, v = normal(2, 1, 1, 70, 32)
    k[:, :, 66:], v[:, :, 66:] = float("nan"), float("nan")
    q = normal(1, 1, 5, 32)
    out = backends.own(q, k[:, :, :66], v[:, :, :66])
    assert torch.allclose(out, backends.sdpa(q, k[:, :, :66], v[:, :, :66]), atol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 17.0])
@pytest.mark.parametrize("shape", [(2, 2, 1, 1, 16), (1, 1, 65, 129, 64), slow_interpreted((1, 2, 199, 333, 72))], ids=str)
def test_without_a_running_maximum(shape, factor, normal, device, judge):
    """Queries and keys of the length sqrt(K), as a norm leaves them; with the factor their scores reach the bound.

    Not in fp16, which has no such powers of two, so in fp32 in the interpreter and in bf16 on a device.
    """
    rows, heads, queries, keys, head_dim = shape
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    q, k = (F.normalize(normal(rows, heads, n, head_dim), dim=-1) * head_dim**0.5 for n in (queries, keys))
    k[..., 0, :] = q[..., 0, :]
    q, k, v = (q * factor / head_dim**0.25).to(dtype), (k * 4 / head_dim**0.25).to(dtype), normal(*k.shape, dtype=dtype)
    scores = (q.double() @ k.double().mT * head_dim**-0.5 / math.log(2)).abs().max()
    assert scores <= LARGEST_SCORE and (factor == 1 or scores > 0.95 * LARGEST_SCORE)
    judge(attention_bounded, attention, q, k, v, operation="attention")


def test_log_sum_exp_without_a_running_maximum(normal):
    q, k, v = normal(3, 1, 2, 37, 32)
    for own, other in zip(attention_lse_triton(q, k, v, bounded=True), attention_lse_triton(q, k, v), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)


def test_without_a_maximum_fp16_is_refused(normal):
    q = normal(1, 1, 3, 16, dtype=torch.float16)
    with pytest.raises(ValueError, match="takes bfloat16 or float32, got float16"):
        attention_bounded(q, q, q)


def test_keys_and_values_that_heads_or_tokens_share(normal):
    """By stride, as in multi-query attention: no descriptor takes them."""
    q, k = normal(1, 3, 5, 16), normal(1, 1, 7, 16)
    for shared in (k.expand(1, 3, 7, 16), normal(1, 3, 1, 16).expand(1, 3, 7, 16)):
        torch.testing.assert_close(attention_triton(q, shared, shared), attention(q, shared, shared), rtol=1e-5, atol=1e-5)


def test_large_scores_do_not_overflow(dtype, normal, judge, backends):
    q, k, v = normal(3, 1, 1, 40, 32, dtype=dtype)
    judge(backends.own, backends.sdpa, q * 30, k * 30, v)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(queries=st.integers(1, 40), keys=st.integers(1, 80), head_dim=st.integers(1, 128))
def test_any_shape(device, queries, keys, head_dim):
    generator = torch.Generator().manual_seed(queries * 10000 + keys * 100 + head_dim)
    q = torch.randn(1, 2, queries, head_dim, generator=generator).to(device)
    k, v = torch.randn(2, 1, 2, keys, head_dim, generator=generator).to(device)
    expected = attention(q.double(), k.double(), v.double())
    assert (attention_triton(q, k, v).double() - expected).abs().max() < 1e-5


def test_permuting_the_keys_changes_nothing(normal, seed):
    q, k, v = normal(3, 1, 2, 37, 24)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(seed))
    shuffled = attention_triton(q, k[:, :, order], v[:, :, order])
    assert torch.allclose(shuffled, attention_triton(q, k, v), atol=1e-5)


@pytest.mark.parametrize("tokens, head_dim", [(1, 16), (21, 72), (63, 128), slow_interpreted(199, 32), slow_interpreted(5, 64)])
@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_perturbed_attention(kind, tokens, head_dim, dtype, normal, judge):
    q, k, v = (x.transpose(1, 2) for x in token_major(normal, 2, 2, tokens, head_dim, dtype))
    with observe_launches() as launches:
        judge(
            lambda *qkv: perturbed_attention(*qkv, kind, attend=attention_triton),
            lambda *qkv: perturbed_attention(*qkv, kind),
            q, k, v,
        )  # fmt: skip
    assert len(launches) == (kind in ("attention_blur", "attention_shuffle"))


@pytest.mark.parametrize("tokens, text, head_dim", [(1, 1, 16), (63, 7, 72), (5, 33, 20), (21, 1, 64)])
def test_image_tokens_that_see_themselves_and_the_text(tokens, text, head_dim, dtype, normal, judge):
    """Against attention under the mask that forbids pairs of different image tokens."""
    mask = torch.zeros(tokens, tokens + text, dtype=dtype)
    mask[:, :tokens] = torch.full((tokens, tokens), -torch.inf).fill_diagonal_(0)

    def masked(q, k, v):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q))
        return out.transpose(1, 2).flatten(2)

    q = normal(2, 3, tokens, head_dim, dtype=dtype)
    k, v = (normal(2, 3, tokens + text, head_dim, dtype=dtype) for _ in range(2))
    judge(lambda *qkv: perturbed_attention(*qkv, "attention_identity_image", attend=attention_triton), masked, q, k, v)


@pytest.mark.parametrize("head_dim", range(1, 129))
def test_head_dims_are_covered_with_little_padding(head_dim):
    part, rest = split_head_dim(head_dim)
    assert part >= 16 and (rest == 0 or rest >= 16)
    assert head_dim <= part + rest <= max(16, 2 * head_dim)
    assert (part, rest) == {72: (64, 16), 80: (64, 16), 96: (64, 32), 40: (32, 16)}.get(head_dim, (part, rest))


def test_bad_shapes_raise(normal):
    q = normal(1, 1, 3, 136)
    with pytest.raises(ValueError, match="head dims up to 128, got 136"):
        attention_triton(q, q, q)
    q, k = normal(1, 2, 3, 16), normal(1, 2, 4, 16)
    with pytest.raises(ValueError, match="do not fit"):
        attention_triton(q, k, k[:, :1])
    with pytest.raises(ValueError, match="do not fit"):
        attention_triton(q, k[:, :, :0], k[:, :, :0])


# a part of the operator that PyTorch dispatches to for each of its backends
OPERATORS = {
    SDPBackend.CUDNN_ATTENTION: "_cudnn_attention",
    SDPBackend.FLASH_ATTENTION: "_flash_attention",
    SDPBackend.EFFICIENT_ATTENTION: "_efficient_attention",
    SDPBackend.MATH: "softmax",
}


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def orders(device: torch.device) -> list[tuple[SDPBackend, ...]]:
    """Orders of PyTorch's backends, each with another in front; on the CPU, where an order is not obeyed, each alone."""
    if device.type != "cuda":
        return [(SDPBackend.FLASH_ATTENTION,), (SDPBackend.MATH,)]
    present = sdpa_order(device)[0]
    return [(first, *(backend for backend in present if backend != first)) for first in present]


@pytest.mark.parametrize("tokens", [64, 333])
def test_library_attention_runs_what_was_asked_for(tokens, normal, device):
    """The backend that is first in the order runs, alone; all give the own kernel's numbers."""
    q, k, v = normal(3, 1, 2, tokens, 64, dtype=torch.float16)
    ours = attention_triton(q, k, v).double()
    for order in orders(device):
        with Operators() as ran:
            theirs = attention_sdpa(q, k, v, order)
        chosen = [backend for backend, part in OPERATORS.items() if any(part in name for name in ran.names)]
        assert chosen == [order[0]]
        # both round probabilities and outputs to fp16: a few times 2^-11 of the largest value
        assert (theirs.double() - ours).abs().max() < 4 * 2**-11 * v.abs().max()
