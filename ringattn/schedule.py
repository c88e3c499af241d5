"""The schedule of the ring as data: what each rank holds, computes, sends and receives at each hop, and its verification.

Keys and values move to the right, one rank a hop: at hop h rank r holds block r - h (mod n). In the backward pass a
block's gradient is summed along the same way and then returns to its rank by the shorter side. A rank's own block never
needs the ring: its gradient stays on the rank, and its work is cut in two, so that one half hides the first exchange and
the other half hides the last. A block moves only as far as some rank still needs it.

`forward` and `backward` make the tables and `verify` checks them by simulation; no function here uses a socket.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

Needs = Sequence[Sequence[bool]]  # needs[query rank][key rank]


@dataclass(frozen=True)
class Span:
    """Bounds of one run of tokens: positions first..last, and segment ids if there are any."""

    first: int
    last: int
    segments: tuple[int, int] | None = None


@dataclass(frozen=True)
class Work:
    """Attention of a part of the local queries ("all", "head", "tail") to the keys of `block`."""

    block: int
    queries: str = "all"


@dataclass(frozen=True)
class Exchange:
    """One step on the links: send block `send` to rank `to` while block `recv` comes from rank `source`."""

    send: int | None
    to: int
    recv: int | None
    source: int


@dataclass(frozen=True)
class Hop:
    """One row of a rank's table. Order: post `kv`; work; finish the previous `grad`; post `grad`; finish `kv`."""

    holds: int | None
    work: Work | None = None
    kv: Exchange | None = None
    grad: Exchange | None = None


Table = tuple[Hop, ...]


def needed(queries: Sequence[Span], keys: Sequence[Span], *, causal: bool, window: int | None) -> bool:
    """Return whether any query may see any key. Exact for runs of step 1 without segments; otherwise never falsely False."""
    return any(_sees(q, k, causal, window) for q in queries for k in keys)


def _sees(q: Span, k: Span, causal: bool, window: int | None) -> bool:
    if causal and k.first > q.last:
        return False
    if window is not None and q.first - k.last >= window:
        return False
    if window is not None and not causal and k.first - q.last >= window:
        return False
    if q.segments is None or k.segments is None:
        return True
    return q.segments[0] <= k.segments[1] and k.segments[0] <= q.segments[1]


def needs_of(
    queries: Sequence[Sequence[Span]], keys: Sequence[Sequence[Span]], *, causal: bool, window: int | None
) -> tuple[tuple[bool, ...], ...]:
    """Return needs[r][s]: whether rank r must attend to the keys of rank s. A rank without tokens has no span."""
    return tuple(tuple(needed(q, k, causal=causal, window=window) for k in keys) for q in queries)


def reach(needs: Needs, block: int) -> int:
    """Return the hops that `block` must move to the right until its last reader has it; 0 if no other rank needs it."""
    n = len(needs)
    return max((d for d in range(1, n) if needs[(block + d) % n][block]), default=0)


def forward(needs: Needs) -> tuple[Table, ...]:
    """Return the tables of all ranks for the forward pass; empty hops at the end are left out."""
    n = len(needs)
    reaches = [reach(needs, b) for b in range(n)]
    hops = max(reaches) + 1
    return tuple(tuple(_hop(needs, reaches, r, h, last=hops - 1) for h in range(hops)) for r in range(n))


def _hop(needs: Needs, reaches: Sequence[int], rank: int, h: int, *, last: int) -> Hop:
    n = len(needs)
    block, coming = (rank - h) % n, (rank - h - 1) % n
    work = Work(block) if needs[rank][block] and h <= reaches[block] else None
    kv = None
    if h < last:
        kv = _exchange(
            block if h < reaches[block] else None,
            (rank + 1) % n,
            coming if h < reaches[coming] else None,
            (rank - 1) % n,
        )
    return Hop(block if h <= reaches[block] else None, work, kv)


def _exchange(send: int | None, to: int, recv: int | None, source: int) -> Exchange | None:
    return None if send is None and recv is None else Exchange(send, to, recv, source)


