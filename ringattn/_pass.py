"""Forward and backward of one call of `ring_attention` on this rank: the kernel's blocks, merged, and the sums of their gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ringattn import kernels, ring, schedule
from ringattn._compute_thread import detached_copy, materialize, numpy_view
from ringattn._handshake import Plan
from ringattn.transport import Spec, Transport


class Pass:
    """Forward and backward of one call on this rank; both run untraced."""

    def __init__(self, plan: Plan, transport: Transport, kernel: kernels.Kernel, timeout: float) -> None:
        self.plan, self.transport, self.kernel, self.timeout = plan, transport, kernel, timeout
        # The native kernel reads the memory of float32 inputs, which is safe from another thread without a copy.
        self._zero_copy = kernel.name == "native" and plan.call.dtype == mx.float32
        self._saved: ring.Arrays = ()
        self._sinks: mx.array | None = None

    def prepare(self, x: mx.array) -> mx.array:
        """Return q, k, v or a gradient of o in a form that the ring's thread may use."""
        return materialize(x) if self._zero_copy else detached_copy(x)

    def forward(
        self, q: mx.array, k: mx.array, v: mx.array, sinks: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:
        """Compute the attention of the local queries, and keep what the backward pass needs.

        Args:
            q: prepared [B, Hq, Tq, D].
            k: prepared [B, Hkv, Tk, D].
            v: prepared [B, Hkv, Tk, Dv].
            sinks: detached [Hq], or None.

        Returns:
            o [B, Hq, Tq, Dv] in q's dtype, and the log-sum-exp [B, Hq, Tq], float32, sinks included.
        """
        partial: list[tuple[mx.array, mx.array]] = []
        scores = self._scores()

        def compute(work: schedule.Work, block: ring.Arrays) -> ring.Arrays:
            new = self.kernel.forward(q, block[0], block[1], self._mask(work, block), **scores)
            new = ring.merge_partials(*partial.pop(), *new) if partial else new
            mx.eval(new)
            partial.append(new)
            return ()

        self._run(k, v, compute, gradients=False)
        o, lse = partial.pop() if partial else (_zeros_like_output(q, v), mx.full(q.shape[:3], -mx.inf))
        if sinks is not None:
            self._sinks = sinks
            o, lse = ring.merge_sinks(o, lse, sinks.astype(mx.float32))
        o = o.astype(q.dtype)
        mx.eval(o, lse)
        self._saved = (q, k, v, o, lse)
        return o, lse

    def backward(self, do: mx.array, dlse: mx.array | None = None) -> ring.Arrays:
        """Return dq, dk and dv, and with sinks dsinks: the part of the local queries.

        Args:
            do: prepared gradient of o.
            dlse: detached gradient of the log-sum-exp, or None.
        """
        q, k, v, o, lse = self._saved
        if self._zero_copy:
            delta = mx.array(np.einsum("bhtd,bhtd->bht", numpy_view(do), numpy_view(o)))
        else:
            delta = (do.astype(mx.float32) * o.astype(mx.float32)).sum(axis=-1)
        if dlse is not None:
            # d lse / d s = P, so that its gradient joins dS = P * (dP - delta). A row that sees no key has no P: a NaN stays out.
            delta = mx.where(lse == -mx.inf, 0.0, delta - dlse)
        mx.eval(delta)
        sums: dict[str, mx.array] = {}
        scores = self._scores()

        def compute(work: schedule.Work, block: ring.Arrays) -> ring.Arrays:
            rows = self._queries(work)
            if len(range(*rows.indices(q.shape[2]))) == 0:
                return ()
            dq, dk, dv = self.kernel.backward(
                self._part(q, rows),
                block[0],
                block[1],
                self._part(do, rows),
                lse[:, :, rows],
                delta[:, :, rows],
                self._mask(work, block),
                **scores,
            )
            if work.queries in sums:
                dq = sums.pop(work.queries) + dq
            mx.eval(dq, dk, dv)
            sums[work.queries] = dq
            return dk, dv

        home = self._run(k, v, compute, gradients=True)
        dq = _joined(sums, q)
        dk, dv = home or (mx.zeros(k.shape), mx.zeros(v.shape))
        grads = tuple(g.astype(q.dtype) for g in (dq, dk, dv))
        if self._sinks is not None:
            # A sink is a key whose value is 0: dP = 0.
            p = mx.where(lse == -mx.inf, 0.0, mx.exp(self._sinks.astype(mx.float32)[:, None] - lse))
            grads += ((-(p * delta)).sum(axis=(0, 2)).astype(self._sinks.dtype),)
        mx.eval(grads)
        if not self._zero_copy:  # the copies of q, k, v would stay until the last layer's backward
            self._saved = (lse,)
        return grads

    @property
    def released(self) -> bool:
        """Whether the backward pass has run and dropped its inputs."""
        return len(self._saved) == 1

    def restore(self, q: mx.array, k: mx.array, v: mx.array, o: mx.array) -> None:
        """Take prepared inputs and output again, for another backward pass."""
        self._saved = (q, k, v, o, *self._saved)

    def _scores(self) -> dict[str, Any]:
        """Return the kernel's options; a kernel of the user's need not know of a softcap."""
        call = self.plan.call
        return {"scale": call.scale} | ({} if call.softcap is None else {"softcap": call.softcap})

    def _part(self, x: mx.array, rows: slice) -> mx.array:
        if rows == slice(None):
            return x
        return mx.array(numpy_view(x)[:, :, rows]) if self._zero_copy else x[:, :, rows]

    def _run(
        self, k: mx.array, v: mx.array, compute: Callable[[schedule.Work, ring.Arrays], ring.Arrays], *, gradients: bool
    ) -> ring.Arrays:
        rules = tuple(mx.array(x) for x in self.plan.call.rules.travelling)
        return ring.run(
            schedule.verified_tables(self.plan.needs, gradients=gradients)[self.transport.rank()],
            (k, v, *rules),
            self.transport,
            compute,
            outgoing=(lambda: (mx.array(numpy_view(k)), mx.array(numpy_view(v)), *rules)) if self._zero_copy else None,
            kv_specs=self._kv_specs,
            grad_specs=lambda block: [(shape, mx.float32) for shape in self.plan.kv_shapes(block)],
            timeout=self.timeout,
            phase="backward" if gradients else "forward",
            kernel=self.kernel.name,
        )

    def _kv_specs(self, block: int) -> Sequence[Spec]:
        length = len(self.plan.key_positions[block])
        return [
            *((shape, self.plan.call.dtype) for shape in self.plan.kv_shapes(block)),
            *(((*x.shape[:-1], length), mx.int32) for x in self.plan.call.rules.travelling),
        ]

    def _queries(self, work: schedule.Work) -> slice:
        half = self.plan.call.q_shape[2] // 2
        return {"all": slice(None), "head": slice(0, half), "tail": slice(half, None)}[work.queries]

    def _mask(self, work: schedule.Work, block: ring.Arrays) -> kernels.Block:
        call, rows = self.plan.call, self._queries(work)
        rules = [np.array(x) for x in block[2:]]  # in the order of TokenRules.travelling
        segments = call.rules.segments
        return kernels.Block(
            self.plan.positions[rows],
            rules.pop() if call.rules.key_positions is not None else self.plan.key_positions[work.block],
            causal=call.causal,
            window=call.window,
            q_seg=None if segments is None else np.ascontiguousarray(segments[..., rows]),
            k_seg=None if segments is None else rules.pop(),
        )


def _zeros_like_output(q: mx.array, v: mx.array) -> mx.array:
    return mx.zeros((*q.shape[:3], v.shape[3]))


def _joined(sums: dict[str, mx.array], q: mx.array) -> mx.array:
    """Return dq of all queries, float32, from the sums over whole blocks and over the two halves."""
    halves = [sums.pop(part) for part in ("head", "tail") if part in sums]
    total = mx.concatenate(halves, axis=2) if halves else mx.zeros(q.shape, mx.float32)
    return total + sums.pop("all") if "all" in sums else total
