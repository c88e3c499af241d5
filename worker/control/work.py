"""The work of a control training by part, as far as it is known at the start, for the estimate of the time left. No I/O.

The times are those of two cores of a cloud machine. They count until a run in the folder has measured its own.
"""

from collections.abc import Sequence

from rl.distributed.protocol import PartPlan
from worker.control.config import ControlConfig

START_S = 6.0  # until the learner's modules are loaded and the first lease is out
REGION_YEAR_S = {
    False: 2.8,
    True: 12.8,
}  # of a dataset, without and with a trained forecaster, which forecasts every day first
OPTIMUM_S = 0.3  # of a week of the validation year
GRADIENT_S = 1e-5  # of a worker, for an hour of one episode with its gradient
LABEL_S = 0.02  # of a worker, for a linear program of `label_hours`
CLONE_S = 2e-3  # a step
PLAN_S = 0.03  # of a worker, for a plan of an hour
WEEK_H = 168


def plan_of(config: ControlConfig, years: Sequence[int], forecaster: bool) -> dict[str, PartPlan]:
    """Return the parts of a training in order, with the seconds of one worker where several share them.

    Args:
        config: of the training.
        years: on disk, of each respondent.
        forecaster: whether a trained forecaster is known ahead.
    """
    parts = {
        "start": PartPlan(1, START_S),
        "tables": PartPlan(1, sum(years) * REGION_YEAR_S[forecaster]),
    }
    if config.algorithm == "pathwise":
        settings = config.pathwise
        hours = settings.members * settings.steps * settings.num_envs * settings.episode_hours
        improve = PartPlan(settings.iterations, hours * GRADIENT_S, shared=True)
    else:
        iterations = config.vtrace.iterations if config.algorithm == "vtrace" else config.evolve.iterations
        parts["labels"] = PartPlan(config.label_jobs, config.label_plans * LABEL_S, shared=True)
        parts["clone"] = PartPlan(config.clone.steps, CLONE_S)
        improve = PartPlan(iterations, 0.0, shared=True)
    weeks = len(years) * -(-52 // config.every)
    parts["reference"] = PartPlan(1, 1.0 + weeks * OPTIMUM_S)
    parts["improve"] = improve
    planning = [name for name in config.baselines.split(",") if name.startswith("mpc")]
    leases = len(planning) * -(-weeks // config.plan_chunk) + 4
    parts["test"] = PartPlan(leases, config.plan_chunk * WEEK_H * PLAN_S if planning else 2.0, shared=True)
    return parts
