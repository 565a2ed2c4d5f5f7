"""The policies in the stock RecurrentPPO: every space, every critic, states, saving and loading."""

import re
import shutil

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

import rmc_rl
from rmc_rl import CnnMemoryPolicy, Core, CoreScalars, MlpMemoryPolicy, MultiInputMemoryPolicy, make_vec, match_parameters
from rmc_rl.agents.cores import Memoryless, core_class, core_names
from rmc_rl.agents.policies import CRITICS
from rmc_rl.agents.state import join_state, split_state
from rmc_rl.errors import UsageError

SMALL = dict(core="rmc", core_kwargs=dict(num_slots=2, num_heads=2, head_size=4))
CORES = [SMALL, dict(core="memoryless", core_kwargs=dict(width=8))]


class Echo(gymnasium.Env):
    """Random observations and rewards for any pair of spaces; episodes of 7 steps, every other one truncated."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space
        self.observation_space.seed(0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.episode = 0, getattr(self, "episode", 0) + 1
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.time += 1
        done = self.time == 7
        return self.observation_space.sample(), 1.0, done and self.episode % 2 == 0, done and self.episode % 2 == 1, {}


VECTOR = spaces.Box(-1, 1, (3,), np.float32)
ACTIONS = {
    "Discrete": spaces.Discrete(3),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2]),
    "MultiBinary": spaces.MultiBinary(4),
    "Box": spaces.Box(-2, 2, (2,), np.float32),
}
OBSERVATIONS = {
    "Box": (MlpMemoryPolicy, VECTOR),
    "Discrete": (MlpMemoryPolicy, spaces.Discrete(5)),
    "MultiDiscrete": (MlpMemoryPolicy, spaces.MultiDiscrete([3, 2])),
    "MultiBinary": (MlpMemoryPolicy, spaces.MultiBinary(4)),
    "image": (CnnMemoryPolicy, spaces.Box(0, 255, (1, 40, 40), np.uint8)),
    "Dict": (MultiInputMemoryPolicy, spaces.Dict(a=VECTOR, b=spaces.Discrete(3), c=spaces.Box(0, 255, (36, 36, 3), np.uint8))),
}


def echo(observation_space=VECTOR, action_space=ACTIONS["Discrete"], n_envs=2):
    return make_vec_env(lambda: Echo(observation_space, action_space), n_envs)


def agent(env=None, policy=MlpMemoryPolicy, policy_kwargs=SMALL, algorithm=RecurrentPPO, **kwargs):
    # 2 environments * 16 steps: episodes start in the middle of rollouts and of minibatches
    defaults = dict(n_steps=16, batch_size=8, n_epochs=2, seed=0, device="cpu")
    return algorithm(policy, env or echo(), policy_kwargs=policy_kwargs, **(defaults | kwargs))


@pytest.mark.parametrize("policy_kwargs", CORES, ids=lambda kwargs: kwargs["core"])
@pytest.mark.parametrize("action", ACTIONS)
def test_actions(action, policy_kwargs):
    env = echo(action_space=ACTIONS[action])
    model = agent(env, policy_kwargs=policy_kwargs).learn(64)
    evaluate_policy(model, env, 2)


@pytest.mark.parametrize("policy_kwargs", CORES, ids=lambda kwargs: kwargs["core"])
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_observations(observation, policy_kwargs):
    policy, space = OBSERVATIONS[observation]
    env = echo(space)
    if observation in ("image", "Dict"):
        extractor = dict(features_dim=16) if observation == "image" else dict(cnn_output_dim=16)
        policy_kwargs = policy_kwargs | dict(features_extractor_kwargs=extractor)
    model = agent(env, policy, policy_kwargs).learn(64)
    evaluate_policy(model, env, 2)


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("share_features_extractor", [True, False])
@pytest.mark.parametrize("policy", ["mlp", "cnn"])
def test_critics(critic, share_features_extractor, policy):
    kwargs = SMALL | dict(critic=critic, share_features_extractor=share_features_extractor, net_arch=dict(pi=[], vf=[8]))
    if policy == "cnn":
        env = make_vec_env(lambda: FakeImageEnv(screen_height=40, screen_width=40, n_channels=3), 2)
        kwargs |= dict(features_extractor_kwargs=dict(features_dim=16))
    else:
        env = echo()
    cls = CnnMemoryPolicy if policy == "cnn" else MlpMemoryPolicy
    if critic == "shared" and not share_features_extractor:
        with pytest.raises(UsageError, match="'separate' or 'memoryless' with share_features_extractor=False, got 'shared'"):
            agent(env, cls, kwargs)
        return
    model = agent(env, cls, kwargs).learn(64)
    cores = [name for name, module in model.policy.named_modules() if isinstance(module, Core)]
    assert cores == (["core", "critic_core"] if critic == "separate" else ["core"])


@pytest.mark.parametrize("share_features_extractor", [True, False])
@pytest.mark.parametrize("policy", ["mlp", "cnn"])
def test_encoder(policy, share_features_extractor):
    kwargs = SMALL | dict(critic="separate", encoder=[24, 12], share_features_extractor=share_features_extractor)
    cls, space = OBSERVATIONS["Box" if policy == "mlp" else "image"]
    model = agent(echo(space), cls, kwargs).learn(32)
    assert model.policy.core.input_size == 12
    encoders = {name.split(".layers")[0] for name, _ in model.policy.named_parameters() if ".layers." in name}
    assert len(encoders) == (1 if share_features_extractor else 2)


@pytest.mark.parametrize(
    "spaces_",
    [(VECTOR, spaces.Discrete(3, start=1)), (spaces.Dict(a=spaces.Discrete(3, start=-1)), ACTIONS["Discrete"])],
    ids=str,
)
def test_discrete_spaces_that_do_not_start_from_0_are_refused(spaces_):
    with pytest.raises(UsageError, match=r"the (action|observation .a.) space must start from 0, got Discrete"):
        agent(echo(*spaces_), MultiInputMemoryPolicy if isinstance(spaces_[0], spaces.Dict) else MlpMemoryPolicy)


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (
            spaces.Box(-1, 1, ()),
            ACTIONS["Box"],
            r"observation space must have at least one dimension: gymnasium",
        ),
        (spaces.Dict(a=spaces.Box(-1, 1, ())), ACTIONS["Box"], "observation 'a' space must have at least one dimension"),
        (spaces.Box(-1, 1, (0,)), ACTIONS["Box"], "observation space must not be empty"),
        (spaces.MultiDiscrete([[2, 3], [4, 5]]), ACTIONS["Box"], "observation space must have one dimension: flatten it"),
        (
            spaces.Dict(a=spaces.Dict(b=VECTOR)),
            ACTIONS["Box"],
            "observation 'a' space must be one of Box, Discrete",
        ),
        (spaces.Text(3), ACTIONS["Box"], "observation space must be one of Box, .*, or a Dict of these, got Text"),
        (VECTOR, spaces.MultiBinary([2, 2]), "action space must have one dimension: flatten it"),
        (VECTOR, spaces.MultiDiscrete([[2, 3], [4, 5]]), "action space must have one dimension"),
        (VECTOR, spaces.Dict(a=spaces.Discrete(2)), "action space must be one of Box"),
    ],
)
def test_spaces_that_no_policy_can_have_are_refused_in_one_line(observation, action, message):
    policy = MultiInputMemoryPolicy if isinstance(observation, spaces.Dict) else MlpMemoryPolicy
    with pytest.raises(UsageError, match=message) as caught:
        policy(observation, action, lambda _: 0.001)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("algorithm", [RecurrentPPO, rmc_rl.RecurrentPPO])
def test_small_images_in_a_dict_are_flattened(algorithm):
    space = spaces.Dict(small=spaces.Box(0, 255, (8, 8, 3), np.uint8), large=spaces.Box(0, 255, (40, 40, 3), np.uint8))
    model = agent(echo(space), MultiInputMemoryPolicy, algorithm=algorithm).learn(32)
    assert model.policy.core.input_size == 8 * 8 * 3 + 256
    seen = model.policy.obs_to_tensor({name: np.full((1, *part.shape), 255, part.dtype) for name, part in space.items()})[0]
    features = model.policy.extract_features(seen, model.policy.pi_features_extractor)
    assert (features == 1).sum() == 8 * 8 * 3  # scaled as other images


def test_a_cnn_policy_says_what_images_it_needs():
    with pytest.raises(UsageError, match=r"a CNN policy needs images .* of at least 36 pixels; try MlpMemoryPolicy, got Box"):
        agent(echo(spaces.Box(0, 255, (1, 20, 20), np.uint8)), CnnMemoryPolicy)


def test_box_actions_without_a_dimension():
    agent(echo(action_space=spaces.Box(-1, 1, (), np.float32))).learn(32)


@pytest.mark.parametrize("squash", [False, True])
def test_gsde(squash):
    env = echo(action_space=spaces.Box(-1, 1, (2,), np.float32))
    kwargs = SMALL | dict(squash_output=squash, log_std_init=-2, full_std=False, use_expln=True)
    agent(env, policy_kwargs=kwargs, use_sde=True, sde_sample_freq=4, clip_range_vf=0.1).learn(128)


def test_vec_normalize_eval_callback_and_target_kl(tmp_path):
    def wrap(training):
        return VecNormalize(make_vec_env("CartPole-v1", 2), training=training, norm_reward=training)

    callback = EvalCallback(wrap(False), n_eval_episodes=3, eval_freq=16, best_model_save_path=str(tmp_path), verbose=0)
    agent(wrap(True), target_kl=0.01, learning_rate=lambda left: 1e-3 * left).learn(64, callback=callback)
    RecurrentPPO.load(tmp_path / "best_model")


@pytest.mark.parametrize("policy_kwargs", CORES, ids=lambda kwargs: kwargs["core"])
def test_same_seed_same_numbers(policy_kwargs):
    first, second = (agent(make_vec("CartPole-v1", 2), policy_kwargs=policy_kwargs).learn(64) for _ in range(2))
    for name, parameter in first.policy.state_dict().items():
        assert parameter.equal(second.policy.state_dict()[name]), name


@pytest.mark.parametrize("env", ["rmc_rl/Copy-v0", "Pendulum-v1"])
@pytest.mark.parametrize("core", core_names())
def test_every_core_trains_saves_and_loads(core, env, tmp_path):
    model = agent(make_vec(env, 2, seed=0), policy_kwargs=dict(core=core)).learn(64)
    model.save(tmp_path / "model")
    loaded = RecurrentPPO.load(tmp_path / "model", device="cpu")
    observation, states, starts = model.get_env().reset(), [None, None], np.ones(2, dtype=bool)
    for _ in range(3):
        actions = []
        for index, each in enumerate((model, loaded)):
            action, states[index] = each.predict(observation, states[index], starts, deterministic=True)
            actions.append(action)
        np.testing.assert_array_equal(*actions)
        np.testing.assert_array_equal(*states)
        observation, _, starts, _ = model.get_env().step(actions[0])


@pytest.mark.parametrize("algorithm", [RecurrentPPO, rmc_rl.RecurrentPPO])
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_looking_inside_while_training(observation, algorithm):
    policy, space = OBSERVATIONS[observation]
    seen = []

    class Seen(CoreScalars):
        def _on_rollout_end(self):
            super()._on_rollout_end()
            seen.append(dict(self.logger.name_to_value))

    agent(echo(space), policy, algorithm=algorithm, batch_size=16).learn(64, callback=Seen())
    assert len(seen) == 2
    for scalars in seen:
        assert 0 < scalars["core/forget_gate"] < 1
        assert 0 < scalars["core/attention_entropy"] < np.log(3) + 1e-6


@pytest.mark.parametrize("algorithm", [RecurrentPPO, rmc_rl.RecurrentPPO])
def test_what_is_looked_at_is_what_the_policy_acted_on(algorithm, monkeypatch):
    acted, looked = [], []

    class Count(Core):
        """Its state counts the steps of the episode and adds up what it has seen."""

        def __init__(self, input_size):
            super().__init__(input_size, output_size=2, state_size=2)
            self.weight = torch.nn.Parameter(torch.ones(1))

        def initial_state(self, batch_size):
            return torch.zeros(batch_size, 2)

        def step(self, x, state):
            state = state + torch.stack([torch.ones(len(x)), x[:, 0]], dim=1)
            (acted if self._looks is None else looked).append(state.clone())
            return self.weight * state, state

    monkeypatch.setattr("rmc_rl.agents.callbacks.LOOKS", 3)
    model = agent(policy_kwargs=dict(core=Count), algorithm=algorithm, n_epochs=1, batch_size=16)
    model.policy.critic_core = None
    model.learn(32, callback=CoreScalars())
    assert len(looked) == 3
    for state in looked:
        assert any(state.equal(other) for other in acted)


def test_looking_inside_needs_a_core():
    model = RecurrentPPO("MlpLstmPolicy", echo(), n_steps=16, batch_size=8, device="cpu")
    with pytest.raises(UsageError, match="CoreScalars needs a policy with a core, got 'RecurrentActorCriticPolicy'"):
        model.learn(32, callback=CoreScalars())


def test_inspecting_observations_shows_what_the_core_did():
    model = agent()
    policy = model.policy
    observations, starts = torch.randn(5, 2, 3), torch.zeros(5, 2)
    starts[3, 0] = 1
    states = random_states(policy, 2).pi
    looks = policy.inspect(observations, states, starts)
    for t in range(5):
        _, states = policy.get_distribution(observations[t], states, starts[t])
        expected = join_state(states, policy.core.state_size)
        torch.testing.assert_close(looks["state"][t], expected, rtol=0, atol=1e-6)
    looks = policy.inspect(observations)
    assert looks["attention"].shape == (5, 2, 1, 2, 2, 3)
    assert not looks["output"].requires_grad
    _, first = policy.get_distribution(observations[0], policy.initial_states(2).pi, torch.ones(2))
    torch.testing.assert_close(looks["state"][0], join_state(first, policy.core.state_size), rtol=0, atol=1e-6)
    # as people have them: arrays, and the state that predict returns
    _, state = model.predict(observations[0].numpy())
    looks = policy.inspect(observations.numpy(), state, starts.numpy() > 0)
    torch.testing.assert_close(looks["state"], policy.inspect(observations, state, starts)["state"], rtol=0, atol=0)


@pytest.mark.parametrize("in_dict", [False, True])
def test_inspecting_takes_images_as_the_environment_returns_them(in_dict):
    image = spaces.Box(0, 255, (40, 36, 3), np.uint8)
    space = spaces.Dict(image=image) if in_dict else image
    model = agent(echo(space), MultiInputMemoryPolicy if in_dict else CnnMemoryPolicy)
    images = np.stack([[image.sample() for _ in range(2)] for _ in range(3)])  # (T, B, height, width, channels)
    first = images.transpose(0, 1, 4, 2, 3)
    found = [model.policy.inspect(dict(image=each) if in_dict else each)["state"] for each in (images, first)]
    assert found[0].equal(found[1])


def test_mistakes_in_inspecting():
    policy, observations = agent().policy, np.zeros((5, 2, 3), np.float32)
    for arguments, message in [
        ((observations[:, :0],), r"observations must be \(steps, environments, \.\.\.\), got"),
        ((observations[0, 0],), r"observations must be \(steps, environments, \.\.\.\), got"),
        ((observations, policy.initial_states(3).pi), "state must be that of the 2 environments observed, got 3"),
        ((observations, None, np.zeros(2)), r"episode_starts must have shape \(5, 2\), got \(2,\)"),
    ]:
        with pytest.raises(UsageError, match=message):
            policy.inspect(*arguments)


@pytest.mark.parametrize("params", [40_000, 300_000])
@pytest.mark.parametrize("core", core_names())
def test_matched_parameters(core, params):
    kwargs = match_parameters(MlpMemoryPolicy, VECTOR, ACTIONS["Box"], dict(core=core, net_arch=[32]), params)
    assert kwargs["net_arch"] == [32]
    policy = agent(echo(action_space=ACTIONS["Box"]), policy_kwargs=kwargs).policy
    assert sum(p.numel() for p in policy.parameters()) == pytest.approx(params, rel=0.02)


def test_matching_counts_the_whole_policy():
    space = OBSERVATIONS["image"][1]
    kwargs = match_parameters(CnnMemoryPolicy, space, ACTIONS["Discrete"], dict(core="gru", critic="separate"), 400_000)
    policy = agent(echo(space), CnnMemoryPolicy, kwargs).policy
    assert sum(p.numel() for p in policy.parameters()) == pytest.approx(400_000, rel=0.02)


@pytest.mark.parametrize("core", ["rmc", "rims", "gtrxl"])
def test_the_smallest_size(core):
    def fit(params, **kwargs):
        arguments = dict(core=core, core_kwargs=kwargs)
        return match_parameters(MlpMemoryPolicy, VECTOR, ACTIONS["Box"], arguments, params)["core_kwargs"]

    with pytest.raises(UsageError, match="must be at least") as error:
        fit(100)
    least = int(re.search(r"at least ([\d,]+),", str(error.value)).group(1).replace(",", ""))
    coarse, fine = core_class(core).size_arguments
    assert fit(least) == fit(least - 1) == {coarse: 1, fine: 1}
    assert fit(40_000, **{fine: 7}) == fit(40_000)  # whatever it was


def test_proportions_of_layers_stay():
    arguments = dict(core="brims", core_kwargs=dict(module_size=[4, 12]))
    sizes = match_parameters(MlpMemoryPolicy, VECTOR, ACTIONS["Box"], arguments, 400_000)["core_kwargs"]["module_size"]
    assert sizes[1] == 3 * sizes[0] > 12


def test_sizes_that_cannot_be():
    class Sum(Core):
        pass

    class Reader(Memoryless):
        def __init__(self, input_size, width=1):
            super().__init__(input_size, width)
            torch.zeros(1).item()

    class Coarse(Memoryless):
        size_arguments = ("hundreds",)

        def __init__(self, input_size, hundreds=1):
            super().__init__(input_size, width=250 * hundreds)

    for arguments, params, message in [
        (dict(core="lstm"), 1000, r"params must be at least [\d,]+, the smallest such policy, got 1000"),
        (dict(core="lstm", core_kwargs=dict(num_layers=0)), 50_000, "num_layers must be a whole number of at least 1"),
        (dict(core="lstm"), 5e4, r"params must be a whole number of at least 1, got 50000\.0"),
        (dict(core=Sum), 50_000, "params needs size_arguments in core Sum, a tuple of its constructor's arguments, got"),
        (dict(core="lstm"), 10**12, "params must be at most 10,000,000,000, got 1000000000000"),
        (dict(core=Reader), 50_000, "params needs a core that can be built with .* on torch's meta device: Tensor.item"),
        (
            dict(core=Coarse),
            50_000,
            r"params must be within 2 % of a size that core Coarse can have, nearest [\d,]+, got 50,000",
        ),
    ]:
        with pytest.raises(UsageError, match=message):
            match_parameters(MlpMemoryPolicy, VECTOR, ACTIONS["Box"], arguments, params)


def test_a_core_of_ones_own():
    class Sum(Core):
        def __init__(self, input_size, scale=1.0):
            super().__init__(input_size, output_size=input_size, state_size=input_size)
            self.scale = torch.nn.Parameter(torch.tensor(scale))

        def initial_state(self, batch_size):
            return self.scale.new_zeros(batch_size, self.state_size)

        def step(self, x, state):
            state = state + self.scale * x
            return state, state

    model = agent(policy_kwargs=dict(core=Sum, core_kwargs=dict(scale=0.5))).learn(64)
    assert model.policy.core.scale.item() != 0.5


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize(("core", "scale"), [("rmc", 0.25), ("gru", 1)])
def test_large_outputs_are_scaled_for_the_layers_that_read_them(critic, core, scale, tmp_path):
    kwargs = dict(core=core, critic=critic, net_arch=[], scale_output=True)
    model = RecurrentPPO(MlpMemoryPolicy, make_vec("CartPole-v1", 3, seed=0), policy_kwargs=kwargs, n_steps=8, batch_size=24)
    scaled = model.policy
    plain = MlpMemoryPolicy(scaled.observation_space, scaled.action_space, lambda _: 0.1, core, critic=critic, net_arch=[])
    plain.load_state_dict(scaled.state_dict())
    obs, starts = torch.randn(3, 4), torch.ones(3)
    with torch.no_grad():
        for heads, factor in ((plain, scale), (scaled, 1)):  # the same numbers from smaller weights
            heads.action_net.weight.mul_(factor)
            heads.value_net.weight.mul_(factor)
        expected, found = (
            policy.get_distribution(obs, policy.initial_states(3).pi, starts)[0].distribution.logits
            for policy in (plain, scaled)
        )
    torch.testing.assert_close(found, expected)
    values = [policy.predict_values(obs, policy.initial_states(3).vf, starts) for policy in (plain, scaled)]
    torch.testing.assert_close(*values)
    model.learn(24)
    model.save(tmp_path / "model")
    loaded = RecurrentPPO.load(tmp_path / "model").policy
    before, after = (policy.predict(obs.numpy(), deterministic=True)[1][0] for policy in (model.policy, loaded))
    np.testing.assert_array_equal(before, after)
    assert scaled.core.output_scale == scale
    assert type(loaded.mlp_extractor) is type(scaled.mlp_extractor)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(core="rmd"), "unknown core 'rmd'; did you mean 'rmc'"),
        (dict(core_kwargs=dict(num_slot=3)), "unknown argument of core RMC 'num_slot'; did you mean 'num_slots'"),
        (dict(core_kwargs=dict(num_slots=0)), "num_slots must be a whole number of at least 1, got 0"),
        (dict(encoder=[64, 0]), "each size in encoder must be a whole number of at least 1, got 0"),
        (dict(compile_mode="fast"), "compile_mode must be one of None, default, reduce-overhead, max-autotune, got 'fast'"),
        (dict(amp="fp8"), "amp must be 'bf16' or None, got 'fp8'"),
        (dict(channels_last=1), "channels_last must be true or false, got 1"),
        (dict(scale_output="auto"), "scale_output must be true or false, got 'auto'"),
        (dict(critic="share"), "unknown critic 'share'; did you mean 'shared'"),
    ],
)
def test_mistakes_are_told_before_the_first_step(kwargs, message):
    with pytest.raises(UsageError, match=message):
        agent(policy_kwargs=kwargs)


# What published code has failed


def random_states(policy, n):
    torch.manual_seed(3)
    actor, critic = (tuple(torch.randn_like(half) for half in pair) for pair in policy.initial_states(n))
    return RNNStates(actor, actor if policy.critic_core is None else critic)


@pytest.mark.parametrize("critic", CRITICS)
def test_the_core_drives_policy_and_value(critic):
    policy = agent(policy_kwargs=SMALL | dict(critic=critic)).policy
    observations, starts = torch.zeros(2, 3), torch.zeros(2)
    first, second = policy.initial_states(2), random_states(policy, 2)
    one, other = (
        policy.get_distribution(observations, states.pi, starts)[0].distribution.logits for states in (first, second)
    )
    assert (one - other).abs().min() > 1e-6
    one, other = (policy.predict_values(observations, states.vf, starts) for states in (first, second))
    assert one.equal(other) if critic == "memoryless" else (one - other).abs().min() > 1e-6
    _, one, _, _ = policy(observations, first, starts)
    _, other, _, _ = policy(observations, second, starts)
    assert one.equal(other) if critic == "memoryless" else (one - other).abs().min() > 1e-6


@pytest.mark.parametrize("policy_kwargs", CORES, ids=lambda kwargs: kwargs["core"])
@pytest.mark.parametrize("critic", CRITICS)
def test_every_core_parameter_gets_a_gradient_from_one_update(critic, policy_kwargs):
    model = agent(
        policy_kwargs=policy_kwargs | dict(critic=critic, ortho_init=False), n_epochs=1, batch_size=32, ent_coef=0.01
    )
    model.learn(32)
    cores = {name: p for name, p in model.policy.named_parameters() if name.split(".")[0] in ("core", "critic_core")}
    assert any(name.startswith("critic_core") for name in cores) == (critic == "separate")
    for name, parameter in cores.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_both_losses_train_a_shared_core():
    policy = agent().policy
    for part in ("values", "log_prob"):
        policy.zero_grad()
        states, starts = random_states(policy, 2), torch.zeros(2)
        values, log_prob, _ = policy.evaluate_actions(torch.randn(2, 3), torch.zeros(2), states, starts)
        (values if part == "values" else log_prob).sum().backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in policy.core.parameters()), part


@pytest.mark.parametrize("share_features_extractor", [True, False])
def test_half_precision_of_the_features(share_features_extractor, tmp_path):
    policy, space = OBSERVATIONS["image"]
    kwargs = SMALL | dict(critic="separate", share_features_extractor=share_features_extractor)
    half = agent(echo(space), policy, kwargs | dict(amp="bf16"))
    full = agent(echo(space), policy, kwargs).policy
    full.load_state_dict(half.policy.state_dict())
    obs, starts = torch.randint(0, 255, (2, 1, 40, 40), dtype=torch.uint8), torch.ones(2)
    states = full.initial_states(2)
    for one, other in zip(half.policy(obs, states, starts, True)[1:3], full(obs, states, starts, True)[1:3], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.05)
        assert not one.equal(other)
        assert one.dtype == torch.float32
    values = half.policy.predict_values(obs, states.vf, starts)
    torch.testing.assert_close(values, half.policy(obs, states, starts)[1], rtol=0, atol=1e-6)
    half.learn(64).save(tmp_path / "model")
    assert RecurrentPPO.load(tmp_path / "model", device="cpu").policy.amp is torch.bfloat16


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_policy_is_the_same_policy(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, mode: compiled.append((module, mode)))
    policy, space = OBSERVATIONS["Box"]
    kwargs = SMALL | dict(net_arch=[8])
    model = agent(echo(space), policy, kwargs | dict(compile_mode="reduce-overhead"))
    parts = [model.policy.features_extractor, model.policy.mlp_extractor.policy_net, model.policy.mlp_extractor.value_net]
    assert compiled == [(part, "reduce-overhead") for part in parts]
    monkeypatch.undo()
    model = agent(echo(space), policy, kwargs | dict(compile_mode="default")).learn(64)
    model.save(tmp_path / "model")
    plain = agent(echo(space), policy, kwargs).learn(64)
    for name, tensor in plain.policy.state_dict().items():
        torch.testing.assert_close(model.policy.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    loaded = RecurrentPPO.load(tmp_path / "model", device="cpu").policy
    assert loaded._core_arguments.compile_mode == "default"


def test_channels_last_changes_nothing_but_the_order():
    policy, space = OBSERVATIONS["image"]
    last, first = (agent(echo(space), policy, SMALL | dict(channels_last=order)).policy for order in (True, False))
    convolutions = [p.features_extractor.cnn[2].weight for p in (last, first)]
    assert [w.is_contiguous(memory_format=torch.channels_last) for w in convolutions] == [True, False]
    assert convolutions[0].equal(convolutions[1])
    obs, starts = torch.randint(0, 255, (2, 1, 40, 40), dtype=torch.uint8), torch.ones(2)
    values = [p.predict_values(obs, p.initial_states(2).vf, starts) for p in (last, first)]
    torch.testing.assert_close(*values, rtol=0, atol=1e-5)


def test_orthogonal_initialisation_leaves_the_core_alone():
    def is_orthogonal(weight, gain):
        return torch.allclose(weight.T @ weight, gain**2 * torch.eye(weight.shape[1]), atol=1e-4)

    policy = agent().policy
    assert is_orthogonal(policy.mlp_extractor.policy_net[0].weight, gain=2**0.5)
    assert not is_orthogonal(policy.core.project.weight, gain=2**0.5)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("policy_kwargs", CORES, ids=lambda kwargs: kwargs["core"])
@pytest.mark.parametrize("critic", CRITICS)
def test_acting_step_by_step_equals_evaluating_the_sequence(critic, policy_kwargs, action):
    policy = agent(echo(action_space=ACTIONS[action]), policy_kwargs=policy_kwargs | dict(critic=critic)).policy
    n_envs, n_steps = 3, 9
    torch.manual_seed(0)
    observations = torch.randn(n_steps, n_envs, 3)
    starts = (torch.rand(n_steps, n_envs) < 0.3).float()
    assert starts[1:].any()
    states = before = random_states(policy, n_envs)
    acted = []
    with torch.no_grad():
        for t in range(n_steps):
            value_alone = policy.predict_values(observations[t], states.vf, starts[t])
            actions, values, log_prob, states = policy(observations[t], states, starts[t])
            torch.testing.assert_close(value_alone, values)
            acted.append((actions, values.flatten(), log_prob))
    actions, values, log_prob = (torch.stack(tensors) for tensors in zip(*acted, strict=True))

    def by_sequence(tensor):  # (T, B, ...) -> (B * T, ...)
        return tensor.transpose(0, 1).flatten(0, 1)

    if action == "MultiBinary":
        actions = actions.to(torch.int8)  # as sb3-contrib's buffer keeps them
    found = policy.evaluate_actions(by_sequence(observations), by_sequence(actions), before, by_sequence(starts))
    torch.testing.assert_close(found[0].flatten(), by_sequence(values), rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1], by_sequence(log_prob), rtol=0, atol=1e-5)


# States


@pytest.mark.parametrize("size", [0, 1, 6, 7])
def test_a_state_survives_the_pair(size):
    state = torch.randn(3, size)
    pair = split_state(state)
    assert [half.shape for half in pair] == [(1, 3, (size + 1) // 2)] * 2
    assert join_state(pair, size).equal(state)


def test_a_pair_of_another_core_is_refused():
    with pytest.raises(UsageError, match=r"state must be a pair of arrays \(1, n_envs, 4\)"):
        join_state(split_state(torch.zeros(3, 6)), 7)


def test_predict_without_state_starts_from_the_initial_state():
    model = agent(echo(n_envs=3))
    observation = np.ones((3, 3), np.float32)
    anywhere = tuple(np.random.default_rng(0).normal(size=(1, 3, 8)).astype(np.float32) for _ in range(2))
    _, expected = model.predict(observation, state=anywhere, episode_start=np.ones(3, bool), deterministic=True)
    for start in (None, np.zeros(3, bool), np.ones(3, bool)):
        _, state = model.predict(observation, episode_start=start, deterministic=True)
        for half, wanted in zip(state, expected, strict=True):
            np.testing.assert_allclose(half, wanted, atol=1e-6)
    _, carried = model.predict(observation, state=anywhere, deterministic=True)
    assert not np.allclose(carried[0], expected[0])


def test_predict_for_one_environment():
    model = agent(echo(n_envs=3))
    action, state = model.predict(np.ones(3, np.float32))
    assert np.shape(action) == ()
    assert state[0].shape == (1, 1, 8)


def test_predict_mistakes():
    model = agent(echo(n_envs=3))
    _, state = model.predict(np.ones((3, 3), np.float32))
    with pytest.raises(UsageError, match="state must be that of the 2 environments observed, got that of 3"):
        model.predict(np.ones((2, 3), np.float32), state=state)
    with pytest.raises(UsageError, match="state must be that of the 6 environments observed, got that of 3"):
        model.predict(np.ones((6, 3), np.float32), state=state)  # not two steps of 3 environments
    with pytest.raises(UsageError, match="episode_start must be that of the 3 environments observed, got that of 6"):
        model.predict(np.ones((3, 3), np.float32), state=state, episode_start=np.zeros(6, bool))
    with pytest.raises(UsageError, match="unpack it"):
        model.predict((np.ones(3, np.float32), {}))
    for wrong in (state[:1], state * 2, tuple(half[0] for half in state)):
        with pytest.raises(UsageError, match=r"state must be a pair of arrays \(1, n_envs, 8\)"):
            model.predict(np.ones((3, 3), np.float32), state=wrong)


def test_arguments_of_the_optimizer():
    assert agent().policy.optimizer.defaults["fused"]
    assert agent().policy.optimizer.defaults["eps"] == 1e-5
    for kwargs in (dict(foreach=True), dict(differentiable=True), dict(fused=False, betas=(0.8, 0.9))):
        defaults = agent(policy_kwargs=SMALL | dict(optimizer_kwargs=kwargs)).policy.optimizer.defaults
        assert not defaults["fused"]
        assert defaults["eps"] == 1e-8  # of Adam itself, as in SB3
        assert kwargs.items() <= defaults.items()


# Saving and loading


def actions_of(model, observations):
    state, actions = None, []
    for t, observation in enumerate(observations):
        action, state = model.predict(observation, state=state, episode_start=np.full(2, t == 4), deterministic=True)
        actions.append(action)
    return np.stack(actions), state


@pytest.mark.parametrize("policy_kwargs", CORES, ids=lambda kwargs: kwargs["core"])
@pytest.mark.parametrize("critic", CRITICS)
def test_save_and_load(critic, policy_kwargs, tmp_path):
    env = echo(action_space=ACTIONS["Box"])
    model = agent(env, policy_kwargs=policy_kwargs | dict(critic=critic)).learn(64)
    observations = np.random.default_rng(0).normal(size=(8, 2, 3)).astype(np.float32)
    expected, expected_state = actions_of(model, observations)
    model.save(tmp_path / "model")
    loaded = RecurrentPPO.load(tmp_path / "model", env=env, device="cpu")
    found, state = actions_of(loaded, observations)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.stack(state), np.stack(expected_state))
    for name, tensor in model.policy.optimizer.state_dict()["state"][0].items():
        torch.testing.assert_close(loaded.policy.optimizer.state_dict()["state"][0][name], tensor)
    loaded.learn(64)  # goes on

    model.policy.save(tmp_path / "policy")
    policy = type(model.policy).load(tmp_path / "policy", device="cpu")
    np.testing.assert_array_equal(actions_of(policy, observations)[0], expected)


def test_loads_in_a_process_that_imports_nothing_of_ours(tmp_path, python):
    model = agent().learn(32)
    model.save(tmp_path / "model")
    observations = np.random.default_rng(0).normal(size=(8, 2, 3)).astype(np.float32)
    np.save(tmp_path / "observations.npy", observations)
    script = (
        "import numpy as np\nfrom sb3_contrib import RecurrentPPO\n"
        "model, state = RecurrentPPO.load('model.zip', device='cpu'), None\n"
        "for t, observation in enumerate(np.load('observations.npy')):\n"
        "    action, state = model.predict(observation, state=state, episode_start=np.full(2, t == 4), deterministic=True)\n"
        "    print(*action)\n"
    )
    result = python("-c", script)
    assert result.returncode == 0, result.stderr
    found = [[int(word) for word in line.split()] for line in result.stdout.splitlines()]
    np.testing.assert_array_equal(found, actions_of(model, observations)[0])


def test_plays_pong_in_a_process_that_imports_nothing_of_ours(tmp_path, python):
    play = (
        "from ale_py import AtariVectorEnv\n"
        "def play(model):\n"
        "    env = AtariVectorEnv('pong', 2, stack_num=1, repeat_action_probability=0.25, autoreset_mode='SameStep')\n"
        "    (observation, _), state, actions = env.reset(seed=7), None, []\n"
        "    for step in range(60):\n"
        "        action, state = model.predict(observation, state=state, episode_start=[step == 0] * 2, deterministic=True)\n"
        "        observation, *_ = env.step(action)\n"
        "        actions.append((action.tolist(), round(float(state[0].sum()), 3)))\n"  # equal states, too
        "    return actions\n"
    )
    model = agent(make_vec("ALE/Pong-v5", 2, seed=0), CnnMemoryPolicy).learn(64)
    names: dict = {}
    exec(play, names)
    expected = names["play"](model)
    model.save(tmp_path / "model")
    load = "import sys\nfrom sb3_contrib import RecurrentPPO\nmodel = RecurrentPPO.load('model.zip', device='cpu')\n"
    result = python("-c", load + play + "print(play(model))")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(expected)
