"""What the baselines compute, against torch and against plain loops."""

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from rmc_rl.agents.cores import GRU, LSTM, NTM, FrameStack, GTrXL, Memoryless, MinGRU
from rmc_rl.agents.cores.layers import largest, sparsify
from rmc_rl.agents.cores.scan import scan, steps_since_start
from rmc_rl.errors import UsageError


def perturb(core):
    """Weights that differ everywhere, biases included."""
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))


@pytest.mark.parametrize(("cls", "cell"), [(LSTM, torch.nn.LSTMCell), (GRU, torch.nn.GRUCell)])
def test_equals_the_cells_of_torch(cls, cell):
    torch.manual_seed(0)
    core, cell = cls(3, width=5), cell(3, 5)
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            getattr(core.rnn, f"{name}_l0").copy_(parameter)
    inputs, state = torch.randn(6, 2, 3), torch.randn(2, core.state_size)
    outputs, _ = core(inputs, state)
    h, c = state[:, :5], state[:, 5:]
    for x, output in zip(inputs, outputs, strict=True):
        if cls is LSTM:
            h, c = cell(x, (h, c))
        else:
            h = cell(x, h)
        torch.testing.assert_close(output, h)


@pytest.mark.parametrize("cls", [LSTM, GRU])
def test_one_call_of_torch_between_starts(cls, monkeypatch):
    core, calls = cls(3, width=5, kernel="eager"), []
    forward = core.rnn.forward
    monkeypatch.setattr(core.rnn, "forward", lambda x, state: calls.append(len(x)) or forward(x, state))
    inputs, state = torch.randn(9, 2, 3), core.initial_state(2)
    starts = torch.zeros(9, 2, dtype=torch.bool)
    core(inputs, state, starts)
    assert calls == [9]
    calls.clear()
    starts[0, 0] = starts[4, 0] = starts[4, 1] = starts[7, 1] = True
    core(inputs, state, starts)
    assert calls == [4, 3, 2]


@pytest.mark.parametrize("num_layers", [1, 2])
def test_gates_of_an_lstm_explain_its_state(num_layers):
    torch.manual_seed(0)
    core = LSTM(3, width=5, num_layers=num_layers)
    before = torch.randn(4, core.state_size)
    looks = core.inspect(torch.randn(1, 4, 3), before)
    (_, old), (h, c) = (state.view(4, 2, num_layers, 5).transpose(0, 1) for state in (before, looks["state"][0]))
    torch.testing.assert_close(looks["output_gate"][0] * torch.tanh(c), h)
    new = (c - looks["forget_gate"][0] * old) / looks["input_gate"][0]
    assert new.abs().max() <= 1 + 1e-5  # a tanh


def test_gates_of_a_gru_explain_its_state():
    torch.manual_seed(0)
    core = GRU(3, width=5, num_layers=2)
    before = torch.randn(4, core.state_size)
    looks = core.inspect(torch.randn(1, 4, 3), before)
    old, new = (state.view(4, 2, 5) for state in (before, looks["state"][0]))
    update = looks["update_gate"][0]
    assert ((new - update * old) / (1 - update)).abs().max() <= 1 + 1e-5  # a tanh
    assert looks["reset_gate"].shape == (1, 4, 2, 5)


def test_a_stack_of_one_frame_is_memoryless():
    one, other = FrameStack(3, num_frames=1, width=5), Memoryless(3, width=5)
    other.load_state_dict(one.state_dict())
    inputs = torch.randn(4, 2, 3)
    assert one(inputs, one.initial_state(2))[0].equal(other(inputs, other.initial_state(2))[0])


def test_frames_are_stacked_the_oldest_first_with_zeros_before_a_start():
    core = FrameStack(1, num_frames=3, width=3)
    with torch.no_grad():
        core.linear.weight.copy_(torch.eye(3))
        core.linear.bias.zero_()
    inputs = torch.arange(1.0, 6).view(5, 1, 1)
    starts = torch.tensor([False, False, False, True, False]).view(5, 1)
    outputs, state = core(inputs, torch.tensor([[-1.0, 0]]), starts)
    assert outputs[:, 0].tolist() == [[-1, 0, 1], [0, 1, 2], [1, 2, 3], [0, 0, 4], [0, 4, 5]]
    assert state.tolist() == [[4, 5]]


