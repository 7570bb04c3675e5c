import pytest
import torch
from torch import nn

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
# Every variant of the recurrent family, on frames of 16×16.
FAMILY = {
    "rnn": {"cell": "rnn"},
    "gru": {"cell": "gru"},
    "lstm": {},
    "peephole_channel": {"peephole": "channel"},
    "peephole_full": {"peephole": "full", "frame_size": [16, 16]},
    "fc_lstm": {"patch_size": 16, "kernel_size": 1, "readout": "last", "peephole": "channel"},
    "bidirectional": {"bidirectional": True},
    "attention": {"attention": 1},
    "attention_neighbourhood": {"attention": 3},
    "bidirectional_attention_gru": {"bidirectional": True, "attention": 1, "cell": "gru"},
}


def build(variant, forecaster, **options):
    small = {"patch_size": 4, "hidden_sizes": [4, 5], "forecaster": forecaster}
    return EncoderForecaster(**{**small, **FAMILY[variant], **options})


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


def test_the_papers_fc_lstm_has_the_papers_parameter_count():
    with torch.device("meta"):
        network = EncoderForecaster(
            patch_size=64,
            hidden_sizes=[2048, 2048],
            kernel_size=1,
            peephole="channel",
            readout="last",
        )
    assert sum(p.numel() for p in network.parameters()) == 142_667_776


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
@pytest.mark.parametrize("variant", FAMILY)
@pytest.mark.parametrize("options", [{}, {"downsample": [1, 2]}, {"readout": "last"}])
def test_every_parameter_gets_a_gradient(kind, variant, options):
    network = build(variant, kind, **options)
    network(torch.rand(2, 3, 1, 16, 16), 3).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", FAMILY)
def test_the_first_frames_do_not_depend_on_the_number_of_steps(kind, variant):
    network = build(variant, kind).double()
    frames = torch.rand(1, 4, 1, 16, 16, dtype=torch.float64)
    long = network(frames, 6)
    torch.testing.assert_close(network(frames, 2), long[:, :2], rtol=0, atol=1e-12)


def variety(kind, cell, **options):
    """A network of two stages whose maps the odd frames (2, 5, 1, 13, 10) are padded for."""
    network = EncoderForecaster(
        patch_size=2,
        hidden_sizes=[3, 4],
        cell=cell,
        downsample=[1, 2],
        forecaster=kind,
        **options,
    )
    nn.init.normal_(network.head.weight, std=0.3)  # a residual network's are zero to begin with
    return network.double(), torch.rand(2, 5, 1, 13, 10, dtype=torch.float64)


