"""Functions with a first derivative only: a second one, and a forward-mode one, are errors instead of silent zeros.

MLX differentiates a `mx.custom_function` without rules of its own through the operations inside. Here these run outside the
trace (`ringattn._compute_thread`), so every derivative that has no rule would be zero.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import mlx.core as mx

from ringattn._compute_thread import GradientToken, evaluate_traced
from ringattn._errors import ArgumentError, TransformError


def evaluate(name: str, *arrays: mx.array) -> None:
    """Evaluate the inputs of a call.

    Args:
        name: the function that is called.
        arrays: its inputs.

    Raises:
        TransformError: inside mx.compile or mx.vmap.
        ArgumentError: if an operation before the call fails.
    """
    try:
        evaluate_traced(*arrays)
    except Exception as error:
        if "transformation" not in str(error):
            raise ArgumentError(f"the inputs of {name} cannot be evaluated: {type(error).__name__}: {error}") from error
        raise TransformError(
            f"{name} evaluates its inputs and exchanges data with other hosts, so it cannot be inside mx.compile or mx.vmap; "
            "compile the parts of the model around it instead"
        ) from error


def first_order(
    name: str, forward: Callable[..., Any], backward: Callable[..., tuple[mx.array, ...]]
) -> Callable[..., Any]:
    """Return `forward` as a function that mx.grad, mx.vjp and mx.checkpoint may differentiate once.

    Args:
        name: the function's name, for errors.
        forward: maps arrays to an array or to several.
        backward: maps inputs, outputs and the gradients of the outputs, each a tuple, to the gradients of the inputs.
    """

    def refuse(*_: object) -> NoReturn:
        raise TransformError(
            f"{name} has a first derivative in reverse mode only: mx.grad of mx.grad, a gradient through a gradient, mx.jvp and "
            "Hessians cannot contain it. Take the outer derivative by finite differences of mx.grad, or on one host with "
            "mx.fast.scaled_dot_product_attention"
        )

    @mx.custom_function
    def call(*inputs: mx.array) -> Any:
        return forward(*inputs)

    @call.vjp
    def call_vjp(primals: Any, cotangents: Any, outputs: Any) -> Any:
        inputs, results, given = (_as_tuple(arrays) for arrays in (primals, outputs, cotangents))
        token = GradientToken()

        # The inputs are arguments too: the gradient depends on them even where its cotangents are constant.
        @mx.custom_function
        def gradient(*both: mx.array) -> Any:
            return backward(inputs, results, both[len(inputs) :])

        # The rule is part of the gradient's graph, and holds the token.
        gradient.vjp(lambda *_, token=token: refuse())
        gradient.jvp(refuse)
        return gradient(*inputs, *given)

    call.jvp(refuse)
    return call


def _as_tuple(value: Any) -> tuple[mx.array, ...]:
    return (value,) if isinstance(value, mx.array) else tuple(value)
