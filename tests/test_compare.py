"""Comparing runs: statistics, which runs may be averaged, and the verb as a person meets it."""

import csv
import itertools
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from rmc_rl import compare
from rmc_rl.runs.records import read_records, search_runs
from rmc_rl.studies import plots, results, statistics
from rmc_rl.studies.comparison import Reference, group_runs
from rmc_rl.studies.report import Table

COPY = {"n_symbols": 4, "length": 3, "delay": 5}
FLOOR = 0.25  # of that task

# Two sets of scores, 5 runs x 3 tasks, and what rliable 1.2.0 (PyPI; with arch 7.2.0, NumPy 2.4.6, SciPy 1.17.1) said of them:
# get_interval_estimates with 20,000 resamples (3,000 for the probability), create_performance_profile with 2,000, all with the
# default method "percentile" after np.random.seed(0).
X = np.array([[0.886, 0.813, 0.904], [0.977, 0.911, 0.813], [0.348, 0.859, 0.565], [0.759, 0.491, 0.813], [0.795, 0.6, 0.773]])
Y = np.array(
    [[0.886, 0.813, 0.904], [0.453, 0.892, 0.402], [0.856, 0.427, 0.497], [0.512, 0.366, 0.545], [0.439, 0.278, 0.297]]
)
RLIABLE = {  # aggregate -> for X and Y: value, low, high
    "interquartile mean": ((0.790111, 0.680111, 0.855003), (0.549333, 0.424111, 0.721222)),
    "mean": ((0.7538, 0.664265, 0.832068), (0.571133, 0.465, 0.6844)),
    "median": ((0.753, 0.6526, 0.8424), (0.5552, 0.4382, 0.7108)),
    "optimality gap": ((0.2462, 0.167932, 0.335735), (0.428867, 0.3156, 0.535)),
}
RLIABLE_IMPROVEMENT = (0.726667, 0.52, 0.906667)
TAUS = np.array([0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
RLIABLE_PROFILE = {
    "value": (1.0, 0.933333, 0.866667, 0.733333, 0.733333, 0.533333, 0.2),
    "low": (1.0, 0.8, 0.666667, 0.533333, 0.533333, 0.266667, 0.0),
    "high": (1.0, 1.0, 1.0, 0.933333, 0.933333, 0.8, 0.4),
}
MONTE_CARLO = 0.012  # how far intervals of two bootstraps may lie apart
ONE_RUN = 1 / 15  # the grid of shares of 15 runs


def by_world(scores):
    return list(scores.T)


@pytest.mark.parametrize("name", RLIABLE)
def test_aggregates_equal_rliable(name):
    for scores, (value, low, high) in zip((X, Y), RLIABLE[name], strict=True):
        found = results.estimate(by_world(scores), statistics.AGGREGATES[name])
        assert found.value == pytest.approx(value, abs=1e-6)
        assert found.interval == pytest.approx([low, high], abs=MONTE_CARLO)


def test_probability_of_improvement_equals_rliable():
    value, low, high = RLIABLE_IMPROVEMENT
    found = results.estimate([*by_world(X), *by_world(Y)], statistics.probability_of_improvement)
    assert found.value == pytest.approx(value, abs=1e-6)
    assert found.interval == pytest.approx([low, high], abs=0.02)


def test_performance_profiles_equal_rliable():
    found = results.estimate(by_world(X), statistics.performance_profile(TAUS))
    assert found.value == pytest.approx(RLIABLE_PROFILE["value"], abs=1e-6)
    assert found.interval == pytest.approx(np.array([RLIABLE_PROFILE["low"], RLIABLE_PROFILE["high"]]), abs=ONE_RUN + 1e-6)


def test_statistics_by_hand():
    assert statistics.interquartile_mean(np.arange(8.0)) == 3.5
    assert statistics.interquartile_mean(np.array([0.0, 0, 1, 1, 1, 1, 9, 9])) == 1
    assert statistics.optimality_gap(np.array([0.5, 2.0])) == 0.25
    assert statistics.mean(np.array([1.0, 1, 1, 1]), np.array([3.0, 5.0])) == 2.5  # each world counts the same
    # 3 of 4 pairs are better in the first world, all are ties in the second
    better = statistics.probability_of_improvement(np.array([1.0, 3]), np.ones(2), np.array([0.0, 2]), np.ones(2))
    assert better == (0.75 + 0.5) / 2
    values = np.array([0.1, 0.2, 0.6])
    resampled = [np.mean(drawn) for drawn in itertools.product(values, repeat=3)]  # all 27 are as likely
    found = statistics.interval([values], statistics.mean)
    assert found == pytest.approx(np.percentile(resampled, [2.5, 97.5], method="inverted_cdf"), abs=1e-9)
    assert statistics.interval([values[:2]], statistics.mean) is None


@pytest.mark.parametrize(
    ("times", "median"),
    [
        ([100, np.inf], np.inf),  # 1 of 2 seeds is not faster than 2 of 2
        ([100, 200], 150),
        ([300, 100, np.inf], 300),
        ([100, np.inf, np.inf], np.inf),
        ([100, 200, 300, np.inf], 250),
    ],
)
def test_seeds_that_did_not_reach_a_threshold_count_as_infinitely_late(times, median):
    assert statistics.median_to_reach(times) == median


def make_run(
    core="gru",
    seed=0,
    final=0.9,
    env="rmc_rl/Copy-v0",
    env_kwargs=COPY,
    total=1000,
    last=None,
    commit="a" * 40,
    more=(),
    name="",
):
    """A run's folder as training writes it, without a model: the return grows linearly from 0 to ``final``."""
    path = Path(
        "runs", env.replace("/", "-"), core, name or f"{seed}-{total}-{commit[:2]}-{len(list(Path().rglob('config.yaml')))}"
    )
    path.mkdir(parents=True)
    config = {"env": env, "env_kwargs": dict(env_kwargs), "total_timesteps": total, "seed": seed, "num_threads": 1}
    config |= {"algo": {"name": "ppo", "gamma": 0.0}, "core": {"name": core, "width": 8}, "runs_dir": "runs"}
    for key, value in dict(more).items():
        node, _, leaf = key.rpartition(".")
        (config[node] if node else config)[leaf] = value
    started = f"2026-01-01T00:{len(list(Path('runs').rglob('config.yaml'))):02}:00+00:00"
    of_run = {
        "command": f"python -m rmc_rl.train seed={seed}",
        "started": started,
        "git_commit": commit,
        "versions": {"torch": "2"},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config | {"run": of_run}))
    steps = np.linspace(100, total if last is None else last, 10)
    with (path / "progress.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["rollout/ep_rew_mean", "time/time_elapsed", "time/total_timesteps"])
        writer.writerows([final * step / total, step / 100, round(step)] for step in steps)
    return path


def evaluate(path, mean, env_kwargs, name, **more):
    folder = path / "evaluations"
    folder.mkdir(exist_ok=True)
    found = {"env": "rmc_rl/Copy-v0", "env_kwargs": env_kwargs, "model": "last", "deterministic": True, "episodes": 50}
    (folder / f"{name}.json").write_text(json.dumps(found | {"return": {"mean": mean, "each": [mean]}} | more))


def three_seeds(**more):
    for core, final in (("gru", 0.9), ("memoryless", 0.26), ("rmc", 1.0)):
        for seed in range(3):
            make_run(core, seed, final - 0.01 * seed, **more)


@pytest.fixture(name="call")
def make_call(call, monkeypatch):
    """Compare. Pictures are drawn, but not saved."""
    saved = plots.render
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    monkeypatch.setattr(plots, "render", lambda _figure, form: form.encode())

    def call_compare(*arguments, pictures=False):
        if pictures:
            monkeypatch.setattr(plots, "render", saved)
        return call(compare, *arguments)

    return call_compare


def rows(path):
    with open(path) as file:
        return list(csv.DictReader(file))


class Page(HTMLParser):
    """What a page loads from elsewhere, and which elements it has."""

    def __init__(self, text):
        super().__init__()
        self.links, self.tags = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "srcset", "href")]


