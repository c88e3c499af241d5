"""The fleet and its cost: stores (batteries, shiftable load), sheddable load, and a convex piecewise-linear cost of an hour.

Power is in units of the region's reference peak (its highest net load of the training years), energy in reference peak × 1 h,
money in $ per MW of reference peak: an hour's cost times the peak in MW is $. So one set of parameters fits every region.

Hour t, with net load L_t, power p_k of store k into the grid (negative: charging) and shed load s:

    residual load  G_t = L_t - Σ_k p_k - s
    cost           f(G_t) + ramp |G_t - G_{t-1}| + Σ_k wear_k max(p_k, 0) + Σ_k holding_k (energy_k - charge_k) + shed s

f is convex: its slope is -curtailment below `must_run`, then climbs the merit order, then is `unserved` above the last bound.
Shiftable load is a store: a call takes energy out (a debt to the customers), the rebound puts it back, with a little more than
the call took. `PROXY` marks a parameter for which EIA-930 has no data; none is a claim about a real system.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rl.errors import GridError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Store:
    """One class of storage in the fleet, or the shiftable load."""

    name: str
    power: float  # maximum in either direction, at the grid, in reference peaks
    hours: float  # energy / power, h
    charge_efficiency: float  # energy stored / energy taken from the grid
    discharge_efficiency: float  # energy given to the grid / energy taken from the store
    wear: float  # $/MWh given to the grid
    holding: float = 0.0  # $/MWh of energy missing from full, an hour
    rest: float = 0.5  # share of the energy at which an episode starts and must end

    @property
    def energy(self) -> float:
        """Energy capacity, in reference peaks × 1 h."""
        return self.power * self.hours

    @property
    def loss(self) -> float:
        """MWh lost for each MWh given to the grid when charging and discharging at once."""
        return 1 / (self.charge_efficiency * self.discharge_efficiency) - 1


# Round trip 85 %: NREL Annual Technology Baseline 2019-2022, utility-scale Li-ion. Wear is a PROXY for the cells' ageing alone.
# Sizes are PROXY: 8 % of peak in batteries, about what CAISO had in 2021.
BATTERIES = (
    Store("battery_2h", power=0.03, hours=2.0, charge_efficiency=0.92, discharge_efficiency=0.92, wear=6.0),
    Store("battery_4h", power=0.05, hours=4.0, charge_efficiency=0.92, discharge_efficiency=0.92, wear=6.0),
)
# 6 % of peak in demand response, half of it shiftable: FERC staff's yearly assessment gives wholesale programmes 6 % of peak in
# 2018. PROXY: 3 h, a rebound of 5 % more than was taken, $10 a MWh called, $0.5 for each hour that a MWh is owed.
SHIFTABLE = Store(
    "shiftable",
    power=0.03,
    hours=3.0,
    charge_efficiency=1 / 1.05,
    discharge_efficiency=1.0,
    wear=10.0,
    holding=0.5,
    rest=1.0,
)
# PROXY for a supply curve: (up to this share of reference peak, $/MWh). Gas at about $3/MMBtu (Henry Hub, 2015-2019) and 7 to
# 11 MMBtu/MWh is $20 to $35; the last two steps model scarcity below and above FERC Order 831's soft cap of $1,000.
MERIT_ORDER = (
    (0.45, 18.0),
    (0.55, 22.0),
    (0.65, 27.0),
    (0.75, 34.0),
    (0.85, 46.0),
    (0.92, 65.0),
    (0.97, 100.0),
    (1.02, 200.0),
    (1.10, 1000.0),
)


@dataclass(frozen=True)
class Grid:
    """The fleet and its cost. Parameters must keep the cost convex and make it unprofitable to burn energy (see `_check`)."""

    stores: tuple[Store, ...] = (*BATTERIES, SHIFTABLE)
    shed_power: float = 0.03  # maximum load shed, in reference peaks: the other half of FERC's 6 %
    shed: float = 1200.0  # $/MWh. PROXY: emergency programmes are called last, at strikes of $1,000 to $1,849 in PJM
    must_run: float = 0.30  # in reference peaks. PROXY: nuclear, run of river, heat; below it generation is curtailed
    merit_order: tuple[tuple[float, float], ...] = MERIT_ORDER
    unserved: float = 9000.0  # $/MWh: ERCOT's system-wide offer cap of 2015-2021, its value of lost load
    curtailment: float = 25.0  # $/MWh: the production tax credit that wind loses (2019: 2.5 ¢/kWh)
    ramp: float = 2.0  # $/MW. PROXY: load-following wear, Kumar et al. 2012 (NREL/SR-5500-55433), median $0.6-3.3/MW by plant type
    slopes: Array = field(init=False, repr=False, compare=False)  # [piece] $/MWh, rising
    intercepts: Array = field(init=False, repr=False, compare=False)  # [piece] f(G) = max(intercepts + slopes · G)

    def __post_init__(self) -> None:
        """Compute the pieces of f."""
        if isinstance(self.stores, Store):
            raise GridError(f"stores: one Store alone; write stores=(Store({self.stores.name!r}, …),)")
        # Tuples, so that a grid made of lists can be a key of cached programs.
        object.__setattr__(self, "stores", tuple(self.stores))
        object.__setattr__(self, "merit_order", tuple(map(tuple, self.merit_order)))
        slopes = np.array([-self.curtailment, *(price for _, price in self.merit_order), self.unserved])
        knots = np.array([self.must_run, *(bound for bound, _ in self.merit_order)])
        self._check(slopes, knots)
        # Neighbouring pieces meet at their knot; f(must_run) = must_run at the first price.
        intercepts = np.concatenate([[0.0], np.cumsum((slopes[:-1] - slopes[1:]) * knots)])
        object.__setattr__(self, "slopes", slopes)
        object.__setattr__(self, "intercepts", intercepts - intercepts[1])

    def _check(self, slopes: Array, knots: Array) -> None:
        """Check the rules under which the linear program's optimum is the environment's.

        A linear program charges and discharges at once where burning energy pays. One MW less of residual load in one hour
        changes the cost by at most the curtailment price and two ramps, so burning never pays if a store's wear is above its
        loss times that.

        Raises:
            GridError: A parameter breaks one of the rules.
        """
        names = [store.name for store in self.stores]
        if not names or len(set(names)) < len(names):
            raise GridError(f"stores: {', '.join(names) or 'none'}; give at least one, each with a name of its own")
        if not ((np.diff(slopes) > 0).all() and (np.diff(knots) > 0).all()):
            raise GridError("merit_order must rise in bound and price, from must_run and -curtailment up to unserved")
        gain = self.curtailment + 2 * self.ramp
        for store in self.stores:
            if not (0 < store.charge_efficiency <= 1 and 0 < store.discharge_efficiency <= 1):
                raise GridError(f"store {store.name}: an efficiency lies outside (0, 1]")
            if not (0 < store.power < np.inf and 0 < store.hours < np.inf and 0 <= store.rest <= 1):
                raise GridError(f"store {store.name}: power and hours must be positive, rest between 0 and 1")
            if not store.wear > store.loss * gain:
                raise GridError(
                    f"store {store.name}: wear {store.wear} must be above loss x (curtailment + 2 ramp) = {store.loss * gain:.3g}"
                    " $/MWh, or burning energy pays and the linear program is no longer the environment's optimum. Raise the wear or"
                    " the efficiencies, or lower the grid's curtailment or ramp"
                )
        if not 0 <= self.shed_power < np.inf:
            raise GridError(f"shed_power {self.shed_power} must be 0 or more")

    def each(self, name: str) -> Array:
        """Return the attribute `name` of every store, [store]."""
        return np.array([getattr(store, name) for store in self.stores], float)

    @property
    def rest(self) -> Array:
        """Charge at which an episode starts and ends, [store], reference peaks × 1 h."""
        return self.each("rest") * self.each("energy")

    @property
    def capacity(self) -> float:
        """Residual load above which load goes unserved, in reference peaks."""
        return self.merit_order[-1][0]

    def generation_cost(self, residual: Array) -> Array:
        """Return f(G) for residual loads of any shape, $ per MW of reference peak."""
        return (self.intercepts + self.slopes * np.asarray(residual)[..., None]).max(axis=-1)