def test_a_scan_equals_its_loop():
    torch.manual_seed(0)
    factors, terms = torch.rand(11, 2, 3).double(), torch.randn(11, 2, 3).double()
    factors[4] = 0
    h, states = 0, []
    for factor, term in zip(factors, terms, strict=True):
        h = factor * h + term
        states.append(h)
    torch.testing.assert_close(scan(factors, terms), torch.stack(states))


def test_mingru_moves_by_its_gate():
    torch.manual_seed(0)
    core = MinGRU(3, width=4, num_layers=1)
    before = torch.randn(2, 4)
    looks = core.inspect(torch.randn(1, 2, 3), before)
    block = core.blocks[0]
    x = torch.randn(2, 3)
    candidate = block.candidate(block.norm(core.embedding(x)))
    update = torch.sigmoid(block.gate(block.norm(core.embedding(x))))
    output, state = core.step(x, before)
    torch.testing.assert_close(state, (1 - update) * before + update * candidate)
    y = core.embedding(x) + state
    norm, up, _, down = block.mlp
    torch.testing.assert_close(output, core.norm(y + down(torch.nn.functional.gelu(up(norm(y))))))
    torch.testing.assert_close(core.inspect(x[None], before)["input_gate"][0, :, 0], update)
    assert looks["input_gate"].shape == (1, 2, 1, 4)


def test_gtrxl_sees_its_window_and_no_more():
    torch.manual_seed(0)
    core = GTrXL(3, num_layers=1, memory_length=2).double()
    inputs = torch.randn(6, 1, 3, dtype=torch.double, requires_grad=True)
    outputs, _ = core(inputs, core.initial_state(1))
    (gradient,) = torch.autograd.grad(outputs[4].sum(), inputs)
    assert [step.abs().max().item() > 0 for step in gradient] == [False, False, True, True, True, False]
    starts = torch.zeros(6, 1, dtype=torch.bool)
    starts[3] = True
    outputs, _ = core(inputs, core.initial_state(1), starts)
    (gradient,) = torch.autograd.grad(outputs[4].sum(), inputs)
    assert [step.abs().max().item() > 0 for step in gradient] == [False, False, False, True, True, False]


def test_gtrxl_attends_only_to_what_there_was():
    core = GTrXL(3, num_layers=2, num_heads=2, memory_length=4)
    looks = core.inspect(torch.randn(6, 1, 3), core.initial_state(1))
    assert looks["attention"].shape == (6, 1, 2, 2, 5)
    for t in range(6):
        seen = looks["attention"][t, 0] > 0
        assert seen[..., : t + 1].all()  # now, one step ago ...
        assert not seen[..., t + 1 :].any()
    torch.testing.assert_close(looks["attention"].sum(-1), torch.ones(6, 1, 2, 2))
    assert looks["attention_gate"].shape == looks["mlp_gate"].shape == (6, 1, 2, 32)
    assert looks["mlp_gate"].mean() < 0.3  # of the new: a layer begins near the identity


