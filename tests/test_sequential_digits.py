"""Sequential digits: its layout, perfect, memoryless and random play, resolutions, and MNIST's files."""

import gzip
import re

import numpy as np
import pytest
import torch
from playing import play, random_actions

from rmc_rl.envs.parts import drawing
from rmc_rl.envs.parts.digits import load_digits
from rmc_rl.envs.worlds.sequential_digits import SequentialDigitsWorld
from rmc_rl.errors import UsageError

SIZES = [dict(), dict(pixels_per_step=8), dict(size=12, pixels_per_step=16, split="test", binary=True)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
class TestSequentialDigits:
    def test_layout_of_an_episode(self, sizes):
        world = SequentialDigitsWorld(16, **sizes)
        observations, _ = world.reset(seed=0)
        seen = [observations]
        for step in range(world.n_chunks + 1):
            image = world.image.clone()
            observations, _, terminated, truncated, _ = world.step(torch.zeros(16, dtype=torch.long))
            assert (terminated == (step == world.n_chunks)).all()
            assert not truncated.any()
            seen.append(observations)
        shown = torch.stack(seen[:-1], 1)
        assert (shown[:, :-1, -1] == 1).all()
        assert (shown[:, -1] == 0).all()  # the question: no pixel, not empty pixels
        pixels = shown[:, :-1, :-1].reshape(16, -1)
        assert pixels.equal(world._chunks.view(-1, world.size**2)[image])
        assert len(pixels.unique(dim=0)) > 10

    def test_perfect_play_gets_one(self, sizes):
        world, memory = SequentialDigitsWorld(64, **sizes), []
        known = world._chunks.view(-1, world.size**2)

        def act(observations):
            memory.append(observations[:, :-1])
            if observations[0, -1] == 1:
                return torch.zeros(64, dtype=torch.long)
            pixels = torch.cat(memory[:-1], 1)
            memory.clear()
            return world.classes[torch.cdist(pixels, known, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)]

        assert play(world, 128, act, 2 * (world.n_chunks + 1)).mean() == 1

    def test_random_play(self, sizes):
        world = SequentialDigitsWorld(1024, **sizes)
        returns = play(world, 2048, random_actions(world), 2 * (world.n_chunks + 1))
        assert abs(returns.mean() - 0.1) < 4 * 0.3 / np.sqrt(2048)

    def test_memoryless_play_names_the_most_frequent_digit(self, sizes):
        # for the step that counts is the same whatever the digit
        world = SequentialDigitsWorld(1024, **sizes)
        digit = world.classes.bincount().argmax()
        returns = play(world, 2048, lambda _: torch.full((1024,), digit), 2 * (world.n_chunks + 1))
        assert (world.classes == digit).float().mean() < 0.105
        assert abs(returns.mean() - 0.1) < 4 * 0.3 / np.sqrt(2048)


def test_the_scans():
    (train, named), (test, to_name) = load_digits("train"), load_digits("test")
    assert (len(train), len(test)) == (1437, 360)
    assert (train.min(), train.max()) == (0, 1)
    assert all((classes.bincount() / len(classes) > 0.09).all() for classes in (named, to_name))
    nearest = named[torch.cdist(test.flatten(1), train.flatten(1)).argmin(1)]
    assert round((nearest == to_name).float().mean().item(), 2) == 0.96
    both = torch.cat([train, test]).flatten(1)
    assert len(both.unique(dim=0)) == len(both)  # no image of the test is one of training


def test_resolutions():
    def images(**kwargs):
        world = SequentialDigitsWorld(pixels_per_step=1, **kwargs)
        return world._chunks.view(-1, world.size, world.size)

    plain = images()
    assert plain.equal(load_digits("train")[0])
    assert images(size=16).equal(plain.repeat_interleave(2, 1).repeat_interleave(2, 2))
    torch.testing.assert_close(images(size=4), plain.view(-1, 4, 2, 4, 2).mean((2, 4)))
    assert images(size=4, interpolation="nearest").equal(plain[:, ::2, ::2])
    assert images(size=4, binary=True).equal((images(size=4) >= 0.5).float())


def write_mnist(folder, pack=False):
    """Files in MNIST's format with random images, which are returned with their labels by split."""
    random, written = np.random.default_rng(0), {}
    for split, name, count in (("train", "train", 60), ("test", "t10k", 20)):
        images = random.integers(256, size=(count, 28, 28), dtype=np.uint8)
        labels = random.integers(10, size=count, dtype=np.uint8)
        for array, kind in ((images, "images-idx3"), (labels, "labels-idx1")):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
            content = header + array.tobytes()
            path = folder / f"{name}-{kind}-ubyte{'.gz' if pack else ''}"
            path.write_bytes(gzip.compress(content) if pack else content)
        written[split] = images, labels
    return written


@pytest.mark.parametrize("pack", [False, True])
def test_mnist_from_a_folder(tmp_path, pack):
    written = write_mnist(tmp_path, pack)
    for split, (images, labels) in written.items():
        world = SequentialDigitsWorld(4, data=str(tmp_path), split=split, pixels_per_step=28)
        assert world.size == 28
        np.testing.assert_allclose(world._chunks.view(-1, 28, 28).numpy(), images / np.float32(255), atol=1e-6)
        np.testing.assert_array_equal(world.classes.numpy(), labels)
        world.reset(seed=0)
    small = SequentialDigitsWorld(4, data=str(tmp_path), size=14, binary=True)
    assert small.reset(seed=0)[0].shape == (4, 2)


def damage(path, how):
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_bytes(b"<html>not found</html>")
    elif how == "garbled":
        content = bytearray(path.read_bytes())
        content[10:] = content[:9:-1]
        path.write_bytes(content)
    elif how == "other type":
        path.write_bytes(bytes([0, 0, 13, 3]) + path.read_bytes()[4:])


@pytest.mark.parametrize("how", ["missing", "cut", "empty", "text", "garbled", "other type"])
@pytest.mark.parametrize("pack", [False, True])
def test_broken_files_get_one_line(tmp_path, how, pack):
    write_mnist(tmp_path, pack)
    damage(tmp_path / f"train-images-idx3-ubyte{'.gz' if pack else ''}", how)
    with pytest.raises(UsageError, match="train-images-idx3-ubyte") as mistake:
        SequentialDigitsWorld(data=str(tmp_path))
    assert "\n" not in str(mistake.value)
    SequentialDigitsWorld(data=str(tmp_path), split="test")


def test_labels_must_fit_the_images(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").rename(tmp_path / "train-labels-idx1-ubyte")
    with pytest.raises(UsageError, match="as many labels of 0 to 9 as square images"):
        SequentialDigitsWorld(data=str(tmp_path))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (dict(size=0), "size must be a whole number of at least 1, got 0"),
        (dict(pixels_per_step=0), "pixels_per_step must be a whole number of at least 1, got 0"),
        (dict(pixels_per_step=3), "pixels_per_step must divide the 64 pixels, got 3"),
        (dict(split="tset"), "unknown split 'tset'; did you mean 'test'"),
        (dict(interpolation="bilinear"), "unknown interpolation 'bilinear'; valid: area, nearest"),
        (dict(binary=1), "binary must be true or false, got 1"),
        (
            dict(data="/nowhere"),
            "data must be a folder with train-images-idx3-ubyte or train-images-idx3-ubyte.gz, got '/nowhere'",
        ),
        (dict(data=3), "data must be a folder, got 3"),
    ],
)
def test_mistakes(keywords, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        SequentialDigitsWorld(**keywords)


@pytest.mark.parametrize("size", [8, 12])
def test_a_picture_shows_what_was_seen_and_the_answer(size):
    def pixels(colour):
        return int((world._picture(0) == np.array(colour)).all(-1).sum())

    world = SequentialDigitsWorld(1, size=size, pixels_per_step=4, render_mode="rgb_array")
    world.reset(seed=0)
    side = -(-192 // size) * size
    assert pixels(drawing.GRID) == side * side * (1 - 1 / world.n_chunks)  # still to come
    for _ in range(world.n_chunks):
        world.step(torch.tensor([0]))
    assert pixels(drawing.GRID) == pixels(drawing.RIGHT) == pixels(drawing.WRONG) == 0
    world._advance(world.classes[world.image])
    assert pixels(drawing.RIGHT) > 50
    world.answer = (world.answer + 1) % 10
    assert pixels(drawing.WRONG) > 50
