"""A rank that generates over the ring: `generate.py cases.json`; its last line is the report.

A case is {"family", "prompt", "chunk", "tokens", "temp"}; its report has tokens, the largest difference of log-probabilities from plain
mlx-lm in one process, and the share of the cache that this rank keeps.
"""

import json
import sys
from pathlib import Path

import mlx.core as mx
from mlx_lm.generate import generate_step as plain
from mlx_lm.sample_utils import make_sampler

sys.path.insert(0, str(Path(__file__).parents[3]))

import ringattn as ra
from ringattn.lm import generate_step, make_cache, shard_model
from tests.support import language_models as models


def generated(steps) -> tuple[list[int], mx.array]:
    tokens, logprobs = [], []
    for token, of_all in steps:
        tokens.append(int(token))
        logprobs.append(of_all)
    return tokens, mx.stack(logprobs)


def run(case: dict, group: mx.distributed.Group) -> dict:
    model = models.make(case["family"])
    prompt = models.tokens(case["prompt"], batch=1)[0]
    options = {"max_tokens": case["tokens"], "sampler": make_sampler(case["temp"], top_p=0.9)}

    mx.random.seed(7)
    wanted, wanted_logprobs = generated(plain(prompt, model, **options))

    shard_model(model, group)
    cache = make_cache(model)
    mx.random.seed(7)
    steps = generate_step(prompt, model, prompt_cache=cache, prefill_step_size=case["chunk"], **options)
    got, got_logprobs = generated(steps)
    return {
        "tokens": got,
        "wanted": wanted,
        "error": float(abs(got_logprobs - wanted_logprobs).max()),
        "held": cache.held(),
        "rows": [layer.rows() for layer in cache if layer.window is None],
        "seen": cache.tokens,
    }


def main() -> None:
    group = ra.init()
    print(json.dumps([run(case, group) for case in json.loads(Path(sys.argv[1]).read_text())]))


main()
