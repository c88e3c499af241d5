"""Files of a sharded cache: one a rank, safetensors with rank, number of ranks, positions, prompt and the model's digest.

A cache that another number of ranks saved is read from all of its files, and spread anew.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ringattn._errors import ArgumentError
from ringattn.lm._command import refused

FORMAT = "1"


@dataclass(frozen=True)
class Shard:
    """What one rank keeps.

    Attributes:
        rank: its number.
        size: number of ranks.
        tokens: tokens of the whole sequence.
        windows: of each layer.
        model: the model's digest.
        arrays: "owner" uint8 [tokens], "prompt" int32, and of each layer i "i.keys", "i.values" [B, Hkv, T, D] and "i.positions" int32 [T].
    """

    rank: int
    size: int
    tokens: int
    windows: tuple[int | None, ...]
    model: str
    arrays: dict[str, mx.array]


def path_of(folder: Path, rank: int, size: int) -> Path:
    """Return the file of a rank's shard."""
    return folder / f"cache-{rank}-of-{size}.safetensors"


def write(folder: Path, shard: Shard) -> None:
    """Write a shard under its name; a file that is there is replaced at once, when the new one is complete."""
    path = path_of(folder, shard.rank, shard.size)
    partial = path.with_name(f".{path.stem}.tmp.safetensors")  # MLX appends the suffix where it is missing
    facts = {"format": FORMAT, "rank": str(shard.rank), "size": str(shard.size), "tokens": str(shard.tokens)}
    facts |= {"windows": json.dumps(shard.windows), "model": shard.model}
    with refused(
        f"{folder}: the cache cannot be written", "name a folder that can be written, e.g. --prompt-cache-file"
    ):
        folder.mkdir(parents=True, exist_ok=True)
        mx.save_safetensors(str(partial), shard.arrays, facts)
        partial.replace(path)


def read(folder: Path, rank: int, size: int) -> Iterator[Shard]:
    """Yield this rank's shard, or all shards of a cache of another number of ranks, in their order.

    Args:
        folder: the folder that `write` got.
        rank: this rank.
        size: number of ranks.

    Raises:
        ArgumentError: if files are missing or are not of this format.
    """
    if path_of(folder, rank, size).is_file():
        yield _read(path_of(folder, rank, size))
        return
    found = sorted(folder.glob("cache-*-of-*.safetensors"))
    sizes = {int(path.stem.rpartition("-")[2]) for path in found}
    if size in sizes or len(sizes) != 1:
        raise ArgumentError(
            f"{folder} has no file for rank {rank} of {size}, but {[path.name for path in found] or 'none at all'}; "
            "each host needs its own rank's file, or all files of a cache of one other number of ranks"
        )
    (other,) = sizes
    missing = [path_of(folder, r, other).name for r in range(other) if not path_of(folder, r, other).is_file()]
    if missing:
        raise ArgumentError(
            f"{folder} is a cache of {other} ranks; to spread it over {size} every host needs all of its files, but {missing} are missing"
        )
    for r in range(other):
        yield _read(path_of(folder, r, other))


def _read(path: Path) -> Shard:
    try:
        found: Any = mx.load(str(path), return_metadata=True)
    except (RuntimeError, OSError) as error:
        raise ArgumentError(f"{path} cannot be read ({error}); delete it and compute the prompt again") from error
    arrays, facts = found
    if facts.get("format") != FORMAT:
        raise ArgumentError(f"{path} is no cache of this version; delete it and compute the prompt again")
    windows = tuple(json.loads(facts["windows"]))
    return Shard(int(facts["rank"]), int(facts["size"]), int(facts["tokens"]), windows, facts["model"], arrays)


def check(shard: Shard, folder: Path, windows: Sequence[int | None], model: str, prompt: Sequence[int] | None) -> None:
    """Check that a shard is of this model, and of a beginning of this prompt.

    Args:
        shard: as read.
        folder: for the message.
        windows: of the model's layers.
        model: the model's digest.
        prompt: token ids; None: any.

    Raises:
        ArgumentError: if it is not.
    """
    if shard.model != model or shard.windows != tuple(windows):
        raise ArgumentError(f"{folder} is the cache of another model; name another folder, or delete it")
    kept = np.array(shard.arrays["prompt"]).tolist()
    if prompt is not None and list(prompt[: len(kept)]) != kept:
        first = next(
            (i for i, (a, b) in enumerate(zip(kept, prompt, strict=False)) if a != b), min(len(kept), len(prompt))
        )
        raise ArgumentError(
            f"{folder} holds another prompt, of {len(kept)} tokens: it differs from token {first} on; name another folder, or delete it"
        )
    if prompt is not None and len(kept) >= len(prompt):
        raise ArgumentError(
            f"{folder} holds all {len(kept)} tokens of the prompt, and the last must be computed; name another folder, or delete it"
        )
