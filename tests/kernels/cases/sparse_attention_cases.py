"""ProbSparse attention against a loop over its queries, and its kernel against fp64."""

import math

import pytest
import torch

from segue.kernels.attention import attention
from segue.kernels.flash_attention import attention_triton
from segue.kernels.sparse_attention import query_spread, query_spread_triton, sparse_attention, usual_budget
from segue.kernels.triton_runtime import observe_launches

# (R, H, tokens, keys, K): odd lengths, every way a head dim is cut, one key, all keys
SHAPES = [(2, 2, 1, 1, 16), (1, 2, 63, 25, 32), (1, 1, 199, 30, 72), (1, 1, 65, 65, 128), (2, 1, 40, 7, 20), (1, 1, 333, 1, 64)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_spread_against_fp64(shape, dtype, normal, judge):
    rows, heads, tokens, count, head_dim = shape
    q, k = normal(2, rows, heads, tokens, head_dim, dtype=dtype)
    judge(lambda *qk: query_spread_triton(*qk, count), lambda *qk: query_spread(*qk, count), q, k, operation="query_spread")


def test_views_of_a_fused_projection_and_a_row_prefix(dtype, normal, judge):
    q, k, _ = normal(3, 33, 3, 2, 72, dtype=dtype)[:2].unbind(2)
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    judge(lambda *qk: query_spread_triton(*qk, 20), lambda *qk: query_spread(*qk, 20), q, k, operation="query_spread")


def test_the_chosen_queries_attend_and_the_others_get_the_mean(device, normal):
    """The definition, query by query, by the kernel and by the reference."""
    tokens, queries, keys, head_dim = 37, 9, 11, 24
    q, k, v = normal(3, 2, 3, tokens, head_dim)
    expected, subset = torch.empty(2, tokens, 3, head_dim, device=device), [i * tokens // keys for i in range(keys)]
    for row in range(2):
        for head in range(3):
            own_q, own_k, own_v = q[row, head], k[row, head], v[row, head]
            scores = (own_q @ own_k.T / math.sqrt(head_dim))[:, subset]
            ranked = sorted(range(tokens), key=lambda i: float(scores[i].max() - scores[i].mean()), reverse=True)
            for place, query in enumerate(ranked):
                weights = (own_q[query] @ own_k.T / math.sqrt(head_dim)).softmax(0)
                expected[row, query, head] = weights @ own_v if place < queries else own_v.mean(0)
    by_kernels = sparse_attention(q, k, v, queries, keys, attend=attention_triton, spread=query_spread_triton)
    for found in (sparse_attention(q, k, v, queries, keys), by_kernels):
        assert torch.allclose(found, expected.flatten(2), atol=1e-5)  # sums of 37 products near 1 in fp32


def test_full_budgets_are_dense_attention(device, normal):
    """By both ways: the shortcut, and with all but one query chosen the same kernels, to the last query."""
    q, k, v = normal(3, 1, 2, 21, 16)
    dense = attention(q, k, v)
    assert torch.allclose(sparse_attention(q, k, v, 21, 21), dense, atol=1e-6)
    assert torch.allclose(sparse_attention(q, k, v, 99, 99), dense, atol=1e-6)
    one_less = sparse_attention(q, k, v, 20, 21).view(1, 21, 2, 16)
    differs = (one_less - dense.view(1, 21, 2, 16)).abs().amax(dim=-1) > 1e-5
    assert differs.sum(dim=1).tolist() == [[1, 1]]


def test_one_launch_ranks_and_one_attends(device, normal):
    q, k, v = normal(3, 1, 2, 40, 32)
    with observe_launches() as launches:
        sparse_attention(q, k, v, 6, 10, attend=attention_triton, spread=query_spread_triton)
    assert [(launch.name, tuple(launch.arguments["p_q"].shape)) for launch in launches] == [
        ("spread_kernel", (1, 2, 40, 32)),
        ("attention_kernel", (1, 2, 6, 32)),
    ]


def test_it_is_the_same_every_time_and_row_by_row(device, normal):
    q, k, v = normal(3, 3, 2, 50, 16)
    found = sparse_attention(q, k, v, 12, 20)
    assert torch.equal(found, sparse_attention(q, k, v, 12, 20))
    assert torch.allclose(found[1:2], sparse_attention(q[1:2], k[1:2], v[1:2], 12, 20), atol=1e-6)


@pytest.mark.parametrize(("tokens", "budget"), ((1, 1), (2, 2), (16, 15), (64, 25), (256, 30), (1024, 35), (4096, 45)))
def test_the_usual_budget(tokens, budget):
    assert usual_budget(tokens) == budget


def test_what_does_not_fit_is_refused(device, normal):
    q = normal(1, 1, 8, 16)
    with pytest.raises(ValueError, match="q, k and 9 keys do not fit"):
        query_spread_triton(q, q, 9)
    with pytest.raises(ValueError, match="head dims up to 128, got 130"):
        query_spread_triton(normal(1, 1, 4, 130), normal(1, 1, 4, 130), 2)
