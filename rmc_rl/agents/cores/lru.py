"""
Linear recurrent unit: a linear, diagonal, complex recurrence, and nothing but it carries the past.

Paper: Orvieto et al., "Resurrecting Recurrent Neural Networks for Long Sequences", 2023, https://arxiv.org/abs/2303.06349
(section 3 and appendix A).

Shapes: ``B`` batch, ``T`` time, ``F`` features read per step, ``L`` layers, ``W`` width, ``N`` complex numbers of a layer's
state.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from rmc_rl.agents.cores.base import Axis
from rmc_rl.agents.cores.blocks import BlockCore, Mixer, layer_names, split_last
from rmc_rl.agents.cores.registry import register_core
from rmc_rl.agents.cores.scan import scan
from rmc_rl.errors import require, require_number, require_whole

SMALLEST = 1e-4  # uniform numbers whose logarithm is taken are at least that


class _LRU(Mixer):
    """Equations in :class:`LRU`. Complex vectors are real parts, followed by imaginary parts."""

    def __init__(self, width: int, units: int, r_min: float, r_max: float, max_phase: float):
        super().__init__(2 * units)
        radius = torch.empty(units).uniform_(SMALLEST, 1) * (r_max**2 - r_min**2) + r_min**2  # squared
        self.log_nu = nn.Parameter(torch.log(-0.5 * torch.log(radius)))
        self.log_theta = nn.Parameter(torch.log(max_phase * torch.empty(units).uniform_(SMALLEST, 1)))
        self.log_gamma = nn.Parameter(0.5 * torch.log1p(-radius))
        self.read = nn.Linear(width, 2 * units, bias=False)  # B
        self.write = nn.Linear(2 * units, width, bias=False)  # C, the sign of its imaginary part included
        nn.init.normal_(self.read.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(self.write.weight, std=units**-0.5)
        self.skip = nn.Parameter(torch.randn(width))  # D
        self.glu = nn.Linear(width, 2 * width)

    def forward(
        self, x: Tensor, state: Tensor, starts: Tensor, age: Tensor | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        size, theta = torch.exp(-torch.exp(self.log_nu)), torch.exp(self.log_theta)
        real, imaginary = size * torch.cos(theta), size * torch.sin(theta)
        gamma = torch.exp(self.log_gamma)
        terms = self.read(x) * torch.cat([gamma, gamma])
        if len(x) == 1:  # in real numbers, which ONNX knows
            state = torch.where(starts[0].unsqueeze(-1), 0, state)
            before_real, before_imaginary = state.chunk(2, dim=1)
            turned = [
                real * before_real - imaginary * before_imaginary,
                imaginary * before_real + real * before_imaginary,
            ]
            states = (torch.cat(turned, dim=1) + terms[0]).unsqueeze(0)
        else:
            factors = torch.complex(real, imaginary).expand(*x.shape[:2], -1)
            found = scan(factors, torch.complex(*terms.chunk(2, dim=-1)), torch.complex(*state.chunk(2, dim=-1)), starts)
            states = torch.cat([found.real, found.imag], dim=-1)
        y = self.write(states) + self.skip * x
        return functional.glu(self.glu(functional.gelu(y))), states[-1], {}


@register_core("lru")
class LRU(BlockCore):
    r"""
    Linear recurrent units (Orvieto et al. 2023) in residual blocks: the linear, monostable representative.

    In each block, with its normalised input :math:`u` and a complex, diagonal :math:`\Lambda`:

    .. math::

        h_t &= \Lambda h_{t-1} + \gamma \odot (B u_t), \quad \Lambda = diag(\exp(-e^\nu + i e^\theta)) \\
        y_t &= Re(C h_t) + D \odot u_t, \quad x_t \leftarrow x_t + GLU(W\ GELU(y_t) + b)

    Whatever it holds decays at the rate :math:`|\Lambda| < 1`, whatever it reads. The state is ``h`` of each block, real and
    imaginary parts. It starts with zeros. All steps of a sequence are computed at once.

    Initially, :math:`|\Lambda|^2` is uniform between ``r_min`` and ``r_max`` squared, the phases are uniform between 0 and
    ``max_phase``, and :math:`\gamma = \sqrt{1 - |\Lambda|^2}`. All of them are trained.

    :meth:`inspect` shows nothing but the state: no gate depends on the input.

    Differences from the paper:

    * Layer norms in place of batch norms, and no dropout.
    * ``r_min`` and ``r_max`` are chosen for episodes of tens to hundreds of steps.

    :param input_size: ``F``, features read per step
    :param width: ``W``
    :param num_layers: ``L``, number of blocks
    :param num_units: ``N``, complex numbers of the state of a block; None: ``W``
    :param r_min: smallest initial magnitude of :math:`\Lambda`
    :param r_max: largest initial magnitude, below 1; a unit of magnitude ``r`` keeps its content for about ``1 / (1 - r)``
        steps
    :param max_phase: largest initial phase per step, in radians
    :raises UsageError: if a value breaks a rule
    """

    def __init__(
        self,
        input_size: int,
        width: int = 64,
        num_layers: int = 2,
        num_units: int | None = None,
        r_min: float = 0.8,
        r_max: float = 0.999,
        max_phase: float = 6.28,
    ):
        input_size = require_whole("input_size", input_size)
        width = require_whole("width", width)
        num_layers = require_whole("num_layers", num_layers)
        num_units = width if num_units is None else require_whole("num_units", num_units)
        r_min = require_number("r_min", r_min, at_least=0, below=1)
        r_max = require_number("r_max", r_max, above=0, below=1)
        require(r_min < r_max, "r_min must be below r_max", f"r_min={r_min}, r_max={r_max}")
        max_phase = require_number("max_phase", max_phase, above=0)
        super().__init__(
            input_size, width, [_LRU(width, num_units, r_min, r_max, max_phase) for _ in range(num_layers)], mlp=False
        )

    def memory_parts(self, state: Tensor) -> dict[str, Tensor]:
        """Of each block, real and imaginary parts."""
        return {"memory": split_last(self.layers(state), 2).flatten(-3, -2)}

    def axes(self) -> dict[str, tuple[Axis, ...]]:
        return {"memory": (layer_names(len(self.sizes), ["real", "imaginary"]), "unit")}
