"""Blocks per multiprocessor against a multiprocessor that is filled block by block, and against published examples."""

import random

import pytest

from segue.kernels.occupancy import KIB, MULTIPROCESSORS, PARTITIONS, Multiprocessor


def filled(kind: Multiprocessor, warps: int, registers: int, shared: int) -> int:
    """Start blocks until one finds no room: its warps go to the partitions in turn."""
    lanes_of_registers = -(-registers * kind.lanes // kind.register_unit) * kind.register_unit
    free = [[kind.registers, kind.warps // PARTITIONS] for _ in range(PARTITIONS)]
    memory, blocks = kind.shared, 0
    while blocks < kind.blocks:
        memory -= -(-shared // kind.shared_unit) * kind.shared_unit + kind.shared_reserved
        for _ in range(warps):
            partition = max(free, key=lambda part: (part[1], part[0]))
            partition[0] -= lanes_of_registers
            partition[1] -= 1
        if memory < 0 or min(min(part) for part in free) < 0:
            break
        blocks += 1
    return blocks


@pytest.mark.parametrize("architecture", MULTIPROCESSORS)
def test_as_many_as_fit(architecture, seed):
    kind, draw = MULTIPROCESSORS[architecture], random.Random(seed)
    limits = set()
    for _ in range(300):
        warps, registers = draw.choice((1, 2, 4, 8, 16)), draw.randrange(1, 256)
        shared = draw.choice((0, 16, 1024, 49152, draw.randrange(kind.shared // 2)))
        found = kind.resident_blocks(warps, registers, shared)
        assert found == filled(kind, warps, registers, shared), (warps, registers, shared)
        limits.add(found)
    assert len(limits) > 5


@pytest.mark.parametrize(
    "architecture, warps, registers, shared, blocks",
    [
        # 64 K registers and 2048 threads of a multiprocessor, 256 threads a block: the programming guide's arithmetic
        ("sm_80", 8, 32, 0, 8),
        ("sm_80", 8, 64, 0, 4),
        ("sm_90", 8, 128, 0, 2),
        ("sm_90", 8, 255, 0, 1),
        # 168 registers are rounded to 21 x 256 a warp: three in a partition of 16384
        ("sm_90", 4, 168, 0, 3),
        # a block may have 227 KiB, of which there is one; 113 KiB twice, with the KiB that is reserved for each
        ("sm_90", 1, 32, 227 * KIB, 1),
        ("sm_90", 1, 32, 113 * KIB, 2),
        ("sm_90", 1, 32, 113 * KIB + 1, 1),
        ("sm_90", 1, 16, 0, 32),
        # 512 registers per lane and SIMD unit: 128 for each of four waves
        ("gfx942", 4, 128, 0, 4),
        ("gfx942", 4, 129, 0, 3),
        ("gfx942", 4, 64, 40 * KIB, 1),
    ],
)
def test_published_limits(architecture, warps, registers, shared, blocks):
    assert MULTIPROCESSORS[architecture].resident_blocks(warps, registers, shared) == blocks


def test_what_cannot_start_has_no_block():
    assert MULTIPROCESSORS["sm_90"].resident_blocks(4, 128, 229 * KIB) == 0
    assert MULTIPROCESSORS["sm_90"].resident_blocks(16, 255, 0) == 0


def test_a_multiprocessor_without_registers_is_refused():
    with pytest.raises(ValueError, match="registers of a multiprocessor must be positive, got 0"):
        Multiprocessor(32, 0, 256, 64, 32, 1024, 128, 0)
