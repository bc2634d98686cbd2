"""What the compiler makes of the kernels, for four architectures, without a GPU."""

import dataclasses
import os

import pytest

from segue.kernels.catalogue import SIZES, cases
from segue.kernels.launch_table import PROVENANCE, TABLE
from segue.kernels.resources import (
    ARCHITECTURES,
    SHARED_LIMIT,
    Resources,
    compile_specialisation,
    read_table,
    traced,
)
from segue.kernels.triton_runtime import interpreting, triton
from segue.kernels.tune import TABLE_FILE, candidates, table_source, users

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


def test_no_kernel_spills_or_needs_more_shared_memory_than_there_is(committed):
    _, rows = committed
    assert len(rows) > 300
    misfits = [row for row in rows.values() if row.spilled or row.shared > SHARED_LIMIT[row.architecture]]
    assert not misfits


def test_every_entry_of_the_launch_table_is_used_and_a_candidate():
    for architecture in ARCHITECTURES:
        assert set(TABLE[architecture]) == set(users(architecture)), architecture
        for key, config in TABLE[architecture].items():
            assert config in candidates(key), (architecture, key)
    assert set(PROVENANCE) == set(TABLE) == set(ARCHITECTURES)


def test_the_tuner_writes_the_file_that_is_committed():
    assert table_source() == TABLE_FILE.read_text()


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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
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


def test_the_cost_of_a_case_is_counted():
    """Arithmetic intensities are those of the textbook: elementwise kernels move, products compute."""
    intensity = {
        case.operation: case.flops / case.bytes_moved for size in SIZES if "SD3-medium" in size.name for case in cases(size)
    }
    assert intensity["residual_modulated_norm"] == pytest.approx(9 / 8, rel=0.01)  # 9 operations, 4 numbers of 2 bytes
    assert intensity["solver_update"] == pytest.approx(10 / 24)
    assert intensity["attention"] == pytest.approx((4096 + 333) / 2)
    assert 1000 < intensity["linear_gelu"] < 1536
