"""scripts/memory_starts.py: what episodes of a scripted player are counted as, and the table."""

import sys

import gymnasium
import numpy as np
import pytest

pytest.importorskip("minigrid")
TURN_LEFT, FORWARD = 0, 2  # MiniGrid's actions


class Player:
    """Repeats a list of actions, each as often as it says, and its last action for the rest of the episode."""

    def __init__(self, *actions, observation_space=None):
        self.actions = actions
        self.observation_space = observation_space

    def predict(self, observation, state, episode_start, deterministic):
        step = 0 if episode_start.all() else state
        return np.array([self.actions[min(step, len(self.actions) - 1)]]), step + 1


@pytest.fixture
def starts(script):
    return script("memory_starts")


@pytest.fixture
def env(starts):
    starts.import_minigrid("MiniGrid-MemoryS7-v0")
    return starts.minigrid_view("onehot")(gymnasium.make("MiniGrid-MemoryS7-v0"))


def test_where_it_starts_looks_and_ends(starts, env):
    ahead = [starts.play(Player(FORWARD), env, seed, True) for seed in range(30)]
    assert {episode.start for episode in ahead} == {1, 2, 3, 4}
    assert not any(episode.succeeded or episode.looked_left for episode in ahead)  # against the wall until time is out
    assert all(episode.steps == 5 * 7**2 for episode in ahead)
    assert all(starts.play(Player(TURN_LEFT, TURN_LEFT, FORWARD), env, seed, True).looked_left for seed in range(5))
    # forward to the crossing and then up: right wherever the object is there, by chance half of the time
    to_crossing = {start: [FORWARD] * (5 - start) + [TURN_LEFT, FORWARD] for start in (1, 2, 3, 4)}
    up = [starts.play(Player(*to_crossing[episode.start]), env, seed, True) for seed, episode in enumerate(ahead)]
    assert 5 < sum(episode.succeeded for episode in up) < 25
    assert all(episode.steps < 10 for episode in up)
    assert not any(episode.looked_left for episode in up)


def test_the_table_has_a_row_for_each_start(starts, env, monkeypatch, capsys):
    player = Player(TURN_LEFT, TURN_LEFT, FORWARD, observation_space=env.observation_space)
    monkeypatch.setattr(starts, "load_policy", lambda _: player)
    monkeypatch.setattr(sys, "argv", ["memory_starts.py", "--run", "any", "--episodes", "12"])
    starts.main()
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert sum(int(row[1]) for row in rows) == 12
    assert [row[0] for row in rows] == sorted({row[0] for row in rows})
    assert all(row[2:] == ["0.00 [0.00, 0.00]", "1.00", "245"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--run", "any", "--episodes", "0"], "at least 1"),
        (["--run", "nowhere"], "run must be the folder of a run, got 'nowhere'"),
        (["--run", "any", "--env", "MiniGrid-Empty-5x5-v0"], "--env must be one of MiniGrid-Memory*"),
        (["--run", "any", "--env", "MiniGrid-MemoryS8-v0"], "MemoryS8"),
    ],
)
def test_mistakes_get_one_line(starts, monkeypatch, capsys, arguments, says):
    monkeypatch.setattr(sys, "argv", ["memory_starts.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        starts.main()
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_an_agent_of_another_world_is_refused(starts, monkeypatch, capsys):
    monkeypatch.setattr(starts, "load_policy", lambda _: Player(FORWARD, observation_space=gymnasium.spaces.Discrete(3)))
    monkeypatch.setattr(sys, "argv", ["memory_starts.py", "--run", "runs/any"])
    with pytest.raises(SystemExit) as ended:
        starts.main()
    assert ended.value.code == 2
    assert "--run must be an agent of MiniGrid-MemoryS7-v0" in capsys.readouterr().err
