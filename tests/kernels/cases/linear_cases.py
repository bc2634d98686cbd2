"""Linear layers with an epilogue, and two streams in one launch."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segue.kernels import mlp
from segue.kernels.descriptors import describable
from segue.kernels.triton_runtime import interpreting, observe_launches

# (R, L, D, E): one token, odd sizes in every dimension, D of DiT-XL and SD3.5-large, more tiles than programs
SHAPES = [(1, 1, 64, 64), (2, 63, 72, 200), (1, 199, 48, 33), (1, 5, 1152, 130), (1, 3, 2432, 64), (3, 111, 64, 300)]


def layer(normal, inputs, outputs, dtype):
    return normal(outputs, inputs, dtype=dtype) / inputs**0.5, normal(outputs, dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_gelu(shape, dtype, normal, judge):
    rows, tokens, inputs, outputs = shape
    x = normal(rows + 1, tokens, inputs, dtype=dtype)[:rows] * 2
    with observe_launches() as launches:
        judge(mlp.linear_gelu_triton, mlp.linear_gelu, x, *layer(normal, inputs, outputs, dtype))
    assert [launch.name for launch in launches] == ["linear_kernel"]


@pytest.mark.skipif(interpreting(), reason="cuBLASLt needs a CUDA device")
def test_cublaslt_epilogue(dtype, normal, judge):
    x = normal(2, 199, 192, dtype=dtype)
    judge(mlp.linear_gelu_cublaslt, mlp.linear_gelu, x, *layer(normal, 192, 768, dtype))


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_linear_gated_residual(shape, dtype, normal, judge):
    rows, tokens, inputs, outputs = shape
    h, x = normal(rows, tokens, outputs, dtype=dtype), normal(rows, tokens, inputs, dtype=dtype)
    gate = normal(rows, 3 * outputs, dtype=dtype)[:, None].chunk(3, dim=-1)[1]
    judge(mlp.linear_gated_residual_triton, mlp.linear_gated_residual, h, x, *layer(normal, inputs, outputs, dtype), gate)


def test_a_long_sum_in_fp32_loses_nothing(device):
    """1 and then 4095 terms that no sum beside 1 can hold, block by block; together they are 32 of its roundings."""
    x = torch.full((1, 3, 4096), 2.0**-30, device=device)
    x[..., 0] = 1.0
    weight, nothing = torch.ones(5, 4096, device=device), torch.zeros(5, device=device)
    y, _ = mlp.grouped_linear_triton(x, weight, nothing, x, weight, nothing)
    assert (y.double() - (1 + 4095 * 2.0**-30)).abs().max() <= 2 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("text", [1, 33, 140])
def test_two_streams_in_one_launch(text, gelu, dtype, normal, judge):
    image = (normal(2, 63, 72, dtype=dtype), *layer(normal, 72, 136, dtype))
    other = (normal(2, text, 72, dtype=dtype), *layer(normal, 72, 136, dtype))
    with observe_launches() as launches:
        name = "grouped_linear_gelu" if gelu else "grouped_linear"
        judge(getattr(mlp, f"{name}_triton"), getattr(mlp, name), *image, *other, operation=name)
    assert [launch.name for launch in launches] == ["linear_kernel"]


def test_token_slices_are_read_in_place(dtype, normal, judge):
    """The joint attention output is cut by tokens: image first, text behind."""
    joint = normal(3, 40, 64, dtype=dtype)
    weights = (*layer(normal, 64, 64, dtype), *layer(normal, 64, 64, dtype))

    def call(function):
        return lambda joint, w, b, w2, b2: function(joint[:, :29], w, b, joint[:, 29:], w2, b2)

    judge(call(mlp.grouped_linear_triton), call(mlp.grouped_linear), joint, *weights)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("both", [False, True])
def test_projections_of_slices(rows, both, dtype, normal, judge):
    """As the out-projections of a joint block; what is left of the bias is added for the comparison."""
    joint = normal(rows, 40, 64, dtype=dtype)
    layers = [*layer(normal, 64, 72, dtype), *layer(normal, 64, 72, dtype)]

    def call(function):
        def projected(joint, w, b, w2, b2):
            return mlp.with_biases(function)(joint[:, :29], w, b, *((joint[:, 29:], w2, b2) if both else ()))

        return projected

    def exact(joint, w, b, w2, b2):
        outputs = [torch.einsum("rld,ed->rle", joint[:, :29], w) + b, torch.einsum("rld,ed->rle", joint[:, 29:], w2) + b2]
        return outputs[: 1 + both]

    with observe_launches() as launches:
        judge(call(mlp.project_slices_triton), call(mlp.project_slices), joint, *layers, exact=exact)
    assert [launch.name for launch in launches] == ["linear_kernel"]


def test_the_reference_leaves_the_bias_of_a_slice_that_it_reads_in_place(normal):
    joint, (weight, bias) = normal(2, 9, 16), layer(normal, 16, 8, torch.float32)
    for x, left in ((joint[:, :5], bias), (joint[:1, :5], None), (joint, None)):
        ((y, kept),) = mlp.project_slices(x, weight, bias)
        assert kept is left and y.shape == (*x.shape[:2], 8)


def test_the_residual_writes_its_slice_only(dtype, normal):
    buffer = normal(4, 9, 64, dtype=dtype)
    before = buffer.clone()
    h = buffer[:2, 2:7]
    mlp.linear_gated_residual_triton(
        h, normal(2, 5, 32, dtype=dtype), *layer(normal, 32, 64, dtype), normal(1, 1, 64, dtype=dtype)
    )
    changed = (buffer != before).any(-1)
    assert changed[:2, 2:7].all() and changed.sum() == 10


def test_gelu_of_large_values(normal, device):
    """Far from zero GELU is the identity or zero; nothing overflows on the way."""
    x = torch.tensor([[[1e4], [-1e4], [100.0], [-100.0]]], device=device)
    out = mlp.linear_gelu_triton(x, torch.ones(16, 1, device=device), torch.zeros(16, device=device))
    assert torch.equal(out[0, :, 0], torch.tensor([1e4, 0, 100, 0], device=device))


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 3), tokens=st.integers(1, 70), inputs=st.integers(1, 80), outputs=st.integers(1, 80))
def test_any_shape(device, rows, tokens, inputs, outputs):
    generator = torch.Generator().manual_seed(rows + 10 * tokens + 1000 * inputs + 100000 * outputs)
    x = torch.randn(rows, tokens, inputs, generator=generator).to(device)
    weight, bias = torch.randn(outputs, inputs + 1, generator=generator).to(device).split([inputs, 1], dim=1)
    ours = mlp.linear_gelu_triton(x, weight, bias[:, 0])
    expected = mlp.linear_gelu(x.double(), weight.double(), bias[:, 0].double())
    assert (ours.double() - expected).abs().max() < 1e-5 * max(1, inputs)


def test_operands_that_no_descriptor_takes(normal, device):
    """Repeated by stride, and without elements: read by pointers, or nothing is done."""
    weight, bias = layer(normal, 16, 24, torch.float32)
    for x in (normal(2, 1, 16).expand(2, 5, 16), normal(1, 1, 16).expand(3, 4, 16), normal(1, 5, 16).expand(2, 5, 16)):
        assert not describable(x)
        torch.testing.assert_close(mlp.linear_gelu_triton(x, weight, bias), mlp.linear_gelu(x, weight, bias))
    for shape in ((0, 5, 16), (2, 0, 16)):
        assert mlp.linear_gelu_triton(normal(*shape), weight, bias).shape == (*shape[:2], 24)
    y, z = mlp.grouped_linear_triton(normal(1, 3, 16), weight, bias, normal(1, 0, 16), weight, bias)
    assert y.isfinite().all() and z.numel() == 0


def test_what_a_descriptor_takes(normal):
    """Strides in the order of memory, in 16 bytes, each holding what lies inside it; those of dimensions of one are free."""
    x = normal(2, 6, 3, 8)
    for good in (x, x[:, 1:4], x[:1], x[:, :, :1], x[..., :4], x[0, 0, 0].as_strided((1, 1, 3, 8), (7, 5, 8, 1))):
        assert describable(good)
    for bad in (x.transpose(1, 2), x[..., 1:5], normal(2, 6, 3, 7), x.as_strided((2, 6, 3, 8), (144, 24, 4, 1)), x[:, :0]):
        assert not describable(bad)


def test_bad_shapes_raise(normal):
    x, weight, bias = normal(1, 2, 8), normal(4, 8), normal(4)
    with pytest.raises(ValueError, match=r"x \(1, 2, 8\), weight \(4, 7\) and bias \(4,\) do not fit"):
        mlp.linear_gelu_triton(x, weight[:, :7], bias)
    with pytest.raises(ValueError, match=r"the state must be \(1, 2, 4\), got \(1, 3, 4\)"):
        mlp.linear_gated_residual_triton(normal(1, 3, 4), x, weight, bias, normal(1, 1, 4))
    with pytest.raises(ValueError, match=r"gate must have shape \(1, 1, 4\), got \(1, 2, 4\)"):
        mlp.linear_gated_residual_triton(normal(1, 2, 4), x, weight, bias, normal(1, 2, 4))
    with pytest.raises(ValueError, match="do not fit"):
        mlp.grouped_linear_triton(x, weight, bias, x, weight[:3], bias[:3])
