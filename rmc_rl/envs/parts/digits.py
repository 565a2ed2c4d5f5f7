"""
Images of handwritten digits: the small set in this package, and MNIST from a folder.

Sets: Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", 1998 (data/README.md); LeCun, Cortes & Burges, "The MNIST
database of handwritten digits", 1998, whose page describes the IDX format.

Shapes: ``I`` images, ``H`` pixels along a side of one.
"""

import gzip
import zlib
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rmc_rl.errors import UsageError, require

SPLITS = ("train", "test")
TRAIN_SHARE = 0.8  # of the small set, in the order of its file
INTERPOLATIONS = ("area", "nearest")
_MNIST_NAMES = {"train": "train", "test": "t10k"}
_IDX_BYTES = 8  # the type of unsigned bytes in an IDX header


def load_digits(split: str, folder: str | None = None) -> tuple[Tensor, Tensor]:
    """
    Images and their classes.

    :param split: "train" or "test"
    :param folder: contains MNIST's four files, packed (``.gz``) or not; None: the small set
    :return: images ``(I, H, H)`` float32 of 0 (paper) to 1 (ink), classes ``(I,)``
    :raises UsageError: for a file that is missing or has another format
    """
    if folder is None:
        images, classes = _small_set()
        first_of_test = int(TRAIN_SHARE * len(images))
        rows = slice(first_of_test) if split == "train" else slice(first_of_test, None)
        return images[rows], classes[rows]
    require(isinstance(folder, str), "data must be a folder", folder)
    name = _MNIST_NAMES[split]
    pixels = _read_idx(folder, f"{name}-images-idx3-ubyte", 3)
    labels = _read_idx(folder, f"{name}-labels-idx1-ubyte", 1)
    fits = len(pixels) == len(labels) > 0 and pixels.shape[1] == pixels.shape[2] > 0 and labels.max(initial=0) <= 9
    require(fits, f"{folder} must have as many labels of 0 to 9 as square images", (pixels.shape, labels.shape))
    return torch.from_numpy(pixels).float() / 255, torch.from_numpy(labels).long()


def resize(images: Tensor, size: int, interpolation: str) -> Tensor:
    """
    Images at another resolution.

    :param images: ``(I, H, H)``
    :param size: pixels along a side
    :param interpolation: "area" (the mean of the area that a pixel covers) or "nearest"
    :return: ``(I, size, size)``
    """
    # (I, H, H) -> (I, 1, H, H), and back
    return interpolate(images.unsqueeze(1), (size, size), mode=interpolation).squeeze(1)


@cache
def _small_set() -> tuple[Tensor, Tensor]:
    lines = gzip.decompress(files("rmc_rl.envs").joinpath("data/digits.csv.gz").read_bytes()).decode().splitlines()
    table = torch.from_numpy(np.loadtxt(lines, delimiter=",", dtype=np.float32))
    # (I, 65) -> (I, 8, 8), (I,)
    return table[:, :-1].reshape(-1, 8, 8) / 16, table[:, -1].long()


def _read_idx(folder: str, name: str, dimensions: int) -> np.ndarray:
    packed, plain = Path(folder) / f"{name}.gz", Path(folder) / name
    path = packed if packed.is_file() else plain
    require(path.is_file(), f"data must be a folder with {name} or {name}.gz", str(folder))
    try:
        content = gzip.decompress(path.read_bytes()) if path is packed else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    header = 4 * (1 + dimensions)  # bytes
    sizes = np.frombuffer(content[4:header].ljust(4 * dimensions, b"\0"), dtype=">u4").tolist()
    is_idx = content[:4] == bytes([0, 0, _IDX_BYTES, dimensions])
    is_whole = len(content) == header + int(np.prod(sizes))
    require(is_idx and is_whole, f"{path} must be an IDX file of bytes in {dimensions} dimensions", f"{len(content)} bytes")
    # a copy, because torch needs memory that may be written to
    values: np.ndarray = np.frombuffer(content, dtype=np.uint8, offset=header).reshape(sizes).copy()
    return values
