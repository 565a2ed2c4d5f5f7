"""
Models that version 0.1.0 saved (commit 12eecf2) load in every later version and act as they did.

``reference/saved_models`` holds three of them: RMC on Pong, RIMs on the copy task, an LSTM with a separate critic on
CartPole. Beside each stand 12 observations of two environments, with the actions and states that followed.
"""

from pathlib import Path

import numpy as np
import pytest
import sb3_contrib

from rmc_rl import RecurrentPPO

FOLDER = Path(__file__).parent / "reference" / "saved_models"


@pytest.mark.parametrize("algorithm", [RecurrentPPO, sb3_contrib.RecurrentPPO], ids=["ours", "stock"])
@pytest.mark.parametrize("name", ["pong_rmc", "copy_rims", "cartpole_lstm"])
def test_models_of_the_first_version_act_as_they_did(name, algorithm):
    model = algorithm.load(FOLDER / f"{name}.zip", device="cpu")
    known = np.load(FOLDER / f"{name}.npz")
    state, columns = None, (known[name] for name in ("observations", "starts", "actions", "states"))
    for observation, start, action, states in zip(*columns, strict=True):
        found, state = model.predict(observation, state, start, deterministic=True)
        np.testing.assert_array_equal(found, action)
        np.testing.assert_allclose(np.concatenate(state, -1), states, rtol=0, atol=1e-5)
