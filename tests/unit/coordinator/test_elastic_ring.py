"""Supervision by example: one fault a test, with a clock and ranks that the test moves."""

from __future__ import annotations

import pytest

from coordinator.scheduling.events import TaskFailed, TaskProgress
from coordinator.scheduling.worker_state import LeaseTimings
from coordinator.stages.train.ring_state import AddressOffered
from coordinator.stages.train.stall import StallDetector, SupervisionTimeouts
from tests.support.ring_world import World


def running(**more: object) -> World:
    """A ring of two after 20 steps of a second each, with a checkpoint at 10 and at 20."""
    world = World(**more)  # type: ignore[arg-type]
    world.form()
    for rank in list(world.ranks):
        world.say(rank, 0, "start")
    world.steps(1, 20)
    return world


def sizes(world: World) -> list[tuple[int, str]]:
    return [(past.ranks, past.why) for past in world.ring.history]


def test_ring_has_one_rank_per_worker_in_order_of_arrival() -> None:
    world = World(wanted=3, workers=["c", "a", "b", "d"])
    world.form()
    ports, ranks = world.opened
    assert [(spec.kind, spec.worker) for spec in ports] == [("port", "c"), ("port", "a"), ("port", "b")]
    assert [spec.worker for spec in ranks] == ["c", "a", "b"]
    assert all(spec.no_retry and not spec.requires_shared_fs and spec.kind == "train" for spec in ranks)
    addresses = ranks[0].job["addresses"]
    assert len(set(addresses)) == 3
    assert [(spec.job["rank"], spec.job["addresses"]) for spec in ranks] == [(n, addresses) for n in range(3)]


def test_ring_starts_smaller_after_the_join_timeout() -> None:
    world = World(workers=["a"])
    world.passes(world.timeouts.join_s - 1)
    assert world.ring.stage == "waiting"
    world.passes(2)
    assert [spec.worker for spec in world.opened[-1]] == ["a"]


def test_run_without_workers_ends_incomplete() -> None:
    world = World(workers=[])
    world.passes(world.timeouts.no_worker_s + 1)
    assert world.ring.outcome is not None
    assert world.ring.outcome.status == "incomplete"


def test_silent_worker_is_left_out_of_the_rendezvous() -> None:
    world = World(mute={"b"})
    world.form()
    assert [spec.worker for spec in world.opened[-1]] == ["a"]
    assert "train/1/port/1" in world.asked


def test_duplicate_address_goes_to_the_first_worker() -> None:
    world = World(mute={"a", "b"})
    world.passes(0.4)
    for name in ("train/1/port/0", "train/1/port/1"):
        world.handle(AddressOffered(name, "127.0.0.1:20001"))
    world.passes(0.4)
    assert [spec.worker for spec in world.opened[-1]] == ["a"]


def test_workers_without_an_address_fail_the_run_with_the_reason() -> None:
    world = World(mute={"a", "b"})
    for _ in range(2_000):
        world.passes()
        for name, spec in list(world.open.items()):
            assert spec.kind == "port"
            del world.open[name]
            world.handle(TaskFailed(name, "Crash", "no network"))
        if world.ring.outcome is not None:
            break
    assert world.ring.outcome is not None
    assert world.ring.outcome.status == "failed"
    assert "no network" in world.ring.outcome.message


def test_run_is_done_when_all_ranks_are() -> None:
    world = running()
    world.ends(0, "")
    world.ends(1, "")
    world.passes(1)
    assert world.ring.outcome is not None
    assert world.ring.outcome.status == "done"
    assert sizes(world) == [(2, "done")]


def test_rank_that_hangs_after_rank_0_is_terminated() -> None:
    world = running()
    world.ends(0, "")
    world.passes(world.timeouts.last_rank_s + 1)
    world.obey()
    world.passes(1)
    assert world.ring.outcome is not None
    assert world.ring.outcome.status == "done"


def test_dead_rank_ends_the_round_and_only_it_is_blamed() -> None:
    world = running()
    world.ends(1, "RingBroke", "a neighbour left")  # the neighbour's word comes first
    world.passes(0.4)
    assert world.asked == {"train/1/rank/0": world.timeouts.fault_grace_s}
    world.ends(0, "RankDied", "was ended by SIGKILL")
    world.passes(0.4)
    failed = [line for line in world.said if "failed" in line]
    assert len(failed) == 1
    assert "rank 0 on a failed: was ended by SIGKILL" in failed[0]
    world.form()
    assert world.said[-1] == "round 2: ring of 2, from checkpoint 20"


def test_round_starts_only_after_all_earlier_ranks_ended() -> None:
    world = running()
    world.ends(1, "RankDied")
    world.passes(300)
    assert (world.ring.stage, len(world.opened)) == ("draining", 2)
    world.obey()
    world.form()
    assert world.ring.round == 2


