"""Ring attention: exact softmax attention over a sequence that is sharded over the ranks of an MLX group.

Ring Attention (Liu, Zaharia, Abbeel 2023) with FlashAttention-2's backward (Dao 2023): the forward keeps only the
output and the log-sum-exp, the backward recomputes the probabilities block by block while K, V and their gradients
travel the ring.
"""

from collections.abc import Callable, Sequence
from typing import cast

import mlx.core as mx
import numpy as np

from ringattn import kernels, ring, schedule
from ringattn._compute_thread import detached_copy, materialize, numpy_view, run_untraced
from ringattn._errors import RingError, TransformError
from ringattn._handshake import Plan, agree_on_plan, check_arguments
from ringattn.layout import Layout, as_layout
from ringattn.transport import Group, Spec, Transport, default_timeout, transport_of


# More than 10 parameters: the tensors of attention and its independent options, all but three by keyword.
def ring_attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: str | None = None,
    window: int | None = None,
    segments: mx.array | np.ndarray | None = None,
    layout: str | Layout = "zigzag",
    group: Group = None,
    kernel: str | kernels.Kernel | None = None,
    timeout: float | None = None,
) -> mx.array:
    """Compute softmax attention over the whole sequence, of which this rank holds a part. Differentiable in q, k and v.

    Every rank of the group must make the same calls in the same order.

    Args:
        q: [B, Hq, T, D], float32, bfloat16 or float16; T this rank's tokens in the order of `layout` (see `ringattn.shard`).
        k: [B, Hkv, T, D], of q's dtype; Hq is a multiple of Hkv, query head h reads kv head h // (Hq / Hkv).
        v: [B, Hkv, T, D], of q's dtype.
        scale: factor on the scores, usually D ** -0.5.
        mask: None or "causal" (a query sees positions up to its own in the whole sequence).
        window: with "causal" a query sees the last `window` positions, itself included; without, those nearer than `window`.
        segments: integers [T] or [B, T]; queries see only keys with the same id (packed series).
        layout: "contiguous", "striped", "zigzag" or `weighted_zigzag(speeds)`, the same on every rank.
        group: an MLX group (None: the global one), or a Transport. On a group of one, exact attention in O(T) memory.
        kernel: name of the block kernel, or a `kernels.Kernel`; None: environment RINGATTN_KERNEL, else the best one here. It
            may differ between ranks.
        timeout: seconds that any wait for a neighbour may take; None: environment RINGATTN_TIMEOUT, else 60.

    Returns:
        o [B, Hq, T, D] in q's dtype; sums and merges are in float32. Rows that see no key are 0.

    Raises:
        RingError: ArgumentError and its kinds on every rank, before anything but a small header was sent; TransformError,
            as inputs are evaluated, so that the call cannot be inside mx.compile or mx.vmap; PeerLost and PeerStalled within
            `timeout`, in the forward or the backward pass, which leave the MLX group unusable.
    """
    transport = transport_of(group)
    limit = default_timeout() if timeout is None else timeout
    try:
        call = check_arguments(
            q, k, v, scale=scale, mask=mask, window=window, segments=segments, layout=as_layout(layout)
        )
        block_kernel = kernels.select(kernel) if kernel is None or isinstance(kernel, str) else kernel
        _evaluate(q, k, v)
    except RingError as refusal:
        agree_on_plan(refusal, transport, limit)
        raise
    pass_ = _Pass(agree_on_plan(call, transport, limit), transport, block_kernel, limit)

    @mx.custom_function
    def attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        q, k, v = pass_.prepare(q), pass_.prepare(k), pass_.prepare(v)
        return run_untraced(lambda: pass_.forward(q, k, v))

    @attend.vjp
    def attend_vjp(primals: object, cotangent: mx.array, output: object) -> ring.Arrays:
        do = pass_.prepare(cotangent)
        return run_untraced(lambda: pass_.backward(do))

    return cast(mx.array, attend(q, k, v))


def _evaluate(*arrays: mx.array) -> None:
    try:
        mx.eval(*arrays)
    except (ValueError, RuntimeError) as error:
        if "transformation" not in str(error):
            raise
        raise TransformError(
            "ring_attention evaluates its inputs and exchanges data with other hosts, so it cannot be inside mx.compile or mx.vmap; "
            "compile the parts of the model around it instead"
        ) from error


