"""
Causal attention over the whole episode so far: what a memory could know at best, at the cost of keeping all of it.

Paper: Vaswani et al., "Attention Is All You Need", 2017, https://arxiv.org/abs/1706.03762 (section 3), with layer norms at the
inputs of its layers.

Shapes: ``B`` batch, ``T`` time, ``F`` features read per step, ``L`` layers, ``W`` width, ``M`` steps of memory, ``H`` heads,
``V`` head size.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from rmc_rl.agents.cores.base import Axis
from rmc_rl.agents.cores.blocks import BlockCore, Mixer, split_last
from rmc_rl.agents.cores.registry import register_core
from rmc_rl.errors import require_truth, require_whole


class _Attention(Mixer):
    """Equations in :class:`Attention`."""

    def __init__(self, width: int, num_heads: int, head_size: int, memory_length: int):
        super().__init__(2 * memory_length * num_heads * head_size)
        self.num_heads, self.head_size, self.memory_length = num_heads, head_size, memory_length
        size = num_heads * head_size
        self.query = nn.Linear(width, size)
        self.key = nn.Linear(width, size, bias=False)  # a bias would cancel in the softmax
        self.value = nn.Linear(width, size)
        self.out = nn.Linear(size, width)

    def forward(
        self, x: Tensor, state: Tensor, starts: Tensor, age: Tensor | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        assert age is not None
        time, batch, _ = x.shape
        length = self.memory_length
        # (B, M, 2 H V) and (B, T, 2 H V), keys and values -> (B, M + T, 2 H V)
        new = torch.cat([self.key(x), self.value(x)], dim=-1).transpose(0, 1)
        cache = torch.cat([state.view(batch, length, new.shape[-1]), new], dim=1)
        filled = age.T.long().clamp(max=length)  # (B, T), earlier steps of the episode that are in the cache
        steps = torch.arange(length + time, device=x.device)
        steps_ago = steps[length:].unsqueeze(1) - steps  # (T, M + T), from each query to each key
        mask = ((steps_ago >= 0) & (steps_ago <= filled.unsqueeze(-1))).unsqueeze(1)  # (B, 1, T, M + T)
        query = split_last(self.query(x).transpose(0, 1), self.num_heads).transpose(1, 2)  # (B, H, T, V)
        key, value = (split_last(part, self.num_heads).transpose(1, 2) for part in cache.chunk(2, dim=-1))  # (B, H, M + T, V)
        looks = {}
        if time == 1:
            scores = (query @ key.transpose(-1, -2) * self.head_size**-0.5).masked_fill(~mask, -torch.inf)
            weights = torch.softmax(scores, dim=-1)  # (B, H, 1, M + 1)
            looks["attention"] = weights[:, :, 0].flip(-1)
            read = weights @ value
        else:
            read = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        y = self.out(read.transpose(1, 2).flatten(2)).transpose(0, 1)  # (B, H, T, V) -> (T, B, W)
        kept = (filled[:, -1:] + 1).clamp(max=length)  # (B, 1), steps in the new cache
        in_episode = (steps[:length] >= length - kept).unsqueeze(-1)  # (B, M, 1)
        return y, torch.where(in_episode, cache[:, -length:], 0).flatten(1), looks


@register_core("attention")
class Attention(BlockCore):
    r"""
    A causal transformer (Vaswani et al. 2017) over all steps of the episode so far: the upper control.

    In each head of each block, with :math:`q, k, v` linear in the block's input, over the steps ``s`` of the episode up to
    ``t``:

    .. math::

        o_t = \sum_{s \le t} softmax_s(q_t^T k_s / \sqrt{V})\ v_s

    The state is a cache of the keys and values of the last ``M`` steps of each block, and the number of steps in the episode:
    ``2 L M H V + 1`` numbers, by far the largest of all cores. Within ``M`` steps of an episode nothing is forgotten, and each
    block reaches all of it, unlike the window of ``gtrxl``. In longer episodes, the oldest step leaves the cache at each
    step. A step costs ``O(M)``, and a sequence of ``T`` steps ``O(T (T + M))``.

    :meth:`inspect` shows ``attention`` ``(T, B, L, H, M + 1)``, to the present step, one step ago, ... ``M`` steps ago.

    Differences from the paper:

    * Layer norms are at the inputs of attention and MLP, and after the last block. The MLP has ``2 W`` hidden units and GELUs.
    * Positions count from the start of the episode.
    * Keys have no bias, which would cancel in the softmax.

    :param input_size: ``F``, features read per step
    :param width: ``W``
    :param num_layers: ``L``, number of blocks
    :param num_heads: ``H``
    :param head_size: ``V``, size of queries, keys and values per head
    :param memory_length: ``M``, number of earlier steps that are kept; make it as long as the episodes
    :param positions: whether sines and cosines of the step's number in its episode are added to the embedded input
    :raises UsageError: if a value breaks a rule
    """

    def __init__(
        self,
        input_size: int,
        width: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        head_size: int = 16,
        memory_length: int = 128,
        positions: bool = True,
    ):
        input_size = require_whole("input_size", input_size)
        width = require_whole("width", width)
        num_layers = require_whole("num_layers", num_layers)
        num_heads = require_whole("num_heads", num_heads)
        head_size = require_whole("head_size", head_size)
        memory_length = require_whole("memory_length", memory_length)
        require_truth("positions", positions)
        mixers = [_Attention(width, num_heads, head_size, memory_length) for _ in range(num_layers)]
        super().__init__(input_size, width, mixers, positions=bool(positions), counts=True)
        self.memory_length = memory_length

    def memory_parts(self, state: Tensor) -> dict[str, Tensor]:
        """Of each block's cache the newest key and value: the older ones were shown at the steps before."""
        return {"memory": split_last(self.layers(state), self.memory_length)[..., -1, :]}

    def axes(self) -> dict[str, tuple[Axis, ...]]:
        steps = ["now", *(f"{ago} ago" for ago in range(1, self.memory_length + 1))]
        return {"memory": ("layer", "unit"), "attention": ("layer", "head", steps)}
