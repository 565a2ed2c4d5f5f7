"""Films of episodes: what is recorded, what is drawn of it, and why an action was taken."""

import re
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from omegaconf import OmegaConf
from PIL import Image
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from rmc_rl import Core, MlpMemoryPolicy, MultiInputMemoryPolicy, RecurrentPPO, make_vec, watch
from rmc_rl.agents.cores import core_names
from rmc_rl.agents.panels import Panels
from rmc_rl.agents.policies import choose_policy
from rmc_rl.agents.recording import influence, record_episode
from rmc_rl.command_line.player import Player, make_playing_env
from rmc_rl.compat import wrap_env
from rmc_rl.envs.parts import drawing
from rmc_rl.errors import UsageError
from rmc_rl.runs.folder import Run, save_model
from rmc_rl.runs.normalization import normalize
from rmc_rl.studies import canvas, films
from rmc_rl.studies.canvas import Box
from rmc_rl.studies.pictures import Bars, Column, Film, HeatMap, Lines, Matrix, Pictures, Strip, TimeAxis

COPY = dict(n_symbols=3, length=2, delay=2)  # six steps
SMALL = {
    "rmc": dict(num_slots=3, num_heads=2, head_size=4),
    "rims": dict(num_modules=4, num_active=2, module_size=5),
    "brims": dict(num_modules=[4, 3], num_active=[2, 2], module_size=[5, 6]),
    "gtrxl": dict(num_heads=2, head_size=4, memory_length=4),
    "ntm": dict(num_slots=5, slot_size=4, width=8),
    "framestack": dict(width=8),
}


def make_policy(env, core="rmc", core_kwargs=None, **kwargs):
    torch.manual_seed(0)
    kwargs = dict(core=core, core_kwargs=SMALL.get(core, dict(width=8)) if core_kwargs is None else core_kwargs) | kwargs
    return choose_policy(env.observation_space)(env.observation_space, env.action_space, lambda _: 0.0, **kwargs)


def record(core="rmc", env_id="rmc_rl/Copy-v0", env_kwargs=COPY, max_steps=1000, **kwargs):
    env = wrap_env(RecurrentPPO, make_vec(env_id, 1, seed=1, env_kwargs=env_kwargs, pictures=True))
    policy = make_policy(env, core, **kwargs)
    recording = record_episode(policy, env, max_steps=max_steps)
    env.close()
    return policy, recording


def titles(panels):
    return [panel.title for panel in (*panels.pictures, *panels.attention, *panels.actions, *panels.over_time)]


def panel(panels, start):
    (found,) = [each for each in (*panels.attention, *panels.over_time) if each.title.startswith(start)]
    return found


@pytest.mark.parametrize("core", core_names())
def test_a_film_of_every_core(core):
    policy, recording = record(core)
    assert recording.length == 6
    assert len(recording.frames) == 7
    assert recording.ended
    panels = Panels(recording, policy, "a run")
    film = panels.film()
    assert len(film) == 7
    drawn = [film.frame(step) for step in range(7)]
    assert {frame.shape for frame in drawn} == {(576, 1024, 3)}
    assert all((first != second).any() for first, second in pairwise(drawn))
    assert panels.sheet().shape[1] == 1600
    looks = recording.looks
    memory = policy.core.memory_parts(looks["state"])
    for name, part in memory.items():
        shown = panel(panels, name.replace("_", " ") + ":")
        np.testing.assert_array_equal(shown.values, part.numpy())
        assert (shown.values[1:] != shown.values[:-1]).any()
    if core in ("rims", "brims"):
        layers = [""] if core == "rims" else ["_0", "_1"]
        for layer in layers:
            shown = panel(panels, f"memory{layer.replace('_', ' ')}: modules over time")
            np.testing.assert_array_equal(shown.marked, looks[f"active{layer}"].numpy())
            assert 0 < shown.marked.sum() < shown.marked.size
        assert len(panels.attention) == 2 * len(layers)
    gates = [name for name in looks if re.sub(r"_?\d+$", "", name).endswith("gate")]
    assert sum(len(each.labels) for each in panels.over_time if each.title.startswith("gates")) == len(gates)


