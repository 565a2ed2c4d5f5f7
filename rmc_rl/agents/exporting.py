"""
A policy as one file that acts without this package: ONNX, or the ``pt2`` of ``torch.export``.

The file computes one step of acting for any number of environments. Observations go in as the environment returns them: what
training did to them (running means of ``VecNormalize``, channels first, division by 255, one-hot vectors) is inside, and so is
the initial state, which replaces the state where an episode starts.

    inputs    observation          (B, ...), the environment's; of a Dict one for each key: observation.<key>
              state                (B, S) float32, the state that the step before returned; anything at the first step
              episode_start        (B,) bool, true where the observation is an episode's first
              action_masks         (B, N) bool, true for valid actions; only of a file that was exported with masks
    outputs   action               (B, ...), the most likely action, as the environment takes it
              log_prob             (B,) float32, its log-probability (Box: the density, before the action is clipped)
              logits               (B, N) float32, discrete actions only: log-probabilities of all actions, part after part
                                   (MultiBinary: off and on of each action), in the order of action_masks
              mean, std            (B, numbers) float32, Box actions only: of the normal distribution of actions
              value                (B,) float32, the critic's estimate of the discounted return (of normalised rewards, if
                                   training normalised them)
              next_state           (B, S) float32, the state for the next step

Shapes: ``B`` environments; ``S`` numbers of the state of the actor's core, followed by those of the critic's own core; ``N``
number of all discrete actions.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from torch import Tensor, nn

from rmc_rl.agents.policies import MlpMemoryPolicy
from rmc_rl.compat import remember_onnx_operators, unchecked_distributions
from rmc_rl.errors import UsageError, require, require_choice, require_packages

FORMATS = ("onnx", "pt2")
OBSERVATION, STATE, EPISODE_START, ACTION_MASKS = "observation", "state", "episode_start", "action_masks"
METADATA = "rmc_rl"  # the name under which a file keeps its metadata, as JSON
OPSET = 18  # of ONNX: old enough for runtimes of 2023
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CHATTY = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")  # loggers
TRACED_BATCH = 2  # torch.export takes a size of 1 for a constant

Arrays = dict[str, np.ndarray]


class Scaling(NamedTuple):
    """
    Running means of ``VecNormalize``: an observation becomes ``clip((observation - mean) / std, -clip, clip)``.

    :param mean: of the observation's shape
    :param std: of the same shape; the square root of the variance plus epsilon
    :param clip: largest magnitude
    """

    mean: np.ndarray
    std: np.ndarray
    clip: float

    def apply(self, observation: np.ndarray) -> np.ndarray:
        """
        :param observation: ``(B, *shape)``
        """
        scaled: np.ndarray = np.clip((observation - self.mean) / self.std, -self.clip, self.clip).astype(np.float32)
        return scaled


class ActingStep(nn.Module):
    """
    One step of acting as a graph that can be exported.

    :param policy: the policy, on the CPU
    :param observation_space: the environment's own
    :param scalings: of parts of the observation, by key
    """

    def __init__(self, policy: MlpMemoryPolicy, observation_space: spaces.Space[Any], scalings: Mapping[str, Scaling]):
        super().__init__()
        self.policy, self.scaled = policy, {}
        seen, own = parts_of(policy.observation_space), parts_of(observation_space)
        self.to_channels_first = {name for name, part in own.items() if part.shape != seen[name].shape}
        for index, (name, scaling) in enumerate(scalings.items()):
            self.scaled[name] = (index, float(scaling.clip))
            self.register_buffer(f"mean_{index}", torch.as_tensor(scaling.mean, dtype=torch.float64))
            self.register_buffer(f"std_{index}", torch.as_tensor(scaling.std, dtype=torch.float64))

    def forward(
        self,
        observation: Tensor | dict[str, Tensor],
        state: Tensor,
        episode_start: Tensor,
        action_masks: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """
        :param observation: as the environment returns it
        :param state: ``(B, S)``
        :param episode_start: ``(B,)`` bool
        :param action_masks: ``(B, N)`` bool
        :return: the outputs by name
        """
        policy = self.policy
        cores = [policy.core] if policy.critic_core is None else [policy.core, policy.critic_core]
        initial = torch.cat([core.initial_state(state.shape[0]) for core in cores], dim=1)
        state = torch.where(episode_start.unsqueeze(-1), initial, state)
        states = torch.split(state, [core.state_size for core in cores], dim=1)
        if isinstance(observation, dict):
            prepared: Any = {name: self._prepare(name, part) for name, part in observation.items()}
        else:
            prepared = self._prepare("", observation)
        critic_features = features = policy._features(prepared, policy.pi_features_extractor)
        if not policy.share_features_extractor:
            critic_features = policy._features(prepared, policy.vf_features_extractor)
        actor, actor_state = policy.core.step(features, states[0])
        critic, new_states = actor, [actor_state]
        if policy.critic_core is not None:
            critic, critic_state = policy.critic_core.step(critic_features, states[1])
            new_states.append(critic_state)
        elif policy.critic is not None:
            critic = policy.critic(critic_features)
        distribution = policy._distribution(policy.mlp_extractor.forward_actor(actor), action_masks)
        action = distribution.mode()
        value = policy.value_net(policy.mlp_extractor.forward_critic(critic))
        return {
            "action": self._within_bounds(action),
            "log_prob": distribution.log_prob(action),
            **parameters_of(distribution, policy.action_space),
            "value": value.flatten(),
            "next_state": torch.cat(new_states, dim=1),
        }

    def _prepare(self, name: str, part: Tensor) -> Tensor:
        """One part of the observation, as the policy takes it."""
        if name in self.scaled:
            index, clip = self.scaled[name]
            mean, std = getattr(self, f"mean_{index}"), getattr(self, f"std_{index}")
            part = ((part.double() - mean) / std).clamp(-clip, clip).float()
        return part.permute(0, 3, 1, 2) if name in self.to_channels_first else part

    def _within_bounds(self, action: Tensor) -> Tensor:
        """Like :meth:`~rmc_rl.MlpMemoryPolicy.within_bounds`, in the shape and type of the action space."""
        space = self.policy.action_space
        if isinstance(space, spaces.Discrete):
            return action.flatten()
        action = action.reshape(-1, *(space.shape or ()))
        if not isinstance(space, spaces.Box):
            return action.to(torch.int8 if isinstance(space, spaces.MultiBinary) else torch.int64)
        low, high = (torch.as_tensor(bound, dtype=torch.float32) for bound in (space.low, space.high))
        if self.policy.squash_output:
            return low + 0.5 * (action + 1.0) * (high - low)
        return torch.minimum(torch.maximum(action, low), high)


def export_policy(
    policy: MlpMemoryPolicy,
    path: Path,
    format: str = "onnx",
    observation_space: spaces.Space[Any] | None = None,
    scalings: Mapping[str, Scaling] | None = None,
    masked: bool = False,
    about: Mapping[str, Any] | None = None,
) -> None:
    """
    Write a policy to a file that acts without this package; see the head of this module for its inputs and outputs.

    The features extractor computes in single precision, also if the policy computes it in bfloat16.

    :param policy: the policy
    :param path: the file
    :param format: "onnx" or "pt2"
    :param observation_space: the environment's own, before images got their channels first; None: that of the policy
    :param scalings: running means of ``VecNormalize`` by key of the observation, ``""`` if it is no ``Dict``
    :param masked: whether the file has an input ``action_masks``
    :param about: more metadata, as plain data
    :raises UsageError: if a package is missing, a space has no shape of its own, or the policy cannot be exported
    """
    require_choice("format", format, FORMATS)
    if format == "onnx":
        require_onnx()
    observation_space = policy.observation_space if observation_space is None else observation_space
    copy = plain_copy(policy)
    discrete = not isinstance(copy.action_space, spaces.Box)
    require(discrete or not masked, "action masks need discrete actions", copy.action_space)
    graph = ActingStep(copy, observation_space, scalings or {}).eval()
    example = _example(copy, observation_space, masked)
    batch = torch.export.Dim("batch", min=1)
    dynamic = {name: torch.utils._pytree.tree_map(lambda _: {0: batch}, value) for name, value in example.items()}
    about = dict(about or {}) | describe(copy, observation_space, masked)
    try:
        with _quiet(), torch.no_grad(), unchecked_distributions():
            program = torch.export.export(graph, (), example, dynamic_shapes=dynamic, strict=False)
            if format == "pt2":
                torch.export.save(program, path, extra_files={f"{METADATA}.json": json.dumps(about)})
            else:
                _write_onnx(program, path, about)
    except Exception as error:  # torch.export raises many types, for what a core or an extractor of the user's own computes
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        what = f"core {type(copy.core).__name__} and {type(copy.pi_features_extractor).__name__}"
        raise UsageError(f"the policy must be one that torch can export ({what}), got {why[:600]}") from error


def _write_onnx(program: torch.export.ExportedProgram, path: Path, about: Mapping[str, Any]) -> None:
    """Write an exported program as ONNX, with the names that ``about`` states."""
    remember_onnx_operators()
    names = {kind: [each["name"] for each in about[kind]] for kind in ("inputs", "outputs")}
    converted = torch.onnx.export(
        program,
        input_names=names["inputs"],
        output_names=names["outputs"],
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
        external_data=False,
    )
    assert converted is not None
    model = converted.model
    ports = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    for value in (value for node in model.graph.all_nodes() for value in node.outputs):
        if id(value) not in ports and value.name in {*names["inputs"], *names["outputs"]}:
            value.name = f"inner_{value.name}"  # named after its operation, such as mean
    for kind, values in (("inputs", model.graph.inputs), ("outputs", model.graph.outputs)):
        for stated, value in zip(about[kind], values, strict=True):
            shape = [size if isinstance(size, int) else "batch" for size in value.shape or ()]
            if (stated["name"], stated["shape"]) != (value.name, shape):
                raise RuntimeError(f"{stated['name']} {stated['shape']} became {value.name} {shape}")
    model.metadata_props[METADATA] = json.dumps(about)
    converted.save(path, external_data=False)


def load_exported(path: Path) -> Callable[[Arrays], Arrays]:
    """
    Load an exported file.

    :param path: the file; its ending tells its format
    :return: a function from the inputs by name to the outputs by name, all arrays
    :raises UsageError: if a package is missing
    """
    if path.suffix == ".onnx":
        require_onnx()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        outputs = [output.name for output in session.get_outputs()]
        return lambda inputs: dict(zip(outputs, session.run(outputs, inputs), strict=True))
    module = torch.export.load(path).module()
    keys = [port["name"] for port in read_metadata(path)["inputs"]]

    @torch.no_grad()
    def act(inputs: Arrays) -> Arrays:
        tensors: dict[str, Any] = {}
        for name in keys:  # in the order in which they were traced
            kind, _, part = name.partition(".")
            if part:
                tensors.setdefault(kind, {})[part] = torch.as_tensor(inputs[name])
            else:
                tensors[kind] = torch.as_tensor(inputs[name])
        return {name: tensor.numpy() for name, tensor in module(**tensors).items()}

    return act


def read_metadata(path: Path) -> dict[str, Any]:
    """
    The metadata of an exported file: ``inputs``, ``outputs``, and what :func:`export_policy` was told.

    :param path: the file; its ending tells its format
    """
    if path.suffix == ".onnx":
        require_onnx()
        import onnx

        text = {entry.key: entry.value for entry in onnx.load(path).metadata_props}[METADATA]
    else:
        files = {f"{METADATA}.json": ""}
        torch.export.load(path, extra_files=files)
        text = files[f"{METADATA}.json"]
    found: dict[str, Any] = json.loads(text)
    return found


def describe(policy: MlpMemoryPolicy, observation_space: spaces.Space[Any], masked: bool) -> dict[str, Any]:
    """
    The inputs and outputs of a file as plain data, in their order.

    :param policy: the policy
    :param observation_space: the environment's own
    :param masked: whether the file has an input ``action_masks``
    :return: ``inputs`` and ``outputs``, each a list of ``name``, ``shape`` and ``dtype``
    """

    def port(name: str, dtype: object, *shape: int) -> dict[str, Any]:
        return dict(name=name, shape=["batch", *shape], dtype=str(np.dtype(dtype)))  # type: ignore[call-overload]

    size, action_space, names = state_size(policy), policy.action_space, parts_of(observation_space)
    inputs = [port(f"{OBSERVATION}.{name}" if name else OBSERVATION, p.dtype, *(p.shape or ())) for name, p in names.items()]
    inputs += [port(STATE, np.float32, size), port(EPISODE_START, bool)]
    if isinstance(action_space, spaces.Box):
        numbers = int(np.prod(action_space.shape))
        parameters = [port(name, np.float32, numbers) for name in ("mean", "std")]
        kind: object = np.float32
    else:
        parameters = [port("logits", np.float32, sum(sizes_of(action_space)))]
        kind = np.int8 if isinstance(action_space, spaces.MultiBinary) else np.int64
        if masked:
            inputs.append(port(ACTION_MASKS, bool, sum(sizes_of(action_space))))
    outputs = [port("action", kind, *(action_space.shape or ())), port("log_prob", np.float32), *parameters]
    return dict(inputs=inputs, outputs=[*outputs, port("value", np.float32), port("next_state", np.float32, size)])


def plain_copy(policy: MlpMemoryPolicy) -> MlpMemoryPolicy:
    """
    A copy of a policy on the CPU that computes in single precision and is not compiled, in evaluation mode.

    :param policy: the policy
    """
    arguments = policy._get_constructor_parameters() | dict(amp=None, compile_mode=None, ortho_init=False)
    with torch.random.fork_rng([]):  # new weights, which are replaced
        copy = type(policy)(**arguments)
    copy.load_state_dict({name: tensor.cpu() for name, tensor in policy.state_dict().items()})
    copy.set_training_mode(False)
    return copy


def require_onnx() -> None:
    """
    Check that the packages for ONNX are installed.

    :raises UsageError: if one is missing, with the command that installs it
    """
    require_packages("format=onnx", ONNX_PACKAGES, "onnx")


def parameters_of(distribution: Distribution, space: spaces.Space[Any]) -> dict[str, Tensor]:
    """The numbers that state a distribution of actions, by the names of the outputs."""
    if isinstance(space, spaces.Box):
        normal: Any = distribution.distribution
        return dict(mean=normal.mean, std=normal.stddev)
    parts: Any = getattr(distribution, "distributions", None) or distribution.distribution
    if isinstance(parts, torch.distributions.Bernoulli):
        # (B, n) -> (B, 2 n), off and on of each action
        both = torch.stack([-parts.logits, parts.logits], dim=-1)
        return dict(logits=nn.functional.logsigmoid(both).flatten(1))
    return dict(logits=torch.cat([part.logits for part in (parts if isinstance(parts, list) else [parts])], dim=1))


def _example(policy: MlpMemoryPolicy, observation_space: spaces.Space[Any], masked: bool) -> dict[str, Any]:
    """Inputs to trace with, by name."""
    parts = {
        name: torch.as_tensor(np.stack([part.sample() for _ in range(TRACED_BATCH)]))
        for name, part in parts_of(observation_space).items()
    }
    example: dict[str, Any] = {
        OBSERVATION: parts.get("", parts),
        STATE: torch.zeros(TRACED_BATCH, state_size(policy)),
        EPISODE_START: torch.zeros(TRACED_BATCH, dtype=torch.bool),
    }
    if masked:
        example[ACTION_MASKS] = torch.ones(TRACED_BATCH, sum(sizes_of(policy.action_space)), dtype=torch.bool)
    return example


def parts_of(space: spaces.Space[Any]) -> dict[str, spaces.Space[Any]]:
    """The spaces of a ``Dict`` by key; another space under the key ``""``."""
    return dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}


def scaled(observation: Arrays, scalings: Mapping[str, Scaling]) -> Any:
    """An observation as ``VecNormalize`` returns it: an array, or a dictionary of them."""
    parts = {name: scalings[name].apply(part) if name in scalings else part for name, part in observation.items()}
    return parts.get("", parts)


def sizes_of(space: spaces.Space[Any]) -> list[int]:
    """The number of values of each part of a discrete action."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return [int(size) for size in space.nvec.ravel()]
    return [2] * int(np.prod(space.shape or ()))


def state_size(policy: MlpMemoryPolicy) -> int:
    """``S``."""
    return policy.core.state_size + (0 if policy.critic_core is None else policy.critic_core.state_size)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch and its parts report about the conversion from the terminal."""
    loggers = list(map(logging.getLogger, CHATTY))
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
