"""RepeatPrevious, Autoencode and Concentration: layout, what each player gets, and equality with POPGym step by step."""

import re

import numpy as np
import pytest
import torch
from playing import answering, first_returns, random_actions

from rmc_rl.envs.parts import drawing
from rmc_rl.envs.worlds.autoencode import PLAY, WATCH, AutoencodeWorld
from rmc_rl.envs.worlds.concentration import ConcentrationWorld
from rmc_rl.envs.worlds.repeat_previous import RepeatPreviousWorld
from rmc_rl.errors import UsageError


class Compared:
    """One copy of a world beside the environment of POPGym that has been given the same cards."""

    def __init__(self, world, public, values, cards):
        """
        ``values(public)`` are POPGym's cards in the order of the world's table of the name ``cards``; both are reset here.
        """
        self.world, self.public = world, public
        observation, _ = public.reset(seed=7)
        world.reset(seed=0)
        getattr(world, cards)[0] = torch.as_tensor(np.array(values(public)))
        self.same(observation)

    def same(self, observation):
        np.testing.assert_array_equal(self.world._observe()[0].numpy(), np.array(observation))

    def play(self, act):
        """Steps both to the end of the episode; ``act()`` chooses. Returns the number of steps and the return."""
        steps, total, over = 0, 0.0, False
        while not over:
            action = int(act())
            observation, reward, terminated, truncated, _ = self.public.step(action)
            found, ended, cut = self.world._advance(torch.tensor([action]))
            np.testing.assert_allclose(found.item(), reward, rtol=1e-6)
            assert (ended.item(), cut.item()) == (terminated, truncated)
            self.same(observation)
            steps, total, over = steps + 1, total + reward, terminated or truncated
        return steps, total


def of_popgym(name, **kwargs):
    module = pytest.importorskip(f"popgym.envs.{name}")
    return getattr(module, "".join(word.title() for word in name.split("_")))(**kwargs)


def dealt(public):
    """The suits of a deck of POPGym in the order in which it deals them: from the end."""
    return public.deck.suits_idx[public.deck.idx[::-1]]


@pytest.mark.parametrize("perfect", [False, True])
class TestEqualsPopgym:
    def act(self, world, perfect):
        random = np.random.default_rng(0)
        return lambda: world.answers().actions if perfect else random.integers(world.single_action_space.n)

    @pytest.mark.parametrize(("num_decks", "k"), [(1, 4), (2, 32), (1, 2)])
    def test_repeat_previous(self, num_decks, k, perfect):
        world = RepeatPreviousWorld(1, k=k, n_cards=52 * num_decks)
        both = Compared(world, of_popgym("repeat_previous", num_decks=num_decks, k=k), dealt, "suits")
        steps, total = both.play(self.act(world, perfect))
        assert steps == 52 * num_decks - 1
        assert not perfect or abs(total - 1) < 1e-6

    @pytest.mark.parametrize("num_decks", [1, 3])
    def test_autoencode(self, num_decks, perfect):
        world = AutoencodeWorld(1, n_cards=52 * num_decks)
        both = Compared(world, of_popgym("autoencode", num_decks=num_decks), dealt, "suits")
        steps, total = both.play(self.act(world, perfect))
        assert steps == 104 * num_decks - 1
        assert not perfect or abs(total - 1) < 1e-6

    @pytest.mark.parametrize(("num_decks", "deck_type", "n_kinds"), [(1, "colors", 2), (2, "colors", 2), (1, "ranks", 13)])
    def test_concentration(self, num_decks, deck_type, n_kinds, perfect):
        world = ConcentrationWorld(1, n_cards=52 * num_decks, n_kinds=n_kinds)
        public = of_popgym("concentration", num_decks=num_decks, deck_type=deck_type)
        both = Compared(world, public, lambda public: public.state, "kinds")
        steps, total = both.play(self.act(world, perfect))
        assert perfect or steps == 104 * num_decks
        assert not perfect or total > 0.6

    def test_concentration_with_few_cards_in_play(self, perfect):
        # flips among four cards alone: cards that are up already, and the same card twice
        world = ConcentrationWorld(1)
        both = Compared(world, of_popgym("concentration", deck_type="colors"), lambda public: public.state, "kinds")
        random = np.random.default_rng(1)
        both.play(lambda: random.integers(4))
        assert world.found.sum() in (2, 4)