def test_what_is_recorded_is_what_the_policy_does():
    env = make_vec("rmc_rl/Copy-v0", 1, seed=1, env_kwargs=COPY)
    policy, recording = record("gru", critic="separate")
    observation, state, start, rewards = env.reset(), None, np.ones(1, dtype=bool), []
    for step in range(recording.length):
        assert recording.observations[step] == observation[0]
        action, state = policy.predict(observation, state, start, deterministic=True)
        assert recording.actions[step] == action[0]
        np.testing.assert_allclose(recording.probabilities[step].argmax(), action[0])
        assert recording.probabilities[step].sum() == pytest.approx(1)
        np.testing.assert_allclose(recording.looks["state"][step].numpy(), np.concatenate(state, -1)[0, 0], atol=1e-6)
        observation, reward, start, _ = env.step(action)
        rewards.append(reward[0])
    np.testing.assert_allclose(recording.rewards, rewards)
    assert start[0]


def test_frames_are_the_worlds_pictures_and_the_last_one_shows_the_end():
    _, recording = record("gru")
    blue = [int((frame == np.array(drawing.SEEN)).all(-1).sum()) for frame in recording.frames]
    assert 0 < blue[0] < blue[1] == blue[-1]
    answers = [
        (frame == np.array(colour)).all(-1).sum() for frame in recording.frames for colour in (drawing.RIGHT, drawing.WRONG)
    ]
    assert answers[-1] + answers[-2] > answers[-3] + answers[-4] > 0  # the last answer is in the last picture alone


def test_a_long_episode_is_cut():
    policy, recording = record("lstm", max_steps=4)
    assert (recording.length, recording.ended, len(recording.frames)) == (4, False, 5)
    assert "cut after 4 steps" in Panels(recording, policy, "a run").heading(4)


class Leak(Core):
    """``state = rate * state + W x``, which is also the output."""

    def __init__(self, input_size, rate=0.5):
        super().__init__(input_size, output_size=2, state_size=2)
        self.linear = nn.Linear(input_size, 2, bias=False)
        self.rate = rate

    def initial_state(self, batch_size):
        return self.linear.weight.new_zeros(batch_size, 2)

    def step(self, x, state):
        state = self.rate * state + self.linear(x)
        self.show("odd_attention", state.new_full((len(x), 2, 3), 1 / 3))
        return state, state


class Lives(gymnasium.Env):
    """
    Two numbers; the episode has five steps. With ``lives`` a life is lost at step 2: an end for the agent only.

    ``kind`` chooses the actions and observations.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 7}
    actions = {
        "box": spaces.Box(-2, 2, (3,), np.float32),
        "multi": spaces.MultiDiscrete([3, 2]),
        "binary": spaces.MultiBinary(3),
        "many": spaces.Discrete(40),
    }
    views = {"dict": spaces.Dict(eye=spaces.Box(0, 255, (12, 10, 3), np.uint8), ear=spaces.Box(-1, 1, (2,), np.float32))}

    def __init__(self, kind="plain", masked=False, render_mode=None):
        self.action_space = self.actions.get(kind, spaces.Discrete(3))
        self.observation_space = self.views.get(kind, spaces.Box(-1, 1, (2,), np.float32))
        self.kind, self.masked, self.render_mode = kind, masked, render_mode
        if masked:
            self.action_masks = self._action_masks

    def _observation(self):
        numbers = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        if self.kind == "dict":
            return dict(eye=self.np_random.integers(0, 256, (12, 10, 3)).astype(np.uint8), ear=numbers)
        return numbers

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self._observation(), {}

    def step(self, action):
        self.time += 1
        return self._observation(), float(self.time), self.time == 5, False, {}

    def _action_masks(self):
        sizes = {"multi": 5, "binary": 6, "many": 40}
        masks = np.ones(sizes.get(self.kind, 3), dtype=bool)
        masks[1] = self.kind == "binary"
        return masks

    def render(self):
        if self.kind == "undrawn":
            raise gymnasium.error.DependencyNotInstalled("a window")
        return np.full((20, 30, 3), 10 * self.time, dtype=np.uint8)


class Restarting(Monitor):
    """An episode of the agent ends at step 2, that of the environment at step 5."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or self.env.time == 2, truncated, info

    def reset(self, **kwargs):
        if getattr(self.env, "time", 5) == 5:
            return super().reset(**kwargs)
        return self.env._observation(), {}


