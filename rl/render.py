"""Draw an episode of the environment: its loads above, the charge of each store below. Pillow draws; pygame shows a window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

FPS = 12  # hours a second in a window
WIDTH, HEIGHT = 720, 432
LEFT, RIGHT, MARGIN = 56, 704, 28  # of both panels; MARGIN: room for a line of text above each
PANELS = ((MARGIN, 196), (228, 396))  # top and bottom of the loads and of the charges
INK, PALE, PAPER = (30, 34, 42), (150, 156, 166), (255, 255, 255)
COLOURS = ((31, 119, 180), (214, 96, 20), (44, 140, 60), (148, 80, 170), (120, 90, 70))
Colour = tuple[int, int, int]


@dataclass
class Episode:
    """What a picture shows: an hour of it is added after each step."""

    stores: tuple[str, ...]
    hours: int  # of the whole episode
    place: str = ""  # region and hour of the last step
    load: list[float] = field(default_factory=list)  # reference peaks
    residual: list[float] = field(default_factory=list)
    charge: list[NDArray[Any]] = field(default_factory=list)  # [store] shares of the energy
    cost: float = 0.0  # so far, $ per MW of reference peak
    idle: float = 0.0  # what doing nothing would have cost
    price: float = 0.0  # of the last hour, $/MWh

    def add(self, info: Mapping[str, Any], cost: float) -> None:
        """Add an hour, as the environment's info describes it."""
        self.load.append(info["load"])
        self.residual.append(info["residual"])
        self.charge.append(info["charge"])
        self.cost += cost
        self.idle += info["idle_cost"]
        self.place = f"{info['region']} {info['time']}".strip()
        self.price = info["price"]


def draw(episode: Episode) -> NDArray[np.uint8]:
    """Return a picture [height, width, 3] of the hours so far, at their places in the whole episode."""
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    done = len(episode.load)
    heading = f"{episode.place}    hour {done} of {episode.hours}".strip()
    if done:
        saved = episode.idle - episode.cost
        heading += f"    cost {episode.cost:,.0f} $/MW, {abs(saved):,.1f} {'less' if saved >= 0 else 'more'} than doing nothing"
        price = f"price {episode.price:,.0f} $/MWh"
        pen.text((RIGHT - pen.textlength(price, font), PANELS[0][1] + 4), price, INK, font)
    pen.text((LEFT, 6), heading, INK, font)
    low, high = 0.0, max([1.0, *episode.load, *episode.residual]) * 1.05
    if done:
        low = min(0.3, *episode.load, *episode.residual)
    lines: list[tuple[str, list[float], Colour]] = [
        ("net load", episode.load, PALE),
        ("residual load, reference peaks", episode.residual, COLOURS[0]),
    ]
    _panel(pen, font, PANELS[0], (low, high), lines, episode.hours)
    charges = np.array(episode.charge).reshape(done, len(episode.stores))
    lines = [
        (
            name if index else f"charge, share of the energy: {name}",
            list(charges[:, index]),
            COLOURS[index % len(COLOURS)],
        )
        for index, name in enumerate(episode.stores)
    ]
    _panel(pen, font, PANELS[1], (0.0, 1.0), lines, episode.hours)
    return np.asarray(image, np.uint8)


def _panel(
    pen: ImageDraw.ImageDraw,
    font: Any,
    rows: tuple[int, int],
    span: tuple[float, float],
    lines: list[tuple[str, list[float], Colour]],
    hours: int,
) -> None:
    """Draw axes, a legend below and lines of values in `span`."""
    (top, bottom), (low, high) = rows, span
    pen.line([(LEFT, top), (LEFT, bottom), (RIGHT, bottom)], PALE)
    for value in (low, high):
        pen.text((8, bottom - 14 if value == low else top), f"{value:.2f}", INK, font)
    x = LEFT
    for name, values, colour in lines:
        pen.text((x, bottom + 4), name, colour, font)
        x += int(pen.textlength(name, font)) + 24
        points = [
            (
                LEFT + (RIGHT - LEFT) * (hour + 1) / hours,
                bottom - (bottom - top) * (min(max(value, low), high) - low) / (high - low),
            )
            for hour, value in enumerate(values)
        ]
        if len(points) > 1:
            pen.line(points, colour, 2)


class Window:
    """A window of pygame's. DependencyNotInstalled is raised where it is not installed."""

    def __init__(self) -> None:
        try:
            import pygame
        except ImportError as error:
            from gymnasium.error import DependencyNotInstalled

            raise DependencyNotInstalled(
                'pygame is not installed: `pip install "gymnasium[classic-control]"`. '
                "gymnasium's `check_env` needs no window with skip_render_check=True"
            ) from error
        self._pygame = pygame
        pygame.display.init()  # not `pygame.init`, which looks for a sound card
        self._screen = pygame.display.set_mode((WIDTH, HEIGHT))
        pygame.display.set_caption("GridControl")
        self._clock = pygame.time.Clock()

    def show(self, picture: NDArray[np.uint8]) -> None:
        """Show a picture, `FPS` a second at most."""
        self._pygame.event.pump()
        self._screen.blit(self._pygame.surfarray.make_surface(picture.swapaxes(0, 1)), (0, 0))
        self._pygame.display.flip()
        self._clock.tick(FPS)

    def close(self) -> None:
        """Close the window."""
        self._pygame.display.quit()
