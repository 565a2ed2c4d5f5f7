"""
Short stories with a question and its answer, word by word: a grammar that writes them, and the files of bAbI.

Tasks: Weston et al., "Towards AI-complete question answering: a set of prerequisite toy tasks" (bAbI), 2015,
https://arxiv.org/abs/1502.05698. The grammar is ours; its tasks are those of bAbI with the numbers in :data:`TASKS`.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from rmc_rl.errors import UsageError, require, require_choice

PEOPLE = ("mary", "john", "daniel", "sandra", "fred", "bill", "jeff", "julie")
PLACES = (
    *("bathroom", "bedroom", "garden", "hallway", "kitchen", "office"),
    *("cellar", "attic", "library", "porch", "garage", "study"),
)
OBJECTS = ("apple", "football", "milk", "cake", "letter", "box")
COUNTS = ("none", "one", "two", "three", "four", "five", "six")
COLOURS, SHAPES = ("red", "blue", "green", "pink"), ("square", "circle", "triangle")
NOTHING, YES_NO, ASKS = "nothing", ("yes", "no"), "?"
STEPS = {"north": (0, 1), "east": (1, 0), "south": (0, -1), "west": (-1, 0)}
SIDES = {"above": (0, 1), "right of": (1, 0), "below": (0, -1), "left of": (-1, 0)}
_MOVES = ("went to the", "moved to the", "travelled to the", "journeyed to the")
_TAKES = ("took the", "grabbed the", "got the", "picked up the")
_DROPS = ("dropped the", "discarded the", "left the", "put down the")
_GIVES = ("gave", "handed", "passed")

SPLITS = ("train", "test")
MIXED = "mixed"

Cell = tuple[int, int]


class Story(NamedTuple):
    """
    A story and what is asked about it.

    :param words: its sentences, each with a full stop, and the question without the question mark
    :param answer: the words of the answer
    """

    words: tuple[str, ...]
    answer: tuple[str, ...]


class Cast(NamedTuple):
    """Who and what may be in a story."""

    people: tuple[str, ...]
    places: tuple[str, ...]
    objects: tuple[str, ...]


class Scene:
    """
    People who move around and carry objects.

    Nobody is anywhere at first, and objects that nobody has touched are found wherever somebody looks.

    :param cast: who and what
    :param random: the source of randomness
    """

    def __init__(self, cast: Cast, random: Random):
        self.cast, self.random = cast, random
        self.place: dict[str, str] = {}  # of people, and of objects that lie somewhere
        self.carried: dict[str, list[str]] = {person: [] for person in cast.people}  # in the order in which they were taken
        self.mentioned: list[str] = []  # people
        self.words: list[str] = []

    def tell(self, events: Sequence["Event"]) -> None:
        """Let something happen, and append the sentence."""
        order = list(events)
        self.random.shuffle(order)
        for event in order:
            sentence = event(self)
            if sentence:
                self.words += [*sentence.split(), "."]
                return

    def held(self) -> list[tuple[str, str]]:
        """Who carries what: pairs of a person and an object."""
        return [(person, each) for person, objects in self.carried.items() for each in objects]

    def receive(self, person: str, taken: str) -> None:
        """A person carries an object from now on."""
        for objects in self.carried.values():
            if taken in objects:
                objects.remove(taken)
        self.place.pop(taken, None)
        self.carried[person].append(taken)
        self.mentioned.append(person)


Event = Callable[[Scene], str]  # appends nothing and returns "" where it cannot happen
Question = Callable[[Scene], tuple[str, tuple[str, ...]] | None]  # question and answer; None: the story does not tell


def move(scene: Scene) -> str:
    """Somebody goes to another place."""
    person = scene.random.choice(scene.cast.people)
    place = scene.random.choice([each for each in scene.cast.places if each != scene.place.get(person)])
    scene.place[person] = place
    scene.mentioned.append(person)
    return f"{person} {scene.random.choice(_MOVES)} {place}"


def take(scene: Scene) -> str:
    """Somebody takes an object that lies where they are."""
    held = {each for _, each in scene.held()}
    pairs = [
        (person, each)
        for person in scene.cast.people
        for each in scene.cast.objects
        if each not in held and (each not in scene.place or scene.place[each] == scene.place.get(person))
    ]
    if not pairs:
        return ""
    person, taken = scene.random.choice(pairs)
    scene.receive(person, taken)
    return f"{person} {scene.random.choice(_TAKES)} {taken}"


def drop(scene: Scene) -> str:
    """Somebody puts down an object that they carry, at a place that the story told."""
    pairs = [(person, each) for person, each in scene.held() if person in scene.place]
    if not pairs:
        return ""
    person, dropped = scene.random.choice(pairs)
    scene.carried[person].remove(dropped)
    scene.place[dropped] = scene.place[person]
    return f"{person} {scene.random.choice(_DROPS)} {dropped}"


def give(scene: Scene) -> str:
    """Somebody gives an object to somebody at the same place."""
    people = scene.cast.people
    triples = [
        (giver, each, receiver)
        for giver, each in scene.held()
        for receiver in people
        if receiver != giver and scene.place.get(receiver) == scene.place.get(giver)
    ]
    if not triples:
        return ""
    giver, given, receiver = scene.random.choice(triples)
    scene.receive(receiver, given)
    scene.mentioned.append(giver)
    return f"{giver} {scene.random.choice(_GIVES)} the {given} to {receiver}"


def where_is_somebody(scene: Scene) -> tuple[str, tuple[str, ...]] | None:
    """Where is mary? The last place that she went to."""
    people = [person for person in scene.cast.people if person in scene.place]
    person = scene.random.choice(people)
    return f"where is {person}", (scene.place[person],)


def where_is_something(scene: Scene) -> tuple[str, tuple[str, ...]] | None:
    """Where is the milk? Where it was left, or where the person is who carries it."""
    places = {each: scene.place[each] for each in scene.cast.objects if each in scene.place}
    places |= {each: scene.place[person] for person, each in scene.held() if person in scene.place}
    if not places:
        return None
    asked = scene.random.choice(sorted(places))
    return f"where is the {asked}", (places[asked],)


def who_has(scene: Scene) -> tuple[str, tuple[str, ...]] | None:
    """Who has the milk?"""
    held = scene.held()
    if not held:
        return None
    person, asked = scene.random.choice(held)
    return f"who has the {asked}", (person,)


def _somebody_who_may_carry(scene: Scene) -> str:
    """A person of the story. Each number of carried objects is as likely as the others that the story has."""
    mentioned = sorted(set(scene.mentioned))
    number = scene.random.choice(sorted({len(scene.carried[person]) for person in mentioned}))
    return scene.random.choice([person for person in mentioned if len(scene.carried[person]) == number])


def how_many(scene: Scene) -> tuple[str, tuple[str, ...]] | None:
    """How many objects is mary carrying?"""
    person = _somebody_who_may_carry(scene)
    return f"how many objects is {person} carrying", (COUNTS[len(scene.carried[person])],)


def what_does_carry(scene: Scene) -> tuple[str, tuple[str, ...]] | None:
    """What is mary carrying? All of it, in the order in which it came to her."""
    person = _somebody_who_may_carry(scene)
    return f"what is {person} carrying", tuple(scene.carried[person]) or (NOTHING,)


def is_there(scene: Scene) -> tuple[str, tuple[str, ...]] | None:
    """Is mary in the garden? Yes in half of the cases."""
    person = scene.random.choice([person for person in scene.cast.people if person in scene.place])
    place, answer = scene.place[person], scene.random.choice(YES_NO)
    if answer == "no":
        place = scene.random.choice([each for each in scene.cast.places if each != place])
    return f"is {person} in the {place}", (answer,)


def write_scene(events: Sequence[Event], question: Question, n_sentences: int, cast: Cast, random: Random) -> Story:
    """A story of people, and a question that it answers."""
    while True:
        scene = Scene(cast, random)
        for _ in range(n_sentences):
            scene.tell(events)
        asked = question(scene)
        if asked is not None:
            return Story((*scene.words, *asked[0].split()), asked[1])


def _shift(cell: Cell, step: Cell) -> Cell:
    return cell[0] + step[0], cell[1] + step[1]


def _map(names: Sequence[str], steps: dict[str, Cell], random: Random) -> tuple[dict[str, Cell], list[tuple[str, str, str]]]:
    """
    Names on the cells of a grid, each next to one before it.

    :return: the cell of each name, and for each but the first: the name, where it is, and the name it is next to
    """
    cells, links = {names[0]: (0, 0)}, []
    for name in names[1:]:
        free = [
            (side, other, _shift(cells[other], step))
            for other in cells
            for side, step in steps.items()
            if _shift(cells[other], step) not in cells.values()
        ]
        side, other, cell = random.choice(free)
        links.append((name, side, other))
        cells[name] = cell
    return cells, links


def write_positions(n_sentences: int, _: Cast, random: Random) -> Story:
    """Shapes on a grid: is the red square left of the pink circle? Yes in half of the cases."""
    shapes = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    cells, links = _map(random.sample(shapes, n_sentences + 1), SIDES, random)
    random.shuffle(links)
    one, other = random.sample(sorted(cells), 2)
    across, up = (cells[one][axis] - cells[other][axis] for axis in (0, 1))
    true = [side for side, (x, y) in SIDES.items() if x * across > 0 or y * up > 0]
    answer = random.choice(YES_NO)
    side = random.choice([each for each in SIDES if (each in true) == (answer == "yes")])
    words = [word for name, where, next_to in links for word in f"the {name} is {where} the {next_to} .".split()]
    return Story((*words, *f"is the {one} {side} the {other}".split()), (answer,))


def _paths(ways: dict[str, list[tuple[str, str]]], start: str) -> dict[str, tuple[str, ...]]:
    """
    The directions from a place to each other place that can be reached.

    :param ways: of each place those next to it, with the direction
    :param start: the place
    """
    paths: dict[str, tuple[str, ...]] = {start: ()}
    reached = [start]
    for name in reached:  # grows as places are reached
        for next_to, side in ways[name]:
            if next_to not in paths:
                paths[next_to] = (*paths[name], side)
                reached.append(next_to)
    return paths


def write_path(n_sentences: int, cast: Cast, random: Random) -> Story:
    """Places on a grid: how do you go from the garden to the office? Along the places that the story calls next to others."""
    cells, links = _map(random.sample(cast.places, n_sentences + 1), STEPS, random)
    ways: dict[str, list[tuple[str, str]]] = {name: [] for name in cells}
    for name, side, next_to in links:
        ways[next_to].append((name, side))
        opposite = next(word for word, (x, y) in STEPS.items() if (-x, -y) == STEPS[side])
        ways[name].append((next_to, opposite))
    random.shuffle(links)
    paths = {(start, goal): path for start in cells for goal, path in _paths(ways, start).items() if path}
    longer = [ends for ends, path in paths.items() if len(path) > 1]
    start, goal = random.choice(longer or list(paths))
    words = [word for name, where, next_to in links for word in f"the {name} is {where} of the {next_to} .".split()]
    return Story((*words, *f"how do you go from the {start} to the {goal}".split()), paths[start, goal])


class Task(NamedTuple):
    """
    A kind of story and question.

    :param write: writes a story of so many sentences
    :param answers: the words that an answer may have
    :param most: sentences that a story may have at most; None: any number
    :param number: of the task of bAbI that it resembles
    """

    write: Callable[[int, Cast, Random], Story]
    answers: Callable[[Cast], tuple[str, ...]]
    number: int
    least: int = 1
    most: Callable[[Cast], int] | None = None


def _scenes(events: Sequence[Event], question: Question) -> Callable[[int, Cast, Random], Story]:
    return lambda n_sentences, cast, random: write_scene(events, question, n_sentences, cast, random)


_CARRYING = (move, take, take, drop, give)  # twice, so that people carry more than one object at times
TASKS: dict[str, Task] = {
    "where": Task(_scenes((move,), where_is_somebody), lambda cast: cast.places, number=1),
    "object": Task(_scenes((move, take, drop), where_is_something), lambda cast: cast.places, number=2, least=2),
    "who": Task(_scenes(_CARRYING, who_has), lambda cast: cast.people, number=5),
    "yesno": Task(_scenes((move,), is_there), lambda _: YES_NO, number=6),
    "count": Task(_scenes(_CARRYING, how_many), lambda cast: COUNTS[: len(cast.objects) + 1], number=7),
    "list": Task(_scenes(_CARRYING, what_does_carry), lambda cast: (*cast.objects, NOTHING), number=8),
    "position": Task(write_positions, lambda _: YES_NO, number=17, most=lambda _: len(COLOURS) * len(SHAPES) - 1),
    "path": Task(write_path, lambda _: tuple(STEPS), number=19, most=lambda cast: len(cast.places) - 1),
}


_PHRASES = (
    *(*PEOPLE, *PLACES, *OBJECTS, *COLOURS, *SHAPES, *STEPS, *SIDES, *_MOVES, *_TAKES, *_DROPS, *_GIVES),
    ". where is who has how many objects carrying what in do you go from to of",
)
VOCABULARY = tuple(sorted({word for phrase in _PHRASES for word in phrase.split()}))
"""The words of all generated stories and questions, without the question mark."""


def babi_tasks(folder: str) -> tuple[str, ...]:
    """
    The tasks in a folder of bAbI.

    :param folder: contains files such as ``qa1_single-supporting-fact_train.txt``
    :return: their names, as in "qa1"
    :raises UsageError: if there are none
    """
    require(isinstance(folder, str), "data must be a folder", folder)
    matches = [re.fullmatch(r"(qa\d+)_.*_(?:train|test)\.txt", path.name) for path in Path(folder).glob("qa*.txt")]
    found = {match[1] for match in matches if match}
    require(len(found) > 0, "data must be a folder with bAbI's files, such as qa1_single-supporting-fact_train.txt", folder)
    return tuple(sorted(found, key=lambda name: int(name[2:])))


def read_babi(folder: str, task: str, split: str) -> list[Story]:
    """
    The stories of a task of bAbI: one for each question, with all statements before it.

    :param folder: contains bAbI's files
    :param task: as in "qa1"
    :param split: "train" or "test"
    :raises UsageError: for a file that is missing or has another format
    """
    require_choice("split", split, SPLITS)
    paths = sorted(Path(folder).glob(f"{task}_*_{split}.txt"))
    require(len(paths) == 1, f"data must be a folder with one file {task}_*_{split}.txt", [path.name for path in paths])
    (path,) = paths
    stories: list[Story] = []
    words: list[str] = []
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        match = re.fullmatch(r"(\d+) (.+?)(?:\t([^\t]+)\t[\d ]*)?\s*", line)
        if match is None:
            form = "'<number> <sentence>' or '<number> <question>', a tab, '<answer>', a tab, '<numbers>'"
            raise UsageError(f"line {number} of {path} must be {form}, got {line!r}")
        if match[1] == "1":
            words = []
        spoken = re.findall(r"[\w'-]+|\.", match[2].lower())
        if match[3] is None:
            words += spoken
        else:
            stories.append(Story((*words, *spoken), tuple(match[3].strip().lower().split(","))))
    require(len(stories) > 0, f"{path} must contain questions", f"{len(lines)} lines")
    return stories
