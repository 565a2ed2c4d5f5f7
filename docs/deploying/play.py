"""Play with an exported agent: NumPy and ONNX Runtime alone. python play.py policy.onnx 100"""

import json
import sys

import numpy as np
import onnxruntime
from depot import Depot

path, episodes = sys.argv[1], int(sys.argv[2])
session = onnxruntime.InferenceSession(path)
about = json.loads(session.get_modelmeta().custom_metadata_map["rmc_rl"])
state_size = next(each["shape"][1] for each in about["inputs"] if each["name"] == "state")
depot, returns = Depot(np.random.default_rng(1)), []
for _ in range(episodes):
    observation, over, total = depot.start(), False, 0.0
    state, start = np.zeros((1, state_size), dtype=np.float32), np.array([True])
    while not over:
        inputs = {f"observation.{key}": np.asarray(value)[None] for key, value in observation.items()}
        inputs |= {"state": state, "episode_start": start, "action_masks": depot.valid()[None]}
        action, state = session.run(["action", "next_state"], inputs)
        observation, reward, over = depot.act(int(action[0]))
        start, total = np.array([False]), total + reward
    returns.append(total)
print(f"mean return {np.mean(returns):.3f} of {episodes} episodes, without PyTorch: {sys.modules.get('torch') is None}")
