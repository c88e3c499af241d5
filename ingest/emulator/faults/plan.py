"""Fault plans: which request gets a fault, of which kind, how often. Deterministic and independent of concurrency.

A plan is a JSON list of rules, tried in order; the first that applies decides:

    {"kind": "short", "match": {"route": "region-data", "respondent": "PACW", "start": "2024-01-01T00", "offset": 0,
     "probability": 0.1, "nth": [1, 2]}, "times": 1, "params": {"rows": 100}}

Every key of `match` is optional. `nth` counts the requests for one and the same page, from 1; without it a rule applies
to the first `times` requests for each page that it matches (default 1; null: every request). `probability` is drawn once
for each page from the seed. So a fault depends on the page and on the number of requests for it, never on the order in which
different pages are requested.

Kinds (`params` with their defaults):
  429 {retry_after: null}   403-suspend {seconds: 0: the key is refused for that long, in emulated time}
  403-invalid               500-404        502        html (a notice under 200)
  truncated {keep: 0.6}: a complete response whose content ends early     cut {keep: 0.5}: the connection ends early
  short {rows: 100}: rows dropped, `total` as before                      repeated {rows: 50}: rows twice, count as before
  total {delta: 100}: a wrong total (negative: too low)                   case: names and codes in another case
  nulls {rows: 20}: values lost        reset: RST {keep: 0: share of the body sent before}
  slow {seconds: 2}: silence, then the response      dribble {seconds: 2}: the body in small pieces over that time
  oasis-error {code: 1001}: the error zip under 200
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

# fmt: off
KINDS = (
    "429", "403-suspend", "403-invalid", "500-404", "502", "html", "truncated", "cut", "short", "repeated", "total",
    "case", "nulls", "reset", "slow", "dribble", "oasis-error",
)
# fmt: on
_MATCH = {"route", "respondent", "start", "offset", "probability", "nth"}


class FaultPlanError(ValueError):
    """The plan can't be read; the message names the rule."""


@dataclass(frozen=True)
class Target:
    """Identify one page, whichever client requests it: the subject of a rule's `match`."""

    route: str
    respondent: str  # codes joined by "+", "*" for all
    start: str
    end: str
    offset: int = 0

    def __str__(self) -> str:
        """Return the name from which the page's draws are seeded."""
        return f"{self.route}/{self.respondent}/{self.start}..{self.end}/{self.offset}"


@dataclass(frozen=True)
class Rule:
    """State which requests get a fault, and which one; None matches all."""

    kind: str
    route: str | None = None
    respondent: str | None = None
    start: str | None = None
    offset: int | None = None
    probability: float = 1.0
    nth: tuple[int, ...] = ()
    times: int | None = 1
    params: dict[str, Any] = field(default_factory=dict)

    def matches(self, target: Target) -> bool:
        """Return whether the rule concerns the page."""
        names = ("route", "respondent", "start", "offset")
        return all(getattr(self, name) in (None, getattr(target, name)) for name in names)


@dataclass(frozen=True)
class Fault:
    """Hold the fault of one request."""

    kind: str
    params: dict[str, Any]
    seed: int  # of the draws inside the fault, such as which rows


def parse_plan(plan: Any) -> tuple[Rule, ...]:
    """Convert a JSON value to rules.

    Returns:
        The rules, in the order of the plan.

    Raises:
        FaultPlanError: The value is no list of rules; the message names the rule and what is wrong.
    """
    if not isinstance(plan, list):
        raise FaultPlanError("a fault plan is a JSON list of rules")
    rules = []
    for number, item in enumerate(plan):
        if not isinstance(item, dict) or item.get("kind") not in KINDS:
            raise FaultPlanError(f"rule {number}: `kind` must be one of {', '.join(KINDS)}")
        match = dict(item.get("match", {}))
        if extra := (set(item) - {"kind", "match", "times", "params"}) | (set(match) - _MATCH):
            raise FaultPlanError(f"rule {number}: unknown {', '.join(sorted(extra))}")
        nth = match.pop("nth", ())
        match["nth"] = (nth,) if isinstance(nth, int) else tuple(nth)
        rules.append(Rule(item["kind"], **match, times=item.get("times", 1), params=item.get("params", {})))
    return tuple(rules)


class FaultPlan:
    """Apply rules to requests, and count the requests and the faults of each page."""

    def __init__(self, rules: tuple[Rule, ...], seed: int) -> None:
        """Start with no request counted."""
        self._rules = rules
        self._seed = seed
        self._requests: Counter[Target] = Counter()
        self._hits: Counter[tuple[int, Target]] = Counter()

    def next(self, target: Target) -> Fault | None:
        """Count one request for the page and return its fault, if any."""
        if not self._rules:
            return None
        self._requests[target] += 1
        for number, rule in enumerate(self._rules):
            if rule.matches(target) and self._due(number, rule, target):
                self._hits[number, target] += 1
                return Fault(rule.kind, rule.params, self._draw(number, target))
        return None

    def _due(self, number: int, rule: Rule, target: Target) -> bool:
        if rule.nth:
            due = self._requests[target] in rule.nth
        else:
            due = rule.times is None or self._hits[number, target] < rule.times
        return due and (rule.probability >= 1 or self._draw(number, target) < rule.probability * 2**32)

    def _draw(self, number: int, target: Target) -> int:
        text = f"{self._seed}/{number}/{target}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")