def test_gtrxl_equals_its_equations():
    torch.manual_seed(0)
    core = GTrXL(3, num_layers=2, num_heads=2, head_size=3, memory_length=4, mlp_size=5).double()
    perturb(core)
    inputs, starts = torch.randn(9, 1, 3, dtype=torch.double), torch.zeros(9, 1, dtype=torch.bool)
    starts[5] = True
    outputs, _ = core(inputs, core.initial_state(1), starts)

    def gate(layer, x, y):
        (wr, wz, wg), (ur, uz), ug = layer.from_y.weight.chunk(3), layer.from_x.weight.chunk(2), layer.candidate.weight
        r, z = torch.sigmoid(wr @ y + ur @ x), torch.sigmoid(wz @ y + uz @ x - layer.bias)
        return (1 - z) * x + z * torch.tanh(wg @ y + ug @ (r * x))

    def code(ago):
        angles = ago / 10000 ** (torch.arange(0, 6, 2).double() / 6)
        return torch.cat([angles.sin(), angles.cos()])

    x = core.embedding(inputs[:, 0])
    for layer in core.layers:
        after = []
        for t in range(9):
            seen = range(max(5 if t >= 5 else 0, t - 4), t + 1)
            query = layer.query(layer.attention_norm(x[t])).view(2, 3)
            keys_values = [layer.key_value(layer.attention_norm(x[j])).chunk(2) for j in seen]
            read = []
            for head in range(2):
                scores = []
                for j, (key, _) in zip(seen, keys_values, strict=True):
                    position = layer.position(code(t - j)).view(2, 3)[head]
                    content = (query[head] + layer.content_bias[head]) @ key.view(2, 3)[head]
                    scores.append((content + (query[head] + layer.position_bias[head]) @ position) / 3**0.5)
                weights = torch.softmax(torch.stack(scores), dim=0)
                values = torch.stack([value.view(2, 3)[head] for _, value in keys_values])
                read.append(weights @ values)
            y = gate(layer.attention_gate, x[t], torch.relu(layer.out(torch.cat(read))))
            after.append(gate(layer.mlp_gate, y, torch.relu(layer.mlp(layer.mlp_norm(y)))))
        x = torch.stack(after)
    torch.testing.assert_close(outputs[:, 0], x, rtol=0, atol=1e-6)  # positions are coded in single precision


def test_gtrxl_starts_near_the_identity():
    torch.manual_seed(0)
    closed, inputs = GTrXL(3, gate_bias=20), torch.randn(5, 2, 3)
    outputs, _ = closed(inputs, closed.initial_state(2))
    torch.testing.assert_close(outputs, closed.embedding(inputs), rtol=0, atol=1e-5)


def test_gtrxl_knows_how_long_ago():
    torch.manual_seed(0)
    core = GTrXL(3, num_layers=1, memory_length=4)
    a, b, now = torch.randn(3, 1, 1, 3)
    zero = torch.zeros(1, 1, 3)
    one, _ = core(torch.cat([a, b, zero, now]), core.initial_state(1))
    other, _ = core(torch.cat([b, a, zero, now]), core.initial_state(1))
    assert (one[-1] - other[-1]).abs().max() > 1e-5  # the same set of steps in another order


def test_ntm_heads_are_distributions_and_start_at_the_first_slot():
    torch.manual_seed(0)
    core = NTM(3, num_slots=5, slot_size=4, read_heads=2, write_heads=1)
    looks = core.inspect(torch.randn(20, 2, 3), core.initial_state(2))
    assert looks["read_attention"].shape == (20, 2, 2, 5)
    assert looks["write_attention"].shape == (20, 2, 1, 5)
    assert looks["interpolation_gate"].shape == (20, 2, 3)
    for name in ("read_attention", "write_attention"):
        assert (looks[name] >= 0).all()
        torch.testing.assert_close(looks[name].sum(-1), torch.ones(looks[name].shape[:-1]))
    heads = core.initial_state(1)[0, 20:35].view(3, 5)
    assert heads.equal(torch.eye(1, 5).expand(3, -1))


def test_ntm_equals_its_equations():
    torch.manual_seed(0)
    core = NTM(3, width=5, num_slots=4, slot_size=3, read_heads=2, write_heads=2).double()
    perturb(core)
    inputs = torch.randn(6, 1, 3, dtype=torch.double)
    outputs, _ = core(inputs, core.initial_state(1))
    memory, read = core.memory, torch.zeros(6, dtype=torch.double)
    weights = [torch.eye(4, dtype=torch.double)[0]] * 4
    for x, output in zip(inputs[:, 0], outputs[:, 0], strict=True):
        hidden = torch.tanh(core.controller(torch.cat([x, read])))
        for head, numbers in enumerate(core.addressing(hidden).view(4, -1)):
            key, strength, gate = torch.tanh(numbers[:3]), softplus(numbers[3]), torch.sigmoid(numbers[4])
            likeness = torch.stack([key @ slot / (key.norm() * slot.norm()) for slot in memory])
            focus = gate * torch.softmax(strength * likeness, 0) + (1 - gate) * weights[head]
            shift = torch.softmax(numbers[5:8], 0)
            moved = torch.stack([sum(shift[s + 1] * focus[(i - s) % 4] for s in (-1, 0, 1)) for i in range(4)])
            sharp = (moved + 1e-6) ** (1 + softplus(numbers[8]))
            weights[head] = sharp / sharp.sum()
        erase_add = core.writing(hidden).view(2, 2, 3)
        for head in range(2):
            memory = memory * (1 - torch.outer(weights[2 + head], torch.sigmoid(erase_add[head, 0])))
        memory = memory + sum(torch.outer(weights[2 + head], torch.tanh(erase_add[head, 1])) for head in range(2))
        read = torch.cat([weights[0] @ memory, weights[1] @ memory])
        torch.testing.assert_close(output, torch.cat([hidden, read]), rtol=0, atol=1e-12)