def lives(wrapper=Monitor, **kwargs):
    env = DummyVecEnv([lambda: wrapper(Lives(render_mode="rgb_array", **kwargs))])
    env.seed(3)
    return wrap_env(RecurrentPPO, env)


def test_why_equals_the_gradient_computed_by_hand():
    env = lives()
    policy = make_policy(env, Leak, dict(rate=0.5), net_arch=[])
    recording = record_episode(policy, env)
    step = 3
    found = influence(policy, recording, step)
    weight, to_logits = policy.core.linear.weight, policy.action_net.weight
    expected = []
    chosen = torch.eye(3)[recording.actions[step]] - torch.from_numpy(recording.probabilities[step])
    for earlier in range(step + 1):
        # d log p(a) / d x = (onehot(a) - p) A rate^(t - k) W
        expected.append((chosen @ to_logits * 0.5 ** (step - earlier) @ weight).norm().item())
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[0] == pytest.approx(found[3] / 8)
    for wrong in (5, -1, 1.0, True):
        with pytest.raises(UsageError, match=f"why must be a step of the episode, 0 to 4, got {wrong!r}"):
            influence(policy, recording, wrong)


def test_a_lost_life_starts_the_core_anew_but_not_the_film():
    env = lives(Restarting)
    policy = make_policy(env, Leak, dict(rate=0.5), net_arch=[])
    recording = record_episode(policy, env)
    assert recording.starts.tolist() == [True, False, True, False, False]
    assert influence(policy, recording, 4)[:2].tolist() == [0, 0]
    assert (influence(policy, recording, 4)[2:] > 0).all()
    alone = recording.observations[2] @ policy.core.linear.weight.T
    torch.testing.assert_close(recording.looks["state"][2], alone.detach())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["box", "multi", "binary", "many", "dict"])
@pytest.mark.parametrize("critic", ["separate", "memoryless"])
def test_every_kind_of_action_and_observation(kind, masked, critic):
    if masked and kind == "box":
        pytest.skip("masks need discrete actions")
    env = lives(kind=kind, masked=masked)
    policy = make_policy(env, "rmc", critic=critic)
    recording = record_episode(policy, env, deterministic=False)
    assert (recording.masks is not None) == masked
    assert recording.values.std() > 0
    for step in range(5):
        why = influence(policy, recording, step)
        assert why.shape == (step + 1,)
        assert (why > 0).all()
    panels = Panels(recording, policy, "lives", (4, why))
    assert panels.film().frame(5).shape == panels.film().frame(0).shape
    panels.sheet(4)
    if kind == "dict":
        assert {"what it saw: eye", "what it saw: ear over time (each row divided by its largest)"} <= set(titles(panels))
        assert panels.pictures[1].images[0].shape == (12, 10, 3)
        space = policy.observation_space["eye"]
        assert space.shape in ((12, 10, 3), (3, 12, 10))
    elif kind == "box":
        assert recording.probabilities is None
        assert recording.means.shape == (5, 3)
    elif kind == "many":
        assert any(title.startswith("action probabilities over time") for title in titles(panels))
    else:
        (bars,) = panels.actions
        assert bars.chosen.shape == bars.values.shape == (5, 5 if kind == "multi" else 3)
        assert kind == "binary" or (bars.chosen.sum(1) == 2).all()
        assert bars.labels == (["0:0", "0:1", "0:2", "1:0", "1:1"] if kind == "multi" else ["0", "1", "2"])
        assert not masked or kind == "binary" or (bars.values[:, 1] == 0).all()


