"""The engineer's story: every command of docs/deploying.md works, and the agent plays where PyTorch cannot be imported."""

import re

import pytest

from rmc_rl.command_line.overrides import given_key


@pytest.mark.slow
def test_the_commands_of_the_story_work(checkout, tmp_path, python):
    done = python(str(checkout / "scripts" / "engineer_story.py"), "--quick", "--out", str(tmp_path / "story"), timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"mean return [\d.]+ of 10 episodes, without PyTorch: True", done.stdout)
    ran = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("$ ")]
    page = (checkout / "docs" / "deploying.md").read_text()
    shown = [line.split() for line in re.findall(r"^(?:scripts/rmc |python -m rmc_rl\.)(.*)", page, re.MULTILINE)]
    assert [words[0] for words in shown] == ["train", "tune", "train", "evaluate", "export"]
    for there, here in zip(shown, ran[:5], strict=True):
        assert here[2] == f"rmc_rl.{there[0]}"
        assert {given_key(word) for word in there[1:]} <= {given_key(word) for word in here[3:]}