def tensors(carry):
    parts = [state if isinstance(state, tuple) else (state,) for state in carry.states]
    anchor = [] if carry.anchor is None else [carry.anchor]
    return [carry.last, *anchor, *(part for state in parts for part in state)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("options", [{}, {"attention": 3}, {"residual": True}, {"head_size": 5}])
def test_frames_read_and_forecast_in_pieces_are_those_of_one_call(kind, cell, options):
    network, frames = variety(kind, cell, **options)
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
@pytest.mark.parametrize("residual", [False, True])
@torch.no_grad()
def test_a_carry_keeps_nothing_of_the_frames_behind_it(kind, cell, residual):
    network, frames = variety(kind, cell, residual=residual)

    def held(carry):
        return sum(part.untyped_storage().nbytes() for part in tensors(carry))

    short, long = network.encode(frames[:, :1]), network.encode(frames)
    assert held(short) == held(long) == sum(part.nbytes for part in tensors(long))
    assert held(network.unroll(long, 1)[1]) == held(network.unroll(long, 7)[1]) == held(long)


def test_a_bidirectional_encoder_cannot_read_on():
    network, frames = variety("unconditional", "lstm", bidirectional=True)
    carry = network.encode(frames)
    with pytest.raises(ValueError, match=r"bidirectional .* in one call"):
        network.encode(frames, carry)
    first, after = network.unroll(carry, 1)
    rest, _ = network.unroll(after, 2)
    torch.testing.assert_close(torch.cat([first, rest], 1), network(frames, 3))


@pytest.mark.parametrize("shape", [(1, 5, 1, 13, 10), (2, 5, 1, 13, 9)])
def test_other_frames_than_those_before_cannot_be_read_on(shape):
    network, frames = variety("unconditional", "lstm")
    carry = network.encode(frames)
    with pytest.raises(ValueError, match=r"2 clips with frames of \(13, 10\) as before, got"):
        network.encode(torch.rand(shape, dtype=torch.float64), carry)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", FAMILY)
def test_clips_of_a_batch_do_not_see_each_other(kind, variant):
    network = build(variant, kind).double()
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


def test_fc_lstm_is_torchs_lstm_on_flattened_frames():
    """Encoder and forecaster of two layers each, the frames being vectors."""
    network = EncoderForecaster(
        patch_size=4, hidden_sizes=[5, 6], kernel_size=1, readout="last"
    ).double()
    frames = torch.rand(2, 3, 1, 4, 4, dtype=torch.float64)

    def torchs(layer, x, steps, state):  # steps without input: the gates see the bias alone
        lstm = torch.nn.LSTM(max(layer.input_size, 1), layer.hidden_size).double()
        with torch.no_grad():
            for parameter in lstm.parameters():
                parameter.zero_()
            if layer.input_size > 0:
                lstm.weight_ih_l0.copy_(layer.weight_ih_l0[..., 0, 0])
            lstm.weight_hh_l0.copy_(layer.weight_hh_l0[..., 0, 0])
            lstm.bias_ih_l0.copy_(layer.bias_l0)
        return lstm(x if layer.input_size > 0 else x.new_zeros(steps, 2, 1), state)

    low, low_state = torchs(network.encoder[0], frames.flatten(2).transpose(0, 1), 3, None)
    _, top_state = torchs(network.encoder[1], low, 3, None)
    top, _ = torchs(network.forecaster[1], low, 4, top_state)
    low, _ = torchs(network.forecaster[0], top, 4, low_state)
    pixels = low @ network.head.weight[..., 0, 0].T + network.head.bias
    expected = pixels.transpose(0, 1).unflatten(2, (1, 4, 4))
    torch.testing.assert_close(network(frames, 4), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bidirectional_encoder_starts_the_forecaster_from_both_ends(kind):
    """The first frame of a forecast, written out; the merge is the mean to begin with."""
    network = EncoderForecaster(hidden_sizes=[3], bidirectional=True, forecaster=kind).double()
    frames = torch.rand(2, 5, 1, 16, 16, dtype=torch.float64)
    x = torch.pixel_unshuffle(frames, 4).transpose(0, 1)
    _, (h, c) = network.encoder[0](x)
    first = torch.empty(1, 2, 0, 4, 4, dtype=torch.float64) if kind == "unconditional" else x[-1:]
    hidden, _ = network.forecaster[0](first, (h.mean(0, keepdim=True), c.mean(0, keepdim=True)))
    expected = torch.pixel_shuffle(network.head(hidden[0]), 4)
    torch.testing.assert_close(network(frames, 1)[:, 0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_weights_of_each_stage_add_up_to_one(kind):
    network = build("attention_neighbourhood", kind, downsample=[1, 2]).double()
    frames = torch.rand(2, 3, 1, 16, 16, dtype=torch.float64)
    expected = network(frames, 4)
    low, top = network.attention_weights(frames, 4)
    assert low.shape == (2, 4, 3, 3, 3, 4, 4)
    assert top.shape == (2, 4, 3, 3, 3, 2, 2)
    for weights in (low, top):
        torch.testing.assert_close(weights.sum((2, 3, 4)), torch.ones_like(weights[:, :, 0, 0, 0]))
    torch.testing.assert_close(network(frames, 4), expected, rtol=0, atol=0)
    assert build("lstm", kind).attention_weights(frames.float(), 4) == []


def test_each_stage_attends_over_its_own_encoder_stage_and_passes_on_what_it_read():
    """The unconditional forecast with attention, written out."""
    network = EncoderForecaster(hidden_sizes=[3, 4], attention=3).double()
    frames = torch.rand(2, 5, 1, 16, 16, dtype=torch.float64)
    x = torch.pixel_unshuffle(frames, 4).transpose(0, 1)
    low_series, low_state = network.encoder[0](x)
    top_series, top_state = network.encoder[1](low_series)
    look_low, look_top = network.attention
    top, _ = network.forecaster[1](torch.empty(3, 2, 0, 4, 4, dtype=torch.float64), top_state)
    top, _ = look_top(top, look_top.remember(top_series))
    low, _ = network.forecaster[0](top, low_state)
    low, _ = look_low(low, look_low.remember(low_series))
    both = torch.cat([low, top], dim=2)
    expected = torch.stack([network.head(both[t]) for t in range(3)], dim=1)
    torch.testing.assert_close(network(frames, 3), torch.pixel_shuffle(expected, 4))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", FAMILY)
def test_bfloat16_autocast_stays_close_to_float32(kind, variant):
    network = build(variant, kind, hidden_sizes=[8, 8])
    frames = torch.rand(2, 10, 1, 16, 16)
    exact = network(frames, 10)
    exact.square().mean().backward()
    gradients = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network(frames, 10)
        rough.float().square().mean().backward()
    # bfloat16 has 8 significant bits. The bound for a whole untrained predictor, ten frames in and
    # ten out: 1/32 of the largest pixel, and gradients within a tenth of their norm.
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().max() < exact.abs().max() / 32
    for (name, p), gradient in zip(network.named_parameters(), gradients, strict=True):
        assert (p.grad - gradient).norm() < gradient.norm() / 10, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", FAMILY)
def test_a_carry_goes_on_with_and_without_autocast(kind, variant):
    network = build(variant, kind, hidden_sizes=[8, 8])
    frames = torch.rand(2, 4, 1, 16, 16)
    exact = network(frames, 3)
    for before, between in ((True, False), (False, True)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=before):
            carry = network.encode(frames)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=between):
            first, carry = network.unroll(carry, 1)
        rest, carry = network.unroll(carry, 2)
        for part, truth in ((first, exact[:, :1]), (rest, exact[:, 1:])):
            assert (part - truth).abs().max() < exact.abs().max() / 32


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not")  # torch's own
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", FAMILY)
def test_a_compiled_network_computes_the_same(kind, variant):
    """Compiled in place, forward and backward, without a backend that needs a compiler."""
    torch._dynamo.reset()
    network = build(variant, kind)
    frames = torch.rand(2, 3, 1, 16, 16)
    expected = network(frames, 2)
    expected.square().mean().backward()
    gradients = [p.grad.clone() for p in network.parameters()]
    names = set(network.state_dict())
    network.zero_grad()
    network.compile(backend="aot_eager")
    forecast = network(frames, 2)
    forecast.square().mean().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(forecast, expected)
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert set(network.state_dict()) == names


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


@pytest.mark.parametrize(
    ("probability", "truth", "named"),
    [(0.5, None, "needs the truth"), (1.5, 0, r"in \[0, 1\]"), (float("nan"), 0, r"in \[0, 1\]")],
)
def test_teacher_forcing_that_cannot_be_raises(probability, truth, named):
    network = EncoderForecaster(hidden_sizes=[4], forecaster="autoregressive")
    frames = torch.rand(1, 2, 1, 8, 8)
    with pytest.raises(ValueError, match=named):
        network(frames, 2, truth=truth if truth is None else frames, teacher_forcing=probability)


@pytest.mark.parametrize(
    "truth",
    [
        torch.rand(1, 2, 1, 8, 8),
        torch.rand(2, 3, 1, 8, 8),
        torch.rand(2, 2, 1, 8, 12),
        torch.zeros(2, 2, 1, 8, 8, dtype=torch.uint8),
    ],
    ids=lambda truth: f"{truth.dtype} {tuple(truth.shape)}",
)
def test_a_truth_of_another_shape_or_of_integers_raises(truth):
    network = EncoderForecaster(hidden_sizes=[4], forecaster="autoregressive")
    with pytest.raises(ValueError, match=r"the truth, floats \(2, 2, 1, 8, 8\), got torch\."):
        network(torch.rand(2, 3, 1, 8, 8), 2, truth=truth, teacher_forcing=1.0)


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
    with pytest.raises(ValueError, match=r"frames of \(14, 9\), got \(14, 8\)"):
        network(torch.rand(1, 2, 1, 14, 8), 2)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"hidden_sizes": []}, "hidden_sizes"),
        ({"hidden_sizes": [4, 0]}, "hidden_sizes"),
        ({"hidden_sizes": 64}, "one int >= 1 a stage, got 64"),
        ({"hidden_sizes": [8.0]}, r"one int >= 1 a stage, got \[8.0\]"),
        ({"frame_size": 64}, "frame_size .*height, width.* 64"),
        ({"kernel_size": [3, 3, 3]}, r"hidden_sizes \[64, 64\], got \[3, 3, 3\]"),
        ({"downsample": 0}, "downsample"),
        ({"patch_size": 0}, "patch_size"),
        ({"channels": 0}, "channels"),
        ({"forecaster": "both"}, "forecaster .* 'both'"),
        ({"output": "tanh"}, "output .* 'tanh'"),
        ({"peephole": "full"}, "frame_size"),
        ({"frame_size": [64]}, r"frame_size .*height, width.* \[64\]"),
        ({"frame_size": [64, 0]}, r"frame_size .* \[64, 0\]"),
        ({"peephole": "some"}, "peephole"),
        ({"cell": "conv"}, "cell .* 'conv'"),
        ({"readout": "first"}, "readout .* 'first'"),
        ({"head_size": -1}, "head_size must be >= 0, got -1"),
        ({"attention": 2}, "attention .* 2"),
        ({"attention": -1}, "attention .* -1"),
        ({"cell": "gru", "peephole": "channel"}, "'channel' with 'gru'"),
        ({"residual": True, "output": "sigmoid"}, "residual .* 'sigmoid'"),
    ],
)
def test_bad_arguments_name_value_and_expectation(arguments, named):
    with pytest.raises(ValueError, match=named):
        EncoderForecaster(**arguments)