def backward(needs: Needs) -> tuple[Table, ...]:
    """Return the tables of all ranks for the backward pass: keys and values again, and gradients back to their ranks."""
    n = len(needs)
    reaches = [reach(needs, b) for b in range(n)]
    far = max(reaches)
    return tuple(_backward_table(needs, reaches, far, r) for r in range(n))


def _backward_table(needs: Needs, reaches: Sequence[int], far: int, rank: int) -> Table:
    n = len(needs)
    rows = [_hop(needs, reaches, rank, h, last=far) for h in range(far + 1)]
    if far == 0:
        return tuple(rows)
    starts = [next((d for d in range(1, n) if needs[(b + d) % n][b]), n) for b in range(n)]

    def carries(block: int, hop: int) -> int | None:
        return block if 1 <= starts[block] <= hop else None

    grads: list[Exchange | None] = [None]
    grads += [_onward(carries, rank, n, h) for h in range(1, far)]
    if n - far <= far:
        grads += [_onward(carries, rank, n, h) for h in range(far, n)]
    else:
        grads += [_back(lambda block, _: carries(block, far), rank, n, d) for d in range(far, 0, -1)]
    rows += [Hop(None)] * (len(grads) + 1 - len(rows))
    if rows[0].work is not None:
        # The own block's second half hides the first move back; its first half has hidden the first keys.
        rows[0] = Hop(rank, Work(rank, "head"), rows[0].kv)
        rows[far + 1] = Hop(rank, Work(rank, "tail"))
    grads += [None] * (len(rows) - len(grads))
    return tuple(Hop(row.holds, row.work, row.kv, grad) for row, grad in zip(rows, grads, strict=True))


def _onward(carries, rank: int, n: int, hop: int) -> Exchange | None:
    left, right = (rank - 1) % n, (rank + 1) % n
    return _exchange(carries((rank - hop) % n, hop), right, carries((left - hop) % n, hop), left)


def _back(carries, rank: int, n: int, distance: int) -> Exchange | None:
    left, right = (rank - 1) % n, (rank + 1) % n
    return _exchange(carries((rank - distance) % n, distance), left, carries((right - distance) % n, distance), right)


@lru_cache(maxsize=256)
def verified_tables(needs: tuple[tuple[bool, ...], ...], *, gradients: bool) -> tuple[Table, ...]:
    """Return the tables of `forward` or, with `gradients`, `backward`, after `verify` has accepted them; cached by needs."""
    tables = backward(needs) if gradients else forward(needs)
    verify(tables, needs, gradients=gradients)
    return tables


# --- verification ------------------------------------------------------------------------------------------------------


def verify(tables: Sequence[Table], needs: Needs, *, gradients: bool) -> None:
    """Verify a schedule by simulating all ranks.

    Checked: a rank computes and sends only what it holds at that moment; every needed (query part, key block) pair is
    computed exactly once and no other; with `gradients`, every contribution to a block reaches its rank exactly once;
    each send matches the receive of the same block; and the exchange cannot deadlock although a send waits for its
    receiver.

    Args:
        tables: the table of each rank.
        needs: which rank needs which keys.
        gradients: whether the tables are for the backward pass.

    Raises:
        AssertionError: if the schedule breaks one of these rules; the message names it.
    """
    machines = [_Machine(rank, table) for rank, table in enumerate(tables)]
    while not all(m.done for m in machines):
        moved = [m.advance() for m in machines]
        matched = [_match_exchange(m, machines) for m in machines]
        if not any(moved) and not any(matched):
            stuck = {m.rank: m.at for m in machines if not m.done}
            raise AssertionError(f"the exchange deadlocks; ranks are at hops {stuck}")
    for m in machines:
        _check_work(m, needs)
    if gradients:
        _check_gradients(machines, needs)


@dataclass
class _Posted:
    kind: str
    exchange: Exchange
    payload: list[tuple[int, str]]
    sent: bool
    received: bool
    arrived: Sequence[tuple[int, str]] = ()


