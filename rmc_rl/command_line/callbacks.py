"""The callbacks of a run on the command line: progress, evaluations, pictures of the memory, and those of the user."""

import importlib
from contextlib import suppress
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from rmc_rl.agents import CoreScalars, parallel
from rmc_rl.command_line.advice import EntropyWarning
from rmc_rl.command_line.agent import make_evaluation_env, plain
from rmc_rl.command_line.curriculum import Curriculum
from rmc_rl.command_line.evaluating import Evaluations, MemoryPicture
from rmc_rl.command_line.progress import RunCallback, episode_returns
from rmc_rl.errors import UsageError, check_keywords, require, unknown
from rmc_rl.runs.folder import Run
from rmc_rl.runs.generators import kept_generators

RULE = "callbacks must be a list as in [my_module:MyCallback] or [{name: my_module:MyCallback, argument: 3}]"


class RunCallbacks:
    """
    All callbacks of a run apart from its checkpoints.

    Where several processes train together, the first one evaluates, logs and saves; the curriculum and the callbacks of the
    user run in all of them.

    :param config: checked; see ``configs/train.yaml``
    :param model: the agent, with the training environment
    :raises UsageError: for a mistake in the keys that ask for them; nothing is written before
    """

    def __init__(self, config: DictConfig, model: BaseAlgorithm):
        require(config.patience is None or config.evaluate_every is not None, "patience needs evaluate_every", config.patience)
        self.config, self.model = config, model
        self.users = make_callbacks(config.callbacks)
        self.curriculum = Curriculum(plain(config.curriculum), model, config.curriculum_return, config.curriculum_draw)
        self.progress: RunCallback | None = None
        self.evaluations: Evaluations | None = None
        self.picture: MemoryPicture | None = None
        settings, trained = config.evaluation, model.get_env()
        assert trained is not None
        with kept_generators():
            if config.evaluate_every is not None and parallel.is_first():
                self.evaluations = Evaluations(
                    make_evaluation_env(config, trained, min(settings.n_envs, settings.episodes)),
                    config.evaluate_every,
                    settings.seed,
                    settings.episodes,
                    settings.deterministic,
                    config.patience,
                )
            if config.memory_picture_every is not None and parallel.is_first():
                env = make_evaluation_env(config, trained, 1)
                self.picture = MemoryPicture(env, config.memory_picture_every, settings.seed)

    def follow(self, run: Run) -> None:
        """
        Save the best model into a run's folder.

        :param run: the run
        """
        if not parallel.is_first():
            return
        evaluations = self.evaluations
        self.progress = RunCallback(run, self.config, None if evaluations is None else lambda: evaluations.last)
        if evaluations is not None:
            evaluations.at_best = self.progress.save_best

    @property
    def in_order(self) -> list[BaseCallback]:
        """All of them. Evaluations come before the progress bar, which shows them."""
        ours: list[BaseCallback | None] = [self.evaluations, self.picture, self.progress, self.curriculum]
        if parallel.is_first():
            ours += [CoreScalars(), EntropyWarning()]
        return [*(each for each in ours if each is not None), *self.users.values()]

    @property
    def stateful(self) -> dict[str, Any]:
        """Those that carry something from rollout to rollout, by name: what a checkpoint keeps."""
        named = {"best": self.progress, "evaluations": self.evaluations, "memory picture": self.picture, **self.users}
        if self.config.curriculum:
            named["curriculum"] = self.curriculum
        return {name: each for name, each in named.items() if hasattr(each, "state_dict") and hasattr(each, "load_state_dict")}

    def is_out_of_patience(self) -> bool:
        """Whether training should end because evaluations do not get better."""
        return self.evaluations is not None and self.evaluations.is_out_of_patience()

    def reached(self) -> dict[str, float]:
        """Means that the agent has reached: ``return`` of the last training episodes, ``evaluation``, ``best evaluation``."""
        found, returns = {}, episode_returns(self.model)
        if returns:
            found["return"] = float(np.mean(returns))
        if self.evaluations is not None and self.evaluations.last is not None:
            found |= {"evaluation": self.evaluations.last, "best evaluation": self.evaluations.best}
        return found

    def close(self) -> None:
        """Stop the progress bar and close the environments of evaluations."""
        if self.progress is not None:
            self.progress.close()
        for each in (self.evaluations, self.picture):
            if each is not None:
                with suppress(OSError, EOFError):
                    each.env.close()


def make_callbacks(entries: Any) -> dict[str, BaseCallback]:
    """
    Make the callbacks that a configuration names.

    :param entries: each ``module:Class``, or a mapping with ``name: module:Class`` and the arguments of its constructor
    :return: name -> callback; a name that occurs again gets a number
    :raises UsageError: for something that is no list, a module that cannot be imported, a class that is missing or no callback
        of SB3, or arguments that it does not take
    """
    require(isinstance(entries, list) or OmegaConf.is_list(entries), RULE, entries)
    made: dict[str, BaseCallback] = {}
    for entry in entries:
        keywords: Any = OmegaConf.to_container(entry) if OmegaConf.is_dict(entry) else {"name": entry}
        name = keywords.pop("name", None)
        require(isinstance(name, str) and len(name.split(":")) == 2 and all(name.split(":")), RULE, name)
        key = name if name not in made else f"{name}-{len(made)}"
        made[key] = _make(name, {str(key): value for key, value in keywords.items()})
    return made


def _make(name: str, keywords: dict[str, Any]) -> BaseCallback:
    module, _, class_name = name.partition(":")
    try:
        found = importlib.import_module(module)
    except Exception as error:  # whatever a user's module raises
        raise UsageError(
            f"callback '{name}' names a module that cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(found, class_name):
        classes = [each for each, value in vars(found).items() if isinstance(value, type) and issubclass(value, BaseCallback)]
        raise unknown(f"callback of module {module}", class_name, set(classes) - {"BaseCallback"})
    callback = getattr(found, class_name)
    is_callback = isinstance(callback, type) and issubclass(callback, BaseCallback)
    require(is_callback, f"callback '{name}' must be a subclass of stable_baselines3's BaseCallback", callback)
    check_keywords(f"argument of {class_name}", callback, keywords)
    try:
        made: BaseCallback = callback(**keywords)
    except Exception as error:
        raise UsageError(f"callback '{name}' cannot be made: {type(error).__name__}: {error}") from error
    return made
