"""The planner's formulas against the schedule that they describe, and its command line with real measurements."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from ringattn import decode, decode_planner, kernels, planner
from ringattn.hosts import CHIPS, LINKS, Chip, Link, Speed
from ringattn.planner import Shape
from scripts.bench.links import paper_part

SPEED = Speed(100e9, 80e9)
shapes = st.builds(
    Shape,
    length=st.integers(1_000, 1_000_000),
    heads=st.sampled_from([8, 16]),
    kv_heads=st.sampled_from([1, 2, 8]),
    dim=st.sampled_from([32, 64, 128]),
    itemsize=st.sampled_from([2, 4]),
    causal=st.booleans(),
)
links = st.builds(Link, name=st.just("link"), bandwidth=st.floats(1e7, 1e11), latency=st.floats(0, 1e-3))


@given(shapes, links)
def test_blocks_from_the_smallest_up_hide_communication(shape: Shape, link: Link) -> None:
    block = planner.smallest_block(shape, SPEED, link)
    for hosts in (2, 4, 8):
        part = Shape(**{**vars(shape), "length": hosts * block})
        assert planner.efficiency(part, SPEED, link, hosts) == pytest.approx(1.0, rel=1e-6)
        smaller = Shape(**{**vars(shape), "length": max(1, hosts * block // 2)})
        assert planner.efficiency(smaller, SPEED, link, hosts) < 1.0 or block <= 2


@given(shapes, links, st.sampled_from([2, 4, 8, 16]))
def test_efficiency_is_at_most_one_and_falls_on_a_slower_link(shape: Shape, link: Link, hosts: int) -> None:
    here = planner.efficiency(shape, SPEED, link, hosts)
    slower = Link("slower", link.bandwidth / 2, link.latency)
    assert 0 < planner.efficiency(shape, SPEED, slower, hosts) <= here + 1e-9 <= 1 + 2e-9


@given(shapes, links, st.sampled_from([2, 4]), st.floats(0.3, 1.0))
def test_kernel_slowed_by_exchanges_costs_no_more_than_that(shape: Shape, link: Link, hosts: int, share: float) -> None:
    slowed = planner.step_seconds(shape, SPEED, replace(link, kernel_share=share), hosts)
    _, _, move, move_grad = planner.hop_seconds(shape, SPEED, link, hosts)
    moving = (hosts - 1) * (2 * move + move_grad)
    free = planner.step_seconds(shape, SPEED, link, hosts)
    assert free * (1 - 1e-9) <= slowed <= (free + (1 - share) * moving) * (1 + 1e-9)


def test_step_on_a_slow_link_takes_the_time_of_its_transfers() -> None:
    shape, link = Shape(1024), Link("slow", 1e6, 0.0)
    _, backward, move, move_grad = planner.hop_seconds(shape, SPEED, link, 4)
    assert move > 10 * backward
    # Forward: 3 moves; backward: 3 moves of K and V and 3 of gradients, one after the other on the same link.
    assert planner.step_seconds(shape, SPEED, link, 4) == pytest.approx(6 * move + 3 * move_grad, rel=0.1)


def test_four_hosts_keep_at_most_27_percent_of_a_long_context_each() -> None:
    # An 8-billion-parameter model's keys and values: 32 layers, 8 kv heads, dimension 128, bfloat16.
    shape = Shape(524_288, heads=32, kv_heads=8, dim=128, itemsize=2)
    alone = decode_planner.cache_bytes(shape, 32, 1)
    assert alone == 2 * 32 * 524_288 * 8 * 128 * 2
    assert decode_planner.cache_bytes(shape, 32, 4) <= 0.27 * alone


@given(shapes, links, st.sampled_from([2, 3, 4, 8]))
def test_a_token_takes_the_reading_of_a_share_and_one_gather_a_layer(shape: Shape, link: Link, hosts: int) -> None:
    read, layers = 10e9, 7
    alone, many = (decode_planner.decode_seconds(shape, layers, read, link, n) for n in (1, hosts))
    assert alone == pytest.approx(layers * 2 * shape.kv_heads * shape.length * shape.dim * shape.itemsize / read)
    message = 4 * (shape.heads * (shape.dim + 1) + decode.HEADER)
    gather = (hosts - 1) * (link.latency + message / link.bandwidth)
    assert many == pytest.approx(alone / hosts + layers * gather)


def test_command_line_measures_and_prints_json() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ringattn.planner", "--length", "4096", "--layers", "3", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["speed"]["forward"] > 0
    assert [link["name"] for link in found["links"]] == [*(link.name for link in LINKS), "loopback"]
    rows = found["links"] + [row for chip in found["paper"] for row in chip["links"]]
    assert all(set(row["efficiency"]) == {"1", "2", "4", "8", "16"} for row in rows)
    assert [chip["chip"] for chip in found["paper"]] == [chip.name for chip in CHIPS]
    assert all(chip["source"] for chip in found["paper"])
    assert found["decode"]["cache_bytes"]["4"] == 3 * 2 * 8 * 1024 * 64 * 4
    assert found["decode"]["seconds"]["loopback"]["1"] > 0


def test_report_says_what_was_read_and_what_was_measured() -> None:
    shape = Shape(131_072)
    printed = planner.text(planner.report(shape, {"native": SPEED}, [*LINKS, Link("loopback", 1e9, 1e-4)]))
    assert "loopback is measured, the others were read" in printed
    paper = printed.partition("nothing of it was measured:")[2]
    assert "M2, 10 cores: at most 2.65 TFLOP/s forward, 1.83 backward" in paper
    assert paper.count("tokens") == sum(len(chip.links) for chip in CHIPS)


@pytest.mark.parametrize(
    ("system", "accelerate", "taken", "words"),
    [
        ("linux", 0.0, "native", ""),
        (
            "darwin",
            2.0,
            "mlx",
            "the predictions take mlx, the fastest; the ring takes native unless RINGATTN_KERNEL=mlx is set",
        ),
        ("darwin", 0.5, "native", "the predictions take native, the fastest\n"),
    ],
)
def test_kernels_are_timed_against_each_other_on_a_macs_cpu(
    system: str, accelerate: float, taken: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(shape: Shape, *, kernel: str) -> Speed:
        return Speed(*((accelerate if kernel == "mlx" else 1.0) * speed for speed in (100e9, 80e9)))

    monkeypatch.delenv("RINGATTN_KERNEL", raising=False)
    monkeypatch.setattr(planner.sys, "platform", system)
    monkeypatch.setattr(planner, "measure_speed", timed)
    shape = Shape(131_072)
    found = planner.report(shape, planner.measure_speeds(shape), LINKS)
    printed = planner.text(found)
    assert found["kernel"] == taken and found["speed"]["forward"] == 100e9 * max(1.0, accelerate)
    assert words in printed and printed.count("kernel here:") == (2 if words else 1)
    assert ("predictions take" in printed) == bool(words)
    monkeypatch.setenv("RINGATTN_KERNEL", "reference")
    assert list(planner.measure_speeds(shape)) == ["reference"]


def test_a_named_kernel_is_the_one_that_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []
    real = kernels.select

    def select(name: str | None = None) -> kernels.Kernel:
        asked.append(name)
        return real(name)

    monkeypatch.setattr(planner.kernels, "select", select)
    speed = planner.measure_speed(Shape(64, heads=1, kv_heads=1, dim=8), block=64, repeats=1, kernel="mlx")
    assert asked == ["mlx"] and min(speed.forward, speed.backward) > 0


def test_every_published_figure_names_its_source() -> None:
    assert all(len(one.source) > 20 for one in (*LINKS, *CHIPS))
    assert {link.name for chip in CHIPS for link in chip.links} == {link.name for link in LINKS}


def test_mlx_kernel_is_bounded_by_memory_or_by_products() -> None:
    """5 and 9 passes of 4 bytes a score where memory is slow; 2 and 5 products where it is fast."""
    slow, fast = (Chip("", 1e15, 100e9, (), ""), Chip("", 1e12, 1e18, (), ""))
    assert slow.mlx_speed(64).forward == pytest.approx(4 * 64 / (5 * 4 / 100e9))
    assert slow.mlx_speed(64).backward == pytest.approx(10 * 64 / (9 * 4 / 100e9))
    assert fast.mlx_speed(64).forward == pytest.approx(0.8e12)
    assert fast.mlx_speed(64).backward == pytest.approx(0.8e12)


def test_page_on_scaling_has_these_rows() -> None:
    page = (Path(__file__).parents[3] / "docs" / "internals" / "scaling.md").read_text()
    assert "\n".join(paper_part()) in page