def test_request_to_end_is_resent() -> None:
    world = running()
    world.ends(1, "RankDied")
    world.passes(0.4)
    world.asked.clear()
    world.passes(4)
    assert "train/1/rank/0" in world.asked


def test_stopped_rank_is_blamed_within_seconds_in_any_phase() -> None:
    world = running()
    world.say(1, 20, stopped=True)
    world.passes(world.timeouts.stopped_s - 1)
    assert world.ring.stage == "running"
    world.passes(1.4)
    assert set(world.asked) == {"train/1/rank/0", "train/1/rank/1"}
    world.obey()
    world.passes(0.4)
    assert [line.split(" failed")[0] for line in world.said if "failed" in line] == ["round 1: rank 1 on b"]


def test_rank_stopped_for_a_moment_is_tolerated() -> None:
    world = running()
    world.say(1, 20, stopped=True)
    world.passes(world.timeouts.stopped_s - 1)
    world.say(1, 21)
    world.steps(22, 30)
    assert world.ring.stage == "running"


def test_stall_blames_the_rank_that_is_behind() -> None:
    world = running()
    world.passes(1)
    world.say(0, 21)
    world.passes(world.timeouts.min_s - 2)
    assert world.ring.stage == "running"
    world.passes(4)
    assert world.ring.stage == "draining"
    world.obey()
    world.passes(0.4)
    assert any("rank 1 on b failed: no progress for" in line for line in world.said)


def test_unexplained_stall_blames_no_rank_and_doubles_timeouts() -> None:
    world = running()
    before = world.ring.stalls.timeout_s("checkpoint", 2)
    world.passes(12)
    assert world.ring.stage == "draining"
    assert not any("failed" in line for line in world.said)
    assert world.ring.stalls.timeout_s("checkpoint", 2) == 2 * before


def test_slow_steps_do_not_count_as_stalls() -> None:
    world = World()
    world.form()
    world.steps(1, 5, seconds=60.0)
    world.passes(200)
    assert world.ring.stage == "running"
    world.passes(120)
    assert world.ring.stage == "draining"


def test_ring_shrinks_and_grows_again_at_a_checkpoint() -> None:
    world = running()
    world.workers.remove("b")
    world.ends(1, "WorkerLost", "b was not heard for 10 s while executing")
    world.passes(0.2)
    world.ends(0, "RingBroke")
    world.form()
    assert world.said[-1] == "round 2: ring of 1 of 2, from checkpoint 20"
    world.steps(21, 25)
    world.workers.append("b2")
    world.steps(26, 29)
    assert world.ring.stage == "running"  # not before the checkpoint
    world.steps(30, 30)
    world.passes(0.4)
    assert world.asked["train/2/rank/0"] == world.timeouts.drain_grace_s
    world.obey()
    world.form()
    assert world.said[-1] == "round 3: ring of 2, from checkpoint 30"
    assert sizes(world) == [(2, "fault"), (1, "grow")]
    assert world.ring.restarts == 1


def test_worker_that_appears_briefly_does_not_end_the_round() -> None:
    world = World(workers=["a"], timeouts=SupervisionTimeouts(join_s=1.0))
    world.form()
    world.steps(1, 5)
    world.workers.append("b")
    world.steps(6, 9)
    world.workers.remove("b")
    world.steps(10, 25)
    assert world.ring.stage == "running"


def test_rank_that_stops_before_growth_is_not_awaited() -> None:
    world = World(workers=["a"], timeouts=SupervisionTimeouts(join_s=1.0))
    world.form()
    world.workers.append("b")
    world.steps(1, 10)
    world.passes(0.4)
    world.say(0, 10, stopped=True)
    world.passes(world.timeouts.stopped_s + 1)
    assert world.asked["train/1/rank/0"] == world.timeouts.fault_grace_s
    world.obey()
    world.passes(0.4)
    assert sizes(world) == [(1, "fault")]


def test_usage_error_ends_the_run_with_its_message() -> None:
    world = World()
    world.form()
    world.ends(0, "UsageError", "series of ERCO are missing")
    world.ends(1, "RingBroke")
    world.passes(0.4)
    assert world.ring.outcome is not None
    assert (world.ring.outcome.status, world.ring.outcome.message) == ("usage", "series of ERCO are missing")


def test_drain_lets_ranks_write_a_checkpoint() -> None:
    world = running()
    world.draining = True
    world.passes(0.4)
    assert set(world.asked.values()) == {world.timeouts.drain_grace_s}
    world.obey()
    world.passes(0.4)
    assert world.ring.outcome is not None
    assert world.ring.outcome.status == "drain"


