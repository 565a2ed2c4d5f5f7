"""Exported policies: they act as the policy does, alone, and every mistake gets one line."""

import importlib.util
import json
import re
import subprocess
import sys
from functools import partial
from importlib import metadata

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from omegaconf import OmegaConf
from stable_baselines3.common.vec_env import VecTransposeImage

from rmc_rl import MlpMemoryPolicy, RecurrentPPO, export, make_vec, register_core
from rmc_rl.agents import exporting
from rmc_rl.agents.cores import layers, registry, scan
from rmc_rl.agents.cores.framestack import FrameStack
from rmc_rl.agents.exporting import Scaling, export_policy, load_exported, read_metadata
from rmc_rl.agents.parity import check, random_steps
from rmc_rl.agents.policies import choose_policy
from rmc_rl.compat import remember_onnx_operators
from rmc_rl.errors import UsageError
from rmc_rl.runs.folder import Run, save_model
from rmc_rl.runs.normalization import normalize

BOX = spaces.Box(-np.inf, np.inf, (5,), np.float32)
IMAGE = spaces.Box(0, 255, (36, 36, 3), np.uint8)  # channels last, as environments return it
DICT = spaces.Dict({
    "camera": IMAGE,
    "code": spaces.MultiDiscrete([2, 3]),
    "joints": spaces.Box(-1, 1, (3,), np.float64),
    "room": spaces.Discrete(4),
    "switches": spaces.MultiBinary(2),
})  # fmt: skip
SMALL = dict(
    rims=dict(num_modules=3, num_active=2, module_size=4, embedding_size=8),
    gtrxl=dict(num_layers=1, num_heads=2, head_size=4, memory_length=3),
)
SCALING = Scaling(np.array([100.0, 0, 0, -5, 1]), np.array([1.0, 3, 0.01, 2, 1]), 3.0)
MASKED = "ExportedMasked-v0"


class Masked(gymnasium.Env):
    """Four actions, two of which are valid at each step; the observation is far from 0."""

    observation_space, action_space = spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.observe(), {}

    def step(self, action):
        assert self.action_masks()[action]
        self.time += 1
        return self.observe(), 1.0, self.time == 9, False, {}

    def observe(self):
        return self.np_random.normal([50, 0], [3, 0.1]).astype(np.float32)

    def action_masks(self):
        return np.arange(4) % 2 == self.time % 2


@pytest.fixture(name="masked_env", autouse=True)
def register_masked():
    gymnasium.register(MASKED, f"{__name__}:Masked")
    yield
    del gymnasium.registry[MASKED]


def policy_for(space, actions, core, **arguments):
    parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    first = {name: VecTransposeImage.transpose_space(part) if part is IMAGE else part for name, part in parts.items()}
    seen = spaces.Dict(first) if isinstance(space, spaces.Dict) else first[""]
    torch.manual_seed(0)
    return choose_policy(seen)(seen, actions, lambda _: 0.0, core=core, core_kwargs=SMALL.get(core), **arguments)


@pytest.mark.parametrize(
    ("space", "actions", "core", "critic", "kind", "masked"),
    [
        (DICT, spaces.MultiDiscrete([3, 2]), "rims", "separate", "onnx", True),
        pytest.param(BOX, spaces.Box(-0.1, 0.1, (2, 1), np.float32), "gtrxl", "shared", "pt2", False, marks=pytest.mark.slow),
        (IMAGE, spaces.MultiBinary(3), "gru", "memoryless", "pt2", False),
        (BOX, spaces.MultiBinary(2), "memoryless", "shared", "pt2", True),
    ],
)
def test_a_file_acts_as_the_policy_does(space, actions, core, critic, kind, masked, tmp_path):
    policy, path = policy_for(space, actions, core, critic=critic), tmp_path / f"policy.{kind}"
    scalings = {"": SCALING} if space is BOX else {}
    export_policy(policy, path, kind, space, scalings, masked, about=dict(note="kept"))
    act = load_exported(path)
    for batch in (1, 7):
        parity = check(policy, act, random_steps(policy, space, scalings, masked, batch, 25), scalings)
        assert parity.steps == 25
        assert parity.starts > batch
        assert parity.is_equal, parity
    about = read_metadata(path)
    assert about["note"] == "kept"
    ports = exporting.describe(policy, space, masked)
    assert {kind: about[kind] for kind in ports} == ports
    assert ("action_masks" in [each["name"] for each in about["inputs"]]) is masked