def test_an_environment_that_cannot_be_drawn():
    env = lives(kind="undrawn")
    recording = record_episode(make_policy(env), env)
    assert recording.frames == []
    assert recording.not_drawn == "DependencyNotInstalled: a window"
    env = DummyVecEnv([lambda: Monitor(Lives())])
    recording = record_episode(make_policy(env), env)
    assert recording.not_drawn == "it has no render mode rgb_array"
    assert Panels(recording, make_policy(env), "lives").pictures == []


def test_a_core_of_ones_own_needs_no_labels():
    env = lives()
    policy = make_policy(env, Leak, {}, net_arch=[])
    panels = Panels(record_episode(policy, env), policy, "leak")
    (matrix,) = panels.attention
    assert (matrix.title, matrix.rows, matrix.columns) == (
        "odd attention now",
        ["query 1", "query 2"],
        ["key 1", "key 2", "key 3"],
    )
    assert panel(panels, "state:").values.shape == (5, 1, 2)


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [("MiniGrid-MemoryS7-v0", dict(view="pixels")), ("MiniGrid-Empty-5x5-v0", {}), ("CartPole-v1", {})],
)
def test_gymnasiums_environments(env_id, kwargs):
    _, recording = record("lstm", env_id, kwargs, max_steps=5)
    assert len(recording.frames) == 6
    assert recording.frames[0].ndim == 3


def test_previous_action_and_reward_and_normalised_observations(tmp_path):
    env = normalize(make_vec("CartPole-v1", 2, seed=0, previous_action_reward=True), "obs", 0.9)
    model = RecurrentPPO(MultiInputMemoryPolicy, env, n_steps=8, batch_size=8, policy_kwargs=dict(core="gru"))
    model.learn(16)
    save_model(model, tmp_path / "model.zip")
    player = Player(model, tmp_path / "model.zip", None, Run(tmp_path), "gru", "CartPole-v1", {}, {})
    playing = make_playing_env(player, 1, 0, pictures=True)
    recording = record_episode(model.policy, playing, max_steps=4)
    assert recording.observations["previous"].shape == (recording.length, 3)
    assert recording.observations["previous"][1, :2].argmax() == recording.actions[0]
    assert recording.frames[0].shape == (400, 600, 3)
    assert recording.observations["observation"].abs().max() > 0.2  # CartPole starts within 0.05


def test_atari_shows_the_games_own_screen():
    env = make_vec("ALE/Breakout-v5", 1, seed=0, env_kwargs=dict(episodic_life=True), pictures=True)
    policy = make_policy(env, "gru", dict(width=8))
    recording = record_episode(policy, env, deterministic=False, max_steps=60)
    assert {frame.shape for frame in recording.frames} == {(210, 160, 3)}
    assert len(np.unique(recording.frames[0].reshape(-1, 3), axis=0)) > 5
    small = np.asarray(Image.fromarray(recording.frames[9]).convert("L").resize((84, 84), Image.Resampling.BOX)).astype(float)
    assert np.abs(small - recording.observations[9, 0].numpy()).mean() < 3  # it is the game that the agent sees
    assert recording.starts.sum() > 1  # lives were lost
    env.close()


@pytest.mark.parametrize(
    ("env_id", "kwargs", "steps"),
    [("ALE/Breakout-v5", dict(max_num_frames_per_episode=160), 50), ("rmc_rl/Copy-v0", COPY, 15), ("CartPole-v1", {}, 40)],
)
def test_drawing_changes_nothing_and_keeps_the_last_picture(env_id, kwargs, steps):
    plain, drawn = (make_vec(env_id, 2, seed=4, env_kwargs=kwargs, pictures=pictures) for pictures in (False, True))
    ends = 0
    np.testing.assert_array_equal(plain.reset(), drawn.reset())
    for step in range(steps):
        actions = np.full(2, step % 2)
        before = drawn.get_images()
        (seen, rewards, dones, _), found = plain.step(actions), drawn.step(actions)
        for first, second in zip((seen, rewards, dones), found, strict=False):
            np.testing.assert_array_equal(first, second)
        for index in np.flatnonzero(dones):
            frame = found[3][index]["final_frame"]
            assert frame.shape == before[index].shape
            assert (frame != drawn.get_images()[index]).any()  # which is that of the next episode
            ends += 1
    assert ends >= 2
    for env in (plain, drawn):
        env.close()