@pytest.mark.parametrize("options", [{}, {"forecaster": "autoregressive"}, {"bidirectional": True}])
def test_a_replica_which_has_no_parameters_of_its_own_forecasts_the_same(options):
    """As `nn.DataParallel` makes them: modules whose weights are attributes."""
    network = EncoderForecaster(hidden_sizes=[4, 4], **options)
    frames = torch.rand(2, 3, 1, 8, 8)
    expected = network(frames, 2)
    for module in network.modules():
        weights = dict(module._parameters)
        module._parameters.clear()
        for name, value in weights.items():
            setattr(module, name, value if value is None else value.detach())
    assert not list(network.parameters())
    assert torch.equal(network(frames, 2), expected)


@pytest.mark.parametrize(
    ("shape", "steps"), [((2, 3, 3, 8, 8), 1), ((3, 1, 8, 8), 1), ((1, 3, 1, 8, 8), 0)]
)
def test_bad_calls_raise(shape, steps):
    with pytest.raises(ValueError, match="got"):
        EncoderForecaster()(torch.rand(shape), steps)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("readout", ["all", "last"])
def test_the_encoder_forecasts_its_context_from_what_it_has_read_so_far(kind, readout):
    network, frames = variety(kind, "lstm", readout=readout)
    both = network(frames, 3, context_too=True)
    assert both.shape == (2, 4 + 3, 1, 13, 10)
    torch.testing.assert_close(both[:, 4:], network(frames, 3), rtol=0, atol=1e-12)
    changed = frames.clone()
    changed[:, 3] = 1 - changed[:, 3]  # the fourth frame, seen by the forecast of the fifth
    other = network(changed, 3, context_too=True)
    torch.testing.assert_close(other[:, :3], both[:, :3], rtol=0, atol=1e-12)
    assert (other[:, 3] - both[:, 3]).abs().max() > 1e-6


