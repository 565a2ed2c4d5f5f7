"""The worlds of this package, by id."""

from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from rmc_rl.envs.base import NumpyWorld, SingleWorld, check_world_keywords, load_world
from rmc_rl.errors import require_choice

# id -> the class of the batched world, as module:class
WORLDS = {
    "rmc_rl/Autoencode-v0": "rmc_rl.envs.worlds.autoencode:AutoencodeWorld",
    "rmc_rl/BallTracking-v0": "rmc_rl.envs.worlds.ball_tracking:BallTrackingWorld",
    "rmc_rl/BouncingBalls-v0": "rmc_rl.envs.worlds.bouncing_balls:BouncingBallsWorld",
    "rmc_rl/BoxWorld-v0": "rmc_rl.envs.worlds.box_world:BoxWorld",
    "rmc_rl/CartPolePositions-v0": "rmc_rl.envs.worlds.cart_pole:CartPoleWorld",
    "rmc_rl/Concentration-v0": "rmc_rl.envs.worlds.concentration:ConcentrationWorld",
    "rmc_rl/Copy-v0": "rmc_rl.envs.worlds.copy:CopyWorld",
    "rmc_rl/EndlessTMaze-v0": "rmc_rl.envs.worlds.endless_tmaze:EndlessTMazeWorld",
    "rmc_rl/MemoryRoom-v0": "rmc_rl.envs.worlds.memory_room:MemoryRoomWorld",
    "rmc_rl/MiniPacman-v0": "rmc_rl.envs.worlds.mini_pacman:MiniPacmanWorld",
    "rmc_rl/NthFarthest-v0": "rmc_rl.envs.worlds.nth_farthest:NthFarthestWorld",
    "rmc_rl/ObjectPick-v0": "rmc_rl.envs.worlds.object_pick:ObjectPickWorld",
    "rmc_rl/PendulumAngle-v0": "rmc_rl.envs.worlds.pendulum:PendulumWorld",
    "rmc_rl/ProgramEval-v0": "rmc_rl.envs.worlds.program_eval:ProgramEvalWorld",
    "rmc_rl/RepeatPrevious-v0": "rmc_rl.envs.worlds.repeat_previous:RepeatPreviousWorld",
    "rmc_rl/SequentialDigits-v0": "rmc_rl.envs.worlds.sequential_digits:SequentialDigitsWorld",
    "rmc_rl/Stories-v0": "rmc_rl.envs.worlds.stories:StoriesWorld",
    "rmc_rl/TMaze-v0": "rmc_rl.envs.worlds.tmaze:TMazeWorld",
}
ARRAYS = ("numpy", "torch")


def make_batched(world: str, num_envs: int = 1, array: str = "numpy", **kwargs: Any) -> VectorEnv[Any, Any, Any]:
    """
    What ``gymnasium.make_vec`` calls for an id of :data:`WORLDS`.

    :param world: the class of the world, as ``module:class``
    :param num_envs: copies
    :param array: "numpy": observations, rewards and ends are NumPy arrays, as Gymnasium's vector wrappers need them; "torch":
        they are tensors on the world's device
    :param kwargs: keywords of the world
    :raises UsageError: for an unknown keyword or an invalid value
    """
    require_choice("array", array, ARRAYS)
    World: Any = load_world(world)
    check_world_keywords(f"keyword of {World.__name__}", World, kwargs, given=("num_envs",))
    batched = World(num_envs, **kwargs)
    return batched if array == "torch" else NumpyWorld(batched)


def register_worlds() -> None:
    """Make every world known to ``gymnasium.make`` and ``gymnasium.make_vec``."""
    single, batched = (f"{maker.__module__}:{maker.__name__}" for maker in (SingleWorld, make_batched))
    for world_id, world in WORLDS.items():
        if world_id not in gymnasium.registry:
            gymnasium.register(world_id, single, vector_entry_point=batched, kwargs={"world": world})
