"""A rank that differentiates ring_attention and unshard in every way; prints errors against the oracle, and refusals, as JSON."""

import json
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import oracle  # type: ignore[import-not-found]  # a rank's path starts at this folder

import ringattn as ra

LENGTH, DIM = 13, 4


def attend(x: mx.array) -> mx.array:
    return ra.ring_attention(x * 1, x * 2, x * 3, scale=0.5, mask="causal")


def nested(x: mx.array) -> mx.array:
    return mx.checkpoint(lambda y: mx.checkpoint(attend)(y) * 1)(x)


def refusal(work: Callable[[], Any]) -> str:
    try:
        mx.eval(work())
    except ra.RingError as error:
        return type(error).__name__
    return "none"


def refusals(x: mx.array, of: Callable[[mx.array], mx.array]) -> dict[str, str]:
    """The kinds of derivatives that are refused; the loss that is linear in the output has a constant cotangent."""

    def once(loss: Callable[[mx.array], mx.array]) -> Callable[[mx.array], mx.array]:
        return mx.grad(lambda y: loss(of(y)))

    return {
        "second": refusal(lambda: mx.grad(lambda y: once(lambda o: (o * o).sum())(y).sum())(x)),
        "second of a linear loss": refusal(lambda: mx.grad(lambda y: (once(mx.sum)(y) * y).sum())(x)),
        "through an inner step": refusal(lambda: mx.grad(lambda y: of(y - 0.1 * once(mx.sum)(y)).sum())(x)),
        "jvp": refusal(lambda: mx.jvp(of, [x], [x])),
        "jvp of a gradient": refusal(lambda: mx.jvp(once(mx.sum), [x], [x])),
    }


def attention_errors(whole: np.ndarray, do: np.ndarray, here: np.ndarray) -> dict[str, float]:
    truth = oracle.gradients(whole, 2 * whole, 3 * whole, do, oracle.Rules(causal=True), scale=0.5)
    wanted = (truth["dq"] + 2 * truth["dk"] + 3 * truth["dv"])[:, :, here]
    x, cotangent = (mx.array(a[:, :, here], dtype=mx.float32) for a in (whole, do))
    errors = {}
    for name, of in (("plain", attend), ("nested checkpoint", nested)):
        got = mx.grad(lambda y, of=of: (of(y) * cotangent).sum())(x)
        errors[name] = float(np.abs(np.array(got) - wanted).max() / np.abs(wanted).max())
    (got,) = mx.vjp(attend, [x], [cotangent])[1]
    errors["vjp"] = float(np.abs(np.array(got) - wanted).max() / np.abs(wanted).max())
    for dtype in (
        mx.float32,
        mx.bfloat16,
    ):  # the value of an inner step is a first derivative, and runs the backward pass again
        y = x.astype(dtype)
        once = mx.grad(lambda z: attend(z).sum())(y)
        again = mx.grad(lambda z: mx.value_and_grad(lambda w: attend(w).sum())(z)[0])(y)
        errors[f"value of an inner step, {dtype}"] = float(mx.abs(once - again).max())
    return errors


def unshard_errors(rng: np.random.Generator, rank: int, size: int) -> dict[str, float]:
    """The gradient of the sum of the ranks' losses, which differ: Σ_r weights_r · whole²."""
    errors = {}
    for layout in ("zigzag", "contiguous", "striped"):
        whole = rng.standard_normal((2, LENGTH, 3))
        weights = rng.standard_normal((size, 2, LENGTH, 3))
        here = np.array(ra.positions(LENGTH, layout=layout))
        own = mx.array(weights[rank], dtype=mx.float32)

        def loss(part: mx.array, own: mx.array = own, layout: str = layout) -> mx.array:
            everything = ra.unshard(part * 1, 1, layout=layout)
            return (own * everything * everything).sum()

        got = mx.grad(loss)(mx.array(whole[:, here], dtype=mx.float32))
        wanted = (2 * weights.sum(axis=0) * whole)[:, here]
        errors[layout] = float(np.abs(np.array(got) - wanted).max())
    half = mx.grad(lambda part: ra.unshard(part, -1).sum())(mx.ones((1, 2), mx.bfloat16))
    errors["bfloat16"] = float(np.abs(np.array(half.astype(mx.float32)) - size).max())
    return errors


def main() -> None:
    group = ra.init()
    rng = np.random.default_rng(3)
    whole, do = (rng.standard_normal((1, 2, LENGTH, DIM)) for _ in range(2))
    here = np.array(ra.positions(LENGTH))
    x = mx.array(whole[:, :, here], dtype=mx.float32)
    print(
        json.dumps(
            {
                "refused": {
                    "ring_attention": refusals(x, attend),
                    "ring_attention, bfloat16": refusals(x.astype(mx.bfloat16), attend),
                    "unshard": refusals(x, lambda y: ra.unshard(y, 2) ** 2),
                },
                "errors": {
                    "ring_attention": attention_errors(whole, do, here),
                    "unshard": unshard_errors(rng, group.rank(), group.size()),
                },
            }
        )
    )


if __name__ == "__main__":
    main()
