"""Choosing kernels: defaults, arguments, the environment, fallbacks, and refusals in one sentence."""

import logging
import subprocess
import sys
import types
from dataclasses import fields
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from pretended_device import CPU, CUDA, pretend
from torch.nn.attention import SDPBackend

from segue.kernels import compiled, dispatch, fp8, mlp, onednn, triton_runtime
from segue.kernels.attention import attention, attention_sdpa, attention_xformers
from segue.kernels.dispatch import Shapes, parse_kernels, select_kernels
from segue.kernels.flash_attention import attention_bounded
from segue.kernels.launch_lookup import table_architecture
from segue.kernels.launch_table import TABLE
from segue.kernels.record import OPERATIONS, REFERENCE, TRITON, Kernels

pytestmark = pytest.mark.usefixtures("clean")
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs a PyTorch with oneDNN")


def backends(selection) -> dict[str, str]:
    return {operation: backend for operation, (backend, _) in selection.chosen.items()}


def test_every_operation_has_both_implementations():
    assert dispatch.WITHOUT_TRITON == ("linear", "fp8_linear")
    assert all(getattr(TRITON, name) is getattr(REFERENCE, name) for name in dispatch.WITHOUT_TRITON)
    for entry in fields(Kernels):
        if entry.name in dispatch.WITHOUT_TRITON:
            continue
        reference, kernel = getattr(REFERENCE, entry.name), getattr(TRITON, entry.name)
        assert reference is not kernel
        name = kernel.func.__name__ if isinstance(kernel, partial) else kernel.__name__
        assert name.removesuffix("_triton").removesuffix("_by_parts") == reference.__name__ == entry.name


@pytest.mark.parametrize("processor, dtype", [("aarch64", torch.float32), ("x86_64", torch.float64), ("AMD64", torch.bfloat16)])
def test_automatic_is_the_reference_on_cpu_without_a_word(processor, dtype, monkeypatch, caplog):
    monkeypatch.setattr(onednn.platform, "machine", lambda: processor)
    selection = select_kernels(CPU, dtype)
    chosen = backends(selection)
    assert chosen.pop("linear_gated_residual") == "deferred" and set(chosen.values()) == {"reference"}
    assert selection.kernels.attention is attention and selection.kernels.linear_gated_residual is None
    assert not caplog.records
    first, *rest = selection.explain()
    assert first.startswith("kernels reference (automatic: device cpu has no Triton compiler): modulated_norm, ")
    assert rest == ["kernels deferred (automatic: the residual is added by the norm that follows): linear_gated_residual"]


@needs_onednn
@pytest.mark.parametrize("processor", onednn.X86)
def test_automatic_products_on_x86_are_those_of_onednn(processor, monkeypatch):
    monkeypatch.setattr(onednn.platform, "machine", lambda: processor)
    selection = select_kernels(CPU, torch.float32)
    products = {"linear", "linear_gelu", "project_slices"}
    assert {name for name, backend in backends(selection).items() if backend == "onednn"} == products
    assert all(getattr(selection.kernels, name) is getattr(onednn, name) for name in products)
    assert set(backends(selection).values()) == {"onednn", "reference", "deferred"}
    for grouped, product in (("grouped_linear", "linear"), ("grouped_linear_gelu", "linear_gelu")):
        assert getattr(selection.kernels, grouped).keywords["product"] is getattr(onednn, product)
        plain = select_kernels(CPU, torch.float32, overrides={product: "reference"}).kernels
        assert getattr(plain, grouped).keywords["product"] is getattr(mlp, product)  # both streams by what was asked for
    heads = selection.kernels.project_heads.keywords, selection.kernels.project_joint_heads.keywords
    assert heads[0] == {"product": onednn.linear, "split": REFERENCE.split_heads_norm}
    assert heads[1] == {"products": selection.kernels.grouped_linear, "split": REFERENCE.joint_heads_norm}
    assert selection.chosen["project_joint_heads"][1] == "automatic: by grouped_linear, then joint_heads_norm"
    at_once = select_kernels(CPU, torch.float32, overrides={"linear_gated_residual": "reference"}).kernels
    assert at_once.linear_gated_residual.keywords["product"] is onednn.linear


