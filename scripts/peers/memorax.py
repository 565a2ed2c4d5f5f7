"""
memorax: JAX, a GRU each for actor and critic. The worlds are compiled with the agent, so they are written again here.

Recommended: the project's quick start, PPO with a GRU of 64 for CartPole, with as many copies as the task has. Matched: a
layer of 64 before the GRU in both networks; the weight of the value loss has no effect, because the critic is alone. Episodes
are counted after each update, so seconds to the threshold are those of the update in which it was reached. It does not
bootstrap the value where the time limit ends an episode.
"""

# mypy: disable-error-code="import-not-found, misc, no-untyped-call, unused-ignore, no-any-return"

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from gymnax.environments import spaces
from memorax.algorithms import PPO, PPOConfig
from memorax.networks import RNN, FeatureExtractor, Network, heads

from peers.common import Run, begin
from peers.worlds import CartPoleWorld, CopyWorld


class State(NamedTuple):
    """Of one copy."""

    inner: Any  # copy: the symbols; CartPole: position, angle and their velocities
    time: Any
    total: Any  # return so far


class World:
    """One copy, with the methods that the agent calls; ``jax.vmap`` makes many of it."""

    num_actions: int

    def draw(self, key: Any) -> Any:
        """A new episode's inner state."""
        raise NotImplementedError

    def observe(self, inner: Any, time: Any) -> Any:
        """What the agent sees."""
        raise NotImplementedError

    def advance(self, inner: Any, time: Any, action: Any) -> tuple[Any, Any, Any]:
        """Inner state, reward and whether the episode ends."""
        raise NotImplementedError

    def action_space(self, _params: Any = None) -> Any:
        """The actions."""
        return spaces.Discrete(self.num_actions)

    def reset(self, key: Any, _params: Any = None) -> tuple[Any, State]:
        """Begin an episode."""
        inner, time = self.draw(key), jnp.int32(0)
        return self.observe(inner, time), State(inner, time, jnp.float32(0))

    def step(self, key: Any, state: State, action: Any, params: Any = None) -> tuple[Any, State, Any, Any, dict[str, Any]]:
        """One step; an episode that ends begins anew."""
        inner, reward, done = self.advance(state.inner, state.time, action)
        total = state.total + reward
        seen, new = self.reset(key, params)
        going = State(inner, state.time + 1, total)
        after = jax.tree.map(lambda fresh, old: jnp.where(done, fresh, old), new, going)
        observation = jnp.where(done, seen, self.observe(inner, state.time + 1))
        return observation, after, reward, done, {"ended": done, "total": total}


class Copy(World):
    """As :class:`peers.worlds.CopyWorld`."""

    num_actions = CopyWorld.num_actions
    n, length, recall = CopyWorld.n_symbols, CopyWorld.length, CopyWorld.length + CopyWorld.delay

    def draw(self, key: Any) -> Any:
        return jax.random.randint(key, (self.length,), 0, self.n)

    def observe(self, inner: Any, time: Any) -> Any:
        symbol = inner[jnp.minimum(time, self.length - 1)]
        seen = jnp.where(time < self.length, symbol, jnp.where(time == self.recall - 1, self.n + 1, self.n))
        return jax.nn.one_hot(seen, self.n + 2)

    def advance(self, inner: Any, time: Any, action: Any) -> tuple[Any, Any, Any]:
        place = time - self.recall
        right = (place >= 0) & (action == inner[jnp.clip(place, 0, self.length - 1)])
        return inner, right.astype(jnp.float32) / self.length, place == self.length - 1


class CartPole(World):
    """As :class:`peers.worlds.CartPoleWorld`."""

    num_actions = CartPoleWorld.num_actions

    def draw(self, key: Any) -> Any:
        return jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)

    def observe(self, inner: Any, time: Any) -> Any:
        return inner[jnp.array([0, 2])]

    def advance(self, inner: Any, time: Any, action: Any) -> tuple[Any, Any, Any]:
        _, speed, angle, turning = inner
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        push = (jnp.where(action == 1, 10.0, -10.0) + 0.05 * turning**2 * sin) / 1.1
        turn = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
        pull = push - 0.05 * turn * cos / 1.1
        inner = inner + 0.02 * jnp.stack((speed, pull, turning, turn))
        fell = (jnp.abs(inner[0]) > 2.4) | (jnp.abs(inner[2]) > 12 * math.pi / 180)
        return inner, jnp.float32(1), fell | (time + 1 >= CartPoleWorld.most_steps)


WORLDS: dict[str, World] = {"copy": Copy(), "cartpole": CartPole()}


def make_agent(run: Run) -> tuple[Any, int]:
    """The agent, and the steps of all copies in a rollout."""
    width, grad_norm, rate = 64, 1.0, 3e-4
    chosen: dict[str, Any] = dict(num_steps=128, gamma=0.99, gae_lambda=0.95, num_minibatches=4, update_epochs=4)
    chosen |= dict(normalize_advantage=True, clip_coef=0.2, clip_vloss=True, ent_coef=0.01, vf_coef=0.5)
    if (same := run.matched) is not None:
        width, grad_norm, rate = same.width, same.max_grad_norm, same.learning_rate
        chosen |= dict(num_steps=same.n_steps, gamma=same.gamma, gae_lambda=same.gae_lambda, update_epochs=same.n_epochs)
        chosen |= dict(num_minibatches=same.n_steps * run.num_envs // same.batch_size, clip_vloss=False)
        chosen |= dict(clip_coef=same.clip_range, ent_coef=same.ent_coef, vf_coef=same.vf_coef)
    world = WORLDS[run.task]

    def network(head: Any) -> Any:
        seen = FeatureExtractor(observation_extractor=nn.Sequential((nn.Dense(width), nn.relu)))
        return Network(feature_extractor=seen, torso=RNN(cell=nn.GRUCell(features=width)), head=head)

    orthogonal = nn.initializers.orthogonal
    optimizer = optax.chain(optax.clip_by_global_norm(grad_norm), optax.adam(learning_rate=rate, eps=1e-5))
    agent = PPO(
        cfg=PPOConfig(name="ppo", num_envs=run.num_envs, num_eval_envs=1, **chosen),
        env=world,
        env_params=None,
        actor_network=network(heads.Categorical(action_dim=world.num_actions, kernel_init=orthogonal(scale=0.01))),
        critic_network=network(heads.VNetwork(kernel_init=orthogonal(scale=1.0))),
        actor_optimizer=optimizer,
        critic_optimizer=optimizer,
    )
    return agent, chosen["num_steps"] * run.num_envs


def main() -> None:
    run = begin(__doc__)
    run.versions("memorax", "jax", "flax", "gymnax", "numpy")
    agent, rollout = make_agent(run)
    run.clock.rollout = rollout
    key, state = agent.init(jax.random.key(run.seed))
    while True:
        key, state, transitions = agent.train(key, state, rollout)
        ended, totals = jax.device_get((transitions.info["ended"], transitions.info["total"]))
        run.clock.after(rollout, totals.reshape(-1)[ended.reshape(-1)].tolist())  # step by step, copies side by side
        run.clock.before()


if __name__ == "__main__":
    main()
