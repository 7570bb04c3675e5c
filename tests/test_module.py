import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, default_collate

from convlstm import EncoderForecaster, VideoPredictor, load
from convlstm.metrics import frame_metrics
from convlstm.pixels import to_unit
from datamodules.rendering import render_on_device

pytestmark = [
    # Lightning 2.6.6 asks an isinstance question that torch 2.14 is about to forget.
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*`training_step` but have no"),
]


def build(**options):
    return VideoPredictor(**{"patch_size": 2, "hidden_sizes": [4], **options})


def clips(n=4, steps=3, dtype=torch.uint8, size=8):
    context = torch.randint(0, 256, (n, 4, 1, size, size), dtype=torch.uint8)
    target = torch.randint(0, 256, (n, steps, 1, size, size), dtype=torch.uint8)
    return [
        {"context": c.to(dtype), "target": t.to(dtype), "index": torch.tensor(i)}
        for i, (c, t) in enumerate(zip(context, target, strict=True))
    ]


def trainer(tmp_path, **options):
    return pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"loss": "huber"}, "loss .* 'huber'"),
        ({"frame_step": 0}, "frame_step .* 0"),
        ({"warmup": 0.0}, "warmup .* 0.0"),
        ({"optimizer": "adamw", "weight_decay": -0.1}, "weight_decay .* -0.1"),
        (
            {"forecaster": "autoregressive", "scheduled_sampling_steps": -1},
            "scheduled_sampling_steps .* -1",
        ),
        ({"optimizer": "sgd"}, "optimizer .* 'sgd'"),
        ({"schedule": "cosine"}, "schedule .* 'cosine'"),
        ({"learning_rate": 0.0}, "learning_rate .* 0.0"),
        ({"weight_decay": 0.1}, "weight_decay .* 'adam', got 0.1"),
        ({"warmup": 1.0}, "warmup .* 1.0"),
        ({"context_length": 0}, "context_length .* 0"),
        ({"scheduled_sampling_steps": 5}, "autoregressive.* 5"),
        ({"context_loss": -1.0}, "context_loss .* -1.0"),
        ({"context_loss": 1.0, "bidirectional": True}, "bidirectional .* 1.0"),
        ({"context_loss": 1.0, "context_length": 1}, "one frame, got 1.0"),
        ({"hidden_sizes": []}, "hidden_sizes"),
        ({"checkpoint_every": -1}, "checkpoint_every .* -1"),
    ],
)
def test_bad_arguments_name_value_and_expectation(arguments, named):
    with pytest.raises(ValueError, match=named):
        VideoPredictor(**arguments)


@pytest.mark.parametrize("loss", ["mse", "mae", "mse+mae", "cross_entropy"])
@pytest.mark.parametrize("forecaster", ["unconditional", "autoregressive"])
def test_training_learns_one_batch_by_heart(tmp_path, loss, forecaster):
    data = [{**clip, "target": clip["context"][-1:].repeat(3, 1, 1, 1)} for clip in clips(2)]
    model = build(
        loss=loss,
        forecaster=forecaster,
        learning_rate=0.02,
        scheduled_sampling_steps=20 if forecaster == "autoregressive" else 0,
        hidden_sizes=[16],
    )
    losses = []
    step = model.training_step
    model.training_step = lambda *a: losses.append(step(*a)) or losses[-1]
    trainer(tmp_path, max_steps=40).fit(model, DataLoader(data, batch_size=2))
    # Random pixels have a variance of 1/12 and a mean distance of 1/4 from their mean, and a
    # cross-entropy of at least 0.5 on average: learning shows against the first step.
    entropy = torch.stack([c["target"] / 255 for c in data])
    least = torch.nn.functional.binary_cross_entropy(entropy, entropy).item()
    floor = least if loss == "cross_entropy" else 0.0
    first, last = losses[0].item() - floor, losses[-1].item() - floor
    assert last < 0.5 * first


@pytest.mark.parametrize("cell", ["gru", "rnn"])
def test_the_other_recurrences_train_and_forecast(tmp_path, cell):
    model = build(cell=cell)
    before = [p.detach().clone() for p in model.parameters()]
    trainer(tmp_path, max_steps=2).fit(model, DataLoader(clips(4), batch_size=2))
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert model.forecast(torch.rand(4, 1, 8, 8), 5).shape == (5, 1, 8, 8)


@pytest.mark.parametrize("warmup", [0.1, 0.3])  # 0.1 of 10 steps: one
def test_onecycle_moves_at_every_step_and_ends_with_max_steps(tmp_path, warmup):
    model = build(learning_rate=0.01, warmup=warmup)
    rates = []
    step = model.training_step

    def recorded(*args):
        rates.append(model.optimizers().param_groups[0]["lr"])
        return step(*args)

    model.training_step = recorded
    trainer(tmp_path, max_steps=10).fit(model, DataLoader(clips(4), batch_size=2))
    assert len(rates) == 10
    assert len(set(rates)) == 10
    assert max(rates) == pytest.approx(0.01)
    assert rates.index(max(rates)) == round(10 * warmup) - 1  # counted from 0
    assert rates[-1] < 1e-5


