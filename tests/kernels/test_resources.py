"""What the compiler makes of the kernels, for four architectures, without a GPU."""

import dataclasses
import importlib.util
import os
from functools import partial

import pytest
import torch

from segue.kernels import mlp, resources
from segue.kernels.agenda import users
from segue.kernels.candidates import candidates
from segue.kernels.catalogue import SIZES, Factory, cases
from segue.kernels.launch import MatmulLaunch, ReadoutLaunch, RowLaunch
from segue.kernels.launch_lookup import recorded_lookups, using
from segue.kernels.launch_table import PROVENANCE, TABLE
from segue.kernels.occupancy import MULTIPROCESSORS
from segue.kernels.resources import (
    ARCHITECTURES,
    MEASURED_STACK,
    SHARED_LIMIT,
    Resources,
    Specialisation,
    acceptable,
    allowed_stack,
    case_launches,
    compile_specialisation,
    instructions,
    read_sources,
    read_table,
    runs_on,
    source_digest,
    source_digests,
    sum_layouts,
    traced,
)
from segue.kernels.table_file import TABLE_FILE, table_source
from segue.kernels.triton_runtime import interpreting, trace_launches, triton

FAMILIES = ("attention", "residual_modulated_norm", "gather_rows")

pytestmark = pytest.mark.skipif(
    triton is None or interpreting(), reason="needs Triton's compiler: Triton installed, TRITON_INTERPRET not set"
)


@pytest.fixture(scope="module")
def committed() -> tuple[str, dict[tuple, Resources]]:
    version, rows = read_table()
    return version, {(row.architecture, row.kernel, row.key, row.warps, row.stages): row for row in rows}


def identity(specialisation) -> tuple:
    return (
        specialisation.architecture, specialisation.kernel, specialisation.key, specialisation.warps, specialisation.stages,
    )  # fmt: skip


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_committed_table_has_what_the_launchers_launch(architecture, committed):
    """A changed kernel argument, configuration or catalogue needs ``python -m segue.kernels.resources`` again."""
    _, rows = committed
    launched = {identity(specialisation) for specialisation in traced(architecture)}
    assert launched == {key for key in rows if key[0] == architecture}


def test_the_committed_table_was_made_from_these_kernels():
    """Otherwise a kernel could begin to spill unseen: run ``python -m segue.kernels.resources`` after changing one."""
    launches = [launch for architecture in ARCHITECTURES for launch, _ in traced(architecture).values()]
    assert read_sources() == source_digests(launches)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_frozen_configuration_has_its_rows(architecture, committed):
    """Each entry of the launch table, in every case that looks it up, with the warps and stages of the entry."""
    _, rows = committed
    for key, config in TABLE[architecture].items():
        for case in filter(lambda case: runs_on(case, architecture), users(architecture)[key]):
            with recorded_lookups() as looked_up:
                launches = case_launches(case, architecture)
            assert key in looked_up
            found = [rows[identity(Specialisation.of(launch, architecture))] for launch in launches]
            assert any((row.warps, row.stages) == (config.warps, getattr(config, "stages", 1)) for row in found), key


def test_no_kernel_spills_or_needs_more_shared_memory_than_there_is(committed):
    _, rows = committed
    assert len(rows) > 300
    assert not [row for row in rows.values() if row.shared > SHARED_LIMIT[row.architecture]]
    assert not [row for row in rows.values() if row.spilled > allowed_stack(row.architecture)]


@pytest.mark.parametrize("operation", ["linear_gelu", "linear_gated_residual", "project_joint_heads", "attention"])
def test_hopper_multiplies_in_warp_groups_what_descriptors_bring(operation):
    """Of the disassembly: HGMMA and the loads of the tensor memory accelerator, and neither older products nor other loads."""
    case = next(case for case in cases(SIZES[5]) if case.operation == operation)
    (launch,) = case_launches(case, "sm_90")
    found = instructions(Specialisation.of(launch, "sm_90"), launch)
    assert found["HGMMA"] and found["UTMALDG"] and not found["HMMA"] and not found["LDGSTS"]
    assert operation == "attention" or found["MUFU.RCP"] < 16  # those of tile numbers: no element of a tile is divided


