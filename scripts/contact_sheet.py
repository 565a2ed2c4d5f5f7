"""
Draw all worlds in one picture: python scripts/contact_sheet.py [--out docs/worlds.png]

The picture has a row for each world of rmc_rl/*: frames of one episode of random play, from the first to the last step.
"""

import argparse
from pathlib import Path

import gymnasium
import numpy as np
from PIL import Image, ImageDraw

from rmc_rl.envs import WORLDS

FRAMES, HEIGHT, WIDTH, LINE, GAP = 5, 110, 190, 26, 8  # number of frames; pixels: largest frame, line of text, gap
TEXT = 18  # pixels
MOST_COLOURS = 256  # of the picture, so that its file is small
ROWS_PER_COLUMN = 7
SEED = 4


def frames_of(world_id: str) -> list[np.ndarray]:
    """Frames spread over an episode."""
    env = gymnasium.make(world_id, render_mode="rgb_array")
    env.reset(seed=SEED)
    env.action_space.seed(SEED)
    frames, over = [np.asarray(env.render())], False
    while not over:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        frames.append(np.asarray(env.render()))
        over = terminated or truncated
    return [frames[index] for index in np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)]


def strip(world_id: str, title: bool = True) -> Image.Image:
    """A world's frames side by side, under its id if ``title`` is true."""
    line = LINE if title else 0
    sheet = Image.new("RGB", (FRAMES * (WIDTH + GAP), HEIGHT + line + GAP), "white")
    if title:
        ImageDraw.Draw(sheet).text((0, 2), world_id, fill="black", font_size=TEXT)
    for index, frame in enumerate(frames_of(world_id)):
        picture = Image.fromarray(frame)
        scale = min(WIDTH / picture.width, HEIGHT / picture.height)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        sheet.paste(picture.resize(size, Image.Resampling.LANCZOS), (index * (WIDTH + GAP), line))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/worlds.png"))
    arguments = parser.parse_args()
    strips = [strip(world_id) for world_id in WORLDS]
    columns = -(-len(strips) // ROWS_PER_COLUMN)
    rows = -(-len(strips) // columns)
    width, height = strips[0].size
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for index, picture in enumerate(strips):
        sheet.paste(picture, (index // rows * width, index % rows * height))
    sheet.quantize(MOST_COLOURS, Image.Quantize.FASTOCTREE).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
