import pickle

import pytest
import torch

from convlstm import VideoPredictor
from convlstm.checkpoint import newest_checkpoint, read_checkpoint


@pytest.fixture
def checkpoint(tmp_path):
    model = VideoPredictor(patch_size=2, hidden_sizes=[4])
    content = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "pytorch-lightning_version": "2.6.6",
    }
    path = tmp_path / "whole.ckpt"
    torch.save(content, path)
    return path


def test_a_whole_checkpoint_is_read(checkpoint):
    assert "network.head.weight" in read_checkpoint(checkpoint)["state_dict"]
    model = VideoPredictor.load_from_checkpoint(checkpoint)
    assert model.hparams["hidden_sizes"] == [4]


def write_folder(path, whole):
    path.mkdir()


def write_text(path, whole):
    path.write_text("no checkpoint")


def write_truncated(path, whole):
    path.write_bytes(whole.read_bytes()[:-500])


def write_damaged(path, whole):
    content = bytearray(whole.read_bytes())
    start = content.index(b"data.pkl") + 20
    content[start : start + 200] = bytes(200)
    path.write_bytes(content)


def write_flipped_weights(path, whole):
    content = bytearray(whole.read_bytes())
    weights = torch.load(whole, weights_only=True)["state_dict"]["network.encoder.0.weight_hh_l0"]
    start = content.index(weights.numpy().tobytes())
    content[start : start + 8] = bytes(8)
    path.write_bytes(content)


def write_no_options(path, whole):
    torch.save({"state_dict": {}, "hyper_parameters": None}, path)


def write_another_model(path, whole):
    torch.save({"state_dict": {}, "hyper_parameters": {"lr": 1}}, path)


def write_bare_tensor(path, whole):
    torch.save(torch.zeros(3), path)


class Trap:
    def __reduce__(self):
        return (print, ("code in a checkpoint ran",))


def write_code(path, whole):
    torch.save({"state_dict": Trap(), "hyper_parameters": {"hidden_sizes": [1]}}, path)


def write_pickle(path, whole):
    path.write_bytes(pickle.dumps({"state_dict": {}}))


@pytest.mark.parametrize(
    ("write", "named"),
    [
        (write_folder, "is a folder"),
        (write_text, "no checkpoint, or a truncated one"),
        (write_truncated, "no checkpoint, or a truncated one"),
        (write_pickle, "no checkpoint, or a truncated one"),
        (write_damaged, "is damaged"),
        (write_flipped_weights, "is damaged"),
        (write_no_options, "not a checkpoint of a VideoPredictor"),
        (write_another_model, "not a checkpoint of a VideoPredictor"),
        (write_bare_tensor, "not a checkpoint of a VideoPredictor"),
        (write_code, "cannot be read as a checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_named_in_one_line(tmp_path, checkpoint, write, named, capsys):
    path = tmp_path / "bad.ckpt"
    write(path, checkpoint)
    for read in (read_checkpoint, VideoPredictor.load_from_checkpoint):
        with pytest.raises(ValueError, match=named) as caught:
            read(path)
        assert "bad.ckpt" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert "ran" not in capsys.readouterr().out


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        VideoPredictor.load_from_checkpoint(tmp_path / "none.ckpt")


def test_an_option_that_there_is_not_is_refused(checkpoint):
    with pytest.raises(ValueError, match=r"no hyperparameter learning_rat$"):
        VideoPredictor.load_from_checkpoint(checkpoint, learning_rat=0.1)
    model = VideoPredictor.load_from_checkpoint(checkpoint, learning_rate=0.1)
    assert model.hparams["learning_rate"] == 0.1


def test_weights_that_do_not_fit_the_options_are_one_line(tmp_path, checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["hidden_sizes"] = [5]
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt: weights and options differ") as caught:
        VideoPredictor.load_from_checkpoint(tmp_path / "other.ckpt")
    assert "\n" not in str(caught.value)


def test_a_missing_checkpoint_names_the_last_one_beside_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*best.ckpt$"):
        read_checkpoint(tmp_path / "best.ckpt")
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(FileNotFoundError, match=r"best.ckpt, but there is .*last.ckpt$"):
        read_checkpoint(tmp_path / "best.ckpt")


@pytest.mark.parametrize(("place", "mask"), [(0, 1), (10, 99), (8, 1)])
def test_one_whose_directory_is_damaged_is_passed_over(checkpoint, place, mask):
    content = bytearray(checkpoint.read_bytes())
    content[content.index(b"PK\x01\x02") + place] ^= mask
    broken = checkpoint.with_name("last.ckpt")
    broken.write_bytes(content)
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged"):
        read_checkpoint(broken)
    with pytest.warns(RuntimeWarning, match=r"skipped: .*last\.ckpt is damaged"):
        path, _ = newest_checkpoint(checkpoint.parent)
    assert path == checkpoint


@pytest.mark.parametrize("part", ["state_dict", "hyper_parameters"])
@pytest.mark.parametrize("content", [3, "hidden_sizes", b"hidden_sizes", ["hidden_sizes"], None])
def test_one_whose_parts_are_of_another_kind_is_refused(checkpoint, part, content):
    whole = torch.load(checkpoint, weights_only=True)
    torch.save({**whole, part: content}, checkpoint)
    with pytest.raises(ValueError, match="is not a checkpoint of a VideoPredictor"):
        read_checkpoint(checkpoint)


def test_of_two_checkpoints_at_one_step_the_last_is_taken(tmp_path, checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    for name in ("best", "last", "z"):
        torch.save(content, tmp_path / f"{name}.ckpt")
    path, _ = newest_checkpoint(tmp_path)
    assert path.name == "last.ckpt"
