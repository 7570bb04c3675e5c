import pytest
import torch

from convlstm.forecaster import EncoderForecaster

# Parameter counts of table 1 of https://arxiv.org/abs/1506.04214 (64×64 frames, patches of 4).
PAPER = [
    ([256], 5, 5, 13_524_496),
    ([128, 128], 5, 5, 10_042_896),
    ([128, 64, 64], 5, 5, 7_585_296),
    ([128, 128], 9, 1, 11_550_224),
    ([128, 64, 64], 9, 1, 8_830_480),
]
KINDS = ["unconditional", "autoregressive"]
CELLS = ["lstm", "gru", "rnn"]


@pytest.mark.parametrize(("hidden_sizes", "kernel", "hidden_kernel", "count"), PAPER)
def test_the_papers_networks_have_the_papers_parameter_counts(
    hidden_sizes, kernel, hidden_kernel, count
):
    with torch.device("meta"):
        network = EncoderForecaster(
            hidden_sizes=hidden_sizes,
            kernel_size=kernel,
            hidden_kernel_size=hidden_kernel,
            peephole="channel",
        )
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("downsample", [1, [1, 2], [2, 3]])
@pytest.mark.parametrize("size", [(16, 16), (13, 22), (1, 1)])
def test_any_frame_size_and_any_number_of_steps(kind, downsample, size):
    network = EncoderForecaster(
        3, patch_size=2, hidden_sizes=[4, 5], downsample=downsample, forecaster=kind
    )
    frames = torch.rand(2, 3, 3, *size)
    for steps in (1, 4):
        assert network(frames, steps).shape == (2, steps, 3, *size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("downsample", [1, [1, 2]])
def test_every_parameter_gets_a_gradient(kind, cell, downsample):
    network = EncoderForecaster(
        patch_size=2,
        hidden_sizes=[4, 5],
        cell=cell,
        downsample=downsample,
        forecaster=kind,
        peephole="channel" if cell == "lstm" else "none",
    )
    network(torch.rand(2, 3, 1, 16, 16), 3).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", CELLS)
def test_the_first_frames_do_not_depend_on_the_number_of_steps(kind, cell):
    network = EncoderForecaster(hidden_sizes=[4, 4], forecaster=kind, cell=cell).double()
    frames = torch.rand(1, 4, 1, 16, 16, dtype=torch.float64)
    long = network(frames, 6)
    torch.testing.assert_close(network(frames, 2), long[:, :2], rtol=0, atol=1e-12)


def variety(kind, cell):
    """A network of two stages whose maps the odd frames (2, 5, 1, 13, 10) are padded for."""
    network = EncoderForecaster(
        patch_size=2, hidden_sizes=[3, 4], cell=cell, downsample=[1, 2], forecaster=kind
    )
    return network.double(), torch.rand(2, 5, 1, 13, 10, dtype=torch.float64)


def tensors(carry):
    parts = [state if isinstance(state, tuple) else (state,) for state in carry.states]
    return [carry.last, *(part for state in parts for part in state)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", CELLS)
def test_frames_read_and_forecast_in_pieces_are_those_of_one_call(kind, cell):
    network, frames = variety(kind, cell)
    expected = network(frames, 4)
    carry = network.encode(frames[:, :1])
    for t in range(1, 4):
        carry = network.encode(frames[:, t : t + 1], carry)
    carry = network.encode(frames[:, 4:], carry)
    before = [part.clone() for part in tensors(carry)]
    first, after = network.unroll(carry, 1)
    rest, after = network.unroll(after, 3)
    torch.testing.assert_close(torch.cat([first, rest], 1), expected, rtol=0, atol=1e-12)
    # What was returned once is not changed by what follows.
    assert all(torch.equal(a, b) for a, b in zip(tensors(carry), before, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_a_carry_keeps_nothing_of_the_frames_behind_it(kind, cell):
    network, frames = variety(kind, cell)

    def held(carry):
        return sum(part.untyped_storage().nbytes() for part in tensors(carry))

    short, long = network.encode(frames[:, :1]), network.encode(frames)
    assert held(short) == held(long) == sum(part.nbytes for part in tensors(long))
    assert held(network.unroll(long, 1)[1]) == held(network.unroll(long, 7)[1]) == held(long)


@pytest.mark.parametrize("shape", [(1, 5, 1, 13, 10), (2, 5, 1, 13, 9)])
def test_other_frames_than_those_before_cannot_be_read_on(shape):
    network, frames = variety("unconditional", "lstm")
    carry = network.encode(frames)
    with pytest.raises(ValueError, match=r"2 clips with frames of \(13, 10\) as before, got"):
        network.encode(torch.rand(shape, dtype=torch.float64), carry)


@pytest.mark.parametrize("kind", KINDS)
def test_clips_of_a_batch_do_not_see_each_other(kind):
    network = EncoderForecaster(hidden_sizes=[4, 4], forecaster=kind).double()
    frames = torch.rand(3, 4, 1, 16, 16, dtype=torch.float64)
    together = network(frames, 3)
    for b in range(3):
        torch.testing.assert_close(network(frames[b : b + 1], 3)[0], together[b])


def test_the_forecaster_starts_from_the_encoders_states_stage_by_stage():
    """The same unconditional forecast, written out layer by layer."""
    network = EncoderForecaster(hidden_sizes=[3, 4], patch_size=4).double()
    frames = torch.rand(2, 5, 1, 16, 16, dtype=torch.float64)
    x = torch.pixel_unshuffle(frames, 4).transpose(0, 1)
    low, low_state = network.encoder[0](x)
    _, top_state = network.encoder[1](low)
    top, _ = network.forecaster[1](torch.empty(3, 2, 0, 4, 4, dtype=torch.float64), top_state)
    low, _ = network.forecaster[0](top, low_state)
    both = torch.cat([low, top], dim=2)
    expected = torch.stack([network.head(both[t]) for t in range(3)], dim=1)
    torch.testing.assert_close(network(frames, 3), torch.pixel_shuffle(expected, 4))


def test_full_teacher_forcing_reads_only_the_truth_and_none_never_does():
    network = EncoderForecaster(hidden_sizes=[4], forecaster="autoregressive").double()
    frames, truth, other = torch.rand(3, 2, 4, 1, 16, 16, dtype=torch.float64)
    forced = network(frames, 4, truth=truth, teacher_forcing=1.0)
    # Frame t+1 under full forcing: one step after a forecast whose context had the truth to t.
    assert not torch.allclose(
        forced[:, 1:], network(frames, 4, truth=other, teacher_forcing=1.0)[:, 1:]
    )
    torch.testing.assert_close(forced[:, :1], network(frames, 1))  # the first needs no truth
    free = network(frames, 4)
    torch.testing.assert_close(network(frames, 4, truth=truth, teacher_forcing=0.0), free)
    torch.testing.assert_close(network(frames, 4, truth=free, teacher_forcing=1.0), free)


def test_scheduled_sampling_mixes_clip_by_clip():
    network = EncoderForecaster(hidden_sizes=[4], forecaster="autoregressive").double()
    frames = torch.rand(1, 3, 1, 8, 8, dtype=torch.float64).repeat(64, 1, 1, 1, 1)
    truth = torch.rand(1, 2, 1, 8, 8, dtype=torch.float64).repeat(64, 1, 1, 1, 1)
    free = network(frames, 2)[:, 1]
    forced = network(frames, 2, truth=truth, teacher_forcing=1.0)[:, 1]
    torch.manual_seed(0)
    mixed = network(frames, 2, truth=truth, teacher_forcing=0.5)[:, 1]
    is_free = (mixed - free).abs().amax((1, 2, 3)) < 1e-9
    is_forced = (mixed - forced).abs().amax((1, 2, 3)) < 1e-9
    assert (is_free ^ is_forced).all()
    assert 16 < is_forced.sum() < 48  # 64 fair coins: outside with probability 2e-5


def test_sigmoid_output_is_the_sigmoid_of_the_logits_and_feeds_back_probabilities():
    network = EncoderForecaster(hidden_sizes=[4], output="sigmoid", forecaster="autoregressive")
    frames = torch.rand(1, 3, 1, 8, 8)
    frames_out = network(frames, 3)
    torch.testing.assert_close(frames_out, torch.sigmoid(network(frames, 3, logits=True)))
    assert frames_out.min() > 0
    assert frames_out.max() < 1


@pytest.mark.parametrize(("cell", "gates", "extra"), [("lstm", 4, 0), ("gru", 3, 1), ("rnn", 1, 0)])
def test_a_cell_has_the_parameters_of_its_gates(cell, gates, extra):
    network = EncoderForecaster(patch_size=2, hidden_sizes=[5], cell=cell)
    encoder = gates * 5 * (4 + 5) * 9 + (gates + extra) * 5
    forecaster = gates * 5 * 5 * 9 + (gates + extra) * 5
    head = 5 * 4 + 4
    count = sum(p.numel() for p in network.parameters())
    assert count == encoder + forecaster + head


def test_full_peephole_is_built_for_each_stages_padded_map():
    network = EncoderForecaster(
        patch_size=2, hidden_sizes=[3, 3], downsample=[1, 2], peephole="full", frame_size=(14, 9)
    )
    assert network.encoder[0].peephole_l0.shape == (3, 3, 8, 6)
    assert network.encoder[1].peephole_l0.shape == (3, 3, 4, 3)
    assert network(torch.rand(1, 2, 1, 14, 9), 2).shape == (1, 2, 1, 14, 9)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"hidden_sizes": []}, "hidden_sizes"),
        ({"hidden_sizes": [4, 0]}, "hidden_sizes"),
        ({"kernel_size": [3, 3, 3]}, r"kernel_size .* 2 stages, got \[3, 3, 3\]"),
        ({"downsample": 0}, "downsample"),
        ({"patch_size": 0}, "patch_size"),
        ({"channels": 0}, "channels"),
        ({"forecaster": "both"}, "forecaster .* 'both'"),
        ({"output": "tanh"}, "output .* 'tanh'"),
        ({"peephole": "full"}, "frame_size"),
        ({"peephole": "some"}, "peephole"),
        ({"cell": "conv"}, "cell .* 'conv'"),
        ({"cell": "gru", "peephole": "channel"}, "'channel' with 'gru'"),
    ],
)
def test_bad_arguments_name_value_and_expectation(arguments, named):
    with pytest.raises(ValueError, match=named):
        EncoderForecaster(**arguments)


@pytest.mark.parametrize(
    ("shape", "steps"), [((2, 3, 3, 8, 8), 1), ((3, 1, 8, 8), 1), ((1, 3, 1, 8, 8), 0)]
)
def test_bad_calls_raise(shape, steps):
    with pytest.raises(ValueError, match="got"):
        EncoderForecaster()(torch.rand(shape), steps)
