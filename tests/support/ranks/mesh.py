"""A rank of a mesh: `mesh.py CONTEXT [SPLITS]`; prints the errors of attention and gradients against the oracle as JSON.

Every row has a sequence of its own, with weights of its own in the loss, and the parameter is shared: its gradient is a sum over all.
With SPLITS it also runs in the rows and the columns that `Group.split` makes of MPI's group, of which a rank has the same place.
"""

import json
import sys

import mlx.core as mx
import numpy as np
import oracle  # type: ignore[import-not-found]  # a rank's path starts at this folder

import ringattn as ra
from ringattn.transport import transport_of

LENGTH, DIM = 11, 4


def difference(got: mx.array, wanted: np.ndarray) -> float:
    return float(np.abs(np.array(got) - wanted).max() / max(1.0, np.abs(wanted).max()))


def errors(
    context: ra.Transport | mx.distributed.Group, row: int, tag: int
) -> tuple[dict[str, float], mx.array, float]:
    """Errors of a row's call, the gradient of the shared parameter, and the row's part of the true one."""
    rng = np.random.default_rng(row)
    whole, do = (rng.standard_normal((1, 2, LENGTH, DIM)) for _ in range(2))
    at = np.array(ra.positions(LENGTH, group=context))
    x, cotangent = (mx.array(a[:, :, at], dtype=mx.float32) for a in (whole, do))

    def loss(x: mx.array, w: mx.array) -> mx.array:
        o = ra.ring_attention(x, x, w * x, scale=0.5, mask="causal", group=context, tag=tag, timeout=20)
        return (o * cotangent).sum()

    dx, dw = mx.grad(loss, argnums=(0, 1))(x, mx.array(2.0))
    truth = oracle.gradients(whole, whole, 2 * whole, do, oracle.Rules(causal=True), scale=0.5)
    wanted = truth["dq"] + truth["dk"] + 2 * truth["dv"]
    o = ra.ring_attention(x, x, 2 * x, scale=0.5, mask="causal", group=context, timeout=20)
    found = {
        "o": difference(o, truth["o"][:, :, at]),
        "dx": difference(dx, wanted[:, :, at]),
        "unshard": difference(ra.unshard(x, 2, group=context, timeout=20), whole),
    }
    transport = transport_of(context)
    if (size := transport.size()) > 1:
        own = mx.full((3,), transport.rank() + 1.0)
        mx.eval(own)
        (total,) = transport.all_sum(own, "a sum").wait(20)
        found["sum"] = difference(total, np.full(3, size * (size + 1) / 2))
    return found, dw, float((whole * truth["dv"]).sum())


def main() -> None:
    group, width = ra.init(), int(sys.argv[1])
    mesh = ra.mesh(context=width)
    assert (mesh.context.rank(), mesh.context.size()) == (group.rank() % width, width)
    found, dw, _ = errors(mesh.context, mesh.row, tag=mesh.row)
    total = mx.distributed.all_sum(dw, group=group)
    # The same attention alone: the sum over rows of the true gradient.
    truth = sum(errors(ra.mesh(context=1).context, row, tag=0)[2] for row in range(mesh.rows))
    report = {"mesh": found | {"dw": difference(total, np.array(truth))}}
    if "SPLITS" in sys.argv:
        rank = group.rank()
        splits = {
            "rows": (group.split(rank // 2, rank), rank // 2),
            "columns": (group.split(rank % 2, rank), 2 + rank % 2),
        }
        for again in ("", " again"):
            report |= {name + again: errors(part, color + 10, tag=color)[0] for name, (part, color) in splits.items()}
    print(json.dumps(report), flush=True)


main()