def test_a_comparison(call):
    three_seeds()
    status, out, err = call("runs=runs", "out=found", "threshold=0.6", pictures=True)
    assert status == 0, err
    table = {row["method"]: row for row in rows("found/table.csv")}
    assert list(table) == ["gru", "rmc", "memoryless"]  # the control is last
    assert float(table["gru"]["return"]) == pytest.approx(0.89)
    assert float(table["gru"]["return_low"]) == pytest.approx(0.88)
    assert float(table["gru"]["score"]) == pytest.approx((0.89 - FLOOR) / (1 - FLOOR))
    assert float(table["gru"]["threshold"]) == pytest.approx(FLOOR + 0.6 * (1 - FLOOR))
    assert [table["gru"][key] for key in ("reached", "median_steps", "median_seconds")] == ["3", "800", "8"]
    assert [table["memoryless"][key] for key in ("reached", "median_steps")] == ["0", "inf"]
    assert "> 1,000 (0 of 3)" in out
    assert "fewer than 5 seeds" in out
    assert len(rows("found/runs.csv")) == 9
    names = {"learning_curves", "time_to_threshold", "aggregates", "performance_profiles", "probability_of_improvement"}
    for name in names:
        assert Path("found", f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"</svg>" in Path("found", f"{name}.svg").read_bytes()
    (pair,) = [row for row in rows("found/probability_of_improvement.csv") if list(row.values())[:2] == ["rmc", "gru"]]
    assert pair["probability"] == "1.000 [1.000, 1.000]"
    assert r"\toprule" in Path("found/table.tex").read_text()

    text = Path("found/report.html").read_text()
    page = Page(text)
    assert all(link.startswith("data:image/svg+xml;base64,") for link in page.links)
    assert page.tags.count("picture") == len(names)
    assert not {"script", "link", "iframe"} & set(page.tags)
    for said in ("prefers-color-scheme: dark", "a" * 40, "python -m rmc_rl.train seed=2", "compare runs=runs"):
        assert said in text

    data = json.loads(Path("found/marl_eval.json").read_text())
    (tasks,) = data["rmc_rl/Copy-v0"].values()
    assert set(tasks) == {"gru", "memoryless", "rmc"}
    run = tasks["gru"]["seed_1"]
    assert run["absolute_metrics"]["return"] == [pytest.approx(0.89)]
    assert run["step_0"]["step_count"] == 100
    assert len({len(run) for runs in tasks.values() for run in runs.values()}) == 1


def grouped(by=None, mix=False, notes=None, references=None):
    records = read_records(search_runs(["runs"]), "rollout/ep_rew_mean", lambda _: None)
    known = references or Reference(random=FLOOR, memoryless=FLOOR, perfect=1.0)
    return group_runs(records, by, mix, lambda *_: known, ([] if notes is None else notes).append)


@pytest.mark.parametrize(
    ("different", "key", "values"),
    [
        (dict(total=500), "total_timesteps", "1000, 500"),
        (dict(more={"core.width": 16}), "core.width", "16, 8"),
        (dict(more={"algo.gamma": 0.99}), "algo.gamma", "0.0, 0.99"),
        (dict(commit="b" * 40), "commit", f"{'a' * 40}, {'b' * 40}"),
    ],
)
def test_runs_that_differ_are_not_averaged(call, different, key, values):
    make_run(seed=0)
    make_run(seed=1, **different)
    status, out, err = call("runs=runs", "by=core", "out=found")
    assert status == 2
    assert out == ""
    (line,) = err.splitlines()
    assert f"'gru' on rmc_rl/Copy-v0 (delay=5, length=3, n_symbols=4) differ in {key} ({values})" in line
    assert f"by=core.name,{key} compares them, mix=true averages them" in line
    assert [len(group.members) for group in grouped(["core", key])] == [1, 1]
    notes = []
    (group,) = grouped(["core"], mix=True, notes=notes)
    assert len(group.members) == 2
    assert key in notes[0]


@pytest.mark.usefixtures("call")  # for its empty folder
def test_labels_name_what_differs():
    make_run("gru", more={"core.width": 8})
    make_run("gru", more={"core.width": 16})
    make_run("rmc")
    make_run("rmc", env="rmc_rl/TMaze-v0", env_kwargs={}, more={"algo.gamma": 0.99})  # a world's own default
    make_run("rmc", seed=1)
    found = {(group.world.env, group.label): len(group.members) for group in grouped()}
    assert found == {
        ("rmc_rl/Copy-v0", "gru width=8"): 1,
        ("rmc_rl/Copy-v0", "gru width=16"): 1,
        ("rmc_rl/Copy-v0", "rmc"): 2,
        ("rmc_rl/TMaze-v0", "rmc"): 1,
    }


@pytest.mark.usefixtures("call")  # for its empty folder
def test_a_seed_that_was_run_twice_counts_once():
    make_run(seed=0, final=0.5)
    newer = make_run(seed=0, final=0.7)
    make_run(seed=1, final=0.7)
    notes = []
    (group,) = grouped(notes=notes)
    assert group.returns == pytest.approx([0.7, 0.7])
    assert any("seed 0" in note and "2 times" in note and str(newer) in note for note in notes)


def test_unfinished_runs(call):
    make_run(seed=0, final=1.0)
    make_run(seed=1, final=1.0, last=500)
    status, out, err = call("runs=runs", "out=found")
    assert status == 0, err
    assert "left out because it is unfinished" in out
    assert "at 500 of 1,000 steps" in out
    assert rows("found/table.csv")[0]["seeds"] == "1"
    status, out, err = call("runs=runs", "out=found", "unfinished=true")
    assert status == 0, err
    (row,) = rows("found/table.csv")
    assert (row["seeds"], row["steps"]) == ("2", "500")
    assert 0.4 <= float(row["return"]) <= 0.5  # both are read at step 500
    assert row["reached"] == "0"  # not even by the seed that reached it later


def test_few_seeds_and_no_control_are_said(call):
    make_run(seed=0)
    make_run(seed=1)
    status, out, err = call("runs=runs", "out=found")
    assert status == 0, err
    (row,) = rows("found/table.csv")
    assert row["return_low"] == row["return_high"] == ""
    for said in (
        "fewer than 3 seeds, so no interval: gru 2",
        "no run without memory",
        "only one method",
        "parameters is unknown",
    ):
        assert said in out


def test_a_world_without_a_floor(call):
    for seed in range(3):
        make_run(seed=seed, env="CartPole-v1", env_kwargs={}, final=300)
    status, out, err = call("runs=runs", "out=found")
    assert status == 0, err
    assert "CartPole-v1: returns are not normalised" in out
    assert "no time to a threshold" in out
    (row,) = rows("found/table.csv")
    assert row["score"] == row["threshold"] == ""
    assert float(row["return"]) == pytest.approx(300)
    assert call("runs=runs", "out=found", "threshold=200")[0] == 0
    assert rows("found/table.csv")[0]["reached"] == "3"


def test_runs_of_several_worlds(call):
    three_seeds()
    for core in ("gru", "rmc"):
        for seed in range(3):
            make_run(core, seed, 0.8, env="rmc_rl/TMaze-v0", env_kwargs={})
    status, out, err = call("runs=runs", "out=found")
    assert status == 0, err
    assert "rmc_rl/TMaze-v0 is left out of the averages over worlds: no run of memoryless" in out
    assert len(rows("found/table.csv")) == 5
    assert call("runs=runs/*/gru,runs/*/rmc", "out=found")[0] == 0
    assert {row["method"] for row in rows("found/table.csv")} == {"gru", "rmc"}
    gru = next(row for row in rows("found/aggregates.csv") if row["method"] == "gru")
    # floors: 0.25 and 0.5
    assert float(gru["mean"].split()[0]) == pytest.approx(((0.89 - 0.25) / 0.75 + (0.8 - 0.5) / 0.5) / 2, abs=1e-3)


def test_generalisation(call):
    for core, drop in (("gru", 0.3), ("rmc", 0.1)):
        for seed in range(3):
            path = make_run(core, seed)
            for index, delay in enumerate((20, 5, 10)):
                evaluate(path, 0.9 - drop * (delay > 5) - 0.01 * seed, COPY | {"delay": delay}, f"2026-{index}")
            evaluate(path, 0.9 - 0.01 * seed - drop, COPY | {"delay": 20}, "2026-9")  # the newest counts
            evaluate(path, 0.0, COPY | {"delay": 20}, "2026-10", deterministic=False)
    status, out, err = call("runs=runs", "out=found")
    assert status == 0, err
    table = rows("found/generalisation.csv")
    assert [(row["method"], row["trained with"], row["tested with"]) for row in table] == [
        (core, "5", delay) for core in ("gru", "rmc") for delay in ("5", "10", "20")
    ]
    assert table[2]["return"].startswith("0.590 [0.580, 0.600]")
    assert "6 evaluations of other kinds are left out" in out
    assert Path("found/generalisation_delay.png").is_file()

    for seed in range(3):  # a second value in training: a square of training and test
        path = make_run("gru", seed, env_kwargs=COPY | {"delay": 20})
        evaluate(path, 0.7, COPY | {"delay": 20}, "2026-1")
    status, out, err = call("runs=runs/rmc_rl-Copy-v0/gru", "out=found")
    assert status == 0, err
    assert {row["trained with"] for row in rows("found/generalisation.csv")} == {"5", "20"}


@pytest.mark.usefixtures("call")  # for its empty folder
def test_the_clock_of_a_run_that_was_resumed_goes_on():
    path = make_run()
    with (path / "progress.csv").open("w") as file:
        file.write("rollout/ep_rew_mean,time/time_elapsed,time/total_timesteps\n0.1,3,100\n0.2,6,200\n0.3,1,300\n0.4,2,1000\n")
    (record,) = read_records([*search_runs(["runs"])], "rollout/ep_rew_mean", lambda _: None)
    assert record.seconds.tolist() == [3, 6, 7, 8]


def damage_config(path):
    (path / "config.yaml").write_text("env: [")


def damage_progress(path):
    (path / "progress.csv").write_bytes(b"rollout/ep_rew_mean,time/total_timesteps\n\xff\xfe,1\n")


def no_progress(path):
    (path / "progress.csv").unlink()


def no_episode(path):
    (path / "progress.csv").write_text("rollout/ep_rew_mean,time/total_timesteps\n,100\n")


def no_steps(path):
    (path / "progress.csv").write_text("rollout/ep_rew_mean\n0.5\n")


def no_budget(path):
    (path / "config.yaml").write_text("env: a\nenv_kwargs: {}\ncore: {name: gru}\nseed: 0\ntotal_timesteps: many\n")


DAMAGES = [damage_config, damage_progress, no_progress, no_episode, no_steps, no_budget]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run(call, damage):
    path = make_run(name="bad")
    damage(path)
    status, out, err = call("runs=runs", "out=found")
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: none of the 1 runs has a learning curve")
    assert "bad" in line
    make_run(seed=1)
    status, out, err = call("runs=runs", "out=found")
    assert status == 0, err
    assert re.search(r"left out: .*bad", out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["runs=nowhere"],
            "runs must be folders, or a pattern that matches some, with runs (config.yaml) in them, got 'nowhere'",
        ),
        (["runs=runs/*/lstm"], "got 'runs/*/lstm': there is no such folder"),
        (["runs=empty"], "no folder below has a config.yaml"),
        (["x=minutes"], "unknown x 'minutes'; valid: seconds, steps"),
        (["by=cor"], "unknown setting in by 'cor'; did you mean 'core'?"),
        (["by=seed"], "by must name what makes a method"),
        (["metric=rollout/ep_rew"], "did you mean 'rollout/ep_rew_mean'?"),
        (["threshold=high"], "threshold must be a finite number"),
        (["runs=runs/rmc_rl-Copy-v0/started"], "no run has taken all its steps yet; unfinished=true compares"),
        (["out=file"], "out must be a folder that can be written to, got 'file'"),
    ],
)
def test_mistakes_get_one_line(call, arguments, said):
    make_run()
    make_run("started", last=300)
    Path("empty").mkdir()
    Path("file").touch()
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert said in line


