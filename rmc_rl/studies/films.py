"""
Films as files: MP4 (by imageio's ffmpeg), GIF (by Pillow), or one HTML page on which steps can be chosen.

A file is written whole or not at all.
"""

import base64
import importlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from rmc_rl.errors import UsageError, require_choice
from rmc_rl.studies.pictures import Film

FORMATS = ("mp4", "gif", "html", "png")
INSTALL = "pip install 'rmc-rl[watch]'"
CRF = 20  # of x264: 18 is hardly distinguishable from the original, 23 is its default
PALETTE_FRAMES = 12  # of a GIF, from which its colours are taken
COLOURS = 256
QUALITY = 85  # of the pictures in an HTML page, of 100
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>$title</title>
<style>body{font-family:sans-serif;max-width:1024px;margin:1em auto}img{width:100%}input{width:100%}</style>
<img id="frame" alt="$title"><br>
<input id="step" type="range" min="0" max="$last" value="0" aria-label="step">
<button id="play">play</button> <button id="back">-1</button> <button id="on">+1</button> frame <span id="at">0</span>
<script>
const frames = [$frames];
const image = document.getElementById("frame"), slider = document.getElementById("step");
const play = document.getElementById("play");
let timer = null;
function show(step) {
  slider.value = Math.max(0, Math.min(frames.length - 1, step));
  image.src = "data:image/webp;base64," + frames[slider.value];
  document.getElementById("at").textContent = slider.value;
}
function stop() { clearInterval(timer); timer = null; play.textContent = "play"; }
function start() {
  if (+slider.value === frames.length - 1) show(0);
  play.textContent = "stop";
  timer = setInterval(() => +slider.value === frames.length - 1 ? stop() : show(+slider.value + 1), $milliseconds);
}
slider.oninput = () => { stop(); show(+slider.value); };
play.onclick = () => timer === null ? start() : stop();
document.getElementById("back").onclick = () => { stop(); show(+slider.value - 1); };
document.getElementById("on").onclick = () => { stop(); show(+slider.value + 1); };
show(0);
</script></html>
"""


def check_format(name: str) -> None:
    """
    Check that a film can be written, before it is drawn.

    :param name: one of :data:`FORMATS`
    :raises UsageError: for another name, and for mp4 if ffmpeg is not installed
    """
    require_choice("format", name, FORMATS)
    if name == "mp4":
        _ffmpeg()


def write_film(film: Film, path: str | Path, fps: float, after_frame: Callable[[], object] = lambda: None) -> None:
    """
    Draw all frames of a film into a file.

    :param film: the film
    :param path: the file; its ending is one of :data:`FORMATS` but png
    :param fps: frames per second
    :param after_frame: called after each frame
    :raises UsageError: for another ending, or if ffmpeg is not installed
    :raises OSError: if the file cannot be written
    """
    path = Path(path)
    writers = {".mp4": _write_mp4, ".gif": _write_gif, ".html": _write_html}
    require_choice("the ending of a film", path.suffix, writers)

    def frames() -> Iterator[np.ndarray]:
        for step in range(len(film)):
            yield film.frame(step)
            after_frame()

    with _whole(path) as partial:
        writers[path.suffix](film, frames(), partial, fps)


def write_still(picture: np.ndarray, path: str | Path) -> None:
    """
    Write one picture as PNG.

    :param picture: ``(height, width, 3)`` uint8
    :param path: the file
    :raises OSError: if it cannot be written
    """
    with _whole(Path(path)) as partial:
        Image.fromarray(picture).save(partial, optimize=True)


def _ffmpeg() -> Any:
    """
    The package that brings ffmpeg.

    :raises UsageError: if it is not installed, or has no ffmpeg for this machine
    """
    try:
        module: Any = importlib.import_module("imageio_ffmpeg")
        module.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise UsageError(f"format=mp4 needs imageio-ffmpeg: {INSTALL}, or format=gif ({why})") from None
    return module


def _write_mp4(film: Film, frames: Iterator[np.ndarray], path: Path, fps: float) -> None:
    height, width = film.frame(0).shape[:2]
    writer = _ffmpeg().write_frames(
        str(path),
        (width, height),
        fps=fps,
        codec="libx264",
        quality=None,
        macro_block_size=2,
        ffmpeg_log_level="error",
        output_params=["-crf", str(CRF), "-preset", "veryfast", "-movflags", "+faststart"],
    )
    writer.send(None)
    try:
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
    finally:
        writer.close()


def _write_gif(film: Film, frames: Iterator[np.ndarray], path: Path, fps: float) -> None:
    chosen = np.linspace(0, len(film) - 1, PALETTE_FRAMES).round().astype(int)
    together = np.concatenate([film.frame(int(step)) for step in sorted(set(chosen))])
    palette = Image.fromarray(together).quantize(COLOURS, Image.Quantize.MEDIANCUT)
    quantized = (Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    first = next(quantized)
    # GIF counts hundredths of a second; the last frame is held, so that its result can be read
    durations = [max(20, round(1000 / fps))] * (len(film) - 1) + [2000]
    first.save(path, save_all=True, append_images=quantized, duration=durations, loop=0)


def _write_html(_film: Film, frames: Iterator[np.ndarray], path: Path, fps: float) -> None:
    coded = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "WEBP", quality=QUALITY, method=2)
        coded.append(f'"{base64.b64encode(buffer.getvalue()).decode()}"')
    page = Template(PAGE).substitute(
        title="rmc-rl film", last=len(coded) - 1, frames=",".join(coded), milliseconds=round(1000 / fps)
    )
    path.write_text(page, encoding="utf-8")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A path beside a file; what was written there replaces the file if nothing failed."""
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")  # ffmpeg reads the format from the ending
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