class TestRepeatPrevious:
    @pytest.mark.parametrize("kwargs", [dict(), dict(k=2, n_cards=7), dict(k=[2, 5], n_cards=[8, 20])], ids=str)
    def test_perfect_memoryless_and_random_play(self, kwargs):
        world = RepeatPreviousWorld(4096, **kwargs)
        random, memoryless, perfect = world.returns()
        np.testing.assert_allclose(first_returns(world, answering(world)), perfect, atol=1e-5)
        found = first_returns(world, random_actions(world))
        assert abs(found.mean() - random) < 4 * found.std() / 64
        # any other suit than the present one; in a small deck, that of the most cards: suits 0, 1 and so on
        found = first_returns(world, lambda seen: torch.where(seen == 0, 1, 0))
        assert abs(found.mean() - memoryless) < 4 * found.std() / 64

    def test_a_player_with_memory(self):
        world = RepeatPreviousWorld(16, k=3, n_cards=12)
        seen = []

        def act(observations):
            seen.append(observations)
            return seen[-3] if len(seen) > 2 else torch.zeros_like(observations)

        np.testing.assert_allclose(first_returns(world, act), 1, atol=1e-6)
        assert len(seen) == 11

    def test_a_deck_is_balanced(self):
        world = RepeatPreviousWorld(64, n_cards=[8, 20], k=2)
        world.reset(seed=0)
        assert set(world.cards.tolist()) == set(range(8, 21))
        for suits, size in zip(world.suits.tolist(), world.cards.tolist(), strict=True):
            counts = np.bincount(suits[:size], minlength=4)
            assert counts.max() - counts.min() <= 1
        assert len({tuple(suits[:8]) for suits in world.suits.tolist()}) > 50


class TestAutoencode:
    @pytest.mark.parametrize("kwargs", [dict(), dict(n_cards=5), dict(n_cards=[2, 6])], ids=str)
    def test_perfect_memoryless_and_random_play(self, kwargs):
        world = AutoencodeWorld(4096, **kwargs)
        random, memoryless, perfect = world.returns()
        np.testing.assert_allclose(first_returns(world, answering(world)), perfect, atol=1e-5)
        found = first_returns(world, random_actions(world))
        assert abs(found.mean() - random) < 4 * found.std() / 64
        found = [
            first_returns(world, lambda seen, a=answer: torch.where(seen[:, 1] > 0, seen[:, 1], a)) for answer in range(4)
        ]
        assert abs(max(each.mean() for each in found) - memoryless) < 4 * found[0].std() / 64

    def test_layout_of_an_episode(self):
        world = AutoencodeWorld(64, n_cards=4)
        seen = [world.reset(seed=0)[0]]
        suits = world.suits.clone()
        for step in range(7):
            assert world.answers().known.unique().tolist() == [step >= 3]
            observations, _, terminated, _, info = world.step(torch.zeros(64, dtype=torch.long))
            seen.append(observations if step < 6 else info["final_obs"])
        assert terminated.all()
        shown = torch.stack(seen, 1)
        assert shown[..., 0].unique(dim=0).tolist() == [[WATCH] * 3 + [PLAY] * 5]
        assert shown[:, :4, 1].equal(suits)
        assert (shown[:, 4:, 1] == 0).all()


def blind(world):
    """Flips cards at random among those face down."""
    generator = torch.Generator().manual_seed(0)
    return lambda seen: (torch.rand(seen.shape, generator=generator) + (seen == world.n_kinds)).argmax(1)


