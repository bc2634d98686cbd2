"""Backends and launch settings by the shapes of a call."""

import itertools
from dataclasses import replace

import pytest
import torch
from pretended_device import CUDA

from segue.kernels import dispatch, mlp, shape_class, triton_runtime
from segue.kernels.attention import attention_sdpa
from segue.kernels.catalogue import SIZES, Factory, cases
from segue.kernels.choice import CLASSIFIERS
from segue.kernels.dispatch import Shapes, select_kernels
from segue.kernels.flash_attention import attention_triton
from segue.kernels.launch_lookup import launch_config, recorded_lookups, stand_in
from segue.kernels.launch_table import TABLE

pytestmark = pytest.mark.usefixtures("clean")
LONG, SHORT = "k64 t4096", "k64 t256"


def heads(length: int, head_dim: int = 64, dtype=torch.bfloat16) -> tuple[torch.Tensor, ...]:
    return tuple(torch.empty(3, 2, 24, length, head_dim, dtype=dtype, device="meta").unbind())


@pytest.fixture
def measured(hopper, monkeypatch):
    found = {("attention", LONG): "triton", ("attention", SHORT): "sdpa", ("linear_gelu", "m512 in2048 out8192"): "triton"}
    monkeypatch.setitem(dispatch.PREFERRED, "sm_90", found)
    monkeypatch.setitem(dispatch.PREDICTED, "sm_90", {})


def test_a_backend_is_chosen_for_each_shape_class(measured):
    """What was measured at one class of shapes says nothing of another, and the default serves all that was not measured."""
    selection = select_kernels(CUDA, torch.bfloat16)
    attend = selection.kernels.attention
    assert attend.preferred == {LONG: attention_triton} and attend.default.func is attention_sdpa
    called = []
    counted = replace(
        attend,
        default=lambda *_: called.append("default"),
        preferred={name: lambda *_, name=name: called.append(name) for name in attend.preferred},
    )
    for arguments in (heads(4429), heads(2049), heads(1357), heads(256), heads(4429, 72), heads(4429, dtype=torch.float32)):
        counted(*arguments)
    assert called == [LONG, LONG, *["default"] * 4]
    assert selection.kernels.perturbed_attention.keywords["attend"] is attend
    assert selection.kernels.linear_gelu.preferred == {"m512 in2048 out8192": mlp.linear_gelu_triton}
    assert selection.classes == {"attention": {LONG: "triton"}, "linear_gelu": {"m512 in2048 out8192": "triton"}}
    said = selection.explain()
    assert f"kernels triton (measured fastest) for attention at {LONG}" in said
    assert "kernels triton (measured fastest) for linear_gelu at m512 in2048 out8192" in said


@pytest.fixture
def predicted(hopper, monkeypatch):
    found = {("project_heads", "m8192 in2048 out8192"): ("triton", 0.126), ("attention", LONG): ("triton", 0.03)}
    monkeypatch.setitem(dispatch.PREDICTED, "sm_90", found)
    monkeypatch.setitem(dispatch.PREFERRED, "sm_90", {})


def test_where_nothing_was_measured_a_prediction_decides_and_says_that_it_is_one(predicted):
    selection = select_kernels(CUDA, torch.bfloat16)
    assert selection.classes == {"attention": {LONG: "triton"}, "project_heads": {"m8192 in2048 out8192": "triton"}}
    assert selection.predicted == {("attention", LONG): 0.03, ("project_heads", "m8192 in2048 out8192"): 0.126}
    said = selection.explain()
    assert "kernels triton (predicted to save 13 % of the time, not measured) for project_heads at m8192 in2048 out8192" in said
    assert not select_kernels(CUDA, torch.float32).classes


@pytest.mark.parametrize(
    "asked", [{"split_heads_norm": "reference"}, {"linear": "reference"}, {"split_heads_norm": "compiled"}], ids=str
)
def test_a_request_for_a_part_is_followed_where_the_whole_was_predicted(predicted, monkeypatch, asked):
    """Or measured: what was asked for is called."""
    monkeypatch.setattr(dispatch.compiled, "obstacle", lambda device: None)
    for measured in ({}, {("project_heads", "m8192 in2048 out8192"): "triton"}):
        monkeypatch.setitem(dispatch.PREFERRED, "sm_90", measured)
        assert "project_heads" in select_kernels(CUDA, torch.bfloat16).classes
        selection = select_kernels(CUDA, torch.bfloat16, overrides=asked)
        assert "project_heads" not in selection.classes and selection.chosen["project_heads"][0] == "reference"


@pytest.mark.parametrize("backend", ["sdpa", "triton"])
def test_a_measurement_takes_the_place_of_a_prediction(predicted, monkeypatch, backend):
    """Also where the default was the fastest; a class that was not measured keeps its prediction."""
    monkeypatch.setitem(dispatch.PREFERRED, "sm_90", {("attention", LONG): backend})
    selection = select_kernels(CUDA, torch.bfloat16)
    assert list(selection.predicted) == [("project_heads", "m8192 in2048 out8192")]
    assert selection.classes.get("attention", {}) == ({LONG: "triton"} if backend == "triton" else {})


def test_the_doctor_lists_what_was_measured(measured, monkeypatch):
    from segue.engine.cli import doctor

    monkeypatch.setattr(doctor, "resolve_device", lambda _: CUDA)
    monkeypatch.setattr(doctor, "resolve_dtype", lambda *_: torch.bfloat16)
    found = doctor._kernels()
    assert found["attention"].startswith("sdpa (") and found["attention"].endswith(f"; triton at {LONG}")
    assert found["modulated_norm"] == "triton (automatic: CUDA)"