def test_automatic_on_cuda(hopper, caplog):
    selection = select_kernels(CUDA, torch.bfloat16, Shapes(head_dim=72, width=1152, outputs=16))
    chosen = backends(selection)
    library = {"attention": "sdpa", **dict.fromkeys(dispatch.FOLLOWERS, "sdpa"), "linear_gelu": "cublaslt"}
    products = ("linear", "grouped_linear", "grouped_linear_gelu", "project_slices", *dispatch.HEAD_PRODUCTS)
    library |= dict.fromkeys(products, "reference")
    library |= {"fp8_linear": "scaled_mm", "linear_gated_residual": "deferred"}
    assert chosen == {operation: library.get(operation, "triton") for operation in OPERATIONS}
    assert selection.kernels.modulated_norm is TRITON.modulated_norm
    assert selection.kernels.attention.func is attention_sdpa
    assert selection.kernels.perturbed_attention.keywords["attend"] is selection.kernels.attention
    assert not caplog.records
    text = "\n".join(selection.explain())
    assert all(operation in text for operation in OPERATIONS)


BY_NAME = {
    ("attention", "sdpa"): attention_sdpa,
    ("attention", "xformers"): attention_xformers,
    ("attention", "bounded"): attention_bounded,
    ("linear", "onednn"): onednn.linear,
    ("linear_gelu", "cublaslt"): mlp.linear_gelu_cublaslt,
    ("linear_gated_residual", "deferred"): None,
    ("linear_gelu", "onednn"): onednn.linear_gelu,
    ("project_slices", "onednn"): onednn.project_slices,
    ("fp8_linear", "scaled_mm"): fp8.fp8_linear_scaled_mm,
    ("fp8_linear", "scaled_mm_fast"): fp8.fp8_linear_scaled_mm,
}


def function_of(kernel):
    return kernel.func if isinstance(kernel, partial) else kernel


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name not in dispatch.FOLLOWERS])
def test_every_backend_is_the_function_of_its_name(operation, hopper, monkeypatch):
    """What is called, not what it is called: each name that is accepted gives the function that bears it."""
    monkeypatch.setattr(dispatch, "find_spec", lambda name: True)
    own = ("reference",) if operation in dispatch.WITHOUT_TRITON else dispatch.BACKENDS
    monkeypatch.setattr(onednn, "obstacle", lambda device, dtype: None)
    monkeypatch.setattr(compiled, "obstacle", lambda device: None)
    for backend in (*own, *dispatch.MORE_BACKENDS.get(operation, ())):
        shapes = Shapes(largest_score=0.0)
        made = getattr(select_kernels(CUDA, torch.bfloat16, shapes, overrides={operation: backend}).kernels, operation)
        if backend == "compiled":
            assert made is compiled.compiled(operation) and made.__name__ == operation
            continue
        record = {"reference": REFERENCE, "triton": TRITON}.get(backend)
        wanted = getattr(record, operation) if record else BY_NAME[operation, backend]
        assert function_of(made) is function_of(wanted), (operation, backend)


def test_attention_without_a_maximum_is_for_scores_that_are_known_to_be_small(hopper):
    """By request only; it says why not, and what attention is made of follows it."""
    assert backends(select_kernels(CUDA, torch.bfloat16, Shapes(largest_score=1.0)))["attention"] == "sdpa"
    asked = {"overrides": {"attention": "bounded"}}
    for shapes, dtype, reason in (
        (Shapes(), torch.bfloat16, r"must keep exp\(scores\) within 2\^100, and here nothing does"),
        (Shapes(largest_score=100.4), torch.bfloat16, r"and here they give 2\^100\.4"),
        (Shapes(largest_score=1.0), torch.float16, r"powers of two up to 2\^100 need bfloat16, and .* computes in float16"),
        (Shapes(160, largest_score=1.0), torch.bfloat16, "head dim is at most 128"),
    ):
        with pytest.raises(ValueError, match=f"attention='bounded' cannot work: .*{reason}"):
            select_kernels(CUDA, dtype, shapes, **asked)
    selection = select_kernels(CUDA, torch.bfloat16, Shapes(64, largest_score=99.0), **asked)
    assert selection.chosen["attention"] == ("bounded", "requested; no running maximum")
    assert selection.kernels.perturbed_attention.keywords["attend"] is attention_bounded
    assert selection.kernels.attention_lse.keywords == {"bounded": True}


def test_both_ways_to_sum_fp8_products_can_be_asked_for(hopper, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "_scaled_mm", lambda a, b, **options: asked.append(options) or torch.zeros(3, 16))
    rows = torch.zeros(3, 16), torch.ones(3), torch.zeros(16, 16), torch.ones(16), torch.zeros(16)
    for backend in ("scaled_mm", "scaled_mm_fast"):
        select_kernels(CUDA, torch.bfloat16, overrides={"fp8_linear": backend}).kernels.fp8_linear(*rows)
    assert [options["use_fast_accum"] for options in asked] == [False, True]


