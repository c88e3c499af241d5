"""Converted models of mlx-lm against the whole ones, on real rank processes: logits, loss, and every parameter's gradient."""

import json
from pathlib import Path

import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed (extra lm)")

from ringattn import launch
from tests.support.language_models import FAMILIES

RANK = Path(__file__).parents[2] / "support" / "ranks" / "language_models.py"
LOGITS, GRADIENTS = 1e-5, 2e-5  # of the largest


def run(n: int, cases: list[dict], folder: Path) -> list[list]:
    """Each rank's reports of the cases."""
    path = folder / "cases.json"
    path.write_text(json.dumps(cases))
    return [json.loads(lines[-1]) for lines in launch.run(n, [str(RANK), str(path)], timeout=500)]


def check(n: int, cases: list[dict], reports: list[list]) -> None:
    for rank, report in enumerate(reports):
        for case, (logits, gradients, name, loss, *_) in zip(cases, report, strict=True):
            print(f"{n} ranks, {case}: logits {logits:.1e}, gradients {gradients:.1e} ({name}), loss {loss:.1e}")
            assert logits <= LOGITS, (rank, case)
            assert gradients <= GRADIENTS, (rank, case, name)
            assert loss <= LOGITS, (rank, case)


def test_llama_over_two_ranks(tmp_path: Path):
    """Rank 1 holds no label of the second case."""
    cases = [
        {"family": "llama wide window", "length": 61, "check": True},
        {"family": "llama sliding", "length": 37, "lengths": [[32, 38], [35, 36]], "logits": 1000, "rows": 1000},
    ]
    reports = run(2, cases, tmp_path)
    check(2, cases, reports)
    (*_, digest, labels), (*_, other, none) = (report[1] for report in reports)
    assert (digest, labels, none) == (other, 8, 0)


@pytest.mark.long
@pytest.mark.parametrize("n", [1, 2, 3])
def test_every_family(n: int, tmp_path: Path):
    cases = [{"family": family, "length": length} for family in FAMILIES for length in (37, 61)]
    cases += [{"family": "llama sliding", "length": 37, "layout": layout} for layout in ("striped", "contiguous")]
    check(n, cases, run(n, cases, tmp_path))


@pytest.mark.long
@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_loss_counts_all_labels_wherever_they_lie(n: int, tmp_path: Path):
    lengths = (
        [[0, 38], [3, 20]],
        [[32, 38], [35, 36]],
        [[17, 21], [18, 19]],
    )  # all ranks, rank 0 alone, the last alone
    cases = [{"family": "llama sliding", "length": 37, "lengths": of_rows} for of_rows in lengths]
    # The head in pieces: tied to the embedding, and not.
    pieces = {"length": 37, "lengths": [[1, 38], [3, 37]], "logits": 1000, "rows": 1000}
    cases += [pieces | {"family": family} for family in ("llama", "llama traditional", "gemma4")]
    reports = run(n, cases, tmp_path)
    check(n, cases, reports)
    for of_case in zip(*reports, strict=True):
        assert len({digest for *_, digest, _ in of_case}) == 1  # the same bits on every rank


@pytest.mark.long
@pytest.mark.parametrize("n", [2, 3])
def test_unlike_batches_are_an_error_on_every_rank_and_the_ring_goes_on(n: int, tmp_path: Path):
    reports = run(n, [{"family": "llama", "length": 37, "unlike": True}], tmp_path)
    assert {error for [(error, _)] in reports} == {
        "the ranks' tokens or labels differ; give the same whole batch on every rank"
    }
    assert len({loss for [(_, loss)] in reports}) == 1
