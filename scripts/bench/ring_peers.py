"""One measurement of a peer library: `PEER_PYTHON scripts/bench/ring_peers.py '{"peer": "torch", "length": 8192, …}'`.

Run by scripts/bench/ring.py with the interpreter of a virtual environment that has torch, ring-attention-pytorch, jax and
ringattention; imports nothing of this project. Prints one JSON line: seconds per repeat and peak bytes of each process.
"""

import json
import os
import resource
import socket
import sys
import time


def peak_bytes() -> int:
    """Return the peak memory of this process in bytes; Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def timed(step, spec: dict) -> list[float]:
    """Return the seconds of each repeat, after a warm-up if steps are short."""
    if spec["warm"]:
        step()
    times = []
    for _ in range(spec["repeats"]):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times


def torch_sdpa(spec: dict) -> dict:
    """Measure flash attention of torch on all cores."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.set_num_threads(spec["cores"])
    shape = (1, spec["heads"], spec["length"], spec["dim"])
    dtype = getattr(torch, spec["dtype"])
    q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=spec["backward"]) for _ in range(3))
    do = torch.randn(shape, dtype=dtype)

    def step() -> None:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            o = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=spec["causal"])
        if spec["backward"]:
            o.backward(do)
            q.grad = k.grad = v.grad = None

    return {"seconds": timed(step, spec), "peak": [peak_bytes()], "version": torch.__version__}


def ring_attention_pytorch(spec: dict) -> dict:
    """Measure two gloo processes; setting = {"bucket": …, "striped": …}."""
    import torch.multiprocessing as mp

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    queue = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_ring_attention_pytorch_rank, (spec, port, queue), nprocs=2)
    ranks = [queue.get() for _ in range(2)]
    seconds = [max(pair) for pair in zip(*(r["seconds"] for r in ranks), strict=True)]
    return {"seconds": seconds, "peak": [r["peak"] for r in ranks], "version": ranks[0]["version"]}


def _ring_attention_pytorch_rank(rank: int, spec: dict, port: int, queue) -> None:
    from importlib.metadata import version

    import torch
    import torch.distributed as dist
    from ring_attention_pytorch.ring_flash_attention import ring_flash_attn

    torch.set_num_threads(max(1, spec["cores"] // 2))
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    shape = (1, spec["length"] // 2, spec["heads"], spec["dim"])
    q, k, v = (torch.randn(shape, requires_grad=spec["backward"]) for _ in range(3))
    do = torch.randn(shape)
    setting = spec["setting"]

    def step() -> None:
        dist.barrier()
        o = ring_flash_attn(
            q, k, v, None, spec["causal"], setting["bucket"], True, setting["striped"], None, 2
        )  # fmt: skip
        if spec["backward"]:
            o.backward(do)
            q.grad = k.grad = v.grad = None
        dist.barrier()

    seconds = timed(step, spec)
    queue.put({"seconds": seconds, "peak": peak_bytes(), "version": version("ring-attention-pytorch")})
    dist.destroy_process_group()


def jax_ringattention(spec: dict) -> dict:
    """Measure two devices of one process; setting = {"chunk": …}."""
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    from functools import partial
    from importlib.metadata import version
    from types import SimpleNamespace

    import jax
    import jax.numpy as jnp
    from jax.sharding import Mesh, PartitionSpec

    if not hasattr(jax.lib, "xla_bridge"):  # its __init__ asks a module that newer jax dropped for the platform
        vars(jax.lib)["xla_bridge"] = SimpleNamespace(get_backend=lambda: jax.devices()[0].client)
    from ringattention import ringattention

    chunk = spec["setting"]["chunk"]
    mesh = Mesh(jax.devices(), ("sp",))
    spread = PartitionSpec(None, "sp", None, None)
    options = {
        "causal_block_size": 1 if spec["causal"] else None,
        "deterministic": True,
        "dropout_rng": None,
        "attn_pdrop": 0.0,
        "query_chunk_size": chunk,
        "key_chunk_size": chunk,
        "dtype": jnp.float32,
        "policy": jax.checkpoint_policies.nothing_saveable,
        "precision": None,
        "prevent_cse": True,
    }
    ring = partial(ringattention, axis_name="sp", float32_logits=True, cache_idx=None, blockwise_kwargs=options)

    def local(q, k, v):
        return ring(q, k, v, None, None)

    attend = jax.shard_map(local, mesh=mesh, in_specs=(spread,) * 3, out_specs=spread, check_vma=False)
    shape = (1, spec["length"], spec["heads"], spec["dim"])
    q, k, v, do = (jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(0), 4))
    if spec["backward"]:
        run = jax.jit(lambda q, k, v, do: jax.vjp(attend, q, k, v)[1](do))
    else:
        run = jax.jit(lambda q, k, v, do: attend(q, k, v))

    compiled = run.lower(q, k, v, do).compile()

    def step() -> None:
        jax.block_until_ready(compiled(q, k, v, do))

    return {"seconds": timed(step, spec), "peak": [peak_bytes()], "version": version("ringattention")}


PEERS = {"torch": torch_sdpa, "ring-attention-pytorch": ring_attention_pytorch, "jax-ringattention": jax_ringattention}

if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(PEERS[given["peer"]](given)))