class _Pass:
    """Forward and backward of one call on this rank; both run untraced."""

    def __init__(self, plan: Plan, transport: Transport, kernel: kernels.Kernel, timeout: float) -> None:
        self.plan, self.transport, self.kernel, self.timeout = plan, transport, kernel, timeout
        # The native kernel reads the memory of float32 inputs, which is safe from another thread without a copy.
        self._zero_copy = kernel.name == "native" and plan.call.dtype == mx.float32
        self._saved: ring.Arrays = ()

    def prepare(self, x: mx.array) -> mx.array:
        """Return an input in a form that the ring's thread may use."""
        return materialize(x) if self._zero_copy else detached_copy(x)

    def forward(self, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """Return o [B, Hq, T, D], and keep what the backward pass needs."""
        partial: list[tuple[mx.array, mx.array]] = []

        def compute(work: schedule.Work, block: ring.Arrays) -> ring.Arrays:
            new = self.kernel.forward(q, block[0], block[1], self._mask(work, block), scale=self.plan.call.scale)
            new = ring.merge_partials(*partial.pop(), *new) if partial else new
            mx.eval(new)
            partial.append(new)
            return ()

        self._run(k, v, compute, gradients=False)
        o, lse = partial.pop() if partial else (mx.zeros(q.shape), mx.full(q.shape[:3], -mx.inf))
        o = o.astype(q.dtype)
        mx.eval(o, lse)
        self._saved = (q, k, v, o, lse)
        return o

    def backward(self, do: mx.array) -> ring.Arrays:
        """Return dq, dk and dv from the gradient of o [B, Hq, T, D]."""
        q, k, v, o, lse = self._saved
        if self._zero_copy:
            delta = mx.array(np.einsum("bhtd,bhtd->bht", numpy_view(do), numpy_view(o)))
        else:
            delta = (do.astype(mx.float32) * o.astype(mx.float32)).sum(axis=-1)
        mx.eval(delta)
        sums: dict[str, mx.array] = {}

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
                scale=self.plan.call.scale,
            )
            if work.queries in sums:
                dq = sums.pop(work.queries) + dq
            mx.eval(dq, dk, dv)
            sums[work.queries] = dq
            return dk, dv

        home = self._run(k, v, compute, gradients=True)
        dq = _joined(sums, q)
        dk, dv = home or (mx.zeros(k.shape), mx.zeros(k.shape))
        grads = tuple(g.astype(q.dtype) for g in (dq, dk, dv))
        mx.eval(grads)
        return grads

    def _part(self, x: mx.array, rows: slice) -> mx.array:
        if rows == slice(None):
            return x
        return mx.array(numpy_view(x)[:, :, rows]) if self._zero_copy else x[:, :, rows]

    def _run(
        self, k: mx.array, v: mx.array, compute: Callable[[schedule.Work, ring.Arrays], ring.Arrays], *, gradients: bool
    ) -> ring.Arrays:
        segments = () if self.plan.call.segments is None else (mx.array(self.plan.call.segments),)
        return ring.run(
            schedule.verified_tables(self.plan.needs, gradients=gradients)[self.transport.rank()],
            (k, v, *segments),
            self.transport,
            compute,
            outgoing=(lambda: (mx.array(numpy_view(k)), mx.array(numpy_view(v)), *segments))
            if self._zero_copy
            else None,
            kv_specs=self._kv_specs,
            grad_specs=lambda block: [(self.plan.kv_shape(block), mx.float32)] * 2,
            timeout=self.timeout,
            phase="backward" if gradients else "forward",
        )

    def _kv_specs(self, block: int) -> Sequence[Spec]:
        call, shape = self.plan.call, self.plan.kv_shape(block)
        specs: list[Spec] = [(shape, call.dtype)] * 2
        if call.segments is not None:
            specs.append(((*call.segments.shape[:-1], shape[2]), mx.int32))
        return specs

    def _queries(self, work: schedule.Work) -> slice:
        half = self.plan.call.q_shape[2] // 2
        return {"all": slice(None), "head": slice(0, half), "tail": slice(half, None)}[work.queries]

    def _mask(self, work: schedule.Work, block: ring.Arrays) -> kernels.Block:
        call, rows = self.plan.call, self._queries(work)
        ids = call.segments
        return kernels.Block(
            self.plan.positions[self.transport.rank()][rows],
            self.plan.positions[work.block],
            causal=call.causal,
            window=call.window,
            q_seg=None if ids is None else np.ascontiguousarray(ids[..., rows]),
            k_seg=None if ids is None else np.array(block[2]),
        )


def _joined(sums: dict[str, mx.array], q: mx.array) -> mx.array:
    """Return dq of all queries, float32, from the sums over whole blocks and over the two halves."""
    halves = [sums.pop(part) for part in ("head", "tail") if part in sums]
    total = mx.concatenate(halves, axis=2) if halves else mx.zeros(q.shape, mx.float32)
    return total + sums.pop("all") if "all" in sums else total