def test_missing_packages_are_named(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = call("runs=runs")
    assert status == 2
    assert err == "error: compare needs matplotlib: pip install 'rmc-rl[plots]' (pip install '.[plots]' in a checkout)\n"


def test_evaluations_that_cannot_be_read_are_named(call):
    path = make_run()
    (path / "evaluations").mkdir()
    for name, text in (("a", "{"), ("b", "[]"), ("c", '{"env": "x", "return": {"mean": null}}')):
        (path / "evaluations" / f"{name}.json").write_text(text)
    status, out, err = call("runs=runs", "out=found")
    assert status == 0, err
    assert len(re.findall(r"evaluations/[abc].json' is no evaluation", out)) == 3


def test_tables_escape_what_means_something():
    table = Table(["a|b"], [["x_1 & 50% > <b>"]])
    assert "a\\|b" in table.markdown()
    assert r"x\_1 \& 50\% $>$ $<$b$>$" in table.tex()
    assert "&lt;b&gt;" in table.html()


def test_runs_that_share_no_step_are_refused(call):
    make_run(seed=0, last=150)
    path = make_run(seed=1)
    (path / "progress.csv").write_text("rollout/ep_rew_mean,time/total_timesteps\n0.5,500\n0.6,1000\n")
    status, out, err = call("runs=runs", "out=found", "unfinished=true")
    assert (status, out) == (2, "")
    assert "share no step" in err


def test_several_folders_as_a_list(call):
    first, second = make_run(seed=0), make_run(seed=1)
    for runs in (f"runs=[{first},{second}]", f"runs={first},{second}", f"runs={first}/config.yaml,{second}"):
        assert call(runs, "out=found", "by=[core,algo]")[0] == 0
        assert rows("found/table.csv")[0]["seeds"] == "2"
        assert rows("found/table.csv")[0]["method"] == "gru"