def test_a_multiprocessor_holds_two_blocks_of_attention(committed):
    """At the head dim of SD3, so that one multiplies while the other takes powers."""
    _, rows = committed
    names = {"attention, SD3.5-medium 1024", "attention without a maximum, SD3.5-medium 1024"}
    found = [row for row in rows.values() if row.architecture == "sm_90" and names & {*row.cases}]
    assert {name for row in found for name in names & {*row.cases}} == names and all(row.blocks == 2 for row in found)


@pytest.mark.parametrize("in_fp8", [False, True])
def test_the_forms_of_a_norm_sum_in_one_order(in_fp8):
    """As their contracts need to be equal to the bit: as many neighbours of a row in a thread, whatever else a form reads."""
    orders = {}
    for case in cases(next(size for size in SIZES if size.dual and size.text)):
        if "modulated_norm" in case.operation and not case.variant and case.operation.endswith("_fp8") == in_fp8:
            (launch,) = case_launches(case, "sm_90")
            orders[case.operation] = sum_layouts(Specialisation.of(launch, "sm_90"), launch)
    (order,) = set(orders.values())
    assert len(orders) == 5 and len(order) == 2  # a mean and a variance


def test_both_streams_of_a_product_have_numbers_of_one_type():
    """Also where one of them has more elements than 32 bits count: what Triton joins in a branch must be of one type."""
    weight, bias = (
        torch.empty(16, 9728, dtype=torch.bfloat16, device="meta"),
        torch.empty(16, dtype=torch.bfloat16, device="meta"),
    )
    image, text = (torch.empty(64, tokens, 9728, dtype=torch.bfloat16, device="meta") for tokens in (4096, 333))
    with trace_launches("sm_90") as launches:
        mlp.grouped_linear_triton(image, weight, bias, text, weight, bias)
    types = dict(Specialisation.of(launches[0], "sm_90").signature)
    for name in ("rows", "tokens", "length", "x_row", "x_token", "out_row", "out_token"):
        assert types[name] == types[f"{name}2"], name


def test_older_chips_read_by_pointers():
    """Also where the operands do not lie as a descriptor needs them: K = 1, and slices that begin between its addresses."""
    case = next(case for case in cases(SIZES[5]) if case.operation == "linear_gelu")
    for architecture, described in (("sm_80", False), ("sm_90", True), ("sm_100", True), ("gfx942", False)):
        (launch,) = case_launches(case, architecture)
        assert launch.arguments["DESCRIPTORS"] is described
    x, weight, bias = case.arguments(Factory(torch.device("meta"), torch.bfloat16))
    for operands in ((x[..., :1], weight[:, :1], bias), (x[..., 4:], weight[:, 4:].contiguous(), bias)):
        with trace_launches("sm_90") as launches:
            mlp.linear_gelu_triton(*operands)
        assert launches[0].arguments["DESCRIPTORS"] is False


def test_persistent_programs_find_their_place(committed):
    """A multiprocessor holds as many programs of a product as its launch table says it is given."""
    _, rows = committed
    for architecture in ARCHITECTURES:
        for key, config in TABLE[architecture].items():
            if isinstance(config, MatmulLaunch) and key[0].startswith("linear"):
                for case in filter(lambda case: runs_on(case, architecture), users(architecture)[key]):
                    for launch in case_launches(case, architecture):
                        if launch.name == "linear_kernel":
                            assert rows[identity(Specialisation.of(launch, architecture))].blocks >= config.resident, key


