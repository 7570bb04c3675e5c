"""`convlstm predict` in this process; `test_main_job.py` runs it as a user does."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import imageio.v3 as iio
import numpy as np
import pytest
import torch

from convlstm import VideoPredictor
from convlstm.cli import main, memory
from convlstm.cli.comparison import compare
from convlstm.cli.memory import check_memory, is_out_of_memory
from convlstm.forecaster import EncoderForecaster

RNG = np.random.default_rng(0)
CLIP = RNG.integers(0, 256, (6, 1, 14, 15), dtype=np.uint8)
RGB = RNG.integers(0, 256, (6, 3, 14, 15), dtype=np.uint8)
CKPT = ("--ckpt_path", "model.ckpt")


def build(**options):
    options = {"context_length": 2, "patch_size": 2, "hidden_sizes": [2, 2], **options}
    model = VideoPredictor(**options).eval()
    content = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "pytorch-lightning_version": "2.6.6",
    }
    torch.save(content, "model.ckpt")
    return model


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(folder):
    return build()


def predict(capsys, status, *words):
    """Runs the command; returns the lines of both outputs."""
    capsys.readouterr()
    try:
        got = main(["predict", *map(str, words)])
    except SystemExit as error:
        got = error.code
    output = capsys.readouterr()
    assert got == status, output.err
    return output.out.splitlines(), output.err.splitlines()


def names(folder="forecasts"):
    return sorted(path.name for path in Path(folder).iterdir())


def forecast_of(name):
    return np.load(f"forecasts/{name}.npy")


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_one_clip_is_continued_from_its_last_frames_without_a_progress_bar(model, capsys):
    np.save("clip.npy", CLIP)
    lines, errors = predict(capsys, 0, "clip.npy", *CKPT, "--steps", 7)
    assert errors == []
    assert lines == ["forecasts/clip.gif forecasts/clip.png forecasts/clip.npy"]
    assert names() == ["clip.gif", "clip.npy", "clip.png"]
    close(forecast_of("clip"), model.forecast(CLIP[-2:], 7))
    assert len(iio.imread("forecasts/clip.gif", index=...)) == 2 + 7
    predict(capsys, 0, "clip.npy", *CKPT, "--context", 5)
    close(forecast_of("clip"), model.forecast(CLIP[-5:], 10))


def test_many_files_and_folders_are_forecast_after_bad_ones_with_a_line_for_each(
    model, folder, capsys
):
    good = (CLIP / 255).astype(np.float32)
    np.save("good.npy", good)
    np.save("nan.npy", np.full_like(good, np.nan))
    np.save("short.npy", good[:1])
    (folder / "text.gif").write_text("no GIF")
    for name in ("empty", "images", "animations/deep"):
        (folder / name).mkdir(parents=True)
    for number, frame in enumerate(RGB):
        iio.imwrite(f"images/{number}.png", frame.transpose(1, 2, 0))
    iio.imwrite("animations/deep/a.gif", CLIP[:, 0])
    np.savez("animations/b.npz", CLIP)
    bad = ["empty", "nan.npy", "short.npy", "text.gif", "none.gif"]
    lines, errors = predict(capsys, 1, *bad, "good.npy", "images", "animations", *CKPT)
    for line, name, word in zip(
        errors, bad, ["no clips", "NaN", "1 frames", "GIF", "no such file"], strict=False
    ):
        assert line.startswith("convlstm predict: error: ")
        assert name in line
        assert word in line
    assert len(errors) == 6  # the last one is the progress bar
    assert "Forecasting" in errors[-1]
    assert len(lines) == 4
    written = {f"{name}.{kind}" for name in ("good", "images", "b") for kind in FORMATS}
    assert set(names()) == {*written, "deep"}
    assert set(names("forecasts/deep")) == {f"a.{kind}" for kind in FORMATS}
    close(forecast_of("good"), model.forecast(good[-2:], 10))
    for name in ("deep/a", "b"):
        close(forecast_of(name), model.forecast(CLIP[-2:], 10))


FORMATS = ("gif", "npy", "png")


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_follows_the_model(capsys, channels):
    model = build(channels=channels)
    np.save("gray.npy", CLIP)
    np.save("colour.npy", RGB)
    predict(capsys, 0, "gray.npy", "colour.npy", *CKPT)
    if channels == 3:
        gray, colour = CLIP.repeat(3, axis=1), RGB
    else:
        luma = np.array([0.299, 0.587, 0.114])[:, None, None]  # ITU-R BT.601
        gray, colour = CLIP, (RGB * luma).sum(1, keepdims=True).round().astype(np.uint8)
    close(forecast_of("gray"), model.forecast(gray[-2:], 10))
    # A luma near .5 may be rounded the other way, by 1/255.
    expected = model.forecast(colour[-2:], 10)
    np.testing.assert_allclose(forecast_of("colour"), expected, rtol=0, atol=2e-3)


def test_a_model_of_other_channels_is_for_python(capsys):
    build(channels=2)
    _, errors = predict(capsys, 1, "clip.npy", *CKPT)
    assert len(errors) == 1
    assert "frames of 2 channels" in errors[0]


@pytest.mark.parametrize(("size", "shape"), [("20x12", (20, 12)), ("trained", (10, 16))])
def test_frames_are_resized_on_demand(capsys, size, shape):
    build(frame_size=[10, 16])
    level = np.full((4, 1, 31, 27), 77, np.uint8)
    np.save("clip.npy", level)
    predict(capsys, 0, "clip.npy", *CKPT, "--resize", size, "--compare", "--steps", 2)
    assert forecast_of("clip").shape == (2, 1, *shape)
    still = json.loads(Path("forecasts/clip.json").read_text())["last_frame"]
    assert still["mse"] == 0  # a level stays level, and the truth is resized, too
    predict(capsys, 0, "clip.npy", *CKPT, "--steps", 2)
    assert forecast_of("clip").shape == (2, 1, 31, 27)


def test_a_model_that_does_not_know_its_size_needs_one(model, capsys):
    _, errors = predict(capsys, 1, "clip.npy", *CKPT, "--resize", "trained")
    assert len(errors) == 1
    assert "give --resize HEIGHTxWIDTH" in errors[0]


def test_a_clip_of_another_size_than_a_full_peepholes_is_named(capsys):
    build(peephole="full", frame_size=[8, 8])
    np.save("clip.npy", CLIP)
    _, errors = predict(capsys, 1, "clip.npy", *CKPT)
    assert len(errors) == 1
    assert errors[0].startswith("convlstm predict: error: clip.npy: peephole 'full' ties")
    assert "frames of (8, 8), got (14, 15)" in errors[0]
    assert errors[0].endswith("(convlstm predict --resize trained)")


@pytest.mark.parametrize(("steps", "known"), [(3, 3), (9, 4)])
def test_a_comparison_forecasts_the_frames_that_the_clip_has(model, capsys, steps, known):
    np.save("clip.npy", CLIP)
    words = ["clip.npy", *CKPT, "--steps", steps, "--compare"]
    lines, errors = predict(capsys, 0, *words)
    assert errors == []
    context, truth = CLIP[-known - 2 : -known], CLIP[-known:] / 255
    forecast = forecast_of("clip")
    close(forecast, model.forecast(context, steps))
    assert lines[0].endswith("forecasts/clip.json")
    said = (
        "clip.npy: 4 of the 9 forecast frames could be compared, as the clip has 6 frames and 2 of"
    )
    assert any(line.startswith(said) for line in lines) == (known < steps)
    table = "\n".join(lines)
    for word in ("MSE", "the model", "the last frame", f"+{known}"):
        assert word in table
    written = json.loads(Path("forecasts/clip.json").read_text())
    for name, frames in (("model", forecast[:known]), ("last_frame", context[-1:] / 255)):
        error = ((frames - truth) ** 2).sum((1, 2, 3))
        assert written[name]["mse_by_lead_time"] == pytest.approx(error.tolist(), rel=1e-5)
        assert written[name]["mse"] == pytest.approx(error.mean(), rel=1e-5)
        psnr = -10 * np.log10(error / truth[0].size)
        assert written[name]["psnr_by_lead_time"] == pytest.approx(psnr.tolist(), rel=1e-4)


@pytest.mark.parametrize("out", ["file", "file/deep"])
def test_an_out_that_is_a_file_is_blamed_itself(model, folder, capsys, out):
    np.save("clip.npy", CLIP)
    (folder / "file").touch()
    _, errors = predict(capsys, 1, "clip.npy", *CKPT, "--out", out)
    (error,) = errors
    assert error.startswith("convlstm predict: error: --out must be a folder: ")
    assert error.endswith("file is a file")


def test_a_perfect_forecast_is_compared_as_one():
    frames = torch.randint(0, 65536, (3, 1, 8, 8)).to(torch.uint16)
    result = compare(frames, frames.float() / 65535, frames)
    assert result.model["mse"] == 0
    assert result.model["ssim"] == pytest.approx(1)
    assert result.last_frame["mse_by_lead_time"][-1] == 0
    assert result.last_frame["mse_by_lead_time"][0] > 0


def test_a_clip_that_does_not_go_on_cannot_be_compared(model, capsys):
    np.save("clip.npy", CLIP[:2])
    predict(capsys, 0, "clip.npy", *CKPT)
    _, errors = predict(capsys, 1, "clip.npy", *CKPT, "--compare")
    assert len(errors) == 1
    assert "the clip has 2 frames, the forecast needs 2 and one to compare with" in errors[0]


def test_only_the_formats_asked_for_are_written(model, capsys):
    np.save("clip.npy", CLIP)
    lines, _ = predict(capsys, 0, "clip.npy", *CKPT, "--format", "mp4", "npy", "mp4")
    assert lines == ["forecasts/clip.mp4 forecasts/clip.npy"]
    assert names() == ["clip.mp4", "clip.npy"]
    with av.open("forecasts/clip.mp4") as video:
        assert sum(1 for _ in video.decode(video=0)) == 2 + 10


def test_the_axes_of_arrays_can_be_told(model, capsys):
    np.savez("clip.npz", other=RGB, frames=CLIP[:, 0].transpose(1, 2, 0))
    predict(capsys, 0, "clip.npz", *CKPT, "--axes", "HWT", "--array", "frames")
    close(forecast_of("clip"), model.forecast(CLIP[-2:], 10))


def test_the_forecasts_in_a_searched_folder_are_no_clips(model, capsys):
    np.save("a.npy", CLIP)
    first, _ = predict(capsys, 0, ".", *CKPT, "--steps", "1")
    again, _ = predict(capsys, 0, ".", *CKPT, "--steps", "1")
    assert again == first == ["forecasts/a.gif forecasts/a.png forecasts/a.npy"]


def test_two_clips_of_one_name_are_refused(capsys):
    for other in ("b/clip.npy", "b/CLIP.gif"):
        _, errors = predict(capsys, 1, "a/clip.gif", other, *CKPT)
        assert len(errors) == 1
        assert "both be written as forecasts/" in errors[0]
        assert "a/clip.gif" in errors[0]
        assert other in errors[0]


def test_clips_in_subfolders_have_their_forecasts_in_subfolders(model, folder, capsys):
    for name in ("one/clip.npy", "two/deep/clip.npy", "clip.npy"):
        (folder / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / "clips" / name, CLIP)
    (folder / "clips/images.dir").mkdir()
    iio.imwrite("clips/images.dir/0.png", CLIP[0, 0])
    iio.imwrite("clips/images.dir/1.png", CLIP[1, 0])
    words = [*CKPT, "--steps", "1", "--format", "gif"]
    lines, errors = predict(capsys, 0, "clips", *words)
    expected = ["clip.gif", "images.dir.gif", "one/clip.gif", "two/deep/clip.gif"]
    assert sorted(lines) == [f"forecasts/{name}" for name in expected]
    np.save("clip.npy", CLIP)  # alone, its own name is enough
    assert predict(capsys, 0, "clips/one/clip.npy", *words)[0] == ["forecasts/clip.gif"]
    _, errors = predict(capsys, 1, "clips", "clip.npy", *words)
    assert "both be written as forecasts/clip.gif, clips/clip.npy and clip.npy" in errors[0]


def test_a_link_to_itself_and_a_pipe_are_named_in_a_line(model, folder, capsys):
    (folder / "loop.gif").symlink_to("loop.gif")
    os.mkfifo(folder / "pipe.gif")
    for name, named in (("loop.gif", "no such file"), ("pipe.gif", "no regular file")):
        _, errors = predict(capsys, 1, name, *CKPT)
        assert len(errors) == 1
        assert f"{name}: {named}" in errors[0]


def test_a_clip_is_never_overwritten_or_written_into(folder, capsys):
    np.save("clip.npy", CLIP)
    (folder / "images").mkdir()
    iio.imwrite("images/0.png", CLIP[0, 0])
    for clip, out, named in (
        ("clip.npy", ".", "clip.npy would be overwritten"),
        ("images", "images", "among the frames of images"),
    ):
        _, errors = predict(capsys, 1, clip, *CKPT, "--out", out)
        assert len(errors) == 1
        assert named in errors[0]
    assert names("images") == ["0.png"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_clip_whose_forecast_cannot_be_written_is_named_and_those_before_it_stay(
    model, monkeypatch, capsys, code
):
    for name in "abc":
        np.save(f"{name}.npy", CLIP)
    flush, written = os.fsync, []

    def refuse(number):
        written.append(number)
        if len(written) > 4:  # a's three files, and b's GIF
            raise OSError(code, os.strerror(code))
        flush(number)

    monkeypatch.setattr(os, "fsync", refuse)
    lines, errors = predict(capsys, 1, "a.npy", "b.npy", "c.npy", *CKPT)
    assert len(lines) == 1
    assert names() == ["a.gif", "a.npy", "a.png", "b.gif"]
    assert errors[:2] == [
        f"convlstm predict: error: {clip}: forecasts/{name}: {os.strerror(code)}"
        for clip, name in (("b.npy", "b.png"), ("c.npy", "c.gif"))
    ]
    assert len(errors) == 3  # and the progress bar
    assert len(iio.imread("forecasts/b.gif", index=...)) == 2 + 10


@pytest.mark.parametrize("where", ["forecast", "write"])
def test_ctrl_c_leaves_what_is_finished_and_nothing_half_written(model, monkeypatch, capsys, where):
    for name in "abc":
        np.save(f"{name}.npy", CLIP)
    calls = []

    def interrupted(original, most):
        def call(*arguments):
            calls.append(arguments)
            if len(calls) > most:
                raise KeyboardInterrupt
            return original(*arguments)

        return call

    if where == "forecast":
        monkeypatch.setattr(VideoPredictor, "forecast", interrupted(VideoPredictor.forecast, 1))
    else:
        monkeypatch.setattr(os, "fsync", interrupted(os.fsync, 4))
    lines, errors = predict(capsys, 130, "a.npy", "b.npy", "c.npy", *CKPT)
    assert len(lines) == 1
    assert names() == ["a.gif", "a.npy", "a.png"] + ["b.gif"] * (where == "write")
    assert errors[-1] == "convlstm predict: interrupted"
    assert forecast_of("a").shape == (10, 1, 14, 15)


@pytest.mark.slow
def test_a_real_ctrl_c_does_so_too(model, folder):
    for number in range(300):
        np.save(f"{number}.npy", CLIP)
    words = ["predict", *(f"{n}.npy" for n in range(300)), *CKPT]
    with subprocess.Popen(
        [sys.executable, "-m", "convlstm", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "convlstm predict: interrupted"
    for path in (folder / "forecasts").iterdir():
        assert not path.name.startswith(".")
        if path.suffix == ".npy":
            assert np.load(path).shape == (10, 1, 14, 15)
        else:
            assert len(iio.imread(path, index=...)) > 0
    assert len(names()) < 900


def test_frames_that_cannot_fit_in_memory_are_refused_before_they_are_read(
    model, monkeypatch, capsys
):
    # a stage's hidden states of 2 channels, 7x8 points, 4 bytes, 10 forecast frames
    needed = 2 * 7 * 8 * 4 * 10
    for size, status in ((needed, 0), (needed - 1, 1)):
        pages = {"SC_PHYS_PAGES": size, "SC_PAGE_SIZE": 1}
        monkeypatch.setattr(memory.os, "sysconf", pages.__getitem__)
        np.save("clip.npy", CLIP)
        _, errors = predict(capsys, status, "clip.npy", *CKPT)
        assert len(errors) == status
    assert errors[0].startswith("convlstm predict: error: clip.npy: 10 frames of 14 x 15 pixels")
    assert "give --resize HEIGHTxWIDTH" in errors[0]


def test_the_memory_needed_is_that_of_the_smallest_map(monkeypatch):
    network = EncoderForecaster(patch_size=2, hidden_sizes=[8, 2], downsample=[1, 3], cell="gru")
    needed = 2 * (3 * 2) * 4 * 5  # 13x12 pixels padded to 18x12, 5 frames
    for size in (needed, needed - 1):
        pages = {"SC_PHYS_PAGES": 1, "SC_PAGE_SIZE": size}
        monkeypatch.setattr(memory.os, "sysconf", pages.__getitem__)
        if size == needed:
            check_memory(network, 5, (13, 12))
        else:
            with pytest.raises(ValueError, match="5 frames of 13 x 12 pixels need more than"):
                check_memory(network, 5, (13, 12))


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("a bug"), False),
    ],
)
def test_memory_that_runs_out_is_said_in_one_line_and_bugs_are_not_hidden(
    model, monkeypatch, capsys, error, known
):
    def fail(*_):
        raise error

    np.save("clip.npy", CLIP)
    monkeypatch.setattr(VideoPredictor, "forecast", fail)
    assert is_out_of_memory(error) == known
    if known:
        _, errors = predict(capsys, 1, "clip.npy", *CKPT)
        assert len(errors) == 1
        assert errors[0].startswith(
            "convlstm predict: error: clip.npy: not enough memory: give --resize"
        )
    else:
        with pytest.raises(RuntimeError, match="a bug"):
            main(["predict", "clip.npy", *CKPT])


@pytest.mark.parametrize(
    ("words", "status", "named"),
    [
        ([], 2, "give either --ckpt_path or --pretrained"),
        ([*CKPT, "--pretrained", "moving-mnist"], 2, "give either --ckpt_path or --pretrained"),
        (["--pretrained", "none"], 1, "none"),
        ([*CKPT, "--steps", "0"], 2, "--steps must be >= 1, got 0"),
        ([*CKPT, "--context", "0"], 2, "--context must be >= 1, got 0"),
        ([*CKPT, "--resize", "64"], 2, "--resize must be like 48x64, or 'trained', got '64'"),
        ([*CKPT, "--resize", "0x8"], 2, "got '0x8'"),
        ([*CKPT, "--format", "bmp"], 2, "bmp"),
        (["--ckpt_path", "none.ckpt"], 1, "none.ckpt"),
        (["--ckpt_path", "text.ckpt"], 1, "no checkpoint, or a truncated one"),
    ],
)
def test_a_users_mistake_is_one_line_with_the_right_status(folder, capsys, words, status, named):
    np.save("clip.npy", CLIP)
    Path("text.ckpt").write_text("text")
    _, errors = predict(capsys, status, "clip.npy", *words)
    assert len(errors) == 1
    assert named in errors[0]
    assert names(folder) == ["clip.npy", "text.ckpt"]


def test_weights_that_were_exported_forecast_as_their_checkpoint_does(model, capsys):
    np.save("clip.npy", CLIP)
    assert main(["export", "model.ckpt", "weights.safetensors"]) == 0
    predict(capsys, 0, "clip.npy", "--pretrained", "weights.safetensors")
    close(forecast_of("clip"), model.forecast(CLIP[-2:], 10))


@pytest.mark.parametrize("words", [(), ("--frame_step", 3)])
def test_frames_are_taken_as_far_apart_as_in_training(capsys, words):
    model = build(frame_step=3 if not words else 1)
    clip = RNG.integers(0, 256, (9, 1, 14, 15), dtype=np.uint8)
    np.save("a.npy", clip)
    predict(capsys, 0, "a.npy", *CKPT, "--steps", 2, *words)
    close(forecast_of("a"), model.forecast(clip[[5, 8]], 2))
    predict(capsys, 0, "a.npy", *CKPT, "--steps", 2, "--compare", "--out", "held", *words)
    close(np.load("held/a.npy"), model.forecast(clip[[2, 5]], 2))
    np.save("short.npy", clip[:3])
    (error,) = predict(capsys, 1, "short.npy", *CKPT, *words)[1]
    assert "has 3 frames (1 with a frame_step of 3), the forecast needs 2" in error


def test_a_frame_step_below_one_is_a_mistake(model, capsys):
    np.save("a.npy", CLIP)
    _, errors = predict(capsys, 2, "a.npy", *CKPT, "--frame_step", 0)
    assert "--frame_step must be >= 1, got 0" in errors[0]


def test_an_empty_name_is_a_mistake(model, capsys):
    for words in (["", *CKPT], ["a.npy", *CKPT, "--out", ""]):
        assert "empty name" in predict(capsys, 2, *words)[1][0]


def test_memory_is_that_of_frames_that_are_resized(model, monkeypatch, capsys):
    pages = {"SC_PHYS_PAGES": 2 * 7 * 8 * 4 * 10, "SC_PAGE_SIZE": 1}
    monkeypatch.setattr(memory.os, "sysconf", pages.__getitem__)
    np.save("clip.npy", np.tile(CLIP, (1, 1, 2, 2)))
    predict(capsys, 0, "clip.npy", *CKPT, "--resize", "14x15")


def test_the_first_line_that_nobody_reads_is_the_last(model, monkeypatch, capsys):
    def gone(*_):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr("convlstm.cli.predict.plain_console", lambda: SimpleNamespace(print=gone))
    for name in ("a.npy", "b.npy"):
        np.save(name, CLIP)
    assert main(["predict", "a.npy", "b.npy", *CKPT]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert said == [f"convlstm predict: error: [Errno {errno.EPIPE}] {os.strerror(errno.EPIPE)}"]
    assert not Path("forecasts/b.npy").exists()