# pictures


def test_a_heat_map_shows_each_number_where_it_belongs():
    values = np.arange(12).reshape(3, 2, 2) - 5.0
    draw = HeatMap("", values, ["a", "b"], 6.0, np.array([[True, False], [False, True], [False, False]])).draw(Box(90, 80, 30))
    first, last = draw(0), draw(2)
    colour = canvas.coloured(values, 6.0, canvas.DIVERGING)
    for step in range(3):
        for part in range(2):
            for unit in range(2):
                row = part * 40 + canvas.MARK + 8 + unit * 18
                assert (last[row, 30 + step * 20 + 10] == colour[step, part, unit]).all()
                assert (first[row, 30 + step * 20 + 10] == (colour[0, part, unit] if step == 0 else canvas.FUTURE)).all()
    assert (last[1, 40] == canvas.INK).all()
    assert (last[41, 60] == canvas.INK).all()
    assert not (last[1, 60] == canvas.INK).all()
    long = HeatMap("", np.where(np.arange(1000)[:, None, None] == 777, -5.0, 1.0), [""], 5.0).draw(Box(100, 10, 0))(999)
    assert (long[5, 77] == canvas.DIVERGING[0]).all()  # a single large number is not lost
    mean = HeatMap("", np.tile([0.0, 1.0], 500)[:, None, None], [""], mean=True).draw(Box(100, 10, 0))(999)
    assert np.abs(mean[5, 50].astype(int) - canvas.coloured(np.array(0.5), 1.0, canvas.SEQUENTIAL)).max() < 2


def test_other_panels():
    matrix = Matrix("", np.array([[[1.0, 0.0]], [[0.0, 1.0]]]), ["row"], ["k1", "k2"]).draw(Box(140, 60, 0))
    dark, light = (tuple(each) for each in canvas.coloured(np.array([1.0, 0.0]), 1, canvas.SEQUENTIAL))
    for step, place in ((0, 0), (1, 1), (9, 1)):
        cells = matrix(step)
        columns = np.flatnonzero((cells == dark).all(-1).any(0))
        assert (columns.mean() > 90) == (place == 1)
    assert light != dark
    bars = Bars("", np.array([[0.25, 0.75]]), ["a", "b"], np.array([[False, True]]), np.array([[True, False]])).draw(
        Box(300, 60, 0)
    )(0)
    lengths = [int((bars == colour).all(-1).any(0).sum()) for colour in (canvas.BLUE, canvas.VERMILLION)]
    assert lengths[1] == pytest.approx(3 * lengths[0], abs=4)
    lines = Lines("", np.array([0.0, 1.0]), np.array([0.0, 0.0])).draw(Box(100, 50, 20))(1)
    rows = [np.flatnonzero((lines[:, x] == canvas.ORANGE).all(-1)).mean() for x in (40, 80)]
    assert rows[0] > 40 > 10 > rows[1]
    strip = Strip("", np.array([1.0, 2.0, 0.0]), 1).draw(Box(90, 40, 0))(0)
    heights = [int((strip[:, x] == canvas.GREEN).all(-1).sum()) for x in (15, 35, 75)]
    assert heights == [19, 38, 0]
    assert (TimeAxis(1000).draw(Box(300, 17, 40))(0) != 255).any()
    image = Pictures("", [np.full((10, 10, 3), 7, np.uint8), np.full((10, 10), 9, np.uint8)])
    assert (image.draw(Box(45, 60, 0))(0) == 7).all(-1).sum() == 40 * 40
    assert (image.draw(Box(5, 60, 0))(5) == 9).all(-1).sum() == 25