@pytest.mark.parametrize("cudnn, first", [(91501, "CUDNN_ATTENTION"), (91100, "FLASH_ATTENTION")])
def test_cudnn_is_tried_first_where_it_handles_odd_lengths(monkeypatch, cudnn, first):
    pretend(monkeypatch, "sm_90", (9, 0), cudnn)
    selection = select_kernels(CUDA, torch.bfloat16)
    assert selection.kernels.attention.keywords["backends"][0].name == first
    assert str(cudnn) in selection.chosen["attention"][1]


def test_the_residual_after_a_product_is_the_kernel_that_was_chosen_for_it(hopper):
    kernels = select_kernels(CUDA, torch.bfloat16, overrides={"linear_gated_residual": "reference"}).kernels
    assert kernels.linear_gated_residual.keywords["residual"] is kernels.gated_residual


def test_a_network_too_large_for_one_kernel_falls_back_for_that_kernel_alone(hopper, caplog):
    chosen = backends(select_kernels(CUDA, torch.bfloat16, Shapes(head_dim=64, width=1024, outputs=1024)))
    fallen = {operation for operation, backend in chosen.items() if backend == "reference"} - set(dispatch.LIBRARY)
    assert fallen == {"combine_then_project", "project", "readout_update"}
    assert "at most 256, and this network has 1024" in caplog.text


@pytest.mark.parametrize("reason", ["capability", "dtype", "missing"])
def test_automatic_falls_back_and_says_so_once(reason, monkeypatch, caplog):
    pretend(monkeypatch, "sm_75" if reason == "capability" else "sm_90", (7, 5) if reason == "capability" else (9, 0))
    if reason == "missing":
        monkeypatch.setattr(triton_runtime, "triton", None)
    dtype = torch.float64 if reason == "dtype" else torch.float16
    with caplog.at_level(logging.WARNING, logger="segue"):
        chosen = [select_kernels(CUDA, dtype) for _ in range(2)]
    assert backends(chosen[0])["modulated_norm"] == "reference"
    said = [record.message for record in caplog.records if "kernel modulated_norm " in record.message]
    assert len(said) == 1
    assert {"capability": "8.0", "dtype": "float64", "missing": "not installed"}[reason] in said[0]


def test_fp8_needs_a_device_that_has_it(monkeypatch, caplog):
    pretend(monkeypatch, "sm_80", (8, 0))
    chosen = select_kernels(CUDA, torch.bfloat16).chosen
    assert chosen["modulated_norm"][0] == "triton"
    for operation in dispatch.FP8_OPERATIONS:
        assert chosen[operation][0] == "reference" and "8.9" in chosen[operation][1], operation
    assert "fp8" not in caplog.text  # engines without fp8 linears have nothing to do with it


def test_arguments_beat_the_environment(hopper, monkeypatch):
    monkeypatch.setenv(dispatch.ENVIRONMENT, "reference,attention=triton")
    from_environment = backends(select_kernels(CUDA, torch.bfloat16))
    assert from_environment["attention"] == from_environment["perturbed_attention"] == "triton"
    assert set(from_environment.values()) == {"reference", "triton"}
    assert from_environment["fp8_linear"] == "reference"
    mixed = backends(select_kernels(CUDA, torch.bfloat16, overrides={"attention": "sdpa"}))
    assert mixed["attention"] == "sdpa" and mixed["modulated_norm"] == "reference"
    everything = backends(select_kernels(CUDA, torch.bfloat16, backend="triton"))
    assert (everything.pop("linear"), everything.pop("fp8_linear")) == ("reference", "scaled_mm")
    assert set(everything.values()) == {"triton"}


def test_library_attention_keeps_layout_and_scale(monkeypatch):
    """The adapters around PyTorch's and xformers' attention, with stand-ins for the fast kernels."""

    def memory_efficient_attention(q, k, v):  # [R, T, H, K]
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    monkeypatch.setitem(sys.modules, "xformers", types.ModuleType("xformers"))
    monkeypatch.setitem(
        sys.modules, "xformers.ops", types.SimpleNamespace(memory_efficient_attention=memory_efficient_attention)
    )
    q, k, v = torch.randn(3, 2, 3, 7, 8, generator=torch.Generator().manual_seed(0))
    expected = attention(q, k, v)
    assert torch.allclose(attention_xformers(q, k, v), expected, atol=1e-6)
    assert torch.allclose(attention_sdpa(q, k, v, (SDPBackend.MATH,)), expected, atol=1e-6)


def test_text_form():
    assert parse_kernels("auto") == ("auto", {})
    assert parse_kernels("triton, attention = sdpa") == ("triton", {"attention": "sdpa"})
    assert parse_kernels("attention=sdpa,linear_gelu=triton") == ("auto", {"attention": "sdpa", "linear_gelu": "triton"})


