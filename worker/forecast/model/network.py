"""The forecaster: a causal transformer on ring attention that predicts quantiles of a reference forecast's error.

One token an hour (from `ingest.features`), in rows of a respondent's day. Pre-norm blocks (Vaswani et al. 2017; RMSNorm, Zhang and Sennrich 2019),
attention over all hours of the last `context` hours of one respondent, its zone or all. Dropout masks are the same for all hours of a row (as in
Gal and Ghahramani 2016) and are drawn from the step's key, so that a run does not depend on the number of ranks that share the sequence.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from ringattn.attention import Group, ring_attention
from ringattn.layout import Layout

QUANTILES = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
MEDIAN = QUANTILES.index(0.5)
WAVES = (24.0, 8766.0)  # periods, hours: a day, a year
HOURS = 24  # of a row
CODE = 8  # width of a respondent's code, where days of several respondents are remembered
FORGOTTEN = 1e6  # squared distance of a row that remembers nothing: its weight is 0


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
    scope: str = "own"  # whose days a row remembers: those of its respondent, of its zone, of all


@dataclass(frozen=True)
class Batch:
    """This rank's part of one packed sequence, [row] or [24, row, …], in the order of its layout; tokens are the hours of the rows."""

    features: mx.array  # float32 [24, asked row, feature], normalised
    condition: mx.array  # float32 [row, condition], normalised
    memory: (
        mx.array
    )  # float32 [24, row, feature + 1]: the inputs of the remembered day's hours, and their outcomes (the targets)
    memory_condition: mx.array  # float32 [row, condition]
    remembers: mx.array  # float32 [row], 1 where any outcome of that day is known
    region: mx.array  # int32 [row], index of the respondent
    position: mx.array  # float32 [row], days from the start of the row's segment
    segment: mx.array  # int32 [row], rows of different segments do not attend to each other
    row: mx.array  # int32 [row], number in the whole sequence: hours of a row share their dropout masks
    asked: mx.array | None  # int32 [asked row], the rows to forecast, among this rank's; None: all
    rows: int  # of the whole sequence
    members: int  # respondents of the largest segment, each with a row a day
    layout: Layout  # of the rows of the whole sequence over the ranks

    def of_asked(self, x: mx.array, axis: int = 0) -> mx.array:
        """Return the asked rows of an array."""
        return x if self.asked is None else mx.take(x, self.asked, axis=axis)


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
        """Return the quantiles of the asked rows, float32 [24, asked row, len(QUANTILES)], ascending.

        Args:
            batch: the tokens.
            key: draws the dropout masks; None applies none (evaluation).
        """
        return ascending(self.head(self.embedding(batch, key)))

    def embedding(self, batch: Batch, key: mx.array | None = None) -> mx.array:
        """Return the input of the head, float32 [24, asked row, dim]: a summary of the hour, which control also reads."""
        masks = self.dropout_masks(batch, key)
        return self.summary(batch.features, batch.of_asked(batch.region), self.recall(batch), masks)

    def dropout_masks(self, batch: Batch, key: mx.array | None) -> list[mx.array] | None:
        """Draw the factors of each sum's dropout, float32 [asked row, dim]; None for a key of None or a rate of 0."""
        keep = 1 - self.config.dropout
        if key is None or keep == 1:
            return None
        shape = (batch.rows, self.config.dim)
        keys = mx.random.split(key, len(self.layers) + 2)
        drawn = (mx.random.bernoulli(keep, shape, key=one).astype(mx.float32) / keep for one in keys)
        return [mask[batch.of_asked(batch.row)] for mask in drawn]

    def summary(
        self, features: mx.array, region: mx.array, recalled: mx.array, masks: Sequence[mx.array] | None
    ) -> mx.array:
        """Return the input of the head of some hours of a day from what they recall; no hour of another row or hour enters.

        Args:
            features: [hour, row, feature].
            region: [row].
            recalled: [hour, row, dim].
            masks: as `dropout_masks` returns them.
        """
        drop = iter(masks or ())
        x = self.embed(features) + self.region(region)
        x = (x if masks is None else x * next(drop)) + (recalled if masks is None else recalled * next(drop))
        for layer in self.layers:
            x = x + (layer(x) if masks is None else layer(x) * next(drop))
        return self.norm(x)


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

    The score of hour h of row t for hour g of a remembered day s is -beta |m(c_t) - m(c_s)|² + w_year cos(ω (t - s)) + w_day cos(2π (h - g) / 24): the
    distance of the days' conditions, the season and the hour of the day. Whose days several respondents share, r_a · r_b is added, the product
    of learned codes of the two. Scores are sums of one of days and one of hours, so the softmax over all hours of all days is the product of two: over the days,
    which ring attention computes for the 24 remembered hours as heads, and over the hours of a day, 24 × 24 numbers. That is exact, and costs
    a 24th of attention between hours. The days' score is the dot product of q = (2 beta m, -beta, w_year turned by ω t, r_a) and k = (m', |m'|², 1
    turned by ω s, r_b), except for -beta |m|², which the softmax cancels. The heads share k and v and differ in beta and w.
    """

    def __init__(self, config: ModelConfig, group: Group) -> None:
        super().__init__()
        shared = config.scope != "own"
        width = config.head_dim - 2 * len(WAVES) - 1 - (CODE - 2 if shared else 0)
        self.metric = nn.Linear(config.conditions, width, bias=False)
        self.metric.weight = mx.random.normal(self.metric.weight.shape) / math.sqrt(width)
        self.log_beta = mx.log(mx.array([0.3 / 4.0**h for h in range(config.heads)]))
        self.wave = mx.array([[4.0, 1.0]] * config.heads)
        self.value = nn.Linear(config.features + config.conditions + 1, config.head_dim, bias=False)
        self.out = nn.Linear(config.heads * config.head_dim, config.dim, bias=False)
        if shared:
            self.code = mx.random.normal((config.regions, CODE)) / math.sqrt(CODE)
        self._config, self._group = config, group

    def __call__(self, batch: Batch) -> mx.array:
        """Return what each asked hour recalls, float32 [24, asked row, dim]."""
        c, rows = self._config, batch.position.shape[0]
        q, k = self._days(batch)
        width = self.value.weight.shape[1]
        ends = [c.features, width - 1]
        of_features, of_condition, of_outcome = mx.split(self.value.weight, ends, axis=1)
        value = batch.memory @ mx.concatenate([of_features, of_outcome], axis=1).T
        value = value + batch.memory_condition @ of_condition.T
        shape = (HOURS, c.heads, rows, c.head_dim)
        o = ring_attention(
            mx.broadcast_to(q, shape).reshape(1, -1, rows, c.head_dim),
            mx.broadcast_to(k, (1, HOURS, rows, c.head_dim)),
            value[None],
            scale=1.0,
            mask="causal",
            window=math.ceil(c.context / HOURS) * batch.members,
            segments=batch.segment,
            layout=batch.layout,
            group=self._group,
        )
        o = batch.of_asked(o, axis=2)
        apart = mx.arange(HOURS)[:, None] - mx.arange(HOURS)
        near = mx.softmax(
            self.wave[:, :1, None] * mx.cos(apart * (2 * math.pi / WAVES[0])), axis=-1
        )  # [head, hour, hour]
        o = near @ o.reshape(HOURS, c.heads, -1).swapaxes(0, 1)
        o = o.reshape(c.heads, -1, c.head_dim) @ self.out.weight.T.reshape(c.heads, c.head_dim, -1)
        return o.sum(axis=0).reshape(HOURS, -1, o.shape[-1])

    def _days(self, batch: Batch) -> tuple[mx.array, mx.array]:
        """Return queries [head, row, head_dim] and keys [row, head_dim] of days."""
        c, rows = self._config, batch.position.shape[0]
        now, then = self.metric(batch.condition), self.metric(batch.memory_condition)
        angle = batch.position * (2 * math.pi * HOURS / WAVES[1])
        turned = mx.stack([mx.cos(angle), mx.sin(angle)], axis=-1)
        beta = mx.exp(self.log_beta)[:, None, None]
        distance = (then * then).sum(axis=-1) + FORGOTTEN * (1 - batch.remembers)
        q = [2 * beta * now, mx.broadcast_to(-beta, (c.heads, rows, 1)), self.wave[:, 1:, None] * turned]
        k = [then, distance[:, None], turned]
        if c.scope != "own":
            code = self.code[batch.region]
            q.append(mx.broadcast_to(code, (c.heads, *code.shape)))
            k.append(code)
        free = c.head_dim - sum(x.shape[-1] for x in k)
        return mx.pad(mx.concatenate(q, axis=-1), [(0, 0), (0, 0), (0, free)]), mx.pad(
            mx.concatenate(k, axis=-1), [(0, 0), (0, free)]
        )


def ascending(raw: mx.array) -> mx.array:
    """Turn head outputs [..., level] into quantiles that never cross: the median unchanged, the others at positive distances."""
    steps = nn.softplus(raw)
    middle = raw[..., MEDIAN : MEDIAN + 1]
    below = middle - mx.cumsum(steps[..., :MEDIAN], axis=-1, reverse=True)
    above = middle + mx.cumsum(steps[..., MEDIAN + 1 :], axis=-1)
    return mx.concatenate([below, middle, above], axis=-1)


def pinball(quantiles: mx.array, target: mx.array) -> mx.array:
    """Return the mean over levels of twice the pinball loss, [...] (Koenker and Bassett 1978); at the median it is the absolute error."""
    miss = target[..., None] - quantiles
    levels = mx.array(QUANTILES)
    return 2 * mx.maximum(levels * miss, (levels - 1) * miss).mean(axis=-1)