def test_an_encoder_that_knows_what_follows_cannot_forecast_its_context():
    network, frames = variety("unconditional", "lstm", bidirectional=True)
    with pytest.raises(ValueError, match="has seen what follows"):
        network(frames, 3, context_too=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(16, 16), (13, 10)])
def test_an_untrained_residual_network_repeats_the_last_frame(kind, size):
    network = EncoderForecaster(
        patch_size=2, hidden_sizes=[3, 4], downsample=2, forecaster=kind, residual=True
    )
    frames = torch.rand(2, 5, 1, *size)
    both = network(frames, 3, context_too=True)
    assert torch.equal(both[:, :4], frames[:, :4])  # of each context frame the one before it
    assert torch.equal(both[:, 4:], frames[:, 4:].expand(2, 3, 1, *size))


@pytest.mark.parametrize(("kind", "steps"), [("unconditional", 3), ("autoregressive", 1)])
def test_a_residual_network_adds_to_the_last_frame_what_a_plain_one_forecasts(kind, steps):
    plain, frames = variety(kind, "lstm")
    residual, _ = variety(kind, "lstm", residual=True)
    residual.load_state_dict(plain.state_dict())
    changes = plain(frames, steps, context_too=True)
    expected = torch.cat([frames[:, :4], frames[:, 4:].expand(2, steps, 1, 13, 10)], 1) + changes
    forecast = residual(frames, steps, context_too=True)
    torch.testing.assert_close(forecast, expected, rtol=0, atol=1e-12)


