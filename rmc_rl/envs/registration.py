"""The worlds of this package, by id."""

import gymnasium

# id -> (module, name of the single world's class, name of the batched world's class)
WORLDS = {
    "rmc_rl/BallTracking-v0": ("rmc_rl.envs.worlds.ball_tracking", "BallTrackingEnv", "BallTrackingWorld"),
    "rmc_rl/BouncingBalls-v0": ("rmc_rl.envs.worlds.bouncing_balls", "BouncingBallsEnv", "BouncingBallsWorld"),
    "rmc_rl/BoxWorld-v0": ("rmc_rl.envs.worlds.box_world", "BoxWorldEnv", "BoxWorld"),
    "rmc_rl/Copy-v0": ("rmc_rl.envs.worlds.copy", "CopyEnv", "CopyWorld"),
    "rmc_rl/MemoryRoom-v0": ("rmc_rl.envs.worlds.memory_room", "MemoryRoomEnv", "MemoryRoomWorld"),
    "rmc_rl/MiniPacman-v0": ("rmc_rl.envs.worlds.mini_pacman", "MiniPacmanEnv", "MiniPacmanWorld"),
    "rmc_rl/NthFarthest-v0": ("rmc_rl.envs.worlds.nth_farthest", "NthFarthestEnv", "NthFarthestWorld"),
    "rmc_rl/ObjectPick-v0": ("rmc_rl.envs.worlds.object_pick", "ObjectPickEnv", "ObjectPickWorld"),
    "rmc_rl/ProgramEval-v0": ("rmc_rl.envs.worlds.program_eval", "ProgramEvalEnv", "ProgramEvalWorld"),
    "rmc_rl/SequentialDigits-v0": ("rmc_rl.envs.worlds.sequential_digits", "SequentialDigitsEnv", "SequentialDigitsWorld"),
    "rmc_rl/TMaze-v0": ("rmc_rl.envs.worlds.tmaze", "TMazeEnv", "TMazeWorld"),
}


def register_worlds() -> None:
    """Make every world known to ``gymnasium.make`` and ``gymnasium.make_vec``."""
    for world_id, (module, single, batched) in WORLDS.items():
        if world_id not in gymnasium.registry:
            gymnasium.register(world_id, f"{module}:{single}", vector_entry_point=f"{module}:{batched}")
