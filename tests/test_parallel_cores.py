"""The scans, and the cores made of residual blocks, against plain loops, their papers' equations, and other people's code."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import elu, gelu, glu, logsigmoid, normalize, silu

from rmc_rl.agents.cores import AFT, LRU, NBRC, Attention, DeltaNet, LinearAttention, Titans, make_core
from rmc_rl.agents.cores.blocks import RMSNorm
from rmc_rl.agents.cores.scan import matrix_scan, running_max, scan
from rmc_rl.errors import UsageError

REFERENCE = Path(os.environ.get("RMC_RL_REFERENCE") or Path(__file__).parent / "reference")
NAMES = ("aft", "attention", "delta_net", "linear_attention", "lru", "nbrc", "titans")


def rows(*shape, dtype=torch.double):
    return torch.randn(*shape, dtype=dtype)


def some_starts(time, batch):
    starts = torch.rand(time, batch) < 0.1
    starts[0, 0], starts[-1, -1] = True, True
    return starts


def reference(folder, name):
    """The arrays of a reference case as double tensors; those of ``in/`` ask for gradients."""
    about = json.loads((REFERENCE / folder / f"{name}.json").read_text())
    with np.load(REFERENCE / folder / f"{name}.npz") as arrays:
        found = {key: torch.tensor(array).double() for key, array in arrays.items()}
    assert {key: list(tensor.shape) for key, tensor in found.items()} == about["shapes"]
    inputs = {key.removeprefix("in/"): tensor.requires_grad_() for key, tensor in found.items() if key.startswith("in/")}
    return inputs, found


def equals_reference(inputs, outputs, found):
    loss = 0
    for name, output in outputs.items():
        torch.testing.assert_close(output, found[f"out/{name}"], rtol=0, atol=1e-5)
        loss = loss + (output * torch.linspace(-1, 1, output.numel()).double().view(output.shape)).sum()
    loss.backward()
    for name, tensor in inputs.items():
        expected = found[f"grad/{name}"]
        torch.testing.assert_close(tensor.grad, expected, rtol=0, atol=1e-5 * (1 + expected.abs().max().item()), msg=name)


@pytest.mark.parametrize("dtype", [torch.double, torch.cdouble], ids=str)
@pytest.mark.parametrize("time", [1, 2, 3, 7, 50])
def test_a_scan_equals_its_loop_in_values_and_gradients(time, dtype):
    torch.manual_seed(0)
    factors = rows(time, 3, 2, dtype=dtype)
    factors = (factors / (1 + factors.abs())).requires_grad_()
    terms = rows(time, 3, 2, dtype=dtype).requires_grad_()
    state, initial = (rows(3, 2, dtype=dtype).requires_grad_() for _ in range(2))
    starts = some_starts(time, 3)

    def loop():
        h, states = state, []
        for factor, term, start in zip(factors, terms, starts, strict=True):
            h = factor * torch.where(start.unsqueeze(-1), initial, h) + term
            states.append(h)
        return torch.stack(states)

    leaves, found = (factors, terms, state, initial), []
    for states in (scan(factors, terms, state, starts, initial), loop()):
        weights = torch.linspace(-1, 1, states.numel(), dtype=torch.double).view_as(states)
        loss = (states * weights).abs().square().sum() if dtype.is_complex else (states * weights).square().sum()
        found.append([states, *torch.autograd.grad(loss, leaves)])
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-11)


def test_a_scan_passes_torchs_check_of_gradients():
    torch.manual_seed(0)
    for dtype in (torch.double, torch.cdouble):
        leaves = [rows(5, 2, dtype=dtype), rows(5, 2, dtype=dtype), rows(2, dtype=dtype)]
        assert torch.autograd.gradcheck(scan, [leaf.requires_grad_() for leaf in leaves])


@pytest.mark.parametrize("time", [1, 2, 9, 40])
def test_a_running_maximum_starts_anew_with_each_episode(time):
    torch.manual_seed(0)
    values, state, starts = rows(time, 3, 2), rows(3, 2), some_starts(time, 3)
    largest, expected = state, []
    for value, start in zip(values, starts, strict=True):
        largest = torch.where(start.unsqueeze(-1), value, torch.maximum(largest, value))
        expected.append(largest)
    assert running_max(values, state, starts).equal(torch.stack(expected))


@pytest.mark.parametrize("decays", [False, True])
@pytest.mark.parametrize("strength", [False, True])
@pytest.mark.parametrize("time", [2, 16, 37])
def test_chunks_of_a_matrix_scan_equal_its_steps(time, strength, decays):
    torch.manual_seed(0)
    heads = (3, 2)
    leaves = [rows(time, *heads, 4), normalize(rows(time, *heads, 4), dim=-1), rows(time, *heads, 5), rows(*heads, 4, 5)]
    leaves += [logsigmoid(rows(time, *heads))] if decays else []
    leaves += [torch.sigmoid(rows(time, *heads))] if strength else []
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    starts = some_starts(time, 3)

    def run(chunk):
        query, key, value, state, *more = leaves
        decay, beta = more[0] if decays else None, more[-1] if strength else None
        if chunk:
            return matrix_scan(query, key, value, state, starts, decay, beta, chunk)
        outputs = []
        for t in range(time):
            of_step = [None if part is None else part[t : t + 1] for part in (decay, beta)]
            parts = (part[t : t + 1] for part in (query, key, value))
            output, state = matrix_scan(*parts, state, starts[t : t + 1], *of_step)
            outputs.append(output)
        return torch.cat(outputs), state

    found = []
    for chunk in (0, 8, 64):
        output, state = run(chunk)
        weights = torch.linspace(-1, 1, output.numel(), dtype=torch.double).view_as(output)
        found.append([output, state, *torch.autograd.grad((output * weights).sum() + state.square().sum(), leaves)])
    for mine in found[1:]:
        for tensor, expected in zip(mine, found[0], strict=True):
            torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-10)


def no_starts(time, batch):
    return torch.zeros(time, batch, dtype=torch.bool)


@pytest.mark.parametrize("name", ["gated_delta_rule", "delta_rule"])
def test_the_delta_rule_equals_that_of_flash_linear_attention(name):
    inputs, found = reference("linear_attention", name)
    q, k, v, beta, log_decay = (
        None if key not in inputs else inputs[key].transpose(0, 1) for key in ("q", "k", "v", "beta", "log_decay")
    )
    outputs, state = matrix_scan(q * q.shape[-1] ** -0.5, k, v, inputs["state"], no_starts(*q.shape[:2]), log_decay, beta)
    equals_reference(inputs, dict(o=outputs.transpose(0, 1), state=state), found)


def test_linear_attention_equals_that_of_flash_linear_attention():
    inputs, found = reference("linear_attention", "linear_attention")
    q, k, v = (inputs[key].transpose(0, 1) for key in ("q", "k", "v"))
    state = torch.cat([inputs["state"], inputs["sum_of_keys"][:, 0].unsqueeze(-1)], dim=-1)
    sums, state = matrix_scan(q, k, torch.cat([v, torch.ones_like(v[..., :1])], dim=-1), state, no_starts(*q.shape[:2]))
    outputs = dict(
        o=(sums[..., :-1] / sums[..., -1:]).transpose(0, 1),
        state=state[..., :-1],
        sum_of_keys=state[..., -1].unsqueeze(1),
    )
    equals_reference(inputs, outputs, found)


def test_nbrc_equals_that_of_brc():
    inputs, found = reference("nbrc", "nbrc")
    core = NBRC(5, width=7).double()
    parameters = dict(from_input=inputs["iw"].T, from_state=inputs["hw"].T, bias=inputs["bias"][:14])
    for step in (False, True):
        h, outputs = inputs["h"], []
        if step:
            for x in inputs["x"]:
                output, h = torch.func.functional_call(core, parameters, (x.unsqueeze(0), h))
                outputs.append(output[0])
        else:
            outputs = list(torch.func.functional_call(core, parameters, (inputs["x"], h))[0])
        torch.testing.assert_close(torch.stack(outputs), found["out/h"], rtol=0, atol=1e-5)
    del inputs["bias"], found["grad/bias"]  # of which ours has no third part
    equals_reference(inputs, dict(h=torch.stack(outputs)), found)


@pytest.mark.parametrize("name", NAMES)
def test_a_long_sequence_equals_a_loop_over_its_steps(name):
    torch.manual_seed(0)
    core = make_core(name, 3, dict(memory_length=20) if name == "attention" else {}).double()
    time = 70  # several chunks
    inputs, starts = rows(time, 2, 3), some_starts(time, 2)
    with torch.no_grad():
        state = core(rows(5, 2, 3), core.initial_state(2))[1]
    found = []
    for parallel in (True, False):
        x, before = inputs.clone().requires_grad_(), state.clone().requires_grad_()
        outputs, last = core(x, before, starts) if parallel else core.unroll(core.step, x, before, starts)
        found.append([outputs, last, *torch.autograd.grad(outputs.square().sum() + last.square().sum(), (x, before))])
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9)


def test_aft_is_a_mean_weighted_by_the_exponentials_of_keys():
    torch.manual_seed(0)
    core = AFT(3, width=4, num_layers=1, positions=False).double()
    inputs = rows(6, 2, 3)
    outputs, state = core(inputs, core.initial_state(2))
    mixer, x = core.mixers[0], core.embedding(inputs)
    normed = core.norms[0](x)
    weights, values = mixer.key(normed).exp(), mixer.value(normed)
    means = (weights * values).cumsum(0) / weights.cumsum(0)
    torch.testing.assert_close(state[:, :4], means[-1])
    torch.testing.assert_close(state[:, 4:], weights.sum(0).log())
    x = x + mixer.out(torch.sigmoid(mixer.query(normed)) * means)
    torch.testing.assert_close(outputs, core.norm(x + core.mlps[0](x)))
    torch.testing.assert_close(core.inspect(inputs, core.initial_state(2))["input_gate"][:, :, 0], weights / weights.cumsum(0))


def test_aft_is_stable_for_keys_of_any_size():
    torch.manual_seed(0)
    core = AFT(3, width=4)
    with torch.no_grad():
        for mixer in core.mixers:
            mixer.key.weight.mul_(1e3)
    inputs = rows(50, 2, 3, dtype=torch.float).requires_grad_()
    outputs, last = core(inputs, core.initial_state(2), some_starts(50, 2))
    outputs.sum().backward()
    assert all(tensor.isfinite().all() for tensor in (outputs, last, inputs.grad))
    assert (last[:, 4:8].abs() > 100).any()


def test_lru_is_its_equation_in_complex_numbers():
    torch.manual_seed(0)
    core = LRU(3, width=4, num_layers=1, num_units=5).double()
    inputs, mixer = rows(6, 2, 3), core.mixers[0]
    outputs, state = core(inputs, core.initial_state(2))
    factor = torch.exp(-torch.exp(mixer.log_nu) + 1j * torch.exp(mixer.log_theta))
    read = torch.complex(*mixer.read.weight.chunk(2))
    write = torch.complex(mixer.write.weight[:, :5], -mixer.write.weight[:, 5:])
    h, x = torch.zeros(2, 5, dtype=torch.cdouble), core.embedding(inputs)
    for each, output in zip(x, outputs, strict=True):
        u = core.norms[0](each)
        h = factor * h + torch.exp(mixer.log_gamma) * (u.to(h.dtype) @ read.T)
        y = (h @ write.T).real + mixer.skip * u
        torch.testing.assert_close(output, core.norm(each + glu(mixer.glu(gelu(y)))))
    torch.testing.assert_close(state, torch.cat([h.real, h.imag], dim=1))


def test_lru_starts_on_the_ring_that_was_asked_for():
    mixer = LRU(3, num_units=500, r_min=0.5, r_max=0.9, max_phase=0.3).mixers[0]
    magnitude, phase = torch.exp(-torch.exp(mixer.log_nu)), torch.exp(mixer.log_theta)
    assert 0.5 < magnitude.min() < 0.52
    assert 0.88 < magnitude.max() < 0.9
    assert 0.28 < phase.max() < 0.3
    torch.testing.assert_close(torch.exp(mixer.log_gamma), torch.sqrt(1 - magnitude**2))


def test_attention_is_a_softmax_over_the_whole_episode():
    torch.manual_seed(0)
    core = Attention(3, width=4, num_layers=1, num_heads=2, head_size=3, memory_length=50, positions=False).double()
    inputs, mixer = rows(30, 2, 3), core.mixers[0]
    outputs, _ = core(inputs, core.initial_state(2))
    x = core.embedding(inputs)
    q, k, v = (part(core.norms[0](x)).view(30, 2, 2, 3) for part in (mixer.query, mixer.key, mixer.value))
    for t in (0, 1, 29):
        weights = torch.softmax(torch.einsum("bhv,sbhv->sbh", q[t], k[: t + 1]) / math.sqrt(3), dim=0)
        y = x[t] + mixer.out(torch.einsum("sbh,sbhv->bhv", weights, v[: t + 1]).flatten(1))
        torch.testing.assert_close(outputs[t], core.norm(y + core.mlps[0](y)))


def test_attention_reaches_the_first_step_until_its_cache_is_full():
    torch.manual_seed(0)
    core = Attention(3, num_layers=1, memory_length=5).double()
    inputs = rows(9, 1, 3).requires_grad_()
    starts = no_starts(9, 1)
    starts[2] = True
    outputs, _ = core(inputs, core.initial_state(1), starts)
    for step, reached in ((7, [2, 3, 4, 5, 6, 7]), (8, [3, 4, 5, 6, 7, 8]), (1, [0, 1])):
        (gradient,) = torch.autograd.grad(outputs[step].sum() + outputs[step, 0, 0], inputs, retain_graph=True)
        assert gradient.abs().amax((1, 2)).nonzero().flatten().tolist() == reached
    shown = core.inspect(inputs, core.initial_state(1), starts)["attention"]
    assert shown.shape == (9, 1, 1, 4, 6)
    torch.testing.assert_close(shown.sum(-1), torch.ones(9, 1, 1, 4).double())
    assert (shown[2, ..., 1:] == 0).all()


def test_positions_count_from_the_start_of_an_episode():
    torch.manual_seed(0)
    for cls in (AFT, Attention, LinearAttention):
        core = cls(3).double()
        same = rows(1, 1, 3).expand(6, -1, -1)
        starts = no_starts(6, 1)
        starts[3] = True
        outputs, state = core(same, core.initial_state(1), starts)
        torch.testing.assert_close(outputs[3:], outputs[:3])
        assert not torch.allclose(outputs[0], outputs[1])
        assert state[0, -1] == 3
        bare = cls(3, positions=False).double()
        outputs, _ = bare(same, bare.initial_state(1))
        torch.testing.assert_close(outputs, outputs[:1].expand(6, -1, -1), rtol=0, atol=1e-5)


def test_a_delta_rule_replaces_what_is_under_a_key_and_linear_attention_adds():
    key, held = torch.tensor([1.0, 0]).view(1, 1, 1, 2), []
    for strength in (torch.ones(1, 1, 1), None):
        state = torch.zeros(1, 1, 2, 1)
        for value in (3.0, 7.0):
            _, state = matrix_scan(key, key, torch.full((1, 1, 1, 1), value), state, no_starts(1, 1), strength=strength)
        held.append(state.flatten().tolist())
    assert held == [[7, 0], [10, 0]]


def test_gates_that_close_at_once_have_finite_gradients():
    core = DeltaNet(3)
    with torch.no_grad():
        for mixer in core.mixers:
            mixer.rate_bias.fill_(1e3)
    inputs = rows(80, 2, 3, dtype=torch.float).requires_grad_()
    outputs, _ = core(inputs, core.initial_state(2), some_starts(80, 2))
    outputs.square().sum().backward()
    assert inputs.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in core.parameters())


def test_the_memory_of_titans_follows_the_gradient_of_its_surprise():
    torch.manual_seed(0)
    core = Titans(3, width=4, num_heads=2, head_size=5, hidden_size=6).double()
    mixer, size = core.mixers[0], 2 * 6 * 10
    state = torch.cat([core.initial_state(3)[:, :size], 0.1 * rows(3, size)], dim=1)
    x = rows(3, 3)
    _, new = core.step(x, state)
    normed = core.norms[0](core.embedding(x))
    _, key, value = silu(mixer.project(normed)).view(3, 3, 2, 5).unbind(1)
    rate, momentum, forgetting = (part.view(3, 2, 1, 1) for part in torch.sigmoid(mixer.gates(normed)).chunk(3, dim=1))
    before, surprise = (part.view(3, 2, 6, 10).detach().requires_grad_() for part in state.chunk(2, dim=1))
    hidden = silu(torch.einsum("bhnv,bhv->bhn", before[..., :5], normalize(key, dim=-1)))
    loss = (torch.einsum("bhn,bhnv->bhv", hidden, before[..., 5:]) / math.sqrt(6) - value).square().sum()
    (gradient,) = torch.autograd.grad(loss, before)
    surprise = momentum * surprise - 0.5 * rate * gradient
    torch.testing.assert_close(new, torch.cat([((1 - forgetting) * before + surprise).flatten(1), surprise.flatten(1)], dim=1))
    looks = core.inspect(x.unsqueeze(0), state)
    torch.testing.assert_close(looks["surprise"].sum(), loss)


def test_the_memory_of_titans_learns_a_pair_within_an_episode():
    torch.manual_seed(0)
    core = Titans(3)
    same = torch.randn(1, 2, 3).expand(40, -1, -1)
    surprise = core.inspect(same, core.initial_state(2))["surprise"]
    assert surprise[-1].max() < 0.2 * surprise[0].min()


def test_bistable_units_keep_their_sign_and_others_forget_it():
    core = NBRC(1, width=2)
    with torch.no_grad():
        core.from_input.zero_()
        core.from_state.zero_()
        core.bias.copy_(torch.tensor([1.0, -1, 0, 0]))  # a = 1.76 and 0.24
    for sign in (1, -1):
        _, state = core(torch.zeros(1000, 1, 1), torch.full((1, 2), 0.1 * sign))
        assert (sign * state[0, 0]).item() > 0.5
        assert state[0, 1].abs().item() < 1e-6
    assert core.inspect(torch.zeros(1, 1, 1), torch.zeros(1, 2))["bistable_gate"].tolist() == [[[1, 0]]]


def test_linear_attention_is_a_mean_weighted_by_its_feature_map():
    torch.manual_seed(0)
    core = LinearAttention(3, width=4, num_layers=1, num_heads=2, head_size=3, positions=False).double()
    inputs, mixer = rows(6, 2, 3), core.mixers[0]
    outputs, _ = core(inputs, core.initial_state(2))
    x = core.embedding(inputs)
    q, k, v = (part.view(6, 2, 2, 3) for part in mixer.project(core.norms[0](x)).chunk(3, dim=-1))
    weights = torch.einsum("bhv,sbhv->sbh", elu(q[-1]) + 1, elu(k) + 1)
    y = x[-1] + mixer.out((torch.einsum("sbh,sbhv->bhv", weights, v) / weights.sum(0).unsqueeze(-1)).flatten(1))
    torch.testing.assert_close(outputs[-1], core.norm(y + core.mlps[0](y)), rtol=0, atol=1e-5)
    shown = core.inspect(inputs, core.initial_state(2))["input_gate"][-1, :, 0]
    torch.testing.assert_close(shown, weights[-1] / weights.sum(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("cls", "kwargs", "message"),
    [
        (LRU, dict(r_min=0.9, r_max=0.5), r"r_min must be below r_max, got 'r_min=0\.9, r_max=0\.5'"),
        (LRU, dict(r_max=1), "r_max must be a finite number"),
        (LRU, dict(num_units=0), "num_units must be a whole number of at least 1, got 0"),
        (Titans, dict(largest_rate=0), "largest_rate must be a finite number"),
        (Attention, dict(memory_length=0), "memory_length must be a whole number of at least 1, got 0"),
        (DeltaNet, dict(gated=1), "gated must be true or false, got 1"),
        (NBRC, dict(initial_state="one"), "unknown initial_state 'one'"),
    ],
)
def test_rules(cls, kwargs, message):
    with pytest.raises(UsageError, match=message):
        cls(3, **kwargs)


def test_the_norm_of_blocks_is_that_of_torch():
    x = rows(3, 5)
    torch.testing.assert_close(RMSNorm(5).double()(x), torch.nn.RMSNorm(5, eps=1e-5).double()(x))
