"""What an instruction costs an Apple GPU core, by published figures: turns the harness's counts into issue slots.

Every figure that follows from this table is *by count*. Nothing here was measured on a Mac by this project.

Unit: issue slots. A core of families Apple 7 and 8 (M1, M2) has four schedulers, each of which issues one instruction of one
SIMD group in a cycle; an fp32 multiply-add of 32 lanes takes one slot. Source of the figures, unless an entry says otherwise:
the tables "Instruction Throughputs" and "On-Chip Memory" of https://github.com/philipturner/metal-benchmarks (README of 2024-09-22),
column "Throughput", which is in cycles of one scheduler.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

LANES = 32


@dataclass(frozen=True)
class Costs:
    """Issue slots of one instruction of a SIMD group, and the rate of a core's path to memory."""

    multiply_accumulate: float = 18.0
    """8 x 8 x 8 fp32: "MATMUL<8x8xF32> ~18". Its 512 multiply-adds alone would fill 16."""
    arithmetic: float = 1.0
    """fp32 add, multiply, fma, min, max, compare and select: "FADD32, FMUL32, FFMA32, FMAX32, FCMPSEL32: 1" on M1"""
    exp2: float = 4.0
    """"EXP2_32 4.00", the precise one too; also log2. The pipeline is another one than that of multiply-adds, so that part of
    this can overlap; here none does."""
    divide: float = 30.65
    """"Precise DIV32 <= 30.65": mlx compiles with safe mathematics"""
    convert: float = 4.0
    """"CONVERT(I->F) 4"; for 16-bit floats an upper bound: half is an operand of any fp32 instruction, bfloat is a shift ("LSHIFT32 4.01")"""
    shuffle: float = 2.04
    """"SHUFFLE_ROTATE32 2.04\""""
    threadgroup_access: float = 2.0
    """A load or store of up to 16 bytes a lane: one slot, an assumption, as no figure is published; and "IADD32 1" for the address"""
    device_access: float = 4.3
    """The same with a 64-bit address: "IADD(64+32=64) 3.30\""""
    barrier: float = 16.0
    """An assumption: no figure is published. Waiting is not counted, other SIMD groups fill it."""
    path_bytes: float = 16.0
    """Bytes a slot between a core and its memories: "On-Core Data BW/Cycle 64 B", over four schedulers. It is stated for device
    memory in the cache; that threadgroup memory is as fast is an assumption. It runs beside the arithmetic."""

    def scaled(self, name: str, factor: float) -> "Costs":
        """Return the table with one entry multiplied."""
        return replace(self, **{name: getattr(self, name) * factor})


@dataclass(frozen=True)
class Slots:
    """A kernel's issue slots by count, on all SIMD groups together."""

    multiply_accumulate: float
    other: float
    path: float
    """slots that the bytes over the memory path take, beside the arithmetic"""

    @property
    def bound(self) -> float:
        """The larger of what the schedulers and what the memory path need."""
        return max(self.multiply_accumulate + self.other, self.path)

    def __add__(self, other: "Slots") -> "Slots":
        return Slots(
            self.multiply_accumulate + other.multiply_accumulate, self.other + other.other, self.path + other.path
        )


def slots(counts: Mapping[str, int], costs: Costs) -> Slots:
    """Return the slots of counts: instructions of single lanes by kind, `multiply_accumulate` excepted (SIMD groups)."""

    def groups(kind: str) -> float:
        return counts[kind] / LANES

    other = (
        groups("arithmetic") * costs.arithmetic
        + (groups("exp2") + groups("log2")) * costs.exp2
        + groups("divide") * costs.divide
        + groups("convert") * costs.convert
        + groups("shuffle") * costs.shuffle
        + (groups("threadgroup_load") + groups("threadgroup_store")) * costs.threadgroup_access
        + (groups("device_load") + groups("device_store")) * costs.device_access
        + groups("barrier") * costs.barrier
    )
    moved = sum(counts[f"{memory}_{way}_bytes"] for memory in ("device", "threadgroup") for way in ("load", "store"))
    return Slots(counts["multiply_accumulate"] * costs.multiply_accumulate, other, moved / costs.path_bytes)
