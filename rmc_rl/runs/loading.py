"""Models read back from files that may be damaged."""

from pathlib import Path
from zipfile import BadZipFile, ZipFile

import torch

from rmc_rl.agents import RecurrentPPO
from rmc_rl.errors import UsageError, require

MOST_GROWTH = 50  # times a file may grow when it is unpacked; a saved model hardly does, its parts are not compressed
LEAST_REFUSED = 100_000_000  # bytes that may be unpacked in any case


def load_model(path: Path, device: torch.device) -> RecurrentPPO:
    """
    Load a model.

    This executes what the file holds, as every ``load`` of Stable-Baselines3 does: only load files that you trust.

    :param path: a zip that ``save`` has written
    :param device: where the policy will lie
    :raises UsageError: in one line for a file that is missing, damaged or no model
    """
    rule = f"model must be a file that RecurrentPPO.save has written, got '{path}'"
    try:
        with ZipFile(path) as archive:
            unpacked = sum(part.file_size for part in archive.infolist())
            damaged = archive.testzip() if unpacked < LEAST_REFUSED else None
        limit = max(LEAST_REFUSED, MOST_GROWTH * path.stat().st_size)
        require(unpacked <= limit, f"{rule}: its size when unpacked must be at most {limit:,} bytes", unpacked)
        require(damaged is None, f"{rule}: each part must be whole", damaged)
        return RecurrentPPO.load(path, device=device)
    except UsageError:
        raise
    except (OSError, BadZipFile) as error:
        raise UsageError(f"{rule}: {' '.join(str(error).split())}") from None
    except Exception as error:  # pickled data that is cut or of other versions raises anything
        raise UsageError(f"{rule}: {type(error).__name__}: {' '.join(str(error).split())}") from error
