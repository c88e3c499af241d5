"""The policy that actors run, in numpy: a multilayer perceptron with ReLU, its normalisation and its checkpoint.

Learners train the same network in MLX (`rl.algorithms.clone`); a test compares both. numpy because MLX is many times slower on the
CPU for products this small, ReLU because tanh is slower too. The normalisation is part of the policy and of its checkpoint, so
training and evaluation cannot differ.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rl.env.vector import VectorGridEnv
from rl.errors import DataError

Weights = NDArray[np.float32]
Layers = tuple[tuple[Weights, Weights], ...]  # (weight [out, in], bias [out]) from first to last
FORMAT = 1


@dataclass(frozen=True)
class Mlp:
    """A policy: observation [N, feature] → action [action, N], the network's raw output; the environment projects it."""

    observation_names: tuple[str, ...]  # [feature] that it was trained on
    mean: Weights  # [feature]
    scale: Weights  # [feature] 1 / standard deviation
    layers: Layers
    folded: Layers = field(init=False, repr=False, compare=False)  # with the normalisation in the first

    def __post_init__(self) -> None:
        """Fold the normalisation into the first layer.

        Raises:
            DataError: The shapes do not fit one another.
        """
        count = len(self.observation_names)
        if self.mean.shape != (count,) or self.layers[0][0].shape[1] != count:
            raise DataError(f"policy: {count} features, but a first layer of {self.layers[0][0].shape}")
        weight, bias = self.layers[0]
        # (x - mean) · scale goes into the first layer: one product less an hour.
        first = weight * self.scale
        object.__setattr__(self, "folded", ((first, bias - first @ self.mean), *self.layers[1:]))

    def __call__(self, env: VectorGridEnv) -> Weights:
        """Return the actions [action, N] for the present observations of `env`.

        Raises:
            DataError: The environment's features differ from those that the policy was trained on.
        """
        if env.observation_names != self.observation_names:
            raise DataError(_difference(self.observation_names, env.observation_names))
        return self.act(env.observation)

    def act(self, observation: Weights) -> Weights:
        """Return the actions, float32 [action, N], for observations float32 [N, feature]."""
        return self.forward(observation)[1]

    def forward(self, observation: Weights) -> tuple[tuple[Weights, ...], Weights]:
        """Return the outputs of the hidden layers, [width, N] each, and the actions, float32 [action, N]."""
        x, hidden = observation.T, []
        for weight, bias in self.folded[:-1]:
            x = np.maximum(weight @ x + bias[:, None], 0)
            hidden.append(x)
        weight, bias = self.folded[-1]
        return tuple(hidden), weight @ x + bias[:, None]

    def with_layers(self, layers: Layers) -> Mlp:
        """Return a policy with the same features and normalisation and other weights."""
        return Mlp(self.observation_names, self.mean, self.scale, layers)


def _difference(own: Sequence[str], given: Sequence[str]) -> str:
    """Return the message for an environment whose features are not those of a policy."""
    lacking, more = ([name for name in one if name not in other] for one, other in ((own, given), (given, own)))
    parts = [
        f"{len(names)} {what}, first `{names[0]}`"
        for names, what in ((lacking, "are missing"), (more, "are new"))
        if names
    ]
    return (
        f"the policy was trained on {len(own)} features, the environment has {len(given)}: {'; '.join(parts) or 'their order differs'}. "
        '`rl.folder.trained("data")` returns a trained policy with the hours that it can be played on'
    )


def normalisation(observations: Weights) -> tuple[Weights, Weights]:
    """Return mean and 1 / standard deviation of each feature of [sample, feature]; a constant feature gets scale 1."""
    spread = observations.std(axis=0, dtype=np.float64)
    scale = np.where(spread > 1e-6, 1 / np.maximum(spread, 1e-6), 1.0)
    return observations.mean(axis=0, dtype=np.float64).astype(np.float32), scale.astype(np.float32)


def init_mlp(
    names: Sequence[str], mean: Weights, scale: Weights, actions: int, width: int, rng: np.random.Generator
) -> Mlp:
    """Initialise two hidden layers of `width` as He et al. 2015 do; `mean` and `scale` [feature] normalise the observations.

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
    """Return all weights in one row, float32 [weight]."""
    return np.concatenate([array.ravel() for layer in policy.layers for array in layer])


def unflatten(policy: Mlp, weights: Weights) -> Mlp:
    """Return `policy` with the weights of a row [weight] as `flatten` returns it."""
    layers, at = [], 0
    for weight, bias in policy.layers:
        ends = at + weight.size, at + weight.size + bias.size
        layers.append((weights[at : ends[0]].reshape(weight.shape), weights[ends[0] : ends[1]]))
        at = ends[1]
    return policy.with_layers(tuple(layers))


def combined(members: Sequence[Mlp]) -> Mlp:
    """Combine members of equal depth into one policy that takes their mean action.

    Their hidden layers lie next to each other, and the weights between them are 0.

    Raises:
        DataError: The members' features or normalisation differ.
    """
    from scipy.linalg import block_diag  # here: it takes longer to load than all else of an actor

    one = members[0]
    names = one.observation_names
    if any(m.observation_names != names or (m.mean != one.mean).any() or (m.scale != one.scale).any() for m in members):
        raise DataError(
            "the members of an ensemble have different features or normalisation; train them on the same datasets"
        )
    parts = list(zip(*(m.layers for m in members), strict=True))
    first, *between, last = [[weight for weight, _ in layer] for layer in parts]
    weights = [np.vstack(first), *(block_diag(*layer) for layer in between), np.hstack(last) / len(members)]
    biases = [np.concatenate([bias for _, bias in layer]) for layer in parts[:-1]]
    biases.append(np.mean([bias for _, bias in parts[-1]], axis=0))
    return one.with_layers(
        tuple((w.astype(np.float32), b.astype(np.float32)) for w, b in zip(weights, biases, strict=True))
    )


def to_bytes(policy: Mlp) -> bytes:
    """Serialize as a .npz without pickle: format, names, normalisation, layers. Equal policies give equal bytes."""
    arrays: dict[str, NDArray] = {"format": np.array(FORMAT), "names": np.array(policy.observation_names)}
    arrays |= {"mean": policy.mean, "scale": policy.scale}
    for i, (weight, bias) in enumerate(policy.layers):
        arrays |= {f"weight.{i}": weight, f"bias.{i}": bias}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def from_bytes(content: bytes, what: str = "weights") -> Mlp:
    """Return the policy of `to_bytes`; errors name `what`.

    Raises:
        DataError: The content is not a policy's checkpoint, or one of another format.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            if int(file["format"]) != FORMAT:
                raise DataError(f"{what}: format {int(file['format'])}; this version reads format {FORMAT}")
            count = sum(name.startswith("weight.") for name in file.files)
            layers = tuple((file[f"weight.{i}"], file[f"bias.{i}"]) for i in range(count))
            return Mlp(tuple(file["names"].tolist()), file["mean"], file["scale"], layers)
    except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{what}: not a policy's checkpoint ({error})") from error


def load(path: Path) -> Mlp:
    """Read a policy's checkpoint.

    Raises:
        DataError: The file is not a policy's checkpoint.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: not a policy's checkpoint ({error})") from error
    return from_bytes(content, str(path))
