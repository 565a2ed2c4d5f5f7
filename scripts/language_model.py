"""
Language modelling by character: python scripts/language_model.py [--rows rmc-1 rmc-4 lstm] [--text book.txt]

Supervised learning, without reinforcement, after Santoro et al., "Relational recurrent neural networks", 2018, section 5.4
(one slot on WikiText-103, by words). The core reads a character and predicts the next one. The text is a file, or the English
of Python's own reference (``pydoc_data.topics``, which every Python has). The last tenth is for testing, the tenth before it
for validation. State is carried from one part of the text to the next, and gradients reach back --steps characters.

"perplexity" is exp of the mean cross-entropy per character, on the test part, of the weights with the best validation.
"memoryless" predicts from the last character alone. All cores have the same number of parameters.
"""

import argparse
import copy
import math
import sys
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from arguments import at_least_one
from supervised import Result, Row, Task, main, sized_core, step
from torch import Tensor, nn

from rmc_rl.errors import UsageError

LOOKS = 10  # at the validation part, in a run
ROWS = {
    row.label: row
    for row in (
        Row("rmc-1", "rmc", dict(num_slots=1)),
        Row("rmc-4", "rmc", dict(num_slots=4)),
        Row("rims", "rims", {}),
        Row("lstm", "lstm", dict(first_gates="standard")),
        Row("gru", "gru", dict(first_gates="standard")),
        Row("mingru", "mingru", {}),
        Row("memoryless", "memoryless", {}),
    )
}


def read(path: Path | None) -> tuple[Tensor, int]:
    """The characters of a text as numbers ``(n,)``, and how many kinds there are."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace") if path else "\n".join(topics[key] for key in sorted(topics))
    except OSError as error:
        raise UsageError(f"--text must be a file that can be read: {error}") from error
    kinds = {character: index for index, character in enumerate(sorted(set(text)))}
    return torch.tensor([kinds[character] for character in text]), len(kinds)


def in_rows(text: Tensor, rows: int) -> Tensor:
    """A text cut into rows of equal length that are read side by side, ``(n // rows, rows)``."""
    return text[: len(text) // rows * rows].view(rows, -1).T.contiguous()


class Model(nn.Module):
    """Embedding, core and a linear layer: characters ``(T, B)`` -> logits of the next ones ``(T, B, kinds)``."""

    def __init__(self, row: Row, kinds: int, features: int, params: int):
        super().__init__()
        self.embedding = nn.Embedding(kinds, features)
        self.core = sized_core(row, features, params)
        self.head = nn.Linear(self.core.output_size, kinds)

    def forward(self, characters: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        outputs, state = self.core(self.embedding(characters), state)
        return self.head(outputs), state

    @torch.no_grad()
    def cross_entropy(self, text: Tensor, steps: int) -> float:
        """Mean over a text in rows ``(T, B)``, in nats per character."""
        self.eval()
        state, total = self.core.initial_state(text.shape[1]), 0.0
        for begin in range(0, len(text) - 1, steps):
            part = text[begin : begin + steps + 1]
            logits, state = self(part[:-1], state)
            total += F.cross_entropy(logits.flatten(0, 1), part[1:].flatten(), reduction="sum").item()
        self.train()
        return total / text[1:].numel()


def run(row: Row, arguments: argparse.Namespace, seed: int) -> Result:  # noqa: ARG001  # torch's generator has the seed
    """Train one model and test it."""
    text, kinds = read(arguments.text)
    tenth = len(text) // 10
    parts = [in_rows(each, arguments.batch) for each in (text[: -2 * tenth], text[-2 * tenth : -tenth], text[-tenth:])]
    if len(parts[0]) <= arguments.steps + 1:
        raise UsageError(f"the text must have more than {arguments.batch * (arguments.steps + 1) * 10 // 8:,} characters")
    model = Model(row, kinds, arguments.features, arguments.params)
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=arguments.learning_rate)
    updates = 3 if arguments.quick else arguments.updates
    rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, updates)
    begin, state = 0, model.core.initial_state(arguments.batch)
    best, weights = math.inf, model.state_dict()
    for update in range(1, updates + 1):
        part = parts[0][begin : begin + arguments.steps + 1]
        logits, state = model(part[:-1], state)
        loss = F.cross_entropy(logits.flatten(0, 1), part[1:].flatten())
        step(optimizer, loss, parameters, arguments.clip)
        rate.step()
        begin, state = begin + arguments.steps, state.detach()
        if begin + arguments.steps + 1 > len(parts[0]):
            begin, state = 0, model.core.initial_state(arguments.batch).detach()
        if update % max(1, updates // LOOKS) == 0 or update == updates:
            found = model.cross_entropy(parts[1], arguments.steps)
            if found < best:
                best, weights = found, copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    tested = model.cross_entropy(parts[2], arguments.steps)
    return {
        "parameters": sum(each.numel() for each in model.core.parameters()),
        "train": loss.item(),
        "valid": math.exp(best),
        "test": math.exp(tested),
        "bits": tested / math.log(2),
    }


COLUMNS = {
    "parameters": "parameters of the core",
    "seconds": "seconds",
    "train": "last training loss",
    "valid": "perplexity, validation",
    "test": "perplexity, test",
    "bits": "bits per character, test",
}


def add_own_arguments(parser: argparse.ArgumentParser) -> None:
    """What this script alone asks for."""
    parser.add_argument("--text", type=Path, help="a text file, UTF-8")
    parser.add_argument("--steps", type=at_least_one, default=100, help="characters of an update")
    parser.add_argument("--clip", type=float, default=0.5, help="largest norm of the gradient")


DEFAULTS = dict(out=Path("runs/language_model.json"), updates=3000, batch=32, learning_rate=3e-3, params=200_000, features=64)
TASK = Task(ROWS, COLUMNS, run, DEFAULTS, add_own_arguments)

if __name__ == "__main__":
    sys.exit(main(TASK, __doc__))
