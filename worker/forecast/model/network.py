"""The forecaster: a causal transformer on ring attention that predicts quantiles of a reference forecast's error.

One token an hour (from `ingest.features`). Pre-norm blocks (Vaswani et al. 2017; RMSNorm, Zhang and Sennrich 2019), grouped-query
attention (Ainslie et al. 2023) with rotary positions in hours (Su et al. 2021), a sliding window of `context` hours. Dropout masks are
the same for all hours of a local day of one segment (as in Gal and Ghahramani 2016) and are drawn from the step's key, so that a run
does not depend on the number of ranks that share the sequence.
"""

import math
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from ringattn.attention import Group, ring_attention
from ringattn.layout import Layout

QUANTILES = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
MEDIAN = QUANTILES.index(0.5)
WAVES = (24.0, 8766.0)  # periods, hours: a day, a year


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the model; a checkpoint fits only its own shape."""

    features: int  # of a token
    conditions: int  # inputs that describe a day
    regions: int  # number of respondents
    context: int = 8760  # hours that a token attends to
    dim: int = 64
    layers: int = 2  # of the feed-forward part
    heads: int = 2
    head_dim: int = 32
    hidden: int = 128  # of a feed-forward layer
    dropout: float = 0.3


@dataclass(frozen=True)
class Batch:
    """This rank's tokens of one packed sequence, [T] or [T, …], in the order of its layout."""

    features: mx.array  # float32 [T, feature], normalised
    condition: mx.array  # float32 [T, condition], normalised
    memory: (
        mx.array
    )  # float32 [T, feature + condition + 1]: the inputs of the remembered hour, and its outcome (the target)
    region: mx.array  # int32 [T], index of the respondent
    position: mx.array  # float32 [T], hours from the start of the token's segment
    segment: mx.array  # int32 [T], tokens of different segments do not attend to each other
    day: mx.array  # int32 [T], number of the day, over all segments: tokens of a day share their dropout masks
    days: int  # of the whole sequence
    layout: Layout  # of the whole sequence over the ranks


class Forecaster(nn.Module):
    """Predict quantiles of the target from a Batch.

    Args:
        config: shape of the model.
        group: ranks that share a sequence; None is MLX's global group.
    """

    def __init__(self, config: ModelConfig, *, group: Group = None) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.features, config.dim)
        self.region = nn.Embedding(config.regions, config.dim)
        self.region.weight = mx.zeros_like(self.region.weight)
        self.recall = _Recall(config, group)
        self.layers = [_FeedForward(config) for _ in range(config.layers)]
        self.norm = nn.RMSNorm(config.dim)
        self.head = nn.Linear(config.dim, len(QUANTILES))
        # At the start the forecast is the reference, with intervals of about one scale.
        self.head.weight, self.head.bias = mx.zeros_like(self.head.weight), mx.zeros_like(self.head.bias)

    def __call__(self, batch: Batch, key: mx.array | None = None) -> mx.array:
        """Return the quantiles, float32 [T, len(QUANTILES)], ascending.

        Args:
            batch: the tokens.
            key: draws the dropout masks; None applies none (evaluation).
        """
        return ascending(self.head(self.embedding(batch, key)))

    def embedding(self, batch: Batch, key: mx.array | None = None) -> mx.array:
        """Return the input of the head, float32 [T, dim]: a summary of the hour, which control also reads."""
        count = len(self.layers) + 2
        keys = [None] * count if key is None else list(mx.random.split(key, count))
        rate = self.config.dropout
        x = _drop_days(self.embed(batch.features) + self.region(batch.region), rate, batch, keys[0])
        x = x + _drop_days(self.recall(batch), rate, batch, keys[1])
        for layer, own in zip(self.layers, keys[2:], strict=True):
            x = x + _drop_days(layer(x), rate, batch, own)
        return self.norm(x)


