"""Adam as torch has it, without the import of torch's compiler."""

import inspect
from typing import Any

import torch
from torch.optim import Optimizer


class Adam(torch.optim.Adam):
    """
    ``torch.optim.Adam``, number for number.

    Torch hides some methods of its optimizers from its compiler, and imports the compiler to do so when one of them is called
    for the first time. That takes about two seconds, a third of the time until the first step of an environment. Here they are
    the methods behind those wrappers. A version of torch without wrappers has them as they are.

    Not for ``differentiable=True``, because :meth:`step` keeps no gradients.
    """

    step: Any = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))
    add_param_group: Any = inspect.unwrap(Optimizer.add_param_group)
    state_dict: Any = inspect.unwrap(Optimizer.state_dict)
    load_state_dict: Any = inspect.unwrap(Optimizer.load_state_dict)
    zero_grad: Any = inspect.unwrap(Optimizer.zero_grad)
