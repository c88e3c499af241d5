"""Two-stage plans on paths of the load: many stochastic programs at once, by an interior-point method in numpy.

The decisions of a plan's first hours are common; after them every path has its own, made in knowledge of that path. The cost is the
weighted mean over paths, and one path's cost is the linear program of `rl.planning.optimum`. HiGHS needs seconds for 20 paths of 36
hours; here all episodes of a rollout are solved side by side, because they have the same shape in every hour.

Method: primal-dual, feasible throughout (Wright 1997, "Primal-dual interior-point methods", chapter 5). An inequality s >= 0 with
multiplier z adds (z / s) (ds)^2 to a quadratic model. What concerns one hour is eliminated by hand. What remains is a chain of states
x = (charges after the hour, power given in it), solved from the last hour to the first with one small matrix an hour, as in Rao, Wright
and Rawlings 1998. The chains of the paths meet in the state after the last common hour.

Arrays are [..., hour, path, plan]; a path's own hours are plans of one path, in the order path x plan.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rl.env.grid import Array, Grid
from rl.errors import DataError, SolveError

Single = NDArray[np.float32]

REACH_KNOTS = 0.02  # reference peaks beyond what the fleet can move, within which a knot of the merit order is kept
PULL = 1e5  # $ per (reference peak x 1 h)^2: pulls a plan's last charge to rest
START = 0.3  # complementarity of every inequality at the start, $ per MW of reference peak
GAP = 5e-2  # all complementarity of a plan at the end: the cost is within it of the least; a plan's is some hundred
WARM = 0.02  # START of plans that begin near the ones of the hour before
MIXED = 0.05  # share of the cold start in a warm one
CLEAR = 0.02  # share of the cold start's distance to a bound that a warm one keeps
BACK = 0.995  # share of the way to the nearest bound that a step takes
MOST_STEPS = 80


@dataclass(frozen=True)
class FirstHour:
    """The decision of the first hour of each plan."""

    power: Array  # [store, plan] into the grid
    shed: Array  # [plan]
    steps: int  # of the method
    plan: Array  # [variable, hour, path, plan] given, taken, charge of each store, shed load; one path if all hours are common


class TwoStage:
    """Programs of one fleet: `solve` plans `len(loads)` hours for any number of plans."""

    def __init__(self, grid: Grid, common: int, gap: float = GAP) -> None:
        """Plan for `grid` with `common` hours whose decisions are the same in every path.

        Raises:
            DataError: No hour is common.
        """
        if common < 1:
            raise DataError(f"{common} common hours: at least the first hour's decision is common")
        self.grid, self.common, self.gap = grid, common, gap

    def solve(self, loads: Array, before: Array, charge: Array, weights: Array, near: Array | None = None) -> FirstHour:
        """Find the plans of least mean cost; each ends at rest.

        Args:
            loads: [hour, path, plan].
            before: Residual load of the hour before, [plan].
            charge: At the start, [store, plan]; rest must be reachable.
            weights: Of the paths, [path], sum 1.
            near: Plans near the best ones, `FirstHour.plan` of an hour before: fewer steps.

        Raises:
            DataError: A load is not finite.
            SolveError: The method did not converge.
        """
        if not np.isfinite(loads).all():
            raise DataError("a path of the load is not finite")
        hours, paths, plans = loads.shape
        common = min(self.common, hours)
        start = START if near is None else WARM
        ahead = None if near is None else near[:, :common].mean(axis=2)
        chains = [_Chain(self.grid, loads[:common], weights[:, None], 1.0, charge, ahead)]
        if hours > common:
            own = loads[common:].reshape(hours - common, 1, paths * plans)
            ahead = None if near is None else near[:, common:].reshape(len(near), -1, paths * plans)
            share = np.repeat(weights, plans)
            begin = np.repeat(chains[0].charge[:, -1:], paths, axis=1).reshape(-1, paths * plans)
            chains.append(_Chain(self.grid, own, share, share, begin, ahead))
        chains[0].ramp_from(np.broadcast_to(before, (1, paths, plans)))
        if len(chains) > 1:
            chains[1].ramp_from(chains[0].residual[-1].reshape(1, 1, -1))
        chains[-1].end_at_rest()
        for chain in chains:
            chain.start(start)
        count = sum(chain.inequalities(plans) for chain in chains)
        centre, gap = np.full(plans, 0.3), _gap(chains, plans)
        for step in range(MOST_STEPS):
            if (gap < self.gap).all():
                return FirstHour(chains[0].power[:, 0], chains[0].value[-1, 0], step, _joined(chains, paths))
            # A plan that is done stays at its complementarity: below it the arithmetic would end.
            mu = np.maximum(centre * gap, 0.7 * self.gap) / count
            length = np.minimum(1, BACK * self._step(chains, mu))
            for chain in chains:
                chain.move(*(np.tile(each, chain.plans // plans) for each in length))
            gap = _gap(chains, plans)
            centre = ((1 - length.min(axis=0)) ** 3).clip(0.03, 0.6)
        raise SolveError(f"{int((gap >= self.gap).sum())} of {plans} two-stage plans did not converge")

    @staticmethod
    def _step(chains: list["_Chain"], mu: Array) -> Array:
        """Compute the step of every chain; return the longest length of primal and dual that keeps all inequalities, [2, plan]."""
        plans, states = len(mu), len(chains[0].grid.stores) + 1
        hessian, gradient = np.zeros((states, states, chains[-1].plans)), np.zeros((states, chains[-1].plans))
        for chain in reversed(chains):
            if chain.plans != gradient.shape[-1]:  # the paths meet
                hessian = hessian.reshape(states, states, -1, plans).sum(axis=2)
                gradient = gradient.reshape(states, -1, plans).sum(axis=1)
            chain.model(np.tile(mu, chain.plans // plans))
            hessian, gradient = chain.backward(hessian, gradient)
        state, longest = np.zeros((states, plans)), np.full((2, plans), np.inf)
        for chain in chains:
            if chain.plans != state.shape[-1]:
                state = np.repeat(state[:, None], chain.plans // plans, axis=1).reshape(states, -1)
            state = chain.forward(state)
            longest = np.minimum(longest, chain.longest().reshape(2, -1, plans).min(axis=1))
        return longest


def _gap(chains: list["_Chain"], plans: int) -> Array:
    return np.sum([chain.complementarity().reshape(-1, plans).sum(axis=0) for chain in chains], axis=0)


def _joined(chains: list["_Chain"], paths: int) -> Array:
    """Return the plans of the chains as one, [variable, hour, path, plan]."""
    first = chains[0].value[:, :, None]
    if len(chains) == 1:
        return first
    shape = len(first), first.shape[1], paths, first.shape[3]
    own = chains[1].value.reshape(len(first), -1, *shape[2:])
    return np.concatenate([np.broadcast_to(first, shape), own], axis=1)


@dataclass
class _Lines:
    """Costs y >= intercept + slope * x of a quantity x, the pieces of a convex function; [line, hour, path, plan].

    These arrays are most of the work. Slacks are kept, not computed as differences, so float32 is exact enough.
    """

    slope: Single
    slack: Single
    dual: Single
    weight: Array  # of y in the cost
    step: tuple[Array, Array] = field(init=False)
    change: tuple[Single, Single] = field(init=False)

    @classmethod
    def of(cls, lines: Array, slope: Array, weight: Array, room: Array) -> "_Lines":
        """Start with y `room` above the highest of `lines`."""
        slack = lines.max(axis=0) + room - lines
        dual = 1 / slack
        dual *= weight / dual.sum(axis=0)
        return cls(slope.astype(np.float32), slack.astype(np.float32), dual.astype(np.float32), weight)

    def model(self, mu: Array) -> tuple[Array, Array]:
        """Return the second and first derivative by x, with y eliminated."""
        inverse = 1 / self.slack
        curve = self.dual * inverse
        inverse *= mu.astype(np.float32)
        tilted = curve * self.slope
        yy, yx, xx = (each.sum(axis=0, dtype=float) for each in (curve, -tilted, tilted * self.slope))
        by_y = self.weight - inverse.sum(axis=0, dtype=float)
        by_x = (inverse * self.slope).sum(axis=0, dtype=float)
        self.step = -by_y / yy, -yx / yy
        return xx - yx**2 / yy, by_x - yx * by_y / yy

    def towards(self, dx: Array, mu: Array) -> tuple[Single, Single]:
        """Compute the step for a step `dx`; return the relative fall of slacks and duals."""
        by_y = (self.step[0] + self.step[1] * dx).astype(np.float32)
        rise = by_y - self.slope * dx.astype(np.float32)
        dual = (mu.astype(np.float32) - self.dual * rise) / self.slack - self.dual
        self.change = rise, dual
        return -rise / self.slack, -dual / self.dual

    def move(self, primal: Array, dual: Array) -> None:
        """Take the step."""
        self.slack += primal.astype(np.float32) * self.change[0]
        self.dual += dual.astype(np.float32) * self.change[1]


class _Chain:
    """Consecutive hours of plans side by side, each with the loads of one or several paths."""

    def __init__(
        self, grid: Grid, load: Array, weight: Array, share: Array | float, charge: Array, near: Array | None
    ) -> None:
        """Start strictly inside all bounds.

        Args:
            grid: Of the fleet.
            load: [hour, path, plan].
            weight: Of a path's cost, as wide as [path, plan].
            share: Of the plan's own costs (stores, shed), a number or [plan].
            charge: Before the first hour, [store, plan].
            near: Values to start near, [variable, hour, plan], perhaps without the last hours.
        """
        self.grid, self.weight, self.share = grid, weight, share
        self.hours, self.paths, self.plans = load.shape
        self.stores = len(grid.stores)
        self.into = grid.each("charge_efficiency")[:, None, None]
        # The elimination divides by a store's loss, so one without loses 1e-4.
        self.out = np.minimum(grid.each("discharge_efficiency")[:, None, None], 1 / (self.into + 1e-4))
        n, power, energy = self.stores, grid.each("power"), grid.each("energy")
        self.upper = np.concatenate([power, power, energy, [grid.shed_power or 1e-9]])[:, None, None]
        price = np.concatenate([grid.each("wear"), np.zeros(n), -grid.each("holding"), [grid.shed]])
        self.price = price[:, None, None] * share
        # [variable, hour, plan]: given and taken by each store, charge after the hour, shed load.
        self.value = np.empty((3 * n + 1, self.hours, self.plans))
        self._inside(charge)
        if near is not None:
            self._approach(charge, near)
        self.residual = load - self._injected()[:, None]
        self.pull: Array | None = None

    @property
    def charge(self) -> Array:
        """[store, hour, plan] after each hour."""
        return self.value[2 * self.stores : 3 * self.stores]

    @property
    def power(self) -> Array:
        """[store, hour, plan] into the grid."""
        return self.value[: self.stores] - self.value[self.stores : 2 * self.stores]

    def _injected(self) -> Array:
        return self.power.sum(axis=0) + self.value[-1]

    def _inside(self, charge: Array) -> None:
        """Give and take at once in every hour, and move the charge towards half full."""
        n, power = self.stores, self.upper[: self.stores, 0]
        energy, into, out = self.upper[2 * n : 3 * n, 0], self.into[:, 0], self.out[:, 0]
        for hour in range(self.hours):
            change = (0.25 * (0.5 * energy - charge)).clip(-0.3 * power / out, 0.3 * power * into)
            taken = ((change + 0.3 * power / out) / into).clip(0.05 * power, 0.9 * power)
            given = (taken * into - change) * out
            charge = charge + change
            self.value[: 3 * n, hour] = np.concatenate([given, taken, charge])
        self.value[-1] = 0.3 * self.upper[-1]

    def _approach(self, charge: Array, near: Array) -> None:
        """Go from where `_inside` starts towards `near`, as far as all bounds are kept at a distance."""
        n, cold, warm = self.stores, self.value, self.value.copy()
        warm[:, : near.shape[1]] = near
        flow = self.into * warm[n : 2 * n] - warm[:n] / self.out
        warm[2 * n : 3 * n] = charge[:, None] + flow.cumsum(axis=1)
        back = np.full(self.plans, MIXED)
        for far, close in ((cold, warm), (self.upper - cold, self.upper - warm)):
            short = np.maximum(CLEAR * far - close, 0)
            back = np.maximum(back, (short / np.where(short > 0, far - close, 1)).max(axis=(0, 1)))
        self.value = warm + back * (cold - warm)

    def end_at_rest(self) -> None:
        """Pull the charge after the last hour to rest."""
        self.pull = np.broadcast_to(PULL * self.share, (self.stores, self.plans))

    def ramp_from(self, before: Array) -> None:
        """Set the residual loads of the hour before the first, [1, path, plan]."""
        self.ramp = self.residual - np.concatenate([before, self.residual[:-1]])

    def start(self, complementarity: float) -> None:
        """Set up the multipliers, the lines of generation cost and those of ramps."""
        grid, room = self.grid, complementarity / self.weight
        self.low, self.high = complementarity / self.value, complementarity / (self.upper - self.value)
        slope, intercept = self._pieces()
        self.generation = _Lines.of(intercept + slope * self.residual, slope, self.weight, 3 * room)
        slope = np.array([grid.ramp, -grid.ramp])[:, None, None, None]
        self.ramps = _Lines.of(slope * self.ramp, slope, self.weight, 2 * room)

    def _pieces(self) -> tuple[Array, Array]:
        """Return slope and intercept of the pieces of generation cost that the fleet can reach, [piece, hour, path, plan].

        The window has the same number of pieces everywhere.
        """
        grid = self.grid
        knots = np.array([grid.must_run, *(bound for bound, _ in grid.merit_order)])
        span = grid.each("power").sum() + REACH_KNOTS
        load = self.residual + self._injected()[:, None]
        first = np.searchsorted(knots, load - span - grid.shed_power)
        last = np.searchsorted(knots, load + span)
        most = int((last - first).max()) + 1
        at = np.minimum(first, len(grid.slopes) - most) + np.arange(most)[:, None, None, None]
        return grid.slopes[at], grid.intercepts[at]

    def inequalities(self, plans: int) -> int:
        """Return the number of inequalities of one plan, with all its paths."""
        lines = self.generation.slack.size + self.ramps.slack.size
        return (lines + 2 * self.value.size) // plans

    def complementarity(self) -> Array:
        """Return the sum of slack times dual, [plan]."""
        total = ((self.value * self.low).sum(axis=0) + ((self.upper - self.value) * self.high).sum(axis=0)).sum(axis=0)
        for lines in (self.generation, self.ramps):
            total += np.einsum("lhpn,lhpn->n", lines.slack, lines.dual)
        return total

    def model(self, mu: Array) -> None:
        """Build the quadratic model at complementarity `mu` [plan], reduced to the states.

        A store's given and taken power are exchanged for its change of charge d and its power p. All p and the shed load are then
        eliminated, given the total power P: what remains is quadratic in every d and in P + sum of `tilt` d.
        """
        n, room = self.stores, self.upper - self.value
        curve = self.low / self.value + self.high / room
        slope = self.price - mu / self.value + mu / room
        if self.pull is not None:
            curve[2 * n : 3 * n, -1] += self.pull
            slope[2 * n : 3 * n, -1] += self.pull * (self.charge[:, -1] - self.grid.rest[:, None])
        self.mu = mu
        self.by_load = [each.sum(axis=1) for each in self.generation.model(mu)]
        self.by_ramp = [each.sum(axis=1) for each in self.ramps.model(mu)]
        self.own = curve[2 * n : 3 * n], slope[2 * n : 3 * n]
        give, take, shed = curve[:n], curve[n : 2 * n], curve[-1]
        # taken = by_d d + by_p p, given = by_d d + (1 + by_p) p
        by_d = 1 / (self.into - 1 / self.out)
        by_p = by_d / self.out
        pp = give * (1 + by_p) ** 2 + take * by_p**2
        tilt = by_d * (give * (1 + by_p) + take * by_p) / pp
        flat = (slope[:n] * (1 + by_p) + slope[n : 2 * n] * by_p) / pp
        stiff = give * take * by_d**2 / pp
        self.shed = shed, slope[-1]
        self.total = 1 / ((1 / pp).sum(axis=0) + 1 / shed)
        self.offset = flat.sum(axis=0) + slope[-1] / shed
        self.reduced = by_d, by_p, pp, tilt, flat
        self.stiff = stiff
        self.first = by_d * (slope[:n] + slope[n : 2 * n]) - tilt * flat * pp

    def backward(self, hessian: Array, gradient: Array) -> tuple[Array, Array]:
        """Go from the value of the state after the last hour, [state, state, plan], to that before the first."""
        n, m = self.stores, self.stores + 1
        tilt = np.concatenate([self.reduced[3], np.ones((1, self.hours, self.plans))])
        self.gains: list[Array] = [np.empty(0)] * self.hours
        for hour in range(self.hours - 1, -1, -1):
            along = tilt[:, hour]
            coupled = along[:, None] * (along * self.total[hour])
            linear = along * (self.total[hour] * self.offset[hour])
            linear[:n] += self.first[:, hour]
            coupled[range(n), range(n)] += self.stiff[:, hour]
            work = np.empty((m, 2 * m + 1, self.plans))
            np.add(coupled, hessian, out=work[:, :m])
            work[range(n), range(n)] += self.own[0][:, hour]
            work[n, n] += self.by_load[0][hour] + self.by_ramp[0][hour]
            np.negative(coupled[:, :n], out=work[:, m : m + n])
            work[:n, 2 * m - 1] = 0
            work[n, 2 * m - 1] = -self.by_ramp[0][hour]
            np.add(linear, gradient, out=work[:, 2 * m])
            work[:n, 2 * m] += self.own[1][:, hour]
            work[n, 2 * m] -= self.by_load[1][hour] + self.by_ramp[1][hour]
            right = work[:, m : 2 * m].copy()
            for j in range(m):
                work[j, j + 1 :] /= work[j, j]
                work[j + 1 :, j + 1 :] -= work[j + 1 :, j, None] * work[j, None, j + 1 :]
            for j in range(m - 1, 0, -1):
                work[:j, m:] -= work[:j, j, None] * work[j, None, m:]
            gain = self.gains[hour] = work[:, m:]
            product = (right[:, :, None] * gain[:, None]).sum(axis=0)
            hessian, gradient = -product[:, :m], -product[:, m]
            hessian[:n, :n] += coupled[:n, :n]
            hessian[n, n] += self.by_ramp[0][hour]
            gradient[:n] -= linear[:n]
            gradient[n] += self.by_ramp[1][hour]
        return hessian, gradient

    def forward(self, state: Array) -> Array:
        """Compute the steps of all variables from the step of the state before the first hour; return that after the last."""
        n, m = self.stores, self.stores + 1
        states = np.empty((self.hours + 1, m, self.plans))
        states[0] = state
        for hour, gain in enumerate(self.gains):
            states[hour + 1] = -(gain[:, m] + (gain[:, :m] * states[hour]).sum(axis=1))
        total, ramp = states[1:, n], np.diff(states[:, n], axis=0)
        change = np.diff(states[:, :n], axis=0).transpose(1, 0, 2)
        by_d, by_p, pp, tilt, flat = self.reduced
        price = (total + (tilt * change).sum(axis=0) + self.offset) * self.total
        power = price / pp - tilt * change - flat
        taken = by_d * change + by_p * power
        shed = (price - self.shed[1]) / self.shed[0]
        self.step = np.concatenate([power + taken, taken, states[1:, :n].transpose(1, 0, 2), shed[None]])
        room = self.upper - self.value
        self.low_step = (self.mu - self.low * self.step) / self.value - self.low
        self.high_step = (self.mu + self.high * self.step) / room - self.high
        self.falls = [
            [-self.step / self.value, self.step / room],
            [-self.low_step / self.low, -self.high_step / self.high],
        ]
        for lines, by in ((self.generation, total), (self.ramps, ramp)):
            for falls, fall in zip(self.falls, lines.towards(-by[:, None], self.mu), strict=True):
                falls.append(fall)
        return states[-1]

    def longest(self) -> Array:
        """Return the longest length of the primal and the dual step that keeps all inequalities, [2, plan]."""
        steepest = [
            np.max([fall.reshape(-1, self.plans).max(axis=0) for fall in falls], axis=0) for falls in self.falls
        ]
        return 1 / np.maximum(steepest, 1e-9)

    def move(self, primal: Array, dual: Array) -> None:
        """Take the step with these lengths, [plan] each."""
        self.value += primal * self.step
        self.low += dual * self.low_step
        self.high += dual * self.high_step
        for lines in (self.generation, self.ramps):
            lines.move(primal, dual)
