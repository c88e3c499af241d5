"""Wrong arguments: an error that states the rule, on every rank, before anything is sent."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import ringattn as ra
from ringattn import kernels, launch

DEFAULT = kernels.select().name


def arrays(heads: int = 2, kv_heads: int = 1, length: int = 8, dim: int = 4, dtype: mx.Dtype = mx.float32):
    return mx.zeros((1, heads, length, dim), dtype), *(mx.zeros((1, kv_heads, length, dim), dtype) for _ in range(2))


@pytest.mark.parametrize(
    ("change", "error", "rule"),
    [
        ({"q": mx.zeros((2, 8, 4))}, ra.ShapeError, "batch, heads, tokens, head dimension"),
        ({"q": mx.zeros((1, 0, 8, 4))}, ra.ShapeError, "none but tokens empty"),
        ({n: mx.zeros((1, 2, 0, 4)) for n in "qkv"}, ra.LayoutError, "leave a rank with none"),
        ({"v": mx.zeros((1, 1, 9, 4))}, ra.ShapeError, "must agree in batch, heads and local tokens"),
        ({"q": mx.zeros((2, 2, 8, 4))}, ra.ShapeError, "must agree in batch and head dimension"),
        ({"q": mx.zeros((1, 2, 9, 4)), "mask": "causal"}, ra.ShapeError, "needs positions= and key_positions="),
        ({"q": mx.zeros((1, 2, 9, 4)), "window": 3}, ra.ShapeError, "needs positions= and key_positions="),
        ({"q": mx.zeros((1, 2, 9, 4)), "positions": np.arange(9)}, ra.ArgumentError, "give key_positions= too"),
        ({"q": mx.zeros((1, 2, 9, 4)), "segments": np.arange(9)}, ra.ArgumentError, "give key_segments= too"),
        ({"key_positions": np.arange(8)}, ra.ArgumentError, "give positions="),
        ({"key_segments": np.arange(8)}, ra.ArgumentError, "give segments="),
        ({"positions": np.arange(9)}, ra.ShapeError, "positions"),
        ({"positions": np.arange(8) + 2**31}, ra.DTypeError, "within int32"),
        ({"positions": np.zeros((1, 8), np.int32)}, ra.ShapeError, r"positions .* must be \[tokens\]"),
        ({"softcap": 0.0}, ra.ArgumentError, "softcap 0.0 must be"),
        ({"softcap": "50"}, ra.ArgumentError, "softcap '50' must be"),
        ({"softcap": float("inf")}, ra.ArgumentError, "softcap inf must be"),
        ({"sinks": mx.zeros((1,))}, ra.ShapeError, "one logit a query head"),
        ({"sinks": mx.zeros((2,), mx.int32)}, ra.DTypeError, "sinks"),
        ({"sinks": [0.0, 0.0]}, ra.DTypeError, "sinks must be an mlx array.*not list"),
        (
            {"q": mx.zeros((1, 3, 8, 4)), "k": mx.zeros((1, 2, 8, 4)), "v": mx.zeros((1, 2, 8, 4))},
            ra.ShapeError,
            "multiple",
        ),
        ({"k": mx.zeros((1, 1, 8, 4), mx.bfloat16)}, ra.DTypeError, "one dtype"),
        ({n: mx.zeros((1, 1, 8, 4), mx.int32) for n in "qkv"}, ra.DTypeError, "float32, bfloat16 or float16"),
        ({"q": np.zeros((1, 2, 8, 4))}, ra.DTypeError, "mlx arrays"),
        ({"mask": "lower"}, ra.ArgumentError, "causal"),
        ({"window": 0}, ra.ArgumentError, "from 1 up"),
        ({"scale": float("nan")}, ra.ArgumentError, "finite"),
        ({"scale": None}, ra.ArgumentError, "head_dimension"),
        ({"mask": mx.zeros((8, 8))}, ra.ArgumentError, "window=.*segments="),
        ({"segments": [[1], [2, 3]]}, ra.ShapeError, "ragged"),
        ({"timeout": "6"}, ra.ArgumentError, "seconds above 0"),
        ({"tag": -1}, ra.ArgumentError, "from 0 up"),
        ({"kernel": 3}, ra.KernelError, "use a name of"),
        ({"group": "all"}, ra.ArgumentError, "MLX group"),
        ({"segments": mx.zeros((7,), mx.int32)}, ra.ShapeError, "segments"),
        ({"segments": mx.zeros((8,))}, ra.DTypeError, "integers"),
        ({"layout": "spiral"}, ra.LayoutError, "unknown"),
    ],
)
def test_invalid_arguments_state_the_rule(change: dict, error: type[Exception], rule: str) -> None:
    q, k, v = arrays()
    given = {"q": q, "k": k, "v": v, "scale": 0.5} | change
    with pytest.raises(error, match=rule):
        ra.ring_attention(given.pop("q"), given.pop("k"), given.pop("v"), **given)


def test_unknown_kernel_lists_the_others() -> None:
    with pytest.raises(ra.KernelError, match="reference"):
        ra.ring_attention(*arrays(), scale=0.5, kernel="fast")


@pytest.mark.parametrize("transform", [mx.compile, lambda f: mx.vmap(f)])
def test_compile_and_vmap_are_refused(transform) -> None:
    q, k, v = (mx.zeros((1, 1, 2, 8, 4)) for _ in range(3))
    attend = transform(lambda q, k, v: ra.ring_attention(q * 1, k * 1, v * 1, scale=0.5))
    given = (q[0], k[0], v[0]) if transform is mx.compile else (q, k, v)
    with pytest.raises(ra.TransformError, match=r"mx\.compile or mx\.vmap"):
        mx.eval(attend(*given))


def test_unlike_and_refused_calls_are_named_on_every_rank_and_the_ring_stays_usable() -> None:
    script = Path(__file__).parents[2] / "support" / "ranks" / "mismatch.py"
    first, second = (json.loads(lines[-1]) for lines in launch.run(2, [str(script)], timeout=60))
    for case in [name for name in first if "good" in name.split()]:
        assert (
            first.pop(case)
            == second.pop(case)
            == ["none", ["mlx"] if "512" in case else [DEFAULT] * ("unshard" not in case)]
        )
    kinds = {
        name for name in dir(ra) if isinstance(getattr(ra, name), type) and issubclass(getattr(ra, name), ra.RingError)
    }
    for case, (kind, message) in second.items():
        assert kind in kinds - {"PeerLost", "PeerStalled"} and any(word in message for word in case.split()), (
            case,
            kind,
            message,
        )
    for case, (kind, message) in first.items():
        reason = second[case]
        if "refused" in case.split():  # the other rank is told the reason
            assert kind == "MismatchError" and f"refused its arguments ({reason[0]}: {reason[1][:60]}" in message, (
                case,
                message,
            )
        else:
            assert kind == reason[0] and message.split(";")[0] == reason[1].split(";")[0], (case, message)