def _drop_days(x: mx.array, rate: float, batch: Batch, key: mx.array | None) -> mx.array:
    """Apply dropout to x [T, dim] with one mask a day; a key of None applies none."""
    if key is None or rate == 0:
        return x
    keep = 1 - rate
    masks = mx.random.bernoulli(keep, (batch.days, x.shape[-1]), key=key).astype(mx.float32) / keep
    return x * masks[batch.day]


class _FeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.dim)
        self.up = nn.Linear(config.dim, config.hidden)
        self.down = nn.Linear(config.hidden, config.dim)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down(nn.relu(self.up(self.norm(x))))


class _Recall(nn.Module):
    """Attention to similar hours: a kernel regression (Nadaraya 1964, Watson 1964) with a learned metric.

    The score of hour t for a remembered hour s is -beta |m(c_t) - m(c_s)|² + Σ_j w_j cos(ω_j (t - s)): the distance of the days'
    conditions, the hour of the day and the season. With m' = m(c_s) it is the dot product of q = (2 beta m, -beta, w turned by ω t) and
    k = (m', |m'|², 1 turned by ω s), except for -beta |m|², which the softmax cancels. The heads share k and v and differ in beta and w.
    """

    def __init__(self, config: ModelConfig, group: Group) -> None:
        super().__init__()
        width = config.head_dim - 2 * len(WAVES) - 1
        self.metric = nn.Linear(config.conditions, width, bias=False)
        self.metric.weight = mx.random.normal(self.metric.weight.shape) / math.sqrt(width)
        self.log_beta = mx.log(mx.array([0.3 / 4.0**h for h in range(config.heads)]))
        self.wave = mx.array([[4.0, 1.0]] * config.heads)
        self.value = nn.Linear(config.features + config.conditions + 1, config.head_dim, bias=False)
        self.out = nn.Linear(config.heads * config.head_dim, config.dim, bias=False)
        self._config, self._group = config, group

    def __call__(self, batch: Batch) -> mx.array:
        c, n = self._config, batch.position.shape[0]
        now = self.metric(batch.condition)
        then = self.metric(batch.memory[:, c.features : c.features + c.conditions])
        angles = batch.position[:, None] * mx.array([2 * math.pi / wave for wave in WAVES])
        turned = mx.stack([mx.cos(angles), mx.sin(angles)], axis=-1)
        beta = mx.exp(self.log_beta)[:, None, None]
        waves = (self.wave[:, None, :, None] * turned).reshape(c.heads, n, -1)
        q = mx.concatenate([2 * beta * now, mx.broadcast_to(-beta, (c.heads, n, 1)), waves], axis=-1)
        k = mx.concatenate([then, (then * then).sum(axis=-1, keepdims=True), turned.reshape(n, -1)], axis=-1)
        o = ring_attention(
            q[None],
            k[None, None],
            self.value(batch.memory)[None, None],
            scale=1.0,
            mask="causal",
            window=c.context,
            segments=batch.segment,
            layout=batch.layout,
            group=self._group,
        )
        return self.out(o[0].swapaxes(0, 1).reshape(n, -1))


def ascending(raw: mx.array) -> mx.array:
    """Turn head outputs [T, level] into quantiles that never cross: the median unchanged, the others at positive distances."""
    steps = nn.softplus(raw)
    middle = raw[:, MEDIAN : MEDIAN + 1]
    below = middle - mx.cumsum(steps[:, :MEDIAN], axis=1, reverse=True)
    above = middle + mx.cumsum(steps[:, MEDIAN + 1 :], axis=1)
    return mx.concatenate([below, middle, above], axis=1)


def pinball(quantiles: mx.array, target: mx.array) -> mx.array:
    """Return the mean over levels of twice the pinball loss, [T] (Koenker and Bassett 1978); at the median it is the absolute error."""
    miss = target[:, None] - quantiles
    levels = mx.array(QUANTILES)
    return 2 * mx.maximum(levels * miss, (levels - 1) * miss).mean(axis=1)
