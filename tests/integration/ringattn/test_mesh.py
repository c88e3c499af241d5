"""Two-dimensional groups: every rank of a mesh is exact, on MLX's ring where neighbours are enough and on MPI's split groups."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ringattn as ra
from ringattn import launch
from tests.support.program import ROOT

SCRIPT = str(Path(__file__).parents[2] / "support" / "ranks" / "mesh.py")
PREFIX = Path(sys.executable).parent


def check(lines: list[str], parts: set[str], ranks: int) -> None:
    reports = [json.loads(line) for line in lines if line.startswith("{")]
    assert len(reports) == ranks, lines
    for report in reports:
        assert set(report) == parts
        for part, errors in report.items():
            assert max(errors.values()) < 2e-6, (part, errors)


def test_rows_of_a_process_alone() -> None:
    alone = ra.mesh(context=1)
    assert (alone.row, alone.rows, alone.context.size()) == (0, 1, 1)
    for width in (0, 2, True, 1.5):
        with pytest.raises(ra.ArgumentError, match="divides the group's 1"):
            ra.mesh(context=width)  # type: ignore[arg-type]


@pytest.mark.long
@pytest.mark.parametrize(("ranks", "width"), [(2, 1), (3, 3), (4, 2), (6, 2)])
def test_rows_of_neighbours_are_exact_on_a_ring(ranks: int, width: int) -> None:
    outputs = launch.run(ranks, [SCRIPT, str(width)], timeout=100)
    check([line for lines in outputs for line in lines], {"mesh"}, ranks)


@pytest.mark.long
def test_wider_rows_are_refused_on_a_ring_with_the_reason() -> None:
    with pytest.raises(ra.RankFailed, match="context 3 of 6 ranks: MLX's ring cannot split"):
        launch.run(6, [SCRIPT, "3"], timeout=100)


@pytest.mark.long
def test_two_by_two_mesh_and_split_groups_are_exact_on_mpi() -> None:
    """Rows and columns of MPI's group: a rank has the same place in both, and each has data of its own."""
    if not (PREFIX / "mpirun").exists():
        pytest.skip("openmpi is not installed: uv run --group mpi pytest")
    libraries = PREFIX.parent / "lib"
    environ = {
        **os.environ,
        "MLX_MPI_LIBNAME": str(libraries / "libmpi.so.40"),
        "LD_LIBRARY_PATH": str(libraries),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [str(PREFIX / "mpirun"), "--oversubscribe", "-n", "4", sys.executable, SCRIPT, "2", "SPLITS"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    check(done.stdout.splitlines(), {"mesh", "rows", "columns", "rows again", "columns again"}, 4)
