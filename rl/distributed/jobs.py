"""The jobs that workers run for a control training: their arguments and the arrays that they return.

A job names its dataset and its policies by the sha256 of their bytes and draws everything else from its seed. So any process that
has both can run the job again, which is how results are audited. A result holds the arrays of `shapes(job)` and nothing else.
`rl.distributed.runner` runs the jobs. The encoded names (`tag`, `name`) are part of the wire format.
"""

import msgspec
from numpy.typing import NDArray

from rl.arrays import Spec

Arrays = dict[str, NDArray]

BASELINES = ("nothing", "optimum", "hour rule", "mpc", "mpc perfect")


class Job(msgspec.Struct, frozen=True, tag_field="kind", forbid_unknown_fields=True):
    """Base of all jobs. `dataset` is the sha256 of the dataset's file."""

    dataset: str = msgspec.field(name="table")


class MakeLabels(Job, frozen=True, tag="labels"):
    """Solve for the optimum's actions from random rows and charges: `rl.algorithms.clone.solve_labels` with this seed."""

    seed: int
    plans: int
    hours: int
    features: int  # of an observation


class Rollout(Job, frozen=True, tag="rollout"):
    """Run episodes of a policy with exploration noise.

    The result has no observations: a replay of the actions gives them, and the costs again.
    """

    policy: str
    seed: int
    episodes: int
    hours: int
    noise: tuple[float, ...]  # [action] standard deviation


class Evaluate(Job, frozen=True, tag="evaluate"):
    """Compute the cost of episodes from these rows under a policy: a sha256, or one of `BASELINES`."""

    policy: str
    starts: tuple[int, ...]
    hours: int
    fit: str = ""  # sha256 of the dataset that "hour rule" is fitted on


class EvaluatePerturbations(Job, frozen=True, tag="evolve"):
    """Compute the costs of mirrored perturbations of a policy's weights in the same episodes."""

    policy: str
    seed: int  # of the episodes
    perturbations: tuple[int, ...]  # seeds
    sigma: float
    episodes: int
    hours: int


class GradientSteps(Job, frozen=True, tag="descend"):
    """Take some steps of `rl.algorithms.pathwise` from the weights `policy` and Adam's moments `m` and `v`.

    The moments travel as policies do: in the shape of the network, named by their sha256.
    """

    policy: str
    m: str = msgspec.field(name="mean")
    v: str = msgspec.field(name="square")
    size: int  # weights
    seed: int
    member: int
    first: int  # step
    steps: int
    total: int  # steps of the training
    episodes: int
    hours: int
    learning_rate: float
    saving: tuple[float, ...]  # [region] $ per MW of reference peak and hour, of the optimum


AnyJob = MakeLabels | Rollout | Evaluate | EvaluatePerturbations | GradientSteps


def shapes(job: AnyJob, actions: int) -> tuple[Spec, ...]:
    """Return name, dtype and shape of each array in a result of `job`, for a fleet with `actions` actions."""
    if isinstance(job, MakeLabels):
        count = job.plans * job.hours
        return ("observations", "float32", (count, job.features)), ("actions", "float32", (count, actions))
    if isinstance(job, Rollout):
        steps = (job.hours, job.episodes)
        return ("actions", "float32", (job.hours, actions, job.episodes)), ("cost", "float32", steps)
    if isinstance(job, Evaluate):
        return (("cost", "float64", (len(job.starts),)),)
    if isinstance(job, GradientSteps):
        rows = tuple((name, "float32", (job.size,)) for name in ("weights", "mean", "square"))
        return (*rows, ("losses", "float64", (job.steps, 2)))
    return (("cost", "float64", (len(job.perturbations), 2)),)


def datasets_of(job: AnyJob) -> tuple[str, ...]:
    """Return the sha256 of each dataset that a job reads."""
    fit = job.fit if isinstance(job, Evaluate) else ""
    return (job.dataset, *([fit] if fit and fit != job.dataset else []))


def policies_of(job: AnyJob) -> list[str]:
    """Return the sha256 of each policy that a job reads."""
    named = (getattr(job, part, "") for part in ("policy", "m", "v"))
    return [name for name in named if name and name not in BASELINES]


def steps_of(job: AnyJob) -> int:
    """Return the number of environment steps that a job takes."""
    if isinstance(job, MakeLabels):
        return job.plans * job.hours
    if isinstance(job, Evaluate):
        return len(job.starts) * job.hours
    if isinstance(job, GradientSteps):
        return job.episodes * job.hours * job.steps
    return job.episodes * job.hours * (2 * len(job.perturbations) if isinstance(job, EvaluatePerturbations) else 1)


def kind_of(job: AnyJob) -> str:
    """Return the tag of a job's kind, which is also the kind of its lease."""
    return str(type(job).__struct_config__.tag)