def test_ntm_stays_finite_however_sharp():
    core = NTM(3, num_slots=64)
    with torch.no_grad():
        core.addressing.bias.view(2, -1)[:, -1] = 100  # the power
        core.addressing.bias.view(2, -1)[:, -5] = 100  # by content
    outputs, state = core(torch.randn(5, 2, 3), core.initial_state(2))
    assert outputs.isfinite().all()
    assert state.isfinite().all()


def test_ntm_shifts_erases_adds_and_reads():
    core = NTM(1, width=1, num_slots=4, slot_size=2)
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.zero_()
        core.memory.copy_(torch.tensor([[1.0, 2], [3, 4], [5, 6], [7, 8]]))
        # of each head: key (2), strength, gate, shifts (3), power
        for head in range(2):
            core.addressing.bias[8 * head + 3] = -50  # by location
            core.addressing.bias[8 * head + 6] = 50  # one slot further
            core.addressing.bias[8 * head + 7] = 50  # sharp
        core.writing.bias.copy_(torch.tensor([50.0, -50, 0.5, 0.5]))  # erase the first number alone, add to both
    output, state = core.step(torch.zeros(1, 1), core.initial_state(1))
    added = np.tanh(0.5)
    expected = [[1, 2], [added, 4 + added], [5, 6], [7, 8]]
    torch.testing.assert_close(state[0, :8].view(4, 2), torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-4)
    torch.testing.assert_close(output[0, 1:], torch.tensor(expected[1], dtype=torch.float32), rtol=0, atol=1e-4)


def test_largest_takes_the_first_of_equals():
    scores = torch.tensor([[1.0, 2, 2, 2], [0, 0, 0, 0]])
    assert largest(scores, 2).tolist() == [[False, True, True, False], [True, True, False, False]]
    assert largest(scores, 4).all()


def test_sparse_attention():
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1])
    torch.testing.assert_close(sparsify(weights, 2, 0), torch.tensor([2 / 3, 1 / 3, 0, 0]), rtol=0, atol=1e-5)
    assert sparsify(weights, 3, 0).equal(weights)


def test_steps_since_start():
    starts = torch.tensor([[0, 1], [0, 0], [1, 0], [0, 1], [0, 0]]).bool()
    assert steps_since_start(starts, torch.tensor([7, 7])).tolist() == [[7, 0], [8, 1], [0, 2], [1, 0], [2, 1]]


@pytest.mark.parametrize(
    ("cls", "kwargs", "message"),
    [
        (LSTM, dict(width=0), "width must be a whole number of at least 1, got 0"),
        (LSTM, dict(initial_state="one"), "unknown initial_state 'one'"),
        (GRU, dict(num_layers=1.0), r"num_layers must be a whole number of at least 1, got 1\.0"),
        (FrameStack, dict(num_frames=0), "num_frames must be a whole number of at least 1, got 0"),
        (GTrXL, dict(memory_length=0), "memory_length must be a whole number of at least 1, got 0"),
        (GTrXL, dict(mlp_size=0), "mlp_size must be a whole number of at least 1, got 0"),
        (GTrXL, dict(gate_bias="2"), "gate_bias must be a finite number, got '2'"),
        (GTrXL, dict(gate_bias=float("nan")), "gate_bias must be a finite number, got nan"),
        (MinGRU, dict(width="64"), "width must be a whole number of at least 1, got '64'"),
        (NTM, dict(read_heads=0), "read_heads must be a whole number of at least 1, got 0"),
    ],
)
def test_rules(cls, kwargs, message):
    with pytest.raises(UsageError, match=message):
        cls(3, **kwargs)
