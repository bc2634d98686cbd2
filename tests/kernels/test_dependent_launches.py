"""Kernels that start while the one before them ends: what is chosen, launched and compiled."""

import re

import pytest
import torch
from pretended_device import CPU, CUDA, pretend

from segue.kernels import triton_runtime
from segue.kernels.catalogue import SIZES, cases
from segue.kernels.choice import Dependent
from segue.kernels.dispatch import parse_kernels, select_kernels
from segue.kernels.launch_cost import COSTS
from segue.kernels.record import OPERATIONS, TRITON
from segue.kernels.resources import Specialisation, case_launches, compile_specialisation, forms, runs_on
from segue.kernels.triton_runtime import Launch, dependent_launches, dependent_obstacle, interpreting, launch, triton

pytestmark = pytest.mark.usefixtures("clean")
needs_compiler = pytest.mark.skipif(triton is None or interpreting(), reason="needs Triton's compiler")
FEW = ("gather_kernel", "adaln_kernel", "solver_kernel")  # a load by index, of whole rows, and through tensors in place
# what touches memory that other kernels may touch, and what waits or lets others start, in the order of the program
TOUCH = re.compile(
    r"griddepcontrol\.\w+|\b(?:ld|st|red|atom)\.(?:\w+\.)*?global|\bcp\.(?:async|reduce)|\bld\.(?:volatile|relaxed)"
)
WAIT, START = "griddepcontrol.wait", "griddepcontrol.launch_dependents"


def one_of_each(architecture: str, dependent: bool) -> dict[str, Launch]:
    """A launch of every kernel of the catalogue."""
    found: dict[str, Launch] = {}
    for case in (case for size in SIZES for case in cases(size) if runs_on(case, architecture) and not case.vendor):
        if dependent:
            with dependent_launches():
                launches = case_launches(case, architecture)
        else:
            launches = case_launches(case, architecture)
        for each in launches:
            found.setdefault(each.name, each)
    return found


def check_compiled(architecture: str, name: str, each: Launch) -> None:
    specialisation = Specialisation.of(each, architecture)
    made = forms(specialisation, each)
    steps = TOUCH.findall(made.asm["ptx"])
    assert made.metadata.launch_pdl is each.dependent and steps[2:]
    if each.dependent:
        assert steps[:2] == [WAIT, START] and not {WAIT, START} & {*steps[2:]}, (name, steps)
        assert compile_specialisation(specialisation, each, []).fits
    else:
        assert not {WAIT, START} & {*steps}


@needs_compiler
@pytest.mark.parametrize("dependent", [True, False])
def test_a_kernel_waits_before_it_touches_memory(dependent):
    launches = one_of_each("sm_90", dependent)
    for name in FEW:
        check_compiled("sm_90", name, launches[name])


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_90", "sm_100"])
def test_every_kernel_waits_before_it_touches_memory(architecture):
    launches = one_of_each(architecture, True)
    assert set(launches) == set(COSTS)
    for name, each in launches.items():
        check_compiled(architecture, name, each)


@pytest.mark.skipif(triton is None, reason="needs Triton")
@pytest.mark.parametrize("architecture, able", [("sm_90", True), ("sm_100", True), ("sm_80", False), ("gfx942", False)])
def test_every_kernel_can_be_launched_dependent_where_the_chip_can(architecture, able):
    """Every one, or a kernel without the wait would run beside the one whose numbers it reads."""
    for name, each in one_of_each(architecture, True).items():
        assert each.dependent is able and ("DEPENDENT" in each.arguments) is able, name
    assert not any(each.dependent or "DEPENDENT" in each.arguments for each in one_of_each(architecture, False).values())


@needs_compiler
def test_a_specialisation_is_named_as_before_where_the_switch_is_off():
    off, on = (Specialisation.of(one_of_each("sm_90", dependent)["gather_kernel"], "sm_90") for dependent in (False, True))
    assert "DEPENDENT" not in off.key and "DEPENDENT=True" in on.key and off != on


class Recorded:
    """A kernel that writes down what it is started with."""

    __name__ = "recorded"

    def __init__(self, *arguments: str):
        self.arg_names, self.started = arguments, []

    def __getitem__(self, grid):
        return lambda **given: self.started.append(given)


def test_the_launcher_asks_for_it(monkeypatch):
    """By Triton's option and the kernel's switch, both or neither; a kernel without the switch starts as ever."""
    monkeypatch.setattr(triton_runtime, "unavailable", lambda device: None)
    able, unable, x = Recorded("p_x", "DEPENDENT"), Recorded("p_x"), torch.zeros(1)
    for obstacle in (None, "an old chip"):
        monkeypatch.setattr(triton_runtime, "dependent_obstacle", lambda device, obstacle=obstacle: obstacle)
        launch(able, (1,), {"p_x": x}, 4)
        with dependent_launches():
            launch(able, (1,), {"p_x": x}, 4)
            launch(unable, (1,), {"p_x": x}, 4)
    seen = [(given.get("launch_pdl"), given.get("DEPENDENT")) for given in able.started]
    assert seen == [(None, None), (True, True), (None, None), (None, None)]
    assert all(not {"launch_pdl", "DEPENDENT"} & {*given} for given in unable.started)


@pytest.mark.parametrize(
    "architecture, reason", [("sm_89", "9.0 or later, and this device is sm_89"), ("gfx942", "device is gfx942")]
)
def test_older_chips_refuse_it(architecture, reason, monkeypatch):
    pretend(monkeypatch, architecture, (8, 9))
    with pytest.raises(ValueError, match=f"launch='dependent' cannot work: .*{reason}"):
        select_kernels(CUDA, torch.bfloat16, overrides={"launch": "dependent"})


def test_neither_the_reference_nor_the_interpreter_can(monkeypatch):
    with pytest.raises(ValueError, match="launch='dependent' cannot work: "):
        select_kernels(CPU, torch.float32, overrides={"launch": "dependent"})
    monkeypatch.setattr(triton_runtime, "unavailable", lambda device: None)
    assert dependent_obstacle(CPU) == "Triton's interpreter runs one kernel after the other"


@pytest.mark.skipif(triton is None, reason="needs Triton")
def test_it_is_chosen_by_name(hopper, monkeypatch):
    plain = select_kernels(CUDA, torch.bfloat16)
    asked = select_kernels(CUDA, torch.bfloat16, overrides=parse_kernels("auto,launch=dependent")[1])
    monkeypatch.setenv("SEGUE_KERNELS", "auto,launch=dependent")
    by_environment = select_kernels(CUDA, torch.bfloat16)
    assert (plain.launch, asked.launch, by_environment.launch) == ("plain", "dependent", "dependent")
    assert plain.kernels.modulated_norm is TRITON.modulated_norm
    assert asked.kernels.modulated_norm == by_environment.kernels.modulated_norm == Dependent(TRITON.modulated_norm)
    assert asked.kernels.linear_gated_residual is None
    assert asked.chosen == plain.chosen and asked.classes == plain.classes and set(asked.chosen) == set(OPERATIONS)
    said = "launches dependent (requested): kernels of this project start while the one before ends"
    assert asked.explain() == [*plain.explain(), said] and said in by_environment.explain()
    with pytest.raises(ValueError, match="unknown launch 'early'; known: plain, dependent"):
        select_kernels(CUDA, torch.bfloat16, overrides={"launch": "early"})