class _Machine:
    """A simulated rank: the loop of `ringattn.ring` with blocks as names and gradients as sets of contributors."""

    def __init__(self, rank: int, table: Table) -> None:
        self.rank, self.at, self.done = rank, 0, False
        self.held = {rank}
        self.sums: dict[int, list[tuple[int, str]]] = {}
        self.log: list[tuple[int, str]] = []
        self.links: deque[_Posted] = deque()  # the transport runs them in order, one at a time
        self.program = self._run(table)

    def advance(self) -> bool:
        """Run until the next wait. Returns whether anything happened."""
        before = self.at, len(self.links), len(self.log)
        if not self.done and next(self.program, "end") == "end":
            self.done = True
            return True
        return before != (self.at, len(self.links), len(self.log))

    def _run(self, table: Table):
        pending: _Posted | None = None
        for self.at, hop in enumerate(table):
            assert hop.holds is None or hop.holds in self.held, (
                f"rank {self.rank} does not hold {hop.holds} at {self.at}"
            )
            kv = self._post("kv", hop.kv)
            if hop.work is not None:
                assert hop.work.block in self.held, f"rank {self.rank} computes {hop.work.block} without holding it"
                self.log.append((hop.work.block, hop.work.queries))
            yield from self._finish(pending)
            if hop.work is not None:
                self.sums.setdefault(hop.work.block, []).append((self.rank, hop.work.queries))
            pending = self._post("grad", hop.grad)
            yield from self._finish(kv)
            self.held = {self.rank} | ({hop.kv.recv} if hop.kv and hop.kv.recv is not None else set())
        yield from self._finish(pending)

    def _post(self, kind: str, exchange: Exchange | None) -> _Posted | None:
        if exchange is None:
            return None
        payload: list[tuple[int, str]] = []
        if exchange.send is not None and kind == "kv":
            assert exchange.send in self.held, f"rank {self.rank} sends block {exchange.send} without holding it"
        elif exchange.send is not None:
            assert exchange.send in self.sums, f"rank {self.rank} sends gradient {exchange.send} without having it"
            payload = self.sums.pop(exchange.send)
        posted = _Posted(kind, exchange, payload, exchange.send is None, exchange.recv is None)
        self.links.append(posted)
        return posted

    def _finish(self, posted: _Posted | None) -> Iterable[str]:
        while posted is not None and not (posted.sent and posted.received):
            yield "waits"
        if posted is not None and posted.kind == "grad" and posted.exchange.recv is not None:
            self.sums.setdefault(posted.exchange.recv, []).extend(posted.arrived)


def _match_exchange(sender: _Machine, machines: Sequence[_Machine]) -> bool:
    """Match the first exchange of `sender`'s links with its receiver's, if that is the first there too."""
    while sender.links and sender.links[0].sent and sender.links[0].received:
        sender.links.popleft()
    if not sender.links or sender.links[0].sent:
        return False
    mine = sender.links[0]
    receiver = machines[mine.exchange.to]
    if not receiver.links:
        return False
    theirs = receiver.links[0]
    if theirs.received or theirs.exchange.source != sender.rank:
        return False
    sent, got = (mine.kind, mine.exchange.send), (theirs.kind, theirs.exchange.recv)
    assert sent == got, f"rank {sender.rank} sends {sent} where rank {receiver.rank} expects {got}"
    mine.sent, theirs.received, theirs.arrived = True, True, mine.payload
    return True


def _parts(work: Iterable[tuple[int, str]], block: int) -> list[str]:
    return sorted(queries for b, queries in work if b == block)


def _check_work(machine: _Machine, needs: Needs) -> None:
    for block in range(len(needs)):
        parts = _parts(machine.log, block)
        wanted = ([["all"], ["head", "tail"]]) if needs[machine.rank][block] else [[]]
        assert parts in wanted, (
            f"rank {machine.rank} computes {parts} of block {block}; needed: {needs[machine.rank][block]}"
        )


def _check_gradients(machines: Sequence[_Machine], needs: Needs) -> None:
    for m in machines:
        assert set(m.sums) <= {m.rank}, (
            f"gradients of {set(m.sums) - {m.rank}} end on rank {m.rank}, which does not own them"
        )
        home = m.sums.get(m.rank, [])
        expected = {r for r in range(len(needs)) if needs[r][m.rank]}
        assert {r for r, _ in home} == expected, f"block {m.rank} has gradients of {home}, needs them of {expected}"
        assert len(home) == len(set(home)), f"a gradient of block {m.rank} arrived twice: {home}"
