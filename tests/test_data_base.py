import pickle
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, GradientAccumulationScheduler, ModelCheckpoint
from torch.utils.data import DataLoader, Dataset

from datamodules.base import EndlessSampler, ShardSampler, VideoDataModule, collate


class Numbers(Dataset):
    """Clips whose pixels are their number."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        frames = torch.full((2, 1, 4, 4), index % 256, dtype=torch.uint8)
        return {"context": frames, "target": frames, "index": index}


class WholeBatches(Numbers):
    def __getitems__(self, indices):
        return collate([self[index] for index in indices]) | {"whole": torch.tensor(1)}


class NumbersDataModule(VideoDataModule):
    def __init__(self, size=26, dataset=Numbers, **options):
        super().__init__(**options)
        self.size = size
        self.dataset = dataset

    def setup(self, stage=None):
        self.train_set = self.dataset(self.size)
        self.val_set = self.dataset(5)
        self.test_set = self.dataset(7)


class Recorder(pl.LightningModule):
    """Notes the numbers of the samples that it is trained on."""

    def __init__(self, ask_for_length=False):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.ask_for_length = ask_for_length
        self.seen = []

    def training_step(self, batch):
        self.seen.append(batch["index"].tolist())
        return self.weight * batch["context"].float().mean()

    def validation_step(self, batch):
        pass

    def configure_optimizers(self):
        if self.ask_for_length:
            _ = self.trainer.estimated_stepping_batches  # opens the training loader
        return torch.optim.SGD([self.weight], lr=0.1)


class Stop(Exception):
    pass


class StopAfter(Callback):
    """Dies without warning, as a killed job does."""

    def __init__(self, batches):
        self.batches = batches

    def on_train_batch_end(self, *_):
        self.batches -= 1
        if self.batches == 0:
            raise Stop


def train(folder, *, ckpt=None, data=None, model=None, callbacks=(), **options):
    model = model or Recorder()
    trainer = pl.Trainer(
        **{"max_epochs": 3, "limit_val_batches": 1, **options},
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        callbacks=list(callbacks),
    )
    trainer.fit(model, datamodule=data or numbers(), ckpt_path=ckpt)
    return model.seen, trainer


def numbers(num_workers=0, **options):
    return NumbersDataModule(batch_size=4, num_workers=num_workers, **options)


# Lightning's own: advice, and a call that newer releases of torch deprecate.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
]

# 26 samples in batches of 4: six a epoch, and two samples are skipped.
EPOCHS = [[e * 26 + p + i for i in range(4)] for e in range(3) for p in range(0, 24, 4)]

# A run stopped by max_steps ends its epoch early, and Lightning counts that one as a whole; so
# only the number of steps says where the resumed run should end.
TO_THE_END = {"max_epochs": 9, "max_steps": 18}


def order(sampler):
    return list(iter(sampler))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_uninterrupted_training_sees_epoch_e_position_p_as_sample_e_times_n_plus_p(
    tmp_path, num_workers
):
    seen, _ = train(tmp_path, data=numbers(num_workers))
    assert seen == EPOCHS


@pytest.mark.parametrize("stop", [1, 5, 6, 7, 13])
def test_training_stopped_by_max_steps_resumes_at_the_next_sample(tmp_path, stop):
    before, trainer = train(tmp_path, max_steps=stop)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    after, _ = train(tmp_path, ckpt=tmp_path / "stopped.ckpt", **TO_THE_END)
    assert before + after == EPOCHS


@pytest.mark.parametrize("stop", [4, 6])
@pytest.mark.parametrize("ask_for_length", [False, True])
def test_training_with_workers_resumes_at_the_next_sample(tmp_path, stop, ask_for_length):
    before, trainer = train(tmp_path, data=numbers(2), max_steps=stop)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    model = Recorder(ask_for_length)
    after, _ = train(
        tmp_path, ckpt=tmp_path / "stopped.ckpt", data=numbers(2), model=model, **TO_THE_END
    )
    assert before + after == EPOCHS


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize(("killed", "num_workers"), [(1, 0), (5, 0), (6, 0), (7, 2), (14, 0)])
def test_killed_training_repeats_only_what_no_checkpoint_holds(
    tmp_path, every, killed, num_workers
):
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=every, save_top_k=-1)
    with pytest.raises(Stop):
        train(tmp_path, data=numbers(num_workers), callbacks=[saver, StopAfter(killed)])
    saved = killed // every * every
    if saved == killed:  # Stop came first: checkpoints are saved by the last callback
        saved -= every
    checkpoint = tmp_path / f"step={saved}.ckpt"
    after, _ = train(tmp_path, ckpt=checkpoint if saved else None, data=numbers(num_workers))
    assert after == EPOCHS[saved:]


@pytest.mark.parametrize("trigger", ["epoch", "validation"])
@pytest.mark.parametrize("epoch", [0, 1])
def test_training_resumes_behind_checkpoints_of_whole_epochs(tmp_path, trigger, epoch):
    saver = ModelCheckpoint(
        tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=trigger == "epoch"
    )
    train(tmp_path, callbacks=[saver], max_epochs=2)
    after, _ = train(tmp_path, ckpt=tmp_path / f"epoch={epoch}.ckpt")
    assert after == EPOCHS[6 * (epoch + 1) :]


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_training_with_accumulated_gradients_resumes_at_the_next_sample(tmp_path, stop):
    whole, _ = train(tmp_path, accumulate_grad_batches=2)
    before, trainer = train(tmp_path, accumulate_grad_batches=2, max_steps=stop)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    after, _ = train(
        tmp_path,
        ckpt=tmp_path / "stopped.ckpt",
        accumulate_grad_batches=2,
        max_epochs=9,
        max_steps=9,
    )
    assert whole == EPOCHS
    assert before + after == EPOCHS


def test_a_number_of_accumulated_batches_that_changes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give one number, accumulate_grad_batches"):
        train(tmp_path, callbacks=[GradientAccumulationScheduler({0: 2, 2: 1})])


def test_epochs_shortened_by_limit_train_batches_follow_each_other_without_repeating(tmp_path):
    seen, _ = train(tmp_path, limit_train_batches=4)
    assert seen == EPOCHS[:12]


def test_checkpoint_keeps_nothing_of_the_loader_that_weights_only_refuses(tmp_path):
    _, trainer = train(tmp_path, max_steps=2)
    trainer.save_checkpoint(tmp_path / "safe.ckpt")
    assert torch.load(tmp_path / "safe.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_processes_together_take_each_global_batch_that_one_process_would_take(world, accumulate):
    dataset = Numbers(50)
    ranks = [
        EndlessSampler(dataset, 4, world, rank, accumulate, batches_done=lambda: 3)
        for rank in range(world)
    ]
    single = EndlessSampler(dataset, 4 * world, 1, 0, accumulate, batches_done=lambda: 3)
    orders = [np.reshape(order(sampler), (-1, 4)) for sampler in ranks]
    np.testing.assert_array_equal(
        np.concatenate(orders, axis=1), np.reshape(order(single), (-1, 4 * world))
    )
    assert all(len(order(sampler)) == len(sampler) for sampler in ranks)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_epoch_is_cut_into_whole_optimizer_steps(world):
    sampler = EndlessSampler(Numbers(50), 4, world, 0, accumulate_grad_batches=2)
    assert len(sampler) == 50 // (4 * world * 2) * 2 * 4


def test_without_a_trainer_the_epoch_set_by_hand_is_yielded():
    sampler = EndlessSampler(Numbers(10), 4)
    first = order(sampler)
    sampler.set_epoch(2)
    assert first == list(range(8))
    assert order(sampler) == list(range(20, 28))


def test_loaders_take_processes_and_steps_from_the_trainer():
    data = numbers()
    data.setup()
    data.trainer = SimpleNamespace(
        world_size=2, global_rank=1, accumulate_grad_batches=2, global_step=1, callbacks=[]
    )
    assert next(iter(data.train_dataloader()))["index"].tolist() == [26 + 4, 27 + 4, 28 + 4, 29 + 4]
    assert next(iter(data.val_dataloader()))["index"].tolist() == [1, 3]
    assert next(iter(data.test_dataloader()))["index"].tolist() == [1, 3, 5]


def test_position_counts_from_the_batches_done_whatever_epoch_is_set():
    done = [0]
    sampler = EndlessSampler(Numbers(10), 4, batches_done=lambda: done[0])
    sampler.set_epoch(7)
    assert order(sampler) == list(range(8))
    done[0] = 1
    assert order(sampler) == [4, 5, 6, 7, 10, 11, 12, 13]


def test_start_is_asked_for_only_when_the_first_sample_is_drawn():
    done = [0]
    iterator = iter(EndlessSampler(Numbers(10), 4, batches_done=lambda: done[0]))
    done[0] = 2
    assert next(iterator) == 10


def test_training_set_smaller_than_a_global_batch_is_refused():
    with pytest.raises(ValueError, match=r"10 samples an epoch, fewer than one step's 12 .*lower"):
        EndlessSampler(Numbers(10), 2, num_replicas=3, accumulate_grad_batches=2)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [4, 7, 12])
def test_shards_hold_each_sample_exactly_once(world, size):
    shards = [ShardSampler(Numbers(size), world, rank) for rank in range(world)]
    assert sorted(chain.from_iterable(map(order, shards))) == list(range(size))
    assert [len(shard) for shard in shards] == [len(order(shard)) for shard in shards]


def test_fewer_samples_than_processes_are_refused_on_each_of_them():
    for rank in range(3):
        with pytest.raises(ValueError, match="has 2 samples, fewer than the 3 devices: enlarge"):
            ShardSampler(Numbers(2), 3, rank)


def test_lightning_validates_and_tests_on_each_sample_once(tmp_path):
    class Evaluated(Recorder):
        def validation_step(self, batch):
            self.seen += batch["index"].tolist()

        test_step = validation_step

    model = Evaluated()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    trainer.validate(model, datamodule=numbers(), verbose=False)
    trainer.test(model, datamodule=numbers(), verbose=False)
    assert model.seen == [*range(5), *range(7)]


@pytest.mark.parametrize("dataset", [Numbers, WholeBatches])
def test_batch_is_a_dict_of_context_target_and_index(dataset):
    data = numbers(dataset=dataset)
    data.setup()
    batch = next(iter(data.test_dataloader()))
    assert batch["context"].shape == batch["target"].shape == (4, 2, 1, 4, 4)
    assert batch["context"].dtype == torch.uint8
    assert batch["index"].dtype == torch.int64
    assert batch["index"].tolist() == [0, 1, 2, 3]
    assert ("whole" in batch) == (dataset is WholeBatches)


def test_loaders_keep_their_workers_between_epochs():
    data = numbers(num_workers=2)
    data.setup()
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    assert all(isinstance(loader, DataLoader) and loader.persistent_workers for loader in loaders)
    assert all(loader.pin_memory == torch.cuda.is_available() for loader in loaders)


def test_dataset_and_collate_can_be_sent_to_spawned_workers():
    data = numbers()
    data.setup()
    loader = data.train_dataloader()
    dataset, function = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn)))
    assert function([dataset[3]])["index"].tolist() == [3]


@pytest.mark.parametrize("stage", ["train", "val", "test"])
def test_loader_before_setup_says_what_to_call(stage):
    with pytest.raises(RuntimeError, match=r"call setup\("):
        getattr(numbers(), f"{stage}_dataloader")()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("context_length", 0),
        ("target_length", 0),
        ("batch_size", 0),
        ("num_workers", -1),
        ("seed", -1),
    ],
)
def test_number_below_its_range_is_refused_by_name(option, value):
    with pytest.raises(ValueError, match=f"^{option} is {value}: must be . or more$"):
        VideoDataModule(**{option: value})


@pytest.mark.parametrize("other", [{"world_size": 2}, {"accumulate_grad_batches": 2}], ids=str)
def test_a_step_of_more_samples_than_the_checkpoints_is_refused(other):
    one = {"world_size": 1, "accumulate_grad_batches": 1}
    then, now = numbers(), numbers()
    for data, options in ((then, one), (now, one | other)):
        data.setup()
        data.trainer = SimpleNamespace(**options)
    now.load_state_dict(now.state_dict())
    with pytest.raises(ValueError, match="samples_per_step 4, this run has 8"):
        now.load_state_dict(then.state_dict())


def test_another_length_of_an_epoch_is_refused(tmp_path):
    _, trainer = train(tmp_path, max_steps=1)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    with pytest.raises(ValueError, match="samples_per_epoch 26, this run has 27"):
        train(tmp_path, data=numbers(size=27), ckpt=tmp_path / "stopped.ckpt", max_steps=3)