def test_onecycle_without_an_end_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"trainer\.max_steps"):
        trainer(tmp_path, max_epochs=1).fit(build(), DataLoader(clips(2)))


@pytest.mark.parametrize(("max_epochs", "warned"), [(1, True), (3, False), (4, False), (-1, False)])
def test_epochs_that_end_before_onecycle_are_warned_of(tmp_path, recwarn, max_epochs, warned):
    limits = {"max_steps": 6, "max_epochs": max_epochs, "accumulate_grad_batches": 2}
    trainer(tmp_path, **limits).fit(build(), DataLoader(clips(3)))
    told = [str(w.message) for w in recwarn if "before its learning rate" in str(w.message)]
    assert len(told) == warned
    if warned:
        assert told[0].startswith("trainer.max_epochs 1 ends the training at step 2")


def test_a_constant_rate_needs_no_end(tmp_path):
    model = build(schedule="constant", optimizer="adamw", weight_decay=0.1)
    trainer(tmp_path, max_epochs=1).fit(model, DataLoader(clips(2)))
    (optimizer,) = model.trainer.optimizers
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups[0]["lr"] == 1e-3
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


def test_teacher_forcing_falls_from_one_to_zero_over_the_given_steps(tmp_path):
    model = build(forecaster="autoregressive", scheduled_sampling_steps=4, schedule="constant")
    seen = []
    step = model.training_step
    model.training_step = lambda *a: seen.append(model.teacher_forcing) or step(*a)
    trainer(tmp_path, max_steps=6).fit(model, DataLoader(clips(2)))
    assert seen == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert build(forecaster="autoregressive").teacher_forcing == 0


def test_a_trainers_predict_gives_the_forecasts(tmp_path):
    model, data = build(), clips(3)
    first, second = trainer(tmp_path).predict(model, DataLoader(data, batch_size=2))
    forecasts = torch.cat([first, second])
    for clip, forecast in zip(data, forecasts, strict=True):
        steps = len(clip["target"])
        expected = model.forecast(clip["context"], steps)
        torch.testing.assert_close(forecast.clamp(0, 1), expected, rtol=0, atol=1e-6)