@pytest.mark.parametrize(("kind", "at_most"), [("killed", 1.0), ("stopped", 9.0), ("worker lost", 17.0)])
def test_supervision_leaves_most_of_thirty_seconds_to_the_ranks(kind: str, at_most: float) -> None:
    """From a fault to the next ring, with ranks that obey only force, and workers of this host that are back at once."""
    world = running()
    began = world.now
    if kind == "killed":
        world.ends(1, "RankDied")
    elif kind == "stopped":
        world.say(1, 20, stopped=True)
    else:
        world.passes(LeaseTimings().silence_s)
        world.workers.remove("b")
        world.ends(1, "WorkerLost", "b was not heard for 10 s while executing")
    world.passes(0.2)
    if kind != "stopped":
        world.ends(0, "RingBroke")  # at once: a connection was closed
    while world.ring.round < 2 or world.ring.stage != "running":
        world.passes(0.2)
        if world.asked and world.now - began > world.timeouts.stopped_s + world.timeouts.fault_grace_s:
            world.obey()
        assert world.now - began < at_most


@pytest.mark.parametrize("seconds", [0.2, 0.4])
def test_drain_before_the_first_ring_ends_the_run(seconds: float) -> None:
    world = World(mute={"a", "b"})
    world.passes(seconds)
    world.draining = True
    world.passes(1)
    assert world.ring.outcome is not None
    assert world.ring.outcome.status == "drain"


def test_ranks_that_never_reach_a_step_fail_the_run() -> None:
    world = World()
    for _ in range(world.timeouts.max_rounds_without_progress):
        world.form()
        world.ends(0, "RankDied", "ended with exit code 1; no such file")
        world.obey()
        world.passes(0.4)
        world.obey()
        world.passes(0.4)
    assert world.ring.outcome is not None
    assert world.ring.outcome.status == "failed"
    assert "no such file" in world.ring.outcome.message


def test_faults_between_progress_never_end_the_run() -> None:
    world = running()
    for n in range(20):
        world.ends(0, "RankDied")
        world.passes(0.4)
        world.obey()
        world.form()
        world.steps(21 + n, 22 + n)
    assert world.ring.outcome is None


def test_worker_whose_ranks_never_reach_a_step_is_excluded() -> None:
    world = World()
    world.form()
    world.ends(1, "RankDied", "no memory")
    world.passes(0.4)
    world.obey()
    world.form()
    assert [spec.worker for spec in world.opened[-1]] == ["a"]
    world.steps(1, 20)
    assert world.ring.stage == "running"
    world.passes(world.timeouts.exclude_s)
    world.steps(21, 30)
    world.passes(0.4)
    world.obey()
    world.form()
    assert [spec.worker for spec in world.opened[-1]] == ["a", "b"]


def test_suspended_coordinator_does_not_report_stalls() -> None:
    world = running()
    world.now += 3_600
    world.passes(1)
    assert world.ring.stage == "running"


def test_events_of_earlier_rounds_are_ignored() -> None:
    world = running()
    world.ends(1, "RankDied")
    world.passes(0.4)
    world.obey()
    world.form()
    for error in ("RankDied", "UsageError", "RankEnded"):
        world.handle(TaskFailed("train/1/rank/0", error, "late"))
    world.passes(1)
    assert world.ring.stage == "running"


def test_timeout_grows_in_smaller_rings_and_one_long_gap_fades() -> None:
    stalls = StallDetector(SupervisionTimeouts())
    assert stalls.timeout_s("step", 4) == SupervisionTimeouts().unknown_phase_s
    stalls.record_gap("step", 4.0, 4)
    assert stalls.timeout_s("step", 4) == 20.0
    assert stalls.timeout_s("step", 1) == 80.0
    assert stalls.timeout_s("step", 8) == 20.0  # more ranks may not be faster
    for _ in range(100):
        stalls.record_gap("step", 0.1, 4)
    assert stalls.timeout_s("step", 4) == SupervisionTimeouts().min_s


def test_rendezvous_waits_for_downloads_and_no_longer() -> None:
    world = World(mute={"b"})
    world.passes(0.4)
    for beats in range(1, 30):
        world.passes(1)
        world.handle(TaskProgress("train/1/port/1", 0, "start", beats, 0, False))
    assert world.ring.stage == "rendezvous"
    world.passes(world.timeouts.address_s + 1)
    assert [spec.worker for spec in world.opened[-1]] == ["a"]


def test_full_host_is_excluded_without_restarts_at_checkpoints() -> None:
    world = World(mute={"b"})
    world.passes(0.4)
    world.handle(TaskFailed("train/1/port/1", "HostFull", "no space left"))
    world.form()
    assert any("b cannot take part: no space left" in line for line in world.said)
    world.steps(1, int(world.timeouts.exclude_s) - 5)
    assert world.ring.round == 1 and world.ring.stage == "running"
    world.mute.clear()
    world.steps(int(world.timeouts.exclude_s) - 4, int(world.timeouts.exclude_s) + 25)
    assert any("a worker is available" in line for line in world.said)
