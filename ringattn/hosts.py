"""Speeds of hosts and links: those that the planner measures, and those of Apple chips and their links as published.

Every figure of a chip or a link below was **read** at the source that it names, and measured by nobody here: no Mac was available. The
speed of a kernel on a chip is *by count*: a share of the chip's published peak that the kernel's instructions, or its bytes across
memory, allow at most. Waiting and occupancy are not in it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Speed:
    """Speed of one host's kernel: FLOP/s of visible work, forward and backward."""

    forward: float
    backward: float


@dataclass(frozen=True)
class Link:
    """A link between neighbours.

    Attributes:
        name: The link's name.
        bandwidth: bytes/s of one direction, with both directions in use.
        latency: seconds that an exchange costs at least.
        kernel_share: share of the kernel's speed that remains during an exchange. A GPU keeps all of it; MLX's socket threads
            use a core or two meanwhile, so a CPU with few cores does not.
        source: where a figure that was not measured comes from.
    """

    name: str
    bandwidth: float
    latency: float
    kernel_share: float = 1.0
    source: str = ""

    def to_json(self) -> dict[str, str | float]:
        """Return plain data under the keys of `--json` and of docs/benchmarks, which call the kernel's share "beside"."""
        return {"name": self.name, "bandwidth": self.bandwidth, "latency": self.latency, "beside": self.kernel_share}


_NOMINAL = "nominal, less TCP's overhead"
_TCP_DELAY = "0.3 ms over TCP: jeffgeerling.com, 15-tb-vram-on-mac-studio-rdma-over-thunderbolt-5"
WIFI = Link(
    "Wi-Fi", 0.047e9, 3e-3,
    source="758 Mbit/s to a MacBook Pro of 2021 on Wi-Fi 6 (macitynet.it, 2022-02), shared by both directions; the delay is an assumption",
)  # fmt: skip
GIGABIT = Link("1 GbE", 0.117e9, 2e-4, source=_NOMINAL)
TEN_GIGABIT = Link("10 GbE", 1.17e9, 1e-4, source=_NOMINAL)
THUNDERBOLT_4 = Link(
    "Thunderbolt 4", 2.05e9, 3e-4,
    source=f"16.4 Gbit/s of TCP from a MacBook Pro with M2 on a link of 20 each way (jiribrejcha.net); {_TCP_DELAY}",
)  # fmt: skip
THUNDERBOLT_5 = Link(
    "Thunderbolt 5", 3.1e9, 3e-4,
    source=f"the lower end of 25 to 40 Gbit/s of TCP (github.com/Geramy/OdinLink-Five/pull/15); {_TCP_DELAY}",
)  # fmt: skip
THUNDERBOLT_5_RDMA = Link(
    "TB 5 with RDMA", 3.5e9, 5e-5,
    source="3.5 GB/s (github.com/ml-explore/mlx/issues/3207); under 50 us (jeffgeerling.com, as above). No transport of this project uses it",
)  # fmt: skip
LINKS = (WIFI, GIGABIT, TEN_GIGABIT, THUNDERBOLT_4, THUNDERBOLT_5, THUNDERBOLT_5_RDMA)

METAL_SHARES = {
    (64, 4): (0.74, 0.51),
    (64, 2): (0.71, 0.50),
    (128, 4): (0.69, 0.46),
    (128, 2): (0.66, 0.46),
}
"""By head dimension and bytes of an element: FLOPs of forward and of backward over those of the chip's peak, by the counts of
tests/support/metal and its table of costs. Backward computes two of its five products a second time."""
MLX_PASSES = {"forward": (2, 3), "backward": (5, 4)}
"""Of a tile's scores in the mlx kernel: matrix products, each of which reads or writes them once, and passes beside them."""
PRODUCT_SHARE = 0.8
"""Of the peak that a matrix product reaches where memory does not limit it: an assumption."""


@dataclass(frozen=True)
class Chip:
    """An Apple chip's GPU.

    Attributes:
        name: the chip, with its GPU's cores.
        peak: FLOP/s in fp32.
        memory: bytes/s of the unified memory.
        links: those that its hosts have.
        source: where the figures come from.
    """

    name: str
    peak: float
    memory: float
    links: tuple[Link, ...]
    source: str

    def metal_speed(self, dim: int, itemsize: int) -> Speed:
        """Return the most that the metal kernel's counts allow at a head dimension of 64 or 128, whichever is nearer above."""
        forward, backward = METAL_SHARES[64 if dim <= 64 else 128, itemsize]
        return Speed(forward * self.peak, backward * self.peak)

    def mlx_speed(self, dim: int) -> Speed:
        """Return the most that the mlx kernel's passes over memory allow: launches run one after the other."""
        one_pass, product = 4 / self.memory, 2 * dim / (PRODUCT_SHARE * self.peak)

        def speed(flops: int, kind: str) -> float:
            products, passes = MLX_PASSES[kind]
            return flops * dim / (products * max(one_pass, product) + passes * one_pass)

        return Speed(speed(4, "forward"), speed(10, "backward"))


_WIRED = (WIFI, GIGABIT, TEN_GIGABIT)
CHIPS = (
    Chip(
        "M2, 10 cores", 3.58e12, 100e9, (*_WIRED, THUNDERBOLT_4),
        "1,280 lanes at 1.398 GHz (hmc-tech.com); 100 GB/s (macrumors.com, 2022-06-06)",
    ),
    Chip(
        "M4, 10 cores", 3.76e12, 120e9, (*_WIRED, THUNDERBOLT_4),
        "1,280 lanes at 1.470 GHz (hmc-tech.com; others say 1.578); 120 GB/s (fonearena.com, 2024-05)",
    ),
    Chip(
        "M3 Ultra, 80 cores", 28.6e12, 819e9, (TEN_GIGABIT, THUNDERBOLT_5, THUNDERBOLT_5_RDMA),
        "twice the 14.32 TFLOP/s of an M3 Max with 40 cores (hmc-tech.com); 819 GB/s (Ars Technica, 2025-03)",
    ),
    Chip(
        "M5 Max, 40 cores", 18e12, 614e9, (TEN_GIGABIT, THUNDERBOLT_5, THUNDERBOLT_5_RDMA),
        "estimated from an A19 that was measured (tzakharko.github.io/apple-neural-accelerators-benchmark), without its matrix units, which "
        "the Metal kernel does not use; 614 GB/s (notebookcheck.net)",
    ),
)  # fmt: skip
