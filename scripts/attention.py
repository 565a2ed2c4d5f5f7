"""
What an RMC attends to on NthFarthest, before and after it sees the reference vector:

  python scripts/attention.py <folder of a run> --out docs/watching/nth_farthest.png

It follows the analysis of figure 3 in Santoro et al., "Relational recurrent neural networks", 2018,
https://arxiv.org/abs/1806.01822, over many episodes instead of a few examples. Vector m of the question is the reference. A
row of the table is a step, and whether the reference was still to come, is the present input, or was seen before. It prints
the mean attention of all slots and heads to the input, and that of each head; the interval is 1.96 standard errors over
episodes. With --out it also draws the mean attention matrices.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rmc_rl import load_policy, make_vec
from rmc_rl.runs.folder import Run
from rmc_rl.studies.canvas import GAP, Box, write
from rmc_rl.studies.films import write_still
from rmc_rl.studies.pictures import Matrix

WHEN = ("to come", "now", "seen before")  # the reference
SIZE = (250, 170)  # width and height of a matrix in pixels


def look(run: str, model: str, episodes: int, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """
    Attention in many episodes.

    :return: attention of the last block ``(T, episodes, heads, slots, slots + inputs)``, the step of the reference vector
        ``(episodes,)``, and the fraction of right answers
    """
    policy = load_policy(run, model)
    env_kwargs = dict(Run.open(run).read_config().env_kwargs)
    env = make_vec("rmc_rl/NthFarthest-v0", episodes, seed=seed, env_kwargs=env_kwargs)
    world = env.vector  # type: ignore[attr-defined]
    observation: Any = env.reset()
    seen, state, start = [observation], None, np.ones(episodes, dtype=bool)
    for step in range(world.n_vectors):
        actions, state = policy.predict(seen[-1], state, start, deterministic=True)
        observation, rewards, start, _ = env.step(actions)
        if step + 1 < world.n_vectors:
            seen.append(observation)
    observations = np.stack(seen)  # (T, episodes, dim + 3 N)
    label, _, reference = (
        observations[..., world.dim + part * world.n_vectors :][..., : world.n_vectors].argmax(-1) for part in range(3)
    )
    attention = policy.inspect(observations)["attention"][:, :, -1].numpy()
    return attention, (label == reference).argmax(0), float(rewards.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the folder of a run of core=rmc on rmc_rl/NthFarthest-v0")
    parser.add_argument("--model", default="last", help="last or best")
    parser.add_argument("--episodes", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, help="a PNG with the mean attention matrices")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    attention, reference, right = look(arguments.run, arguments.model, arguments.episodes, arguments.seed)
    steps, _, _, slots, keys = attention.shape
    print(f"{arguments.episodes} episodes, seed {arguments.seed}, {right:.3f} of the answers right")
    print(f"attention to the input if all weights were equal: {1 / keys:.3f}")
    print("| step | reference | episodes | attention to the input | by head |\n| --- | --- | --- | --- | --- |")
    matrices: dict[tuple[int, int], np.ndarray] = {}
    for step in range(steps):
        for when, chosen in enumerate((reference > step, reference == step, reference < step)):
            if not chosen.any():
                continue
            found = attention[step, chosen]  # (n, heads, slots, keys)
            to_input = found[..., slots:].sum(-1).mean(2)  # (n, heads)
            mean, error = to_input.mean(), 1.96 * to_input.mean(1).std(ddof=1) / len(found) ** 0.5
            by_head = ", ".join(f"{value:.2f}" for value in to_input.mean(0))
            print(f"| {step} | {WHEN[when]} | {len(found)} | {mean:.3f} ± {error:.3f} | {by_head} |")
            matrices[step, when] = found.mean((0, 1))
    if arguments.out is not None:
        write_still(draw(matrices, steps), arguments.out)


def draw(matrices: dict[tuple[int, int], np.ndarray], steps: int) -> np.ndarray:
    """A row for each of to come, now and seen before, a column for each step."""
    (width, height), (slots, keys) = SIZE, next(iter(matrices.values())).shape
    labels = [f"slot {index + 1}" for index in range(slots)]
    columns = labels + ["input"] * (keys - slots)
    sheet = np.full((len(WHEN) * (height + 2 * GAP) + GAP, steps * (width + 2 * GAP) + GAP, 3), 255, dtype=np.uint8)
    for (step, when), matrix in matrices.items():
        left, top = GAP + step * (width + 2 * GAP), GAP + when * (height + 2 * GAP)
        write(sheet, f"step {step}, reference {WHEN[when]}", left, top, width)
        picture = Matrix("", matrix[None], labels, columns).draw(Box(width, height - 2 * GAP, 0))(0)
        sheet[top + 2 * GAP : top + height, left : left + width] = picture
    return sheet


if __name__ == "__main__":
    main()