def test_a_request_and_fp32_are_left_alone_by_what_was_measured_in_16_bits(measured):
    assert not select_kernels(CUDA, torch.float32).classes
    assert not select_kernels(CUDA, torch.bfloat16, backend="reference").classes
    asked = select_kernels(CUDA, torch.bfloat16, overrides={"attention": "sdpa"})
    assert asked.kernels.attention.func is attention_sdpa and list(asked.classes) == ["linear_gelu"]
    too_large = select_kernels(CUDA, torch.bfloat16, Shapes(head_dim=160))
    assert "attention" not in too_large.classes


def test_a_preference_for_what_is_not_installed_falls_back_and_says_so(hopper, monkeypatch, caplog):
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    monkeypatch.setitem(dispatch.PREFERRED, "sm_90", {("attention", LONG): "xformers"})
    assert select_kernels(CUDA, torch.bfloat16).kernels.attention.func is attention_sdpa
    assert caplog.messages == [f"kernel attention at {LONG} falls back to sdpa: xformers is not installed"]


def test_a_call_is_classified_as_its_launch_is():
    """The choice between backends and the launch configuration go by one and the same class."""
    launched = dict.fromkeys(("linear_gelu", "grouped_linear", "grouped_linear_gelu", "project_slices"), "linear")
    launched |= dict.fromkeys(("project_heads", "project_joint_heads"), "linear_heads")
    seen = set()
    for size in SIZES:
        for case in cases(size):
            if case.operation not in CLASSIFIERS or case.vendor:
                continue
            arguments = case.arguments(Factory(torch.device("meta"), torch.bfloat16))
            with recorded_lookups() as keys, triton_runtime.trace_launches("sm_90"):
                case.kernel(*arguments)
            assert keys == {(launched.get(case.operation, case.operation), CLASSIFIERS[case.operation](*arguments))}
            seen.add(case.operation)
    assert seen == set(CLASSIFIERS) - {"fp8_linear"}


@pytest.mark.parametrize("operation", sorted(CLASSIFIERS))
def test_a_class_is_found_from_shapes_alone(operation):
    """On tensors without memory: nothing is read from the device, so nothing waits for it."""
    case = next(case for case in cases(SIZES[5]) if case.operation == operation)
    assert set(CLASSIFIERS) == {*dispatch.LIBRARY} - {"linear"}
    first = case.arguments(Factory(torch.device("meta"), torch.bfloat16))
    again = case.arguments(Factory(torch.device("meta"), torch.bfloat16, seed=1))
    assert CLASSIFIERS[operation](*first) == CLASSIFIERS[operation](*again) != ""


def test_a_class_without_an_entry_is_served_by_its_neighbour():
    """Never by one whose program holds another number of registers; a shape that no case of the catalogue has works too."""
    table = TABLE["sm_90"]
    assert launch_config("adaln", "d2048 m512", "sm_90") is table["adaln", "d2048 m512"]
    assert ("linear", "m512 in16384 out16384") not in table
    assert launch_config("linear", "m512 in16384 out16384", "sm_90") in table.values()
    assert stand_in("sm_90", "attention", "k128 t4096") == "k128 t1024"
    with pytest.raises(KeyError, match="d9 m512"):
        launch_config("adaln", "d9 m512", "sm_90")


def every_class(make, *sizes) -> set[str]:
    return {make(*values) for values in itertools.product(*sizes)}


@pytest.mark.parametrize("served", sorted(TABLE))
def test_every_class_has_an_entry_or_a_neighbour(served):
    """Whatever the sizes of a network, a kernel finds how to be launched."""
    rows, features = (1, 16, 333, 512, 513, 4096, 8193, 10**6), (1, 16, 192, 256, 257, 1152, 2432, 9728, 16384, 40000)
    classes = {
        "adaln": every_class(shape_class.row_class, rows, (1, 512, 513, 1152, 4096)),
        "quantise": every_class(shape_class.row_class, rows, (1, 512, 513, 1152, 4096, 8192, 16384)),
        "attention": every_class(shape_class.attention_class, (1, 16, 33, 72, 97, 128), rows),
        "heads": every_class(shape_class.heads_class, rows, (1, 16, 33, 72, 97, 128, 300)),
        "readout": every_class(shape_class.readout_class, rows, (1, 64, 65, 256)),
        "linear": every_class(shape_class.product_class, rows, features, features),
        "linear_residual": every_class(shape_class.product_class, rows, features, features),
        "linear_heads": every_class(shape_class.product_class, rows, features, features),
    }
    for operation, found in classes.items():
        kinds = {type(config) for (other, _), config in TABLE[served].items() if other == operation}
        assert {type(launch_config(operation, one, served)) for one in found} == kinds


def test_the_nearest_class_is_the_fewest_doublings_away():
    known = ["m512 in2048 out8192", "m8192 in2048 out2048", "m8192 in2048 out16384", "d2048 m512"]
    assert shape_class.nearest("m2048 in2048 out8192", known) == "m512 in2048 out8192"
    assert shape_class.nearest("m8192 in2048 out8192", known) == "m8192 in2048 out16384"
    assert shape_class.nearest("d2048 m8192", known) == "d2048 m512"
    assert shape_class.nearest("d1024 m512", known) is None
    assert shape_class.nearest("any", known) is None and shape_class.nearest("any", ["any"]) == "any"
