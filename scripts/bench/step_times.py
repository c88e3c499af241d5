"""The first steps of a training in a checkout, one process: `python scripts/bench/step_times.py CHECKOUT STEPS FLAGS…`; bench/train.py pair runs it.

Prints seconds, processor seconds and loss of each step as JSON. FLAGS are those of worker/train.py. A processor that others use as well hardly
changes processor seconds.
"""

import json
import sys
import tempfile
import threading
import time
from pathlib import Path


def main() -> None:
    """Take the steps."""
    sys.path[0] = sys.argv[1]
    from ringattn.blas import loader as blas

    blas.prepare()
    import ringattn
    from worker.training.config import parse
    from worker.training.loop import Trainer

    with tempfile.TemporaryDirectory() as folder:
        config = parse([*sys.argv[3:], "--run", folder])
        trainer = Trainer(config, ringattn.init(config.timeout), threading.Event())
        seconds, processor = [], []
        for _ in range(int(sys.argv[2])):
            began = time.perf_counter(), time.process_time()
            trainer._step()
            seconds.append(round(time.perf_counter() - began[0], 4))
            processor.append(round(time.process_time() - began[1], 4))
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
        loss = [round(json.loads(line)["loss"], 6) for line in lines]
    print(json.dumps({"seconds": seconds, "processor_seconds": processor, "loss": loss}))


if __name__ == "__main__":
    main()