def test_validation_and_test_metrics_are_those_of_all_clips_together(tmp_path):
    model = build()
    data = clips(5)
    run = trainer(tmp_path)
    loader = DataLoader(data, batch_size=2)
    (validated,) = run.validate(model, loader, verbose=False)
    (tested,) = run.test(model, loader, verbose=False)
    context = torch.stack([c["context"] for c in data]) / 255
    target = torch.stack([c["target"] for c in data]) / 255
    with torch.no_grad():
        error = (model(context, 3) - target).square().sum((2, 3, 4))
    still = (context[:, -1:] - target).square().sum((2, 3, 4))
    assert validated["val/mse"] == pytest.approx(error.mean().item(), rel=1e-5)
    assert tested["test/mse"] == pytest.approx(error.mean().item(), rel=1e-5)
    assert tested["test/last_frame_mse"] == pytest.approx(still.mean().item(), rel=1e-5)
    by_lead_time = model.test_metrics.summary()["mse_by_lead_time"].float()
    torch.testing.assert_close(by_lead_time, error.mean(0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("forecaster", ["unconditional", "autoregressive"])
def test_the_context_loss_adds_the_encoders_own_forecasts(forecaster):
    batch = default_collate(clips(2))
    plain, both = (build(forecaster=forecaster, context_loss=weight) for weight in (0.0, 0.5))
    both.load_state_dict(plain.state_dict())
    context = batch["context"] / 255
    with torch.no_grad():
        raw = plain.network(context, 3, context_too=True)
        plain.log = both.log = lambda *_, **__: None  # without a Trainer
        expected = (
            plain.training_step(batch, 0) + 0.5 * (raw[:, :3] - context[:, 1:]).square().mean()
        )
        torch.testing.assert_close(both.training_step(batch, 0), expected)


def test_cross_entropy_is_reported_as_the_sum_over_a_sequence(tmp_path):
    model = build(loss="cross_entropy")
    data = clips(3)
    (tested,) = trainer(tmp_path).test(model, DataLoader(data, batch_size=2), verbose=False)
    context = torch.stack([c["context"] for c in data]) / 255
    target = torch.stack([c["target"] for c in data]) / 255
    with torch.no_grad():
        p = model(context, 3).double()
    by_hand = -(target * p.log() + (1 - target) * (1 - p).log()).sum((1, 2, 3, 4)).mean()
    assert tested["test/cross_entropy"] == pytest.approx(by_hand.item(), rel=1e-5)
    (other,) = trainer(tmp_path).test(build(), DataLoader(data), verbose=False)
    assert "test/cross_entropy" not in other


def test_sixteen_bit_batches_train(tmp_path):
    data = clips(2, dtype=torch.uint16)
    trainer(tmp_path, max_steps=1).fit(build(), DataLoader(data))


@pytest.mark.parametrize("name", ["context", "target"])
def test_floats_outside_of_0_to_1_are_not_trained_on(tmp_path, name):
    sample = {"context": torch.rand(4, 1, 8, 8), "target": torch.rand(3, 1, 8, 8)}
    sample[name][0, 0, 0, 0] = 200
    with pytest.raises(ValueError, match=r"must be floats in \[0, 1\], got values from .* to 200"):
        trainer(tmp_path, max_steps=1).fit(build(), DataLoader([sample]))


def test_a_model_in_bfloat16_trains_and_is_validated_in_it():
    model = VideoPredictor(hidden_sizes=[4], patch_size=2).bfloat16()
    context, target = torch.rand(1, 3, 1, 8, 8), torch.rand(1, 2, 1, 8, 8)
    model.training_loss(context, target).backward()
    assert all(p.grad.dtype == torch.bfloat16 for p in model.parameters())
    batch = {"context": context, "target": target}
    assert model.validation_step(batch, 0).dtype == torch.bfloat16


def test_hyperparameters_are_plain_values(tmp_path):
    for value in dict(build().hparams).values():
        assert isinstance(value, int | float | str | list | None)


@pytest.mark.slow
def test_a_checkpoint_forecasts_the_same_in_a_fresh_process(tmp_path):
    model = build(hidden_sizes=[4, 5], downsample=[1, 2], peephole="channel")
    run = trainer(tmp_path, max_steps=2)
    run.fit(model, DataLoader(clips(4)))
    path, clip = tmp_path / "model.ckpt", torch.rand(4, 1, 8, 8)
    run.save_checkpoint(path)
    np.save(tmp_path / "clip.npy", clip.numpy())
    code = (
        "import sys, numpy, torch\n"
        "from convlstm import VideoPredictor\n"
        "clip = torch.from_numpy(numpy.load('clip.npy'))\n"
        "forecast = VideoPredictor.load_from_checkpoint('model.ckpt').forecast(clip, steps=20)\n"
        "numpy.save('forecast.npy', forecast.numpy())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    again = torch.from_numpy(np.load(tmp_path / "forecast.npy"))
    torch.testing.assert_close(again, model.forecast(clip, 20), rtol=0, atol=1e-6)
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["hyper_parameters"]["hidden_sizes"] == [4, 5]


@pytest.mark.parametrize(
    "options",
    [
        {"downsample": 2, "head_size": 8, "context_loss": 1.0},
        {"forecaster": "autoregressive", "scheduled_sampling_steps": 100, "context_loss": 1.0},
        {"attention": 3},
        {"bidirectional": True},
        {"residual": True},
        {"loss": "cross_entropy", "peephole": "channel", "readout": "last"},
        {"peephole": "full", "frame_size": [32, 36], "checkpoint_every": 2},
        {"cell": "gru"},
        {"cell": "rnn"},
    ],
    ids=str,
)
def test_another_device_than_the_cpu_is_kept_to(options):
    """On "meta", which every machine has: whatever were made on the CPU would be refused."""
    model = build(**options).to("meta")
    model.trainer = mock.Mock(global_step=50)
    model.log = mock.Mock()
    frames = render_on_device(
        torch.zeros(2, 2, 28, 28, dtype=torch.uint8, device="meta"),
        torch.zeros(2, 7, 2, 2, dtype=torch.int64, device="meta"),
        (32, 36),
    ).unsqueeze(2)
    batch = {"context": frames[:, :4], "target": frames[:, 4:]}
    model.training_step(batch, 0).backward()
    assert all(p.grad is not None and p.grad.is_meta for p in model.parameters())
    forecast = model.validation_step(batch, 0)
    assert forecast.is_meta
    assert frame_metrics(forecast, to_unit(batch["target"])).is_meta


def test_the_network_is_what_the_options_say():
    model = VideoPredictor(hidden_sizes=[3, 4], kernel_size=5, peephole="channel")
    network = EncoderForecaster(hidden_sizes=[3, 4], kernel_size=5, peephole="channel")
    shapes = {n: p.shape for n, p in network.named_parameters()}
    assert {n: p.shape for n, p in model.network.named_parameters()} == shapes


def test_load_gives_the_trained_model_ready_to_forecast(tmp_path):
    model = build(hidden_sizes=[3, 4], forecaster="autoregressive")
    run = trainer(tmp_path, max_steps=1)
    run.fit(model, DataLoader(clips(2)))
    run.save_checkpoint(tmp_path / "model.ckpt")
    clip = torch.rand(4, 1, 8, 8)
    for path in (tmp_path / "model.ckpt", str(tmp_path / "model.ckpt")):
        loaded = load(path)
        assert not loaded.training
        torch.testing.assert_close(loaded.forecast(clip, 3), model.forecast(clip, 3))
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        load("none.ckpt")


def test_each_validation_and_test_is_of_its_own_clips_alone(tmp_path):
    model, run = build(), trainer(tmp_path)
    one, other = (DataLoader(clips(2)) for _ in range(2))
    for evaluate in (run.validate, run.test):
        (alone,) = evaluate(model, other, verbose=False)
        evaluate(model, one, verbose=False)
        (after,) = evaluate(model, other, verbose=False)
        assert after == alone