def test_an_autoregressive_residual_network_reads_whole_frames():
    """Not the changes alone: the second step reads what the first one gave."""
    network, frames = variety("autoregressive", "lstm", residual=True)
    frames = frames[..., :12, :8]  # without padding, which a truth has anew
    free = network(frames, 3)
    forced = network(frames, 3, truth=free, teacher_forcing=1.0)
    torch.testing.assert_close(forced, free, rtol=0, atol=1e-12)


@pytest.mark.parametrize("forecaster", ["unconditional", "autoregressive"])
def test_segments_computed_again_give_the_same_forecasts_and_gradients(forecaster):
    results = []
    for every in (0, 2):
        torch.manual_seed(0)
        network = EncoderForecaster(
            hidden_sizes=[3, 4], forecaster=forecaster, checkpoint_every=every
        ).double()
        frames = torch.rand(2, 5, 1, 8, 8, dtype=torch.float64)
        forecast = network(frames, 3)
        gradients = torch.autograd.grad(forecast.square().sum(), list(network.parameters()))
        results.append([forecast, *gradients])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_that_passes_hidden_states_on_gives_the_frames_of_none(kind):
    plain, frames = variety(kind, "lstm")
    network, _ = variety(kind, "lstm", head_size=7)  # as many as the hidden states of both stages
    network.load_state_dict(plain.state_dict(), strict=False)
    neck = network.neck[0]
    with torch.no_grad():  # hidden states + 1 are positive, where a LeakyReLU is the identity
        nn.init.dirac_(neck.weight)
        nn.init.ones_(neck.bias)
        network.head.bias -= network.head.weight.sum((1, 2, 3))
    torch.testing.assert_close(network(frames, 3), plain(frames, 3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("head_size", [0, 5])
def test_a_head_lets_a_patch_see_its_neighbours(head_size):
    network = EncoderForecaster(
        patch_size=2, hidden_sizes=[3], kernel_size=1, head_size=head_size
    ).double()
    frames = torch.rand(1, 2, 1, 10, 10, dtype=torch.float64)
    touched = frames.clone()
    touched[..., 4:6, 4:6] = 0  # the patch in the middle
    changed = (network(touched, 1) != network(frames, 1))[0, 0, 0].nonzero()
    reach = 1 if head_size else 0
    assert changed.min().item() == 4 - 2 * reach
    assert changed.max().item() == 5 + 2 * reach


@pytest.mark.parametrize("forecaster", ["unconditional", "autoregressive"])
def test_any_module_of_maps_may_replace_the_head(forecaster):
    network = EncoderForecaster(hidden_sizes=[3], patch_size=2, forecaster=forecaster)
    frames = torch.rand(2, 3, 1, 8, 8)
    expected = network(frames, 4)
    network.head = nn.Sequential(network.head, nn.Identity())
    torch.testing.assert_close(network(frames, 4), expected, rtol=0, atol=0)
