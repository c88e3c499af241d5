"""Two-dimensional groups: data parallel rows of context parallel ranks."""

from collections import deque
from dataclasses import dataclass

import mlx.core as mx

from ringattn._call_header import as_integer
from ringattn._errors import ArgumentError
from ringattn.process_group import joined_group, refuse_jaccl
from ringattn.transport import MlxTransport, Shift, Task, Transport, transport_of


@dataclass(frozen=True)
class Mesh:
    """The place of this rank in a mesh of rows × context.

    Attributes:
        context: the ranks of this row, which share a sequence: `group=` of `ring_attention`, `shard`, `unshard` and `positions`.
        row: number of this row, from 0: which sequences its ranks take.
        rows: number of rows.
    """

    context: Transport
    row: int
    rows: int


def mesh(group: mx.distributed.Group | None = None, *, context: int) -> Mesh:
    """Return this rank's place in a mesh: consecutive ranks share a sequence, each row of them has sequences of its own.

    Gradients are summed over both dimensions at once: `mx.distributed.all_sum` over the whole group.

    Groups of MPI split freely. MLX's ring can't split, has one ring a process, and joins neighbours alone, so that there a row is
    one rank, two neighbours, or the whole ring.

    Args:
        group: the whole group (None: the global one).
        context: ranks of a row; the group's size is a multiple of it.

    Raises:
        ArgumentError: if the group cannot be cut so.
    """
    refuse_jaccl()
    whole = group or joined_group() or mx.distributed.init()
    rank, size = whole.rank(), whole.size()
    rule = f"a number of ranks that divides the group's {size}"
    width = as_integer(context, "context", rule, lowest=1)
    if size % width:
        raise ArgumentError(f"context {width} must be {rule}")
    row, rows = rank // width, size // width
    if rows == 1:
        return Mesh(transport_of(group), row, rows)
    if width > 1 and (part := _split(whole, row, rank)) is not None:
        return Mesh(transport_of(part), row, rows)
    if width > 2:
        raise ArgumentError(
            f"context {width} of {size} ranks: MLX's ring cannot split, has one ring a process and joins neighbours alone, so a row "
            f"is 1, 2 or {size} ranks there. Start the program with MPI (mpirun, mlx.launch --backend mpi) for other meshes"
        )
    return Mesh(_RowOfRing(whole, width), row, rows)


def _split(group: mx.distributed.Group, color: int, key: int) -> mx.distributed.Group | None:
    """Return the part of a group, None where the backend has none."""
    try:
        return group.split(color, key)
    except RuntimeError as error:
        if "not supported" in str(error):
            return None
        raise


class _RowOfRing(MlxTransport):
    """One rank of MLX's ring, or two neighbours, as a group; it uses their connection only, so rows do not meet."""

    def __init__(self, ring: mx.distributed.Group, width: int) -> None:
        super().__init__(ring)
        self._width, self._first = width, ring.rank() - ring.rank() % width

    def rank(self) -> int:
        """See `Transport.rank`."""
        return self._rank - self._first

    def size(self) -> int:
        """See `Transport.size`."""
        return self._width

    def shift(self, shift: Shift, doing: str) -> Task:
        """See `Transport.shift`."""
        first = self._first
        return super().shift(Shift(shift.sends, shift.to + first, shift.recvs, shift.source + first), doing)

    def all_gather(self, x: mx.array, doing: str) -> Task:
        """See `Transport.all_gather`."""
        place, sends = self.rank(), deque([x])
        neighbour = self._first + 1 - place

        def run() -> list[mx.array]:
            (other,) = self._exchange(sends, neighbour, deque([(x.shape, x.dtype)]), neighbour)
            both = mx.concatenate([other, x] if place else [x, other], stream=self._out)
            mx.eval(both)
            return [both]

        return self._post(run, doing)

    def all_sum(self, x: mx.array, doing: str) -> Task:
        """See `Transport.all_sum`."""
        place, sends = self.rank(), deque([x])
        neighbour = self._first + 1 - place

        def run() -> list[mx.array]:
            (other,) = self._exchange(sends, neighbour, deque([(x.shape, x.dtype)]), neighbour)
            total = mx.add(x, other, stream=self._out)
            mx.eval(total)
            return [total]

        return self._post(run, doing)
