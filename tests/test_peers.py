"""scripts/benchmark_peers.py without peers: table, failures, refusals, what is not run again; and the worlds they share."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from rmc_rl.envs.worlds.copy import CopyWorld

GOOD = dict(
    **dict(asked=1000, steps=1000, episodes=90, mean_return=0.9, best_return=0.97, reached_steps=800, reached_seconds=12.3),
    **dict(first_update_seconds=2.5, steps_per_second=4000.0, peak_mib=300.0, seconds=20.0, load=0.5, curve=[]),
    **dict(versions={"peer": "1.2"}, commit="abc", date="2026-01-01", processor="CPU", cores=2, threads=1),
)


@pytest.fixture(name="peers")
def import_script(script):
    return script("benchmark_peers")


@pytest.fixture(name="called")
def call_script(peers, monkeypatch, capsys, tmp_path):
    """Call the script in an empty folder: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(peers, "pin", lambda _threads: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmark_peers.py", *map(str, arguments)])
        status = 0
        try:
            peers.main()
        except SystemExit as end:
            status = end.code
        return (status, *capsys.readouterr())

    return run


@pytest.fixture(name="worlds")
def import_worlds(script):
    return script("peers.worlds")


# The table


def test_rows_are_sorted_by_seconds_and_a_seed_that_never_got_there_is_infinitely_slow(called, tmp_path):
    never = GOOD | dict(reached_steps=None, reached_seconds=None)
    found = {
        "copy/matched/rl_games/0": GOOD,
        "copy/matched/rl_games/1": GOOD | dict(reached_seconds=14.0, steps_per_second=5000.0),
        "copy/matched/rl_games/2": GOOD | dict(reached_seconds=13.0, steps_per_second=4500.0),
        "copy/matched/ours/0": GOOD | dict(reached_seconds=5.0),
        "copy/matched/ours/1": never,
        "copy/matched/torchrl/0": GOOD | dict(steps=600),
        "cartpole/recommended/sheeprl/0": never | dict(mean_return=90.4),
        "copy/matched/memorax/0": dict(failed="cannot be installed: ERROR: no | such version"),
    }
    (tmp_path / "found.json").write_text(json.dumps(found))
    status, out, err = called("--table", "--out", "found.json")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[2].startswith("| copy | matched | torchrl 1.2 | 4,000 | 0.900 after 600 steps | 12.3 | 300 | 2.5 |")
    assert lines[3].startswith(
        "| copy | matched | rl_games 1.2 | 4,500 [4,000, 5,000] | 0.900 [0.900, 0.900] | 13.0 [12.3, 14.0]"
    )
    assert "| copy | matched | ours | 4,000 [4,000, 4,000]" in lines[4]
    assert "| never [5.0, never] (1 of 2) |" in lines[4]
    assert lines[5] == "| copy | matched | memorax | not run: cannot be installed: ERROR: no / such version | | | | |"
    assert lines[6].startswith("| CartPole without velocities | recommended | sheeprl 1.2 | 4,000 | 90 | never (0 of 1) |")
    assert {line.count("|") for line in lines[:7]} == {9}
    assert lines[8] == (
        "Commit abc, 2026-01-01; CPU, 2 cores, threads of a process: 1; rounds: 3; load when a run began 0.5 to 0.5."
    )


def test_the_page_shows_what_was_measured(peers, tmp_path):
    assert peers.page(tmp_path) == "Not measured yet.\n"
    (tmp_path / "a.json").write_text(json.dumps({"copy/matched/ours/0": GOOD}))
    (tmp_path / "b.json").write_text(json.dumps({"copy/matched/torchrl/0": GOOD}))
    page = peers.page(tmp_path)
    assert "| ours |" in page
    assert "| torchrl 1.2 |" in page


# Running


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--peers", "our"], "invalid choice: 'our'"),
        (["--tasks", "pong"], "invalid choice: 'pong'"),
        (["--rounds", "0"], "must be a whole number of at least 1, got '0'"),
        (["--limit", "x"], "must be a whole number of at least 1, got 'x'"),
        (["--threads", "100000"], "--threads must be at most"),
        (["--table"], "--out must be a file that this script wrote, got runs/peers/results.json"),
        (["--bogus"], "unrecognized arguments: --bogus"),
    ],
)
def test_a_bad_argument_gets_one_line(called, arguments, says):
    status, out, err = called(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err


def test_what_is_stored_is_not_run_again_and_what_failed_is(peers, called, monkeypatch, tmp_path):
    played = []

    def play(key, _python, steps, _threads, _limit):
        played.append(key)
        if key.startswith("copy/matched/rl_games"):
            raise peers.FailedError("ended with status 1: ImportError: no")
        return GOOD | dict(asked=steps)

    def environment(name, _folder):
        if name == "memorax":
            raise peers.FailedError("cannot be installed: ERROR: no matching distribution")
        return Path(sys.executable)

    monkeypatch.setattr(peers, "play", play)
    monkeypatch.setattr(peers, "environment", environment)
    command = ["--peers", "ours", "rl_games", "memorax", "--tasks", "copy", "--settings", "matched", "--rounds", "2"]
    status, out, err = called(*command)
    assert status == 0
    assert played == [f"copy/matched/{name}/{seed}" for seed in (0, 1) for name in ("ours", "rl_games")]  # in turn
    assert "| rl_games | not run: ended with status 1: ImportError: no |" in out
    assert "| memorax | not run: cannot be installed: ERROR: no matching distribution |" in out
    assert "memorax: cannot be installed" in err
    stored = json.loads((tmp_path / "runs" / "peers" / "results.json").read_text())
    assert len(stored) == 6
    assert stored["copy/matched/ours/0"]["cores"] >= 1
    played.clear()
    called(*command)
    assert played == ["copy/matched/rl_games/0", "copy/matched/rl_games/1"]


def test_a_peer_that_cannot_be_installed_gives_pips_reason(peers, monkeypatch, tmp_path):
    commands = []

    def run(command, stdout, **_keywords):
        commands.append(command[1:3])
        if "pip" in command:
            stdout.write("Collecting\nERROR: No matching distribution found\nWARNING: a newer pip\n")
            stdout.flush()
        return subprocess.CompletedProcess(command, 1 if "pip" in command else 0)

    monkeypatch.setattr(peers.subprocess, "run", run)
    with pytest.raises(peers.FailedError, match=r"^cannot be installed: ERROR: No matching distribution found$"):
        peers.environment("rl_games", tmp_path)
    assert commands == [["-m", "venv"], ["-m", "pip"]]
    assert not (tmp_path / "rl_games" / "installed.txt").exists()


def test_a_run_is_read_from_its_lines_and_its_memory_measured(peers, monkeypatch, tmp_path):
    package = tmp_path / "peers"
    package.mkdir()
    (package / "__init__.py").touch()
    good = 'import json\nprint(json.dumps({"versions": {"x": "1"}}))\nprint(json.dumps({"progress": [5, 0.1, None]}))\n'
    (package / "rl_games.py").write_text(good + 'print(json.dumps({"result": {"steps": 10, "mean_return": None}}))\n')
    (package / "torchrl.py").write_text('import sys\nprint("first", file=sys.stderr)\nsys.exit("ValueError: no")\n')
    monkeypatch.setattr(peers, "HERE", tmp_path)
    found = peers.play("copy/matched/rl_games/0", Path(sys.executable), 10, 1, 60)
    assert found["versions"] == {"x": "1"}
    assert (found["steps"], found["asked"], found["curve"]) == (10, 10, [[5, 0.1, None]])
    assert 1 < found["peak_mib"] < 10_000
    with pytest.raises(peers.FailedError, match=r"^ended with status 1: ValueError: no$"):
        peers.play("copy/matched/torchrl/0", Path(sys.executable), 10, 1, 60)


def test_adapters_are_there_and_their_tasks_are_those_of_the_script(peers, checkout):
    common = importlib.import_module("peers.common")
    assert {name: (task.steps, task.threshold) for name, task in common.TASKS.items()} == {
        name: (task.steps, task.threshold) for name, task in peers.TASKS.items()
    }
    for peer in peers.PEERS.values():
        assert (checkout / "scripts" / "peers" / f"{peer.module}.py").exists()


# Worlds and clock


def test_the_copy_world_is_that_of_this_package(worlds):
    ours = CopyWorld(16, n_symbols=4, length=3, delay=5)
    seen, _ = ours.reset(seed=0)
    world = worlds.CopyWorld(16, 0)
    world.reset()
    rng = np.random.default_rng(0)
    for _ in range(33):
        if world.time == 0:
            world.symbols = ours.symbols.numpy().copy()  # which each draws in its own way
        np.testing.assert_array_equal(world._observe().argmax(1), seen)
        actions = np.where(rng.random(16) < 0.5, world.symbols[:, max(0, world.time - 8)], rng.integers(4, size=16))
        seen, rewards, terminated, _, _ = ours.step(actions)
        found = world.step(actions)
        np.testing.assert_allclose(found.rewards, rewards)
        np.testing.assert_array_equal(found.terminated, terminated)


def test_the_cart_pole_is_gymnasiums(worlds):
    world = worlds.CartPoleWorld(1, 0)
    world.reset()
    env = gymnasium.make("CartPole-v1")
    env.reset(seed=0)
    env.unwrapped.state = world.state[0].copy()
    for _ in range(500):
        angle, turning = world.state[0, 2:]
        action = int(angle + 0.3 * turning + 0.05 * world.state[0, 0] + 0.1 * world.state[0, 1] > 0)
        seen, reward, terminated, truncated, _ = env.step(action)
        found = world.step(np.array([action]))
        np.testing.assert_allclose(found.last[0], seen[[0, 2]], rtol=1e-5)
        assert (found.rewards[0], found.terminated[0], found.truncated[0]) == (reward, terminated, truncated)
        if terminated or truncated:
            break
    assert found.truncated[0]  # balanced to the end
    assert np.abs(found.observations).max() <= 0.05


def test_the_clock_ends_the_process_at_the_last_step(checkout):
    code = (
        "import numpy as np\nfrom peers.common import begin\n"
        "run = begin('')\nrun.clock.rollout = 64\nworlds = run.make()\nworlds.reset()\nprint('noise', flush=True)\n"
        "while True: worlds.step(worlds.world.symbols[:, max(0, worlds.world.time - 8)])\n"
    )
    command = [sys.executable, "-c", code, "--steps", "2000", "--settings", "matched"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(checkout / "scripts")})
    *progress, result = map(json.loads, ran.stdout.splitlines())
    assert ran.stderr == "noise\n"
    assert all("progress" in line for line in progress)
    found = result["result"]
    assert (found["steps"], found["episodes"]) == (2048, 128)
    assert math.isclose(found["mean_return"], 1, abs_tol=1e-5)
    assert found["reached_steps"] == 1408  # the second episodes of all copies: 128 of them
    assert 0 < found["first_update_seconds"] <= found["reached_seconds"] <= found["seconds"]
    assert found["steps_per_second"] > 0
