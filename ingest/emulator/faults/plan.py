"""Faults by plan: which request is spoiled, in which form, how often. Pure, and independent of concurrency.

A plan is a JSON list of rules, tried in order; the first that hits decides:

    {"kind": "short", "match": {"route": "region-data", "respondent": "PACW", "start": "2024-01-01T00", "offset": 0,
     "probability": 0.1, "nth": [1, 2]}, "times": 1, "params": {"rows": 100}}

`match` may leave out anything. `nth` counts the asks of one and the same page, from 1; without it a rule hits the first
`times` asks of each page that it matches (default 1; null: every ask). `probability` is drawn once for each page from the
seed. So it depends on the page and on how often it was asked, never on the order in which different pages are asked.

Kinds (`params` with their defaults):
  429 {retry_after: null}   403-suspend {seconds: 0: the key is refused for that long, in emulated time}
  403-invalid               500-404        502        html (a notice under 200)
  truncated {keep: 0.6}: a complete answer whose content ends early       cut {keep: 0.5}: the connection ends early
  short {rows: 100}: rows dropped, `total` as before                      repeated {rows: 50}: rows twice, count as before
  total {delta: 100}: a wrong total (negative: too low)                   case: names and codes in another case
  nulls {rows: 20}: values lost        reset: RST {keep: 0: share of the body sent before}
  slow {seconds: 2}: silence, then the answer      dribble {seconds: 2}: the body in small pieces over that time
  oasis-error {code: 1001}: the error zip under 200
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

KINDS = (
    "429",
    "403-suspend",
    "403-invalid",
    "500-404",
    "502",
    "html",
    "truncated",
    "cut",
    "short",
    "repeated",
    "total",
    "case",
    "nulls",
    "reset",
    "slow",
    "dribble",
    "oasis-error",
)
_MATCH = {"route", "respondent", "start", "offset", "probability", "nth"}


class FaultPlanError(ValueError):
    """The plan can't be read; the message names the rule."""


@dataclass(frozen=True)
class Target:
    """What a rule is matched against: one page, whoever asks."""

    route: str
    respondent: str  # codes joined by "+", "*" for all
    start: str
    end: str
    offset: int

    def __str__(self) -> str:
        return f"{self.route}/{self.respondent}/{self.start}..{self.end}/{self.offset}"


@dataclass(frozen=True)
class Rule:
    """Which requests are spoilt, and how; None matches all."""

    kind: str
    route: str | None = None
    respondent: str | None = None
    start: str | None = None
    offset: int | None = None
    probability: float = 1.0
    nth: tuple[int, ...] = ()
    times: int | None = 1
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """A rule that met a request."""

    kind: str
    params: dict[str, Any]
    seed: int  # for what is drawn inside the fault: which rows


def parse_plan(plan: Any) -> tuple[Rule, ...]:
    """A JSON value → rules. FaultPlanError names what is wrong."""
    if not isinstance(plan, list):
        raise FaultPlanError("a fault plan is a JSON list of rules")
    rules = []
    for number, item in enumerate(plan):
        if not isinstance(item, dict) or item.get("kind") not in KINDS:
            raise FaultPlanError(f"rule {number}: `kind` must be one of {', '.join(KINDS)}")
        match = item.get("match", {})
        if extra := (set(item) - {"kind", "match", "times", "params"}) | (set(match) - _MATCH):
            raise FaultPlanError(f"rule {number}: unknown {', '.join(sorted(extra))}")
        nth = match.get("nth", ())
        rules.append(
            Rule(
                kind=item["kind"],
                route=match.get("route"),
                respondent=match.get("respondent"),
                start=match.get("start"),
                offset=match.get("offset"),
                probability=match.get("probability", 1.0),
                nth=(nth,) if isinstance(nth, int) else tuple(nth),
                times=item.get("times", 1),
                params=item.get("params", {}),
            )
        )
    return tuple(rules)


class FaultPlan:
    """Rules, and what they have hit so far."""

    def __init__(self, rules: tuple[Rule, ...], seed: int) -> None:
        self._rules = rules
        self._seed = seed
        self._asked: Counter[Target] = Counter()
        self._hits: Counter[tuple[int, Target]] = Counter()

    def next(self, target: Target) -> Fault | None:
        """Count one ask of the page and say how to spoil it, if at all."""
        if not self._rules:
            return None
        self._asked[target] += 1
        for number, rule in enumerate(self._rules):
            if not _matches(rule, target) or not self._due(number, rule, target):
                continue
            self._hits[number, target] += 1
            return Fault(rule.kind, rule.params, self._draw(number, target))
        return None

    def _due(self, number: int, rule: Rule, target: Target) -> bool:
        if rule.nth:
            if self._asked[target] not in rule.nth:
                return False
        elif rule.times is not None and self._hits[number, target] >= rule.times:
            return False
        return rule.probability >= 1 or self._draw(number, target) < rule.probability * 2**32

    def _draw(self, number: int, target: Target) -> int:
        return int.from_bytes(
            hashlib.blake2b(f"{self._seed}/{number}/{target}".encode(), digest_size=4).digest(), "big"
        )


def _matches(rule: Rule, target: Target) -> bool:
    return (
        rule.route in (None, target.route)
        and rule.respondent in (None, target.respondent)
        and rule.start in (None, target.start)
        and rule.offset in (None, target.offset)
    )