def test_no_panel_covers_another():
    panels = [[HeatMap("title", np.random.rand(4, 3, 5), list("abc"))] for _ in range(9)]
    image = [Pictures("picture", [np.zeros((400, 300, 3), np.uint8)])]
    film = Film([Column(1, [image, [Strip("s", np.ones(4), 0)]]), Column(1, []), Column(2, panels)], 4, str)
    rooms = [(left, top, draw(0).shape) for left, top, draw in film.placed]
    assert len(rooms) == 11
    seen = np.zeros((576, 1024), dtype=int)
    for left, top, (height, width, _) in rooms:
        assert height > 5
        assert top + height <= 576
        assert left + width <= 1024
        seen[top : top + height, left : left + width] += 1
    assert seen.max() == 1


# files and the command line


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of a few steps, without having trained."""
    return write_run(tmp_path_factory.mktemp("runs") / "a run", dict(name="rmc", **SMALL["rmc"]))


def write_run(folder, core):
    folder.mkdir()
    kwargs = {key: value for key, value in core.items() if key != "name"}
    model = RecurrentPPO(
        "MlpMemoryPolicy",
        make_vec("rmc_rl/Copy-v0", 2, env_kwargs=COPY),
        policy_kwargs=dict(core=core["name"], core_kwargs=kwargs),
    )
    model.save(folder / "model.zip")
    config = dict(env="rmc_rl/Copy-v0", env_kwargs=COPY, core=core, policy={}, algo=dict(name="ppo", use_sde=False))
    Run(folder).write_config(OmegaConf.create(config), "train")
    return folder


@pytest.fixture(name="call")
def make_call(call):
    return partial(call, watch)


def written(out):
    return [Path(path) for path in re.findall(r"^written: (.*) \(", out, re.MULTILINE)]


def test_gif_html_and_png(call, run):
    status, out, err = call(f"run={run}", "format=gif", "episodes=2", "env_kwargs.delay=3", "seed=5")
    assert status == 0, err
    assert "frames" in err  # progress
    first, second = written(out)
    assert first.parent == run / "films"
    assert first.name.endswith("-episode1.gif")
    with Image.open(first) as film:
        assert (film.n_frames, film.size) == (8, (1024, 576))
        assert film.info["duration"] == 250  # the world has 4 frames per second
    assert first.read_bytes() != second.read_bytes()
    assert len(re.findall(r"episode \d: 7 steps, return \d", out)) == 2

    status, out, err = call(f"run={run}", "format=html", "why=4", "fps=10")
    assert status == 0, err
    assert re.search(r"why action 4: step \d \(\d+%\), step \d \(\d+%\), step \d \(\d+%\) of the gradient", out)
    (page,) = written(out)
    assert page.read_text().count('"UklGR') == 7  # WebP
    assert "src=" not in page.read_text().replace("image.src = ", "")  # nothing else is loaded

    status, out, err = call(f"run={run}", "format=png", "max_steps=3", "deterministic=false")
    assert status == 0, err
    assert "3 steps, cut by max_steps=3" in out
    (still,) = written(out)
    with Image.open(still) as picture:
        assert picture.width == 900
    assert not [path for path in (run / "films").iterdir() if "partial" in path.name or path.stat().st_size == 0]


def test_mp4(call, run):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    status, out, err = call(f"run={run}", "fps=5")
    assert status == 0, err
    (path,) = written(out)
    assert path.suffix == ".mp4"
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert frames == 7
    assert seconds == pytest.approx(1.4, abs=0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["why=6", "format=gif"], "why must be a step of the episode, 0 to 5, got 6"),
        (["why=-1", "format=gif"], "why must be a whole number of at least 0, got -1"),
        (["format=mp5"], "unknown format 'mp5'; did you mean 'mp4'?"),
        (["fps=0", "format=gif"], "fps must be a finite number above 0 and at most 100, got 0"),
        (["fromat=gif"], "unknown key 'fromat'; did you mean 'format'?"),
        (["model=best", "format=gif"], "model must have been saved by the run, got 'best', and there is no"),
        (["env_kwargs.n_symbols=5", "format=gif"], "env, env_kwargs and partial must leave the observation_space as it was"),
        (["episodes=0", "format=gif"], "episodes must be a whole number of at least 1, got 0"),
    ],
)
def test_mistakes_get_one_line(call, run, arguments, message):
    before = sorted((run / "films").glob("*")) if (run / "films").is_dir() else []
    status, _, err = call(f"run={run}", *arguments)
    assert status == 2
    assert err.splitlines()[-1].startswith("error: ")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    assert sorted((run / "films").glob("*")) == before


def test_a_film_needs_a_run_and_ffmpeg(call, run, tmp_path, monkeypatch):
    status, _, err = call("format=gif")
    assert (status, err) == (
        2,
        "error: run must be the folder of a run, as in run=runs/<env>/<core>/<stamp>-seed0, got None\n",
    )
    (tmp_path / "empty").mkdir()
    status, _, err = call("run=empty", "format=gif")
    assert status == 2
    assert "model must have been saved by the run, got 'last'" in err
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    status, _, err = call(f"run={run}")
    assert status == 2
    assert err.startswith("error: format=mp4 needs imageio-ffmpeg: pip install 'rmc-rl[watch]', or format=gif")
    assert len(err.splitlines()) == 1


def test_a_film_that_fails_leaves_nothing(tmp_path):
    def heading(step):
        if step == 2:
            raise OSError("no space left")
        return ""

    for ending in ("gif", "html", "mp4") if "imageio_ffmpeg" in sys.modules else ("gif", "html"):
        with pytest.raises(OSError, match="no space left"):
            films.write_film(Film([Column(1, [[TimeAxis(4)]])], 4, heading), tmp_path / f"film.{ending}", 5)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_run_needs_trust(call, tmp_path):
    env = make_vec("CartPole-v1", 1)
    RecurrentPPO(MlpMemoryPolicy, env, policy_kwargs=dict(core="gru", core_kwargs=dict(width=4))).save(tmp_path / "m.zip")
    status, _, err = call("model=./m.zip", "env=CartPole-v1", "format=png")
    assert status == 2
    assert "trust=true loads it and executes what it holds" in err
    status, out, err = call("model=./m.zip", "env=CartPole-v1", "format=png", "trust=true", "max_steps=3")
    assert status == 0, err
    assert written(out)[0].parent == Path("films")


def test_pictures_of_the_page_are_there(checkout):
    found = re.findall(r"!\[[^]]+\]\(([^)]+)\)", (checkout / "docs" / "watching.md").read_text())
    assert len(found) >= 5
    for name in found:
        assert 0 < (checkout / "docs" / name).stat().st_size < 2_000_000, name


def test_attention_of_a_run_on_nth_farthest(checkout, tmp_path, python):
    folder = tmp_path / "nth"
    folder.mkdir()
    env = make_vec("rmc_rl/NthFarthest-v0", 2)
    RecurrentPPO(MlpMemoryPolicy, env, policy_kwargs=dict(core="rmc", core_kwargs=SMALL["rmc"])).save(folder / "model.zip")
    core = dict(name="rmc", **SMALL["rmc"])
    config = dict(env="rmc_rl/NthFarthest-v0", env_kwargs={}, core=core, policy={}, algo=dict(name="ppo", use_sde=False))
    Run(folder).write_config(OmegaConf.create(config), "train")
    done = python(str(checkout / "scripts" / "attention.py"), "nth", "--episodes", "50", "--out", "attention.png")
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert [row[1] for row in rows] == ["to come", "now", "to come", "now", "seen before", "now", "seen before"]
    assert sum(int(row[2]) for row in rows) == 3 * 50
    with Image.open(tmp_path / "attention.png") as picture:
        assert picture.width > 700
