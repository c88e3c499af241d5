"""Converted models of mlx-lm against the whole ones, on real rank processes: logits, loss, and every parameter's gradient."""

import json
from pathlib import Path

import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed (extra lm)")

from ringattn import launch
from tests.support.language_models import FAMILIES

RANK = Path(__file__).parents[2] / "support" / "ranks" / "language_models.py"
LOGITS, GRADIENTS = 1e-5, 2e-5  # of the largest


def compare(n: int, cases: list[dict], folder: Path) -> None:
    path = folder / "cases.json"
    path.write_text(json.dumps(cases))
    for rank, lines in enumerate(launch.run(n, [str(RANK), str(path)], timeout=300)):
        for case, (logits, gradients, name, loss) in zip(cases, json.loads(lines[-1]), strict=True):
            print(f"{n} ranks, {case}: logits {logits:.1e}, gradients {gradients:.1e} ({name}), loss {loss:.1e}")
            assert logits <= LOGITS, (rank, case)
            assert gradients <= GRADIENTS, (rank, case, name)
            assert loss <= LOGITS, (rank, case)


def test_llama_over_two_ranks(tmp_path: Path):
    compare(2, [{"family": "llama wide window", "length": 61, "check": True}], tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("n", [1, 2, 3])
def test_every_family(n: int, tmp_path: Path):
    families = [family for family in FAMILIES if family != "gemma2"]  # its softcap is refused
    cases = [{"family": family, "length": length} for family in families for length in (37, 61)]
    cases += [{"family": "llama sliding", "length": 37, "layout": layout} for layout in ("striped", "contiguous")]
    compare(n, cases, tmp_path)
