"""How many blocks of a compiled kernel a multiprocessor holds at a time: the least of what four resources allow.

Sources: CUDA C++ Programming Guide, "Compute Capabilities", and the allocation granularities of NVIDIA's occupancy
calculator; for AMD the CDNA 3 instruction set architecture: 512 registers per lane on each of four SIMD units, eight waves
on each, 64 KiB of local memory.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of one multiprocessor (AMD: compute unit), which consists of four partitions that hold whole warps.

    ``registers`` of 32 bits per partition, given to a warp in multiples of ``register_unit``; ``shared`` in bytes, given to a
    block in multiples of ``shared_unit`` and after ``shared_reserved``.
    """

    lanes: int
    registers: int
    register_unit: int
    warps: int
    blocks: int
    shared: int
    shared_unit: int
    shared_reserved: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < (0 if name == "shared_reserved" else 1):
                raise ValueError(f"{name} of a multiprocessor must be positive, got {value}")

    def resident_blocks(self, warps: int, registers: int, shared: int) -> int:
        """Blocks of ``warps`` warps, with ``registers`` per thread and ``shared`` bytes each, that fit together."""
        per_warp = _rounded(registers * self.lanes, self.register_unit)
        held = PARTITIONS * min(self.warps // PARTITIONS, self.registers // max(per_warp, 1))
        memory = _rounded(shared, self.shared_unit) + self.shared_reserved
        return min(self.blocks, held // warps, self.shared // memory if memory else self.blocks)


PARTITIONS = 4
KIB = 1024
MULTIPROCESSORS = {
    "sm_80": Multiprocessor(32, 16384, 256, 64, 32, 164 * KIB, 128, KIB),
    "sm_90": Multiprocessor(32, 16384, 256, 64, 32, 228 * KIB, 128, KIB),
    "sm_100": Multiprocessor(32, 16384, 256, 64, 32, 228 * KIB, 128, KIB),
    "gfx942": Multiprocessor(64, 512 * 64, 8 * 64, 32, 32, 64 * KIB, 512, 0),
}


def _rounded(amount: int, unit: int) -> int:
    return -(-amount // unit) * unit