class TestConcentration:
    @pytest.mark.parametrize(
        ("kwargs", "expected"),
        [
            (dict(), (-0.19, 0.45, 0.81)),
            (dict(n_cards=8, n_kinds=4), (-0.64, -0.41, 0.76)),
        ],
        ids=str,
    )
    def test_what_scripted_players_get(self, kwargs, expected):
        world = ConcentrationWorld(2048, **kwargs)
        acts = random_actions(world), blind(world), answering(world)
        for act, value in zip(acts, expected, strict=True):
            found = first_returns(world, act)
            assert abs(found.mean() - value) < 0.005 + 4 * found.std() / 45

    def test_rewards_and_what_is_seen(self):
        world = ConcentrationWorld(1, n_cards=4, n_kinds=2)
        world.reset(seed=0)
        world.kinds[:] = torch.tensor([[0, 1, 0, 1]])
        steps = [
            (0, [0, 2, 2, 2], 0.0),
            (1, [0, 1, 2, 2], -0.25),  # no pair
            (1, [2, 1, 2, 2], 0.0),
            (1, [2, 1, 2, 2], -0.25),  # the same card twice is none
            (0, [0, 2, 2, 2], 0.0),
            (2, [0, 2, 0, 2], 0.5),
            (0, [0, 2, 0, 2], -0.125),  # face up already: the turn ends with its first flip
        ]
        for action, seen, reward in steps:
            rewards, terminated, truncated = world._advance(torch.tensor([action]))
            assert (world._observe()[0].tolist(), rewards.item()) == (seen, reward)
            assert not terminated
            assert not truncated
        _, _, truncated = world._advance(torch.tensor([1]))
        assert truncated
        world._advance(torch.tensor([3]))
        assert world.found.all()

    def test_ends_with_the_last_pair(self):
        world = ConcentrationWorld(32, n_cards=8, n_kinds=2)
        world.reset(seed=0)
        over = torch.zeros(32, dtype=torch.bool)
        for _ in range(15):
            found = world.found.sum(1)
            _, _, terminated, truncated, _ = world.step(world.answers().actions)
            assert not truncated.any()
            assert (found[terminated] == 6).all()
            over |= terminated
        assert over.all()

    def test_each_kind_has_equally_many_cards(self):
        world = ConcentrationWorld(8, n_cards=24, n_kinds=3)
        world.reset(seed=0)
        assert all(np.bincount(row).tolist() == [8, 8, 8] for row in world.kinds.numpy())


@pytest.mark.parametrize(
    ("world", "keywords", "message"),
    [
        (RepeatPreviousWorld, dict(k=1), "k must be a whole number of at least 2, got 1"),
        (RepeatPreviousWorld, dict(k=[4, 52]), "n_cards must be at least 53, one more than k, got 52"),
        (AutoencodeWorld, dict(n_cards=1), "n_cards must be a whole number of at least 2, got 1"),
        (ConcentrationWorld, dict(n_kinds=1), "n_kinds must be a whole number of at least 2, got 1"),
        (ConcentrationWorld, dict(n_cards=54), "n_cards must be a multiple of 4, twice n_kinds, got 54"),
    ],
)
def test_mistakes(world, keywords, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        world(**keywords)


@pytest.mark.parametrize("world", [RepeatPreviousWorld, AutoencodeWorld])
def test_pictures_show_cards_and_answers(world):
    def cells(colour):
        return int((world._picture(0)[4::8, 4::8] == np.array(colour)).all(-1).sum())

    world = world(1, n_cards=6, render_mode="rgb_array", **(dict(k=2) if world is RepeatPreviousWorld else {}))
    world.reset(seed=0)
    assert cells(drawing.SEEN) == 1
    for right in (True, False):
        while not world.answers().known:
            world._advance(torch.tensor([0]))
        world._advance((world.answers().actions + (0 if right else 1)) % 4)
    assert (cells(drawing.RIGHT), cells(drawing.WRONG)) == (1, 1)
