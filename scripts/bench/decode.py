"""Benchmark of decode over a sharded KV cache: memory a rank, and the seconds of attention a token, ring against one process.

    python -m scripts.bench.decode run --out docs/benchmarks/decode.jsonl   # 524,288 tokens, 2 of 32 layers: 4.3 GB; one process, then 4 ranks
    python -m scripts.bench.decode docs                                     # writes the table of docs/reference/ring_attention.md from these lines

The shape is that of an 8-billion-parameter model (Llama 3: 32 query heads, 8 kv heads, dimension 128, bfloat16). All ranks share this machine's
cores and memory. The speed of reading keys and the time of a gather are measured by all ranks at once before each token, and the prediction is
`ringattn.decode_planner.decode_seconds` of these.
"""

import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ringattn import launch
from ringattn.decode_planner import cache_bytes, decode_seconds
from ringattn.hosts import Link
from ringattn.planner import Shape
from scripts.bench.common import (
    BENCHMARKS,
    ROOT,
    emit,
    machine_line,
    markdown_table,
    parser,
    processor,
    read_lines,
    rewrite_section,
)

LINES, DOCS = BENCHMARKS / "decode.jsonl", ROOT / "docs" / "reference" / "ring_attention.md"
BEGIN, END = "<!-- decode: begin (scripts/bench/decode.py docs) -->", "<!-- decode: end -->"
RANK = Path(__file__).with_name("decode_rank.py")
ALL_LAYERS, TOKENS = 32, 5


def measure(length: int, layers: int, ranks: int) -> dict[str, Any]:
    """Return one line: memory and seconds of each rank, and what the planner predicts of both."""
    shape = Shape(length, heads=32, kv_heads=8, dim=128, itemsize=2)
    spec = {"shape": asdict(shape), "layers": layers, "tokens": TOKENS}
    found = [json.loads(lines[-1]) for lines in launch.run(ranks, [str(RANK), json.dumps(spec)], timeout=560)]
    read = min(of_rank["read"] for of_rank in found)
    gather = max(of_rank["gather"] for of_rank in found)
    # The gather was timed whole, all hops of it.
    link = Link("this machine", float("inf"), gather / max(1, ranks - 1))
    return {
        "event": "decode",
        "length": length,
        "layers": layers,
        "ranks": ranks,
        "by_rank": found,
        "seconds": statistics.median(max(of_rank["seconds"][i] for of_rank in found) for i in range(TOKENS)),
        "predicted_seconds": decode_seconds(shape, layers, read, link, ranks),
        "predicted_cache_bytes": cache_bytes(shape, layers, ranks),
        "all_layers_cache_bytes": cache_bytes(shape, ALL_LAYERS, ranks),
    }


def table(lines: list[dict[str, Any]]) -> str:
    """Return the page's table."""
    found = sorted((line for line in lines if line["event"] == "decode"), key=lambda line: line["ranks"])
    alone = next(line for line in found if line["ranks"] == 1)
    rows = []
    for line in found:
        largest = {
            name: max(of_rank[name] for of_rank in line["by_rank"])
            for name in ("cache_bytes", "mlx_peak_bytes", "rss_bytes")
        }
        ones = {name: max(of_rank[name] for of_rank in alone["by_rank"]) for name in largest}
        rows.append(
            [
                str(line["ranks"]),
                *(f"{largest[name] / 1e9:.2f} ({largest[name] / ones[name]:.1%})" for name in largest),
                f"{line['all_layers_cache_bytes'] / 1e9:.2f} ({line['all_layers_cache_bytes'] / alone['all_layers_cache_bytes']:.1%})",
                f"{line['seconds']:.2f} ({line['seconds'] / alone['seconds']:.2f})",
                f"{line['predicted_seconds']:.2f} ({line['predicted_seconds'] / alone['predicted_seconds']:.2f})",
            ]
        )
    return markdown_table(
        [
            "ranks",
            f"cache of {found[0]['layers']} layers, GB a rank",
            "MLX's peak, GB",
            "resident at most, GB",
            f"cache of {ALL_LAYERS} layers, computed, GB",
            "s a token",
            "predicted",
        ],
        rows,
    )


def main() -> int:
    """Run the command line and return its exit code."""
    options = parser(__doc__)
    options.add_argument("what", choices=["run", "docs"])
    options.add_argument("--length", type=int, default=524_288, help="tokens of context")
    options.add_argument("--layers", type=int, default=2)
    options.add_argument("--ranks", type=int, nargs="+", default=[1, 4])
    options.add_argument("--out", type=Path, help="file of JSON lines to append to")
    chosen = options.parse_args()
    if chosen.what == "docs":
        rewrite_section(DOCS, BEGIN, END, table(read_lines(LINES)))
        return 0
    emit(machine_line(processor=processor()), chosen.out)
    for ranks in chosen.ranks:
        emit(measure(chosen.length, chosen.layers, ranks), chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
