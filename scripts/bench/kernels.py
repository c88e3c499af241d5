"""Write docs/internals/kernel_benchmarks.md from the lines of `python -m ringattn.kernels.bench`: `python -m scripts.bench.kernels`.

A line that somebody sent is appended to docs/benchmarks/kernels.jsonl; each becomes a section, the newest first.
"""

from pathlib import Path
from typing import Any

from ringattn.kernels.bench import HEADER, rows
from scripts.bench.common import BENCHMARKS, ROOT, markdown_table, parser, read_lines

LINES, PAGE = BENCHMARKS / "kernels.jsonl", ROOT / "docs" / "internals" / "kernel_benchmarks.md"


def section(line: dict[str, Any]) -> list[str]:
    """Return the text on one run."""
    setting = line["setting"]
    heads = f"{setting['heads']} heads of {setting['dim']}"
    if setting["kv_heads"] != setting["heads"]:
        heads += f", {setting['kv_heads']} kv heads"
    measured = ", ".join(f"{what} {rate / 1e12:.2f} TFLOP/s" for what, rate in line["rates"].items())
    agreement = ", ".join(
        f"{name} {one['difference']:.1e} ({one['of']}, {one['mask']})"
        if "difference" in one
        else f"{name} **failed**: {one['failed']}"
        for name, one in line["parity"].items()
    )
    rounding = (
        ""
        if line["fp32_products"]
        else " The chip rounds the factors of fp32 matrix products to TF32 (MLX_ENABLE_TF32=0 turns it off)."
    )
    left_out = [f"- {one['kernel']} at {one['length']:,}: {one['reason']}" for one in line["left_out"]]
    return [
        f"## {line['chip']}, {line['device']}, {setting['dtype']}, {'causal' if setting['causal'] else 'full'}",
        "",
        f"{line['date']}, {line['system']}, {line['cores']} CPU cores, {line['memory'] / 1e9:.0f} GB, mlx {line['mlx']}; {heads}. Measured rates: {measured}.{rounding}",
        f"Largest difference from plain attention: {agreement}.",
        "",
        markdown_table(HEADER, rows(line)),
        "",
        *(["Left out:", "", *left_out, ""] if left_out else []),
    ]


def page(lines: list[dict[str, Any]]) -> str:
    """Return the page."""
    text = [
        "# Kernels by chip",
        "",
        "Written by `python -m scripts.bench.kernels` from `docs/benchmarks/kernels.jsonl`: one line for each run of",
        "`python -m ringattn.kernels.bench` that somebody sent. On Linux run it as `python -m ringattn.blas ringattn.kernels.bench`, so that mlx",
        "has a fast BLAS. Each kernel is first compared with plain attention. Forward alone, and a step of forward and backward, one process, medians;",
        "share: of the best rate measured in the same run, matrix products or fused multiply-adds.",
        "",
    ]
    if not lines:
        text += ["No line yet: the project had no Mac, and no quiet machine of another kind.", ""]
    for line in reversed(lines):
        text += section(line)
    return "\n".join(text)


def main(lines: Path = LINES, target: Path = PAGE) -> None:
    """Write the page."""
    parser(__doc__).parse_args()
    target.write_text(page(read_lines(lines)))


if __name__ == "__main__":
    main()
