"""The policy that actors run, in numpy: a multilayer perceptron with ReLU, its normalisation and its checkpoint.

Learners train the same network in MLX (`rl.algorithms.clone`); tests hold both to the same numbers. numpy because MLX is many times slower
on the CPU for products this small, ReLU because tanh is. The normalisation is part of the policy and travels in its checkpoint,
so training and evaluation cannot differ.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag

from rl.env.vector import VectorGridEnv
from rl.errors import DataError

Weights = NDArray[np.float32]
Layers = tuple[tuple[Weights, Weights], ...]  # (weight [out, in], bias [out]) from first to last
FORMAT = 1


@dataclass(frozen=True)
class Mlp:
    """A policy: observation [N, feature] → action [action, N], the network's output as it is; the environment projects it."""

    observation_names: tuple[str, ...]  # [feature] what it was trained on
    mean: Weights  # [feature]
    scale: Weights  # [feature] 1 / standard deviation
    layers: Layers
    folded: Layers = field(init=False, repr=False, compare=False)  # with the normalisation in the first

    def __post_init__(self) -> None:
        if self.mean.shape != (len(self.observation_names),) or self.layers[0][0].shape[1] != len(
            self.observation_names
        ):
            raise DataError(
                f"policy: {len(self.observation_names)} features, but a first layer of {self.layers[0][0].shape}"
            )
        weight, bias = self.layers[0]
        # (x - mean) · scale goes into the first layer: one product less an hour.
        first = weight * self.scale
        object.__setattr__(self, "folded", ((first, bias - first @ self.mean), *self.layers[1:]))

    def __call__(self, env: VectorGridEnv) -> Weights:
        if env.observation_names != self.observation_names:
            raise DataError("policy: the environment shows other features than those it was trained on")
        return self.act(env.observation)

    def act(self, observation: Weights) -> Weights:
        """float32 [N, feature] → float32 [action, N]."""
        return self.forward(observation)[1]

    def forward(self, observation: Weights) -> tuple[tuple[Weights, ...], Weights]:
        """float32 [N, feature] → what every hidden layer gives, [width, N] each, and float32 [action, N]."""
        x, hidden = observation.T, []
        for weight, bias in self.folded[:-1]:
            x = np.maximum(weight @ x + bias[:, None], 0)
            hidden.append(x)
        weight, bias = self.folded[-1]
        return tuple(hidden), weight @ x + bias[:, None]

    def with_layers(self, layers: Layers) -> Mlp:
        """The same features and normalisation, other weights."""
        return Mlp(self.observation_names, self.mean, self.scale, layers)


def normalisation(observations: Weights) -> tuple[Weights, Weights]:
    """Mean and 1 / standard deviation of every feature of [sample, feature]; a feature that never changes gets scale 1."""
    spread = observations.std(axis=0, dtype=np.float64)
    scale = np.where(spread > 1e-6, 1 / np.maximum(spread, 1e-6), 1.0)
    return observations.mean(axis=0, dtype=np.float64).astype(np.float32), scale.astype(np.float32)


def init_mlp(
    names: Sequence[str], mean: Weights, scale: Weights, actions: int, width: int, rng: np.random.Generator
) -> Mlp:
    """Two hidden layers of `width`, He et al. 2015; `mean` and `scale` [feature] normalise what it sees.

    The last layer starts small, so that the first policy does almost nothing.
    """
    sizes = (len(names), width, width, actions)
    gains = (2.0, 2.0, 0.01)
    layers = tuple(
        (rng.normal(0, np.sqrt(gain / inner), (outer, inner)).astype(np.float32), np.zeros(outer, np.float32))
        for inner, outer, gain in zip(sizes[:-1], sizes[1:], gains, strict=True)
    )
    return Mlp(tuple(names), mean, scale, layers)


def flatten(policy: Mlp) -> Weights:
    """All weights in one row, float32 [weight]."""
    return np.concatenate([array.ravel() for layer in policy.layers for array in layer])


def unflatten(policy: Mlp, weights: Weights) -> Mlp:
    """`policy` with these weights, a row [weight] as of `flat`."""
    layers, at = [], 0
    for weight, bias in policy.layers:
        ends = at + weight.size, at + weight.size + bias.size
        layers.append((weights[at : ends[0]].reshape(weight.shape), weights[ends[0] : ends[1]]))
        at = ends[1]
    return policy.with_layers(tuple(layers))


def combined(members: Sequence[Mlp]) -> Mlp:
    """One policy that does what its members, of equal depth, features and normalisation, do on average.

    Their hidden layers stand side by side, and what would join them is 0. DataError where their features or
    normalisation differ.
    """
    one = members[0]
    if any(
        m.observation_names != one.observation_names or (m.mean != one.mean).any() or (m.scale != one.scale).any()
        for m in members
    ):
        raise DataError("policies of other features or another normalisation do not combine")
    parts = list(zip(*(m.layers for m in members), strict=True))
    first, *between, last = [[weight for weight, _ in layer] for layer in parts]
    weights = [np.vstack(first), *(block_diag(*layer) for layer in between), np.hstack(last) / len(members)]
    biases = [np.concatenate([bias for _, bias in layer]) for layer in parts[:-1]]
    biases.append(np.mean([bias for _, bias in parts[-1]], axis=0))
    return one.with_layers(
        tuple((w.astype(np.float32), b.astype(np.float32)) for w, b in zip(weights, biases, strict=True))
    )


def to_bytes(policy: Mlp) -> bytes:
    """A .npz without pickle: format, names, normalisation, layers. Equal policies have equal bytes."""
    arrays: dict[str, NDArray] = {"format": np.array(FORMAT), "names": np.array(policy.observation_names)}
    arrays |= {"mean": policy.mean, "scale": policy.scale}
    for i, (weight, bias) in enumerate(policy.layers):
        arrays |= {f"weight.{i}": weight, f"bias.{i}": bias}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def from_bytes(content: bytes, what: str = "weights") -> Mlp:
    """The policy of `to_bytes`. DataError, naming `what`, for anything else."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            if int(file["format"]) != FORMAT:
                raise DataError(f"{what}: format {int(file['format'])}, this program reads {FORMAT}")
            count = sum(name.startswith("weight.") for name in file.files)
            layers = tuple((file[f"weight.{i}"], file[f"bias.{i}"]) for i in range(count))
            return Mlp(tuple(file["names"].tolist()), file["mean"], file["scale"], layers)
    except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{what}: not a policy's checkpoint ({error})") from error


def save(policy: Mlp, path: Path) -> None:
    """`to_bytes` as a file; written aside, then renamed."""
    aside = path.with_suffix(".tmp")
    aside.write_bytes(to_bytes(policy))
    aside.replace(path)


def load(path: Path) -> Mlp:
    """The policy of a checkpoint. DataError for a file that is none."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: not a policy's checkpoint ({error})") from error
    return from_bytes(content, str(path))