def test_stack_is_allowed_only_where_the_clock_decided(monkeypatch):
    row = Resources("kernel", "sm_90", 4, 1, 255, 0, 8, 1, "", ())
    monkeypatch.setitem(PROVENANCE, "sm_90", "first candidate that compiles without spills, not timed")
    assert allowed_stack("sm_90") == 0 and not acceptable(row)
    monkeypatch.setitem(PROVENANCE, "sm_90", "timed on a card")
    assert acceptable(row) and not acceptable(dataclasses.replace(row, spilled=MEASURED_STACK + 1))
    assert not acceptable(dataclasses.replace(row, shared=SHARED_LIMIT["sm_90"] + 1))


def test_occupancy_is_a_column_and_follows_from_the_others(committed):
    """Some kernels are held back by registers, some by shared memory, and every one can start."""
    _, rows = committed
    for row in rows.values():
        kind = MULTIPROCESSORS[row.architecture]
        assert row.blocks == kind.resident_blocks(row.warps, row.registers, row.shared) >= 1
    assert len({row.blocks for row in rows.values() if row.architecture == "sm_90"}) > 3
    alone = [row for row in rows.values() if row.architecture == "sm_90" and row.blocks == 1]
    assert {row.kernel for row in alone} >= {"linear_kernel"}


def test_every_entry_of_the_launch_table_is_used_and_a_candidate():
    for architecture in ARCHITECTURES:
        assert set(TABLE[architecture]) == set(users(architecture)), architecture
        for key, config in TABLE[architecture].items():
            assert config in candidates(key), (architecture, key)
    assert set(PROVENANCE) == set(TABLE) == set(ARCHITECTURES)


def test_the_tuner_writes_the_file_that_is_committed():
    assert table_source() == TABLE_FILE.read_text()


@pytest.mark.parametrize("spilled, status", [(0, 0), (4, 1)])
def test_the_command_writes_the_rows_of_every_architecture(spilled, status, monkeypatch, tmp_path, capsys):
    """With the compiler replaced: its status says whether a kernel spills."""

    def compiled(specialisation, launch, names):
        stack = spilled if specialisation.architecture == "sm_90" else 0
        return Resources(launch.name, specialisation.architecture, 4, 1, 64, 16, stack, 5, specialisation.key, tuple(names))

    few = {architecture: traced(architecture, lambda case: case.operation == "gather_rows") for architecture in ARCHITECTURES}
    monkeypatch.setattr(resources, "traced", few.get)
    monkeypatch.setattr(resources, "compile_specialisation", compiled)
    monkeypatch.setattr(resources, "write_table", partial(resources.write_table, path=tmp_path / "resources.json"))
    for architecture in ARCHITECTURES:
        monkeypatch.setitem(PROVENANCE, architecture, "not timed")
    assert resources.main(["--jobs", "0"]) == status
    _, rows = read_table(tmp_path / "resources.json")
    assert len(rows) == sum(map(len, few.values())) and {row.architecture for row in rows} == set(ARCHITECTURES)
    assert list(read_sources(tmp_path / "resources.json")) == ["gather_kernel"]
    assert ("gather_kernel for sm_90: 4 spilled" in capsys.readouterr().out) == bool(spilled)


def recompile(architecture: str, chosen, committed) -> int:
    """Compile and compare; numbers may differ under another release of Triton, the limits may not."""
    version, rows = committed
    found = traced(architecture, chosen)
    for specialisation, (launch, names) in found.items():
        row = compile_specialisation(specialisation, launch, names)
        assert row.fits, row
        if version == triton.__version__:
            kept = rows[identity(specialisation)]
            assert dataclasses.replace(row, cases=()) == dataclasses.replace(kept, cases=())
    return len(found)