@pytest.mark.parametrize(
    "device, dtype, request_, message",
    [
        (CPU, torch.float32, {"backend": "triton"}, r"modulated_norm='triton' cannot work: .*TRITON_INTERPRET=1"),
        (CUDA, torch.float64, {"backend": "triton"}, "compute in fp32, fp16 or bf16, not torch.float64"),
        (CUDA, torch.bfloat16, {"backend": "triton", "shapes": Shapes(160)}, "head dim is at most 128, and .* has 160"),
        (CUDA, torch.bfloat16, {"backend": "triton", "shapes": Shapes(64, 8192)}, "width is at most 4096, and .* has 8192"),
        (CPU, torch.float32, {"overrides": {"attention": "sdpa"}}, "attention='sdpa' .* needs a CUDA device"),
        (CUDA, torch.bfloat16, {"overrides": {"attention": "xformers"}}, "xformers is not installed"),
        (CPU, torch.float32, {"overrides": {"atention": "sdpa"}}, "unknown operation 'atention'; known: modulated_norm"),
        (CPU, torch.float32, {"overrides": {"perturbed_attention": "triton"}}, "takes the backend of attention"),
        (CPU, torch.float32, {"overrides": {"fp8_linear": "scaled_mm"}}, "fp8_linear='scaled_mm' .* needs a CUDA device"),
        (CUDA, torch.float16, {"overrides": {"fp8_linear": "scaled_mm"}}, "give bfloat16, and .* computes in float16"),
        (CUDA, torch.bfloat16, {"overrides": {"fp8_linear": "triton"}}, "known: auto, reference, scaled_mm, scaled_mm_fast"),
        (CUDA, torch.float32, {"overrides": {"linear": "onednn"}}, "linear='onednn' .* run on the CPU, and this is cuda"),
        (CPU, torch.float64, {"overrides": {"linear_gelu": "onednn"}}, "made for float32, and .* computes in float64"),
        (torch.device("mps"), torch.float32, {"backend": "compiled"}, "compiles for the CPU and CUDA, and this is mps"),
        (CPU, torch.float32, {"overrides": {"attention": "compiled"}}, "known: auto, .*, sdpa, xformers, bounded$"),
        (CPU, torch.float32, {"backend": "cuda"}, "unknown backend 'cuda' for modulated_norm; known: auto, reference, triton"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(hopper, monkeypatch, device, dtype, request_, message):
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        select_kernels(device, dtype, **request_)


def test_bad_text_is_refused():
    with pytest.raises(ValueError, match="write operation=backend, got 'sdpa'"):
        parse_kernels("triton,sdpa")
    with pytest.raises(TypeError, match="got 3"):
        parse_kernels(3)


def test_devices_between_the_tuned_ones_are_served_by_the_nearest():
    served = {name: table_architecture(name) for name in ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120")}
    assert served == {
        "sm_80": "sm_80", "sm_86": "sm_80", "sm_89": "sm_80", "sm_90": "sm_90", "sm_100": "sm_100", "sm_103": "sm_100",
        "sm_120": "sm_80",
    }  # fmt: skip
    assert table_architecture("gfx90a") == "gfx942"
    with pytest.raises(ValueError, match=r"8\.0 or later, and this device is sm_75"):
        table_architecture("sm_75")
    keys = {frozenset(entries) for entries in TABLE.values()}
    assert len(keys) == 1  # every architecture has every entry


def test_an_engine_explains_its_kernels():
    from tiny_models import tiny_sit

    from segue import Engine

    engine = Engine(tiny_sit(), device="cpu")
    assert engine.selection.explain()[0] in engine.explain().splitlines()
    with pytest.raises(ValueError, match="cannot work"):
        Engine(tiny_sit(), device="cpu", kernels="triton")
    with pytest.raises(ValueError, match="unknown backend 'fast'"):
        Engine(tiny_sit(), device="cpu", kernels="fast")


def test_everything_imports_and_runs_without_triton():
    """A fresh process in which Triton cannot be imported: the references serve, and asking for Triton says why not."""
    program = """
import sys
sys.modules["triton"] = None
import torch, segue
from segue.kernels import catalogue, resources, tune
from segue.kernels.dispatch import select_kernels
from segue.kernels.flash_attention import attention_bounded
from segue.kernels.record import REFERENCE
assert select_kernels(torch.device("cpu"), torch.float32).kernels.attention is REFERENCE.attention
try:
    select_kernels(torch.device("cuda"), torch.float32, backend="triton")
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "modulated_norm='triton' cannot work: triton is not installed\n"
