"""Training steps as a CUDA graph, without CUDA: the recording is stood in for."""

import warnings
from types import SimpleNamespace

import pytest
import torch
import yaml
from small_run import CONFIG, fails

from convlstm import VideoPredictor
from convlstm.callbacks import CUDAGraph
from convlstm.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


class Recorder:
    """In place of `torch.cuda.make_graphed_callables`: computes what a graph would replay."""

    def __init__(self):
        self.recorded = []
        self.replayed = 0

    def __call__(self, step, frames):
        self.recorded.append([tuple(part.shape) for part in frames])
        self.weights = sum(p.numel() for p in step.parameters())

        def replay(context, target):
            self.replayed += 1
            return step(context, target)

        return replay


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(CONFIG))
    return "small.yaml"


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", recorder)
    monkeypatch.setattr(CUDAGraph, "check", lambda *_: None)
    return recorder


def cuda_trainer(world_size=1, accumulate_grad_batches=1):
    return SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cuda")),
        world_size=world_size,
        accumulate_grad_batches=accumulate_grad_batches,
        precision="32-true",
    )


def weights(run):
    return torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"]


def test_every_step_replays_one_recording_and_trains_the_same(config, recorder):
    assert main(["fit", "-c", config, "--run_dir", "plain"]) == 0
    assert recorder.recorded == []
    assert main(["fit", "-c", config, "--cuda_graph", "true", "--run_dir", "graph"]) == 0
    assert recorder.recorded == [[(2, 2, 1, 32, 32), (2, 3, 1, 32, 32)]]
    assert recorder.replayed == 2
    plain, graph = weights("plain"), weights("graph")
    assert plain.keys() == graph.keys()  # nothing of the recording is saved
    assert all(torch.equal(plain[name], graph[name]) for name in plain)
    assert recorder.weights == sum(value.numel() for value in plain.values())


def test_batches_of_another_shape_or_dtype_are_computed_without_the_graph(recorder):
    model = VideoPredictor(patch_size=4, hidden_sizes=[2])
    frames = torch.rand(2, 2, 1, 8, 8)
    callback = CUDAGraph()

    class Trainer:
        precision = "32-true"

    expected = model.training_loss(frames[:1], frames[:1])
    callback.on_train_batch_start(Trainer, model, {"context": frames, "target": frames}, 0)
    assert torch.equal(model.training_loss(frames[:1], frames[:1]), expected)
    model.training_loss(frames.double(), frames.double())
    assert recorder.replayed == 0
    model.training_loss(frames, frames)
    assert recorder.replayed == 1
    callback.teardown(Trainer, model, "fit")
    model.training_loss(frames, frames)
    assert recorder.replayed == 1


def test_elsewhere_it_is_refused_before_anything_is_written(config, tmp_path, capsys):
    line = fails(capsys, 1, "fit", "-c", config, "--cuda_graph", "true")
    assert "--cuda_graph is for training on a CUDA GPU, not on cpu: set --cuda_graph false" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("devices", "accumulated", "options", "named"),
    [
        (8, 1, {}, "8 devices: set --trainer.devices 1"),
        (1, 2, {}, "accumulate_grad_batches 1, got 2"),
        (
            *(1, 1, {"forecaster": "autoregressive", "scheduled_sampling_steps": 9}),
            "scheduled_sampling_steps 0",
        ),
    ],
)
def test_steps_that_are_not_alike_are_refused(devices, accumulated, options, named):
    trainer = cuda_trainer(devices, accumulated)
    model = VideoPredictor(hidden_sizes=[2], **options)
    with pytest.raises(ValueError, match=named):
        CUDAGraph().on_fit_start(trainer, model)
    with pytest.raises(ValueError, match=named):  # what was allowed may be so no more
        CUDAGraph().on_train_batch_start(trainer, model, {}, 0)


def test_parameters_outside_of_the_network_are_refused(recorder):
    model = VideoPredictor(patch_size=4, hidden_sizes=[2])
    model.extra = torch.nn.Parameter(torch.zeros(1))
    frames = torch.rand(2, 2, 1, 8, 8)
    with pytest.raises(ValueError, match="there are others"):
        CUDAGraph().on_train_batch_start(None, model, {"context": frames, "target": frames}, 0)
    assert recorder.recorded == []


def test_anomaly_detection_is_refused():
    model = VideoPredictor(hidden_sizes=[2])
    CUDAGraph.check(cuda_trainer(), model)
    with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(True):
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="detect_anomaly looks at each value"):
            CUDAGraph.check(cuda_trainer(), model)


@pytest.mark.parametrize("breaks", [False, True])
def test_each_training_records_its_own_step_and_gives_the_loss_back(recorder, breaks):
    model = VideoPredictor(patch_size=4, hidden_sizes=[2])
    model.frozen = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    batch = dict.fromkeys(("context", "target"), torch.rand(2, 2, 1, 8, 8))
    callback = CUDAGraph()
    for _ in range(2):
        callback.on_train_batch_start(cuda_trainer(), model, batch, 0)
        assert "training_loss" in vars(model)
        if breaks:
            callback.on_exception(None, model, RuntimeError())
        else:
            callback.teardown(None, model, "fit")
        assert "training_loss" not in vars(model)
    assert len(recorder.recorded) == 2