@pytest.mark.slow
def test_gsde_and_squashed_actions_and_a_compiled_policy_in_bfloat16(tmp_path):
    policy = policy_for(
        BOX,
        spaces.Box(np.array([-2.0, 0], np.float32), np.array([2.0, 5], np.float32)),
        "gru",
        use_sde=True,
        squash_output=True,
        amp="bf16",
        compile_mode="default",
    )
    export_policy(policy, tmp_path / "policy.pt2", "pt2")
    parity = check(policy, load_exported(tmp_path / "policy.pt2"), random_steps(policy, steps=20))
    assert parity.is_equal, parity


class Averaging(FrameStack):
    """A core with an operation that has the name of an output, ``mean``."""

    def step(self, x, state):
        output, state = super().step(x, state)
        return output - output.mean(-1, keepdim=True), state

    def forward(self, *args):
        return self.unroll(self.step, *args)


def test_operations_may_have_the_names_of_outputs(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_CORES", dict(registry._CORES))
    register_core("averaging")(Averaging)
    policy = policy_for(BOX, spaces.Box(-1, 1, (2,)), "averaging")
    export_policy(policy, tmp_path / "policy.onnx")
    parity = check(policy, load_exported(tmp_path / "policy.onnx"), random_steps(policy, steps=20))
    assert parity.is_equal, parity


def test_the_check_finds_a_difference():
    policy = policy_for(BOX, spaces.Discrete(3), "gru")

    def act(inputs, broken=None):
        graph = exporting.ActingStep(exporting.plain_copy(policy), BOX, {})
        with torch.no_grad():
            found = {
                name: tensor.numpy() for name, tensor in graph(**{k: torch.as_tensor(v) for k, v in inputs.items()}).items()
            }
        if broken == "action":
            found["action"] = (found["action"] + 1) % 3
        elif broken is not None:
            found[broken] = found[broken] + 1e-3
        return found

    assert check(policy, act, random_steps(policy, steps=5)).is_equal
    for name in ("action", "log_prob", "logits", "value", "next_state"):
        parity = check(policy, lambda inputs, name=name: act(inputs, name), random_steps(policy, steps=5))
        assert not parity.is_equal, name
    # one episode starts within these steps
    ignored = check(policy, lambda inputs: act(inputs | {"episode_start": np.zeros(7, bool)}), random_steps(policy, steps=5))
    assert ignored.starts > 7
    assert not ignored.is_equal


def test_modules_are_ranked_as_a_stable_sort_ranks_them():
    scores = torch.randint(0, 4, (500, 6), generator=torch.Generator().manual_seed(0)).float()
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    assert torch.equal(layers._rank(scores), order.argsort(dim=1))


def test_one_step_since_a_start_needs_no_scan():
    starts, before = torch.tensor([[True, False, False]]), torch.tensor([5, 5, 0])
    both = scan.steps_since_start(starts.expand(2, -1), before)[:1]
    assert torch.equal(scan.steps_since_start(starts, before), both)


def write_run(folder, env_id=MASKED, normalized="obs"):
    env = normalize(make_vec(env_id, 2), normalized, 0.99)
    core = dict(name="gru", width=4)
    model = RecurrentPPO(
        MlpMemoryPolicy, env, n_steps=8, batch_size=16, policy_kwargs=dict(core="gru", core_kwargs=dict(width=4))
    )
    model.learn(64)
    folder.mkdir()
    save_model(model, folder / "model.zip")
    data = "/home/somebody/data.npz"
    config = dict(env=env_id, env_kwargs={}, core=core, policy={}, seed=3, runs_dir="/home/somebody/runs", note=data)
    Run(folder).write_config(OmegaConf.create(config), f"train runs_dir={data}")
    return folder


@pytest.fixture(name="call")
def make_call(call):
    return partial(call, export)


def test_a_run_is_exported_and_plays_alone(call, tmp_path):
    run = write_run(tmp_path / "run")
    status, out, err = call(f"run={run}", "trust=true", "n_envs=3")
    assert (status, err) == (0, "")
    assert [line.split(":")[0] for line in out.splitlines()] == ["inputs", "outputs", "check", "written"]  # and no chatter
    assert "check: equal to the policy on 200 steps of 3 copies" in out
    path = run / "exports" / "last.onnx"
    assert [each.name for each in path.parent.iterdir()] == ["last.onnx"]
    about = read_metadata(path)
    assert [each["name"] for each in about["inputs"]] == ["observation", "state", "episode_start", "action_masks"]
    assert about["config"]["seed"] == 3
    assert about["versions"]["torch"] == metadata.version("torch")  # torch.__version__ may name its CUDA, too
    assert "somebody" not in json.dumps(about)
    assert str(tmp_path) not in json.dumps(about)

    # the whole loop: raw observations in, valid actions out, and the returns of the environment's own episodes
    act, env = load_exported(path), gymnasium.make(MASKED)
    observation, _ = env.reset(seed=0)
    state, start, total = np.zeros((1, 4), np.float32), np.array([True]), 0.0
    for _ in range(9):
        masks = env.unwrapped.action_masks()[None]
        found = act({"observation": observation[None], "state": state, "episode_start": start, "action_masks": masks})
        observation, reward, *_ = env.step(found["action"][0])
        state, start, total = found["next_state"], np.array([False]), total + reward
    assert total == 9


def test_a_file_that_acts_differently_is_not_written(call, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", normalized=None)
    load = exporting.load_exported

    def forgetful(path):
        act = load(path)
        return lambda inputs: act(inputs | {"state": inputs["state"] * 0})

    monkeypatch.setattr(exporting, "load_exported", forgetful)
    status, _, err = call(f"run={run}", "trust=true", "format=pt2")
    assert status == 1
    assert err.startswith("error: the exported file does not act as the policy does: 200 steps")
    assert len(err.splitlines()) == 1
    assert not list((run / "exports").iterdir())


def test_mistakes_get_one_line(call, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", "CartPole-v1", None)
    for arguments, line in [
        (["format=onx"], "unknown format 'onx'; did you mean 'onnx'?"),
        (["n_envs=0"], "n_envs must be a whole number of at least 1, got 0"),
        (["run=nowhere"], "run must be the folder of a run, got 'nowhere'"),
        (["model=best"], "model must have been saved by the run, got 'best'"),
        (["model=bset"], "unknown model 'bset'; did you mean 'best'?"),
        (["foramt=pt2"], "unknown key 'foramt'; did you mean 'format'?"),
    ]:
        given = arguments if arguments[0].startswith("run=") else [f"run={run}", *arguments]
        status, out, err = call(*given)
        assert (status, out, len(err.splitlines())) == (2, "", 1), arguments
        assert line in err
    (tmp_path / "alone").mkdir()
    (run / "model.zip").rename(tmp_path / "alone" / "model.zip")
    assert "with a config.yaml" in call(f"model={tmp_path / 'alone' / 'model.zip'}")[2]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    status, _, err = call(f"run={run}")
    assert status == 2
    assert err == "error: format=onnx needs onnxruntime: pip install 'rmc-rl[onnx]' (pip install '.[onnx]' in a checkout)\n"


def test_masks_of_box_actions_and_what_torch_cannot_trace_are_refused(tmp_path):
    policy = policy_for(BOX, spaces.Box(-1, 1, (2,), np.float32), "gru")
    with pytest.raises(UsageError, match="action masks need discrete actions"):
        export_policy(policy, tmp_path / "policy.pt2", "pt2", masked=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(policy.core), "step", lambda _, x, state: (x * float(x.sum()), state))
        with pytest.raises(UsageError, match="the policy must be one that torch can export"):
            export_policy(policy, tmp_path / "policy.pt2", "pt2")


def test_the_table_of_operators_is_read_once():
    remember_onnx_operators()
    apis = importlib.import_module("torch.onnx._internal.exporter._registration").onnxscript_apis
    assert apis.get_torchlib_ops() is apis.get_torchlib_ops()


def test_the_blocks_of_the_page_run(call, tmp_path, checkout, monkeypatch):
    page = (checkout / "docs" / "exporting.md").read_text()
    play, sample, python = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(play.strip().splitlines()) <= 32
    run = write_run(tmp_path / "run", "CartPole-v1")
    assert call(f"run={run}")[0] == 0
    (run / "exports" / "last.onnx").rename(tmp_path / "best.onnx")
    alone = "import sys\nassert not {'torch', 'rmc_rl', 'gymnasium'} & set(sys.modules)\n"
    done = subprocess.run(
        [sys.executable, "-c", play + sample + alone], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "value of the last observation" in done.stdout
    monkeypatch.chdir(tmp_path)
    exec(compile(python, "exporting.md", "exec"), {})


@pytest.mark.slow
def test_every_core_is_equal(checkout):
    script = str(checkout / "scripts" / "check_export.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
