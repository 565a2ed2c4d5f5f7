"""
TorchRL: a GRU that policy and value share, in a loop after its tutorials on PPO and on recurrent policies.

Recommended: the numbers of its PPO tutorial, with rollouts of 128 steps and minibatches of four whole sequences, for which
that tutorial, which has no memory, sets nothing. Where the time limit ends an episode, the value of the step before stands in
for that of the last observation.
"""

# mypy: disable-error-code="import-not-found, misc, no-untyped-call, unused-ignore, no-any-return"

from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs import Compose, EnvBase, InitTracker, TransformedEnv
from torchrl.modules import ActorValueOperator, GRUModule, ProbabilisticActor
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value.functional import generalized_advantage_estimate, vec_generalized_advantage_estimate

from peers.common import Clocked, Matched, begin

TUTORIAL = Matched(64, 128, 3e-4, 10, 512, gamma=0.99, gae_lambda=0.95, ent_coef=1e-4, vf_coef=1.0, max_grad_norm=1.0)


class Worlds(EnvBase):
    """
    Worlds as a batched environment.

    :param worlds: the copies
    """

    def __init__(self, worlds: Clocked):
        copies = worlds.num_envs
        super().__init__(device="cpu", batch_size=[copies])
        self.worlds = worlds
        self.seen: Any = None  # present observations: an episode that ended has begun anew
        self.observation_spec = Composite(observation=Unbounded((copies, worlds.num_inputs)), shape=(copies,))
        self.action_spec = Categorical(worlds.num_actions, shape=(copies,))
        self.reward_spec = Unbounded((copies, 1))
        ends = {name: Categorical(2, shape=(copies, 1), dtype=torch.bool) for name in ("done", "terminated", "truncated")}
        self.done_spec = Composite(ends, shape=(copies,))

    def _reset(self, _tensordict: Any, **_keywords: Any) -> Any:
        if self.seen is None:
            self.seen = torch.from_numpy(self.worlds.reset())
        return TensorDict({"observation": self.seen}, batch_size=self.batch_size)

    def _step(self, tensordict: Any) -> Any:
        step = self.worlds.step(tensordict["action"].numpy())
        self.seen = torch.from_numpy(step.observations)
        terminated, truncated = (torch.from_numpy(ends).unsqueeze(-1) for ends in (step.terminated, step.truncated))
        found = {"observation": torch.from_numpy(step.last), "reward": torch.from_numpy(step.rewards).unsqueeze(-1)}
        found |= {"terminated": terminated, "truncated": truncated, "done": terminated | truncated}
        return TensorDict(found, batch_size=self.batch_size)

    def _set_seed(self, seed: int | None) -> None:
        pass


def make_networks(num_inputs: int, num_actions: int, width: int) -> tuple[Any, Any]:
    """Policy and value, and the memory that they share."""
    encoder = TensorDictModule(nn.Sequential(nn.Linear(num_inputs, width), nn.Tanh()), ["observation"], ["features"])
    memory = GRUModule(width, width, in_keys=["features", "state", "is_init"], out_keys=["memory", ("next", "state")])
    logits = TensorDictModule(nn.Linear(width, num_actions), ["memory"], ["logits"])
    actor = ProbabilisticActor(
        logits, in_keys=["logits"], distribution_class=torch.distributions.Categorical, return_log_prob=True
    )
    value = TensorDictModule(nn.Linear(width, 1), ["memory"], ["state_value"])
    return ActorValueOperator(TensorDictSequential(encoder, memory), actor, value), memory


def add_advantages(data: Any, both: Any, same: Matched) -> None:
    """Write advantages and the targets of the values into a rollout ``(copies, steps)``."""
    with torch.no_grad():
        last = both(data[:, -1]["next"].clone())["state_value"].unsqueeze(1)  # (copies, 1, 1)
    values = data["state_value"]
    following = torch.cat((values[:, 1:], last), dim=1)
    ends = data["next"]
    following = torch.where(ends["truncated"], values, following)
    # its vectorised function fails where gamma is 0
    estimate = vec_generalized_advantage_estimate if same.gamma > 0 else generalized_advantage_estimate
    advantages, targets = estimate(
        same.gamma, same.gae_lambda, values, following, ends["reward"], ends["done"], ends["terminated"]
    )
    data["advantage"], data["value_target"] = advantages, targets


def main() -> None:
    run = begin(__doc__)
    run.versions("torchrl", "tensordict", "torch", "numpy")
    torch.set_num_threads(run.threads)
    torch.manual_seed(run.seed)
    same = run.matched or TUTORIAL
    run.clock.rollout = frames = same.n_steps * run.num_envs
    worlds = run.make()
    both, memory = make_networks(worlds.num_inputs, worlds.num_actions, same.width)
    env = TransformedEnv(Worlds(worlds), Compose(InitTracker(), memory.make_tensordict_primer()))
    loss = ClipPPOLoss(
        both.get_policy_operator(),
        both.get_value_operator(),
        clip_epsilon=same.clip_range,
        entropy_bonus=same.ent_coef > 0,
        entropy_coeff=same.ent_coef,
        critic_coeff=same.vf_coef,
        loss_critic_type="l2",
        normalize_advantage=True,
    )
    optimizer = torch.optim.Adam(loss.parameters(), lr=same.learning_rate)
    sequences = same.batch_size // same.n_steps
    for data in Collector(env, both, frames_per_batch=frames, total_frames=frames * (10 + 10 * run.steps // frames)):
        add_advantages(data, both, same)
        for _ in range(same.n_epochs):
            for rows in torch.randperm(run.num_envs).split(sequences):
                found = loss(data[rows])
                names = ["loss_objective", "loss_critic", *(["loss_entropy"] if same.ent_coef > 0 else [])]
                total = sum(found[name] for name in names)
                total.backward()
                nn.utils.clip_grad_norm_(loss.parameters(), same.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()


if __name__ == "__main__":
    main()