@pytest.mark.parametrize("architecture", ARCHITECTURES[:2])  # of the others every kernel, among the slow tests
def test_a_few_kernels_compile_as_committed(architecture, committed, tmp_path, monkeypatch):
    """One of each family, at the size of DiT-XL, whose heads of 72 channels are the awkward ones."""
    monkeypatch.setenv("TRITON_CACHE_DIR", os.fspath(tmp_path))

    def chosen(case) -> bool:
        return case.size.name == "DiT-XL/2 256" and not case.variant and case.operation in FAMILIES

    assert recompile(architecture, chosen, committed) == 3


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles_as_committed(architecture, committed):
    assert recompile(architecture, lambda case: True, committed) > 80


# --- the checks can fail -----------------------------------------------------------------------------------------------


def test_a_row_beyond_a_limit_does_not_fit():
    for architecture, limit in SHARED_LIMIT.items():
        row = Resources("kernel", architecture, 4, 1, 255, limit, 0, 1, "", ())
        assert row.fits
        assert not dataclasses.replace(row, shared=limit + 1).fits
        assert not dataclasses.replace(row, spilled=4).fits


@pytest.mark.parametrize(
    "architecture, operation, key, config",
    [
        ("sm_80", "residual_modulated_norm", ("adaln", "d4096 m2048"), RowLaunch(1, 1)),
        ("gfx942", "project", ("readout", "o64 m2048"), ReadoutLaunch(64, 256, 1, 1)),
    ],
)
def test_a_spill_is_read_from_the_binary(architecture, operation, key, config):
    """A whole row of 4096 numbers, or 64 x 256 of them, in the registers of one warp."""
    row = compiled_with(operation, key, config, architecture)
    assert row.spilled and not row.fits


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_shared_memory_is_read_from_the_binary(architecture):
    """Six stages of 128 x 64 and 256 x 64 elements of 16 bits are 288 KiB."""
    row = compiled_with("linear_gelu", ("linear", "m2048 in4096 out16384"), MatmulLaunch(128, 256, 64, 8, 8, 6), architecture)
    assert row.shared > SHARED_LIMIT[architecture] and not row.fits


def compiled_with(operation: str, key, config, architecture: str) -> Resources:
    """One case at the largest width, in a configuration that the table does not hold."""
    case = next(case for case in cases(SIZES[-1]) if case.operation == operation)
    with using(*key, config):
        (launch,) = case_launches(case, architecture)
    return compile_specialisation(Specialisation.of(launch, architecture), launch, [case.name])


KERNELS = '''
import triton


@triton.jit
def doubled(x):
    return x * 2


@triton.jit
def kernel(p):
    """Says nothing."""
    return doubled(p)  # nothing either
'''


@pytest.mark.parametrize(
    "old, new, same",
    [
        ("Says nothing", "Says something", True), ("# nothing either", "", True), ("\n\n\n", "\n\n", True),
        ("x * 2", "x * 3", False), ("doubled(p)", "doubled(p + 1)", False),
    ],
)  # fmt: skip
def test_a_digest_follows_the_code_of_a_kernel_and_of_what_it_calls(old, new, same, tmp_path):
    digests = []
    for index, source in enumerate((KERNELS, KERNELS.replace(old, new))):
        assert index == 0 or source != KERNELS
        file = tmp_path / f"kernels_{index}.py"
        file.write_text(source)
        specification = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        digests.append(source_digest(module.kernel))
    assert (digests[0] == digests[1]) == same


# --- the cost of a case ------------------------------------------------------------------------------------------------


def test_the_cost_of_a_case_is_counted():
    """Arithmetic intensities are those of the textbook: elementwise kernels move, products compute."""
    intensity = {
        case.operation: case.flops / case.bytes_moved for size in SIZES if "SD3-medium" in size.name for case in cases(size)
    }
    assert intensity["residual_modulated_norm"] == pytest.approx(9 / 8, rel=0.01)  # 9 operations, 4 numbers of 2 bytes
    assert intensity["solver_update"] == pytest.approx(10 / 24)
    assert intensity["attention"] == pytest.approx((4096 + 333) / 2)
    assert 1000 < intensity["linear_gelu"] < 1536
