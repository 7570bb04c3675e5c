"""`convlstm fit | validate | test`: Lightning's own command line around predictor and data."""

import locale
import logging
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import SUPPRESS
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback, LearningRateMonitor
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from torch.multiprocessing.spawn import ProcessRaisedException

import datamodules  # noqa: F401 (so that configs may name its classes without the package)
from convlstm.callbacks import (
    AtomicCheckpointIO,
    BestCheckpoint,
    CommonStart,
    CUDAGraph,
    ForecastWriter,
    GradientGuard,
    Interruption,
    LastCheckpoint,
    NonFinite,
    NowcastingReport,
    Processor,
    ProgressBar,
    RunRecord,
    StepSeeds,
    Termination,
    TestReport,
    TrainingStopped,
    ValidationWatch,
)
from convlstm.cli.configuration import check_values, configuration_files, find_mistake, refuse_moved
from convlstm.cli.frames import check_frames
from convlstm.cli.memory import is_out_of_memory
from convlstm.cli.message import quoted
from convlstm.cli.parser import OneLineErrors
from convlstm.cli.processes import end_others, is_lost_connection
from convlstm.cli.start import Finished, Start, settle_start, tested_checkpoint
from convlstm.console import plain_console
from convlstm.files import check_folder
from convlstm.lock import claimed
from convlstm.module import ENDLESS, VideoPredictor
from datamodules import VideoDataModule

DESCRIPTIONS = {
    "fit": "Train a model: convlstm fit -c configs/moving_mnist.yaml [--KEY VALUE ...]. Every key "
    "of the configuration is also an option, such as --trainer.max_steps 2000, "
    "--model.learning_rate 0.0005 or --data.batch_size 8.",
    "validate": "Compute metrics of a trained model on the validation split: convlstm validate -c "
    "runs/moving_mnist/config.yaml.",
    "test": "Compute metrics of a trained model on the test split, and of repeating the last "
    "frame: convlstm test -c runs/moving_mnist/config.yaml.",
}

SILENCED = (
    ".*does not have many workers.*",  # Moving MNIST is drawn faster than any model reads it
    ".*Checkpoint directory .* exists and is not empty.*",  # a run that goes on
    ".*callbacks used to create the checkpoint.*",  # a test needs no checkpoint callback
    ".*`max_epochs` was not set.*",
    ".*could not find the monitored key.*",  # a training without validations
    ".*number of training batches .* smaller than the logging interval.*",
    ".*LeafSpec.*is deprecated.*",  # Lightning 2.6.6 on torch 2.14
    "(?s).*deprecated.*will be removed in v5",  # Lightning 2.6.6 on jsonargparse 4.53, this
    ".*all_gather.* is deprecated.*",  # and on torch 2.14
    ".*Grad strides do not match bucket view strides.*",  # of a 1×1 kernel: the same memory
    "(?s).*JSONARGPARSE_DEPRECATION_WARNINGS",  # and this
)

FSS_WINDOWS = [5, 17]  # pixels
OUT_OF_MEMORY = (
    "not enough memory: lower --data.batch_size (and raise "
    "--trainer.accumulate_grad_batches as much, which keeps the result), choose "
    "--trainer.precision bf16-mixed, or a smaller model (--model.hidden_sizes)"
)


def run(verb: str, args: Sequence[str]) -> int:
    """Runs `fit`, `validate` or `test` with the words that follow it; returns the exit status."""
    if not any(word.startswith(("-c", "--config", "--data", "-h", "--help")) for word in args):
        text = "give a configuration file, such as -c configs/moving_mnist.yaml"
        print(f"convlstm {verb}: error: {text} (see convlstm {verb} --help)", file=sys.stderr)
        return 2
    TrainParser.command = f"convlstm {verb}"
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        for message in SILENCED:
            warnings.filterwarnings("ignore", message)
        try:
            VideoCLI(
                VideoPredictor,
                VideoDataModule,
                subclass_mode_data=True,
                save_config_callback=None,
                trainer_defaults={"enable_model_summary": False},
                seed_everything_default=0,
                parser_class=TrainParser,
                parser_kwargs={
                    "prog": "convlstm",
                    **{
                        name: {
                            "description": text,
                            "usage": f"convlstm {name} -c FILE.yaml [--KEY VALUE ...]",
                        }
                        for name, text in DESCRIPTIONS.items()
                    },
                },
                load_from_checkpoint_support=False,
                auto_configure_optimizers=False,
                args=[verb, *args],
            )
        except Finished as end:
            rank_zero_only(plain_console().print)(end)
        except MisconfigurationException as error:
            raise ValueError(str(error)) from error
        except ValueError as error:
            # jsonargparse wraps what a class says of its arguments in an account of their types.
            if isinstance(error.__cause__, ValueError) and _raised_in("jsonargparse", error):
                raise error.__cause__ from None
            raise
        except ProcessRaisedException as error:  # the last line of its traceback says what
            raise ValueError(str(error).strip().splitlines()[-1]) from error
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise MemoryError(OUT_OF_MEMORY) from error
            if is_lost_connection(error):
                raise ConnectionError("another process has ended, and says why itself") from error
            # Of its options and callbacks.
            if _raised_in("pytorch_lightning", error) or _raised_in("lightning_fabric", error):
                raise ValueError(str(error)) from error
            raise
    return 0


def _show_warning(
    message: Warning | str, category: type[Warning], *place: Any, **more: Any
) -> None:
    """A warning in one line, without the place in the code that it comes from."""
    print(f"{TrainParser.command}: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _raised_in(package: str, error: Exception) -> bool:
    """Whether it is code of the package that raised an error."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).partition(".")[0] == package


def _frame_step(data: Any) -> int:
    """That of the data, or 1 where its class has none."""
    return int(((data or {}).get("init_args") or {}).get("frame_step", 1))


class TrainParser(OneLineErrors, LightningArgumentParser):
    """The parser of `fit`, `validate` and `test`."""


class VideoCLI(LightningCLI):
    """LightningCLI with a run directory, and checkpoints that go by the names `best` and `last`."""

    run_dir: Path
    start = Start()  # of a training

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The verbs, with those arguments of the Trainer's methods that are not the user's."""
        return {
            "fit": {
                "model",
                "train_dataloaders",
                "val_dataloaders",
                "datamodule",
                "weights_only",
            },
            "validate": {"model", "dataloaders", "datamodule", "weights_only"},
            "test": {"model", "dataloaders", "datamodule", "weights_only", "verbose"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what belongs to neither trainer, model nor data."""
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Directory of the run: configuration, logs and checkpoints. Default: runs/NAME, "
            "where NAME is that of the first configuration file.",
        )
        parser.link_arguments("data.init_args.context_length", "model.context_length")
        parser.link_arguments("data", "model.frame_step", compute_fn=_frame_step)

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        for action in parser._actions:
            if action.dest == "seed_everything":
                action.help = "Seed of the initial weights and of scheduled sampling."
            elif action.dest == "ckpt_path":
                action.help = (
                    "Checkpoint to continue: a file, or best or last of the run's directory."
                    if subcommand == "fit"
                    else "Checkpoint: a file, or best or last of the run's directory. Default: "
                    "best, or last where there is no best."
                )
        text = "What to do if the loss or gradient is NaN or infinite: stop, or skip the step."
        parser.add_argument(  # the other verbs take it because a run's config.yaml has it
            "--nonfinite",
            type=NonFinite,
            default="stop",
            help=text if subcommand == "fit" else SUPPRESS,
        )
        text = (
            "Record the training step as a CUDA graph and replay it: faster where the network is "
            "small. For one CUDA GPU."
        )
        parser.add_argument(  # likewise
            "--cuda_graph",
            type=bool,
            default=False,
            help=text if subcommand == "fit" else SUPPRESS,
        )
        text = (
            "Trained weights to start from: bundled weights (moving-mnist), a file written by "
            "`convlstm export`, or a checkpoint. The network options are those of the weights; the "
            "training options are those of the configuration."
        )
        parser.add_argument(  # likewise: the other verbs look at the run's checkpoint
            "--start_from",
            type=str | None,
            default=None,
            help=text if subcommand == "fit" else SUPPRESS,
        )
        if subcommand == "fit":
            parser.add_argument(
                "--resume",
                action="store_true",
                help="Continue the run in --run_dir from its newest complete checkpoint, as if it "
                "had not stopped. Without a checkpoint, start the run.",
            )
        else:
            parser.add_argument(
                "--pretrained",
                type=str | None,
                default=None,
                help="Instead of a checkpoint: bundled weights (moving-mnist), or a file written "
                "by `convlstm export`. The model options are those of the weights.",
            )
        if subcommand == "test":
            parser.add_argument(
                "--save_forecasts",
                type=str | None,
                default=None,
                help="Folder in which to write a GIF and a film strip of the first test clips.",
            )
            parser.add_argument(
                "--num_forecasts",
                type=int,
                default=16,
                help="Number of clips for which --save_forecasts writes images.",
            )
            parser.add_argument(
                "--thresholds",
                type=list[float],
                default=[],
                help="For nowcasting: values at or above which a pixel is an event, such as rain. "
                "Adds CSI, POD, FAR, HSS and FSS of events. Above 0, at most 1, such as [0.3,0.5].",
            )
            parser.add_argument(
                "--fss_windows",
                type=list[int],
                default=FSS_WINDOWS,
                help="With --thresholds: window sizes of the fractions skill score (FSS), odd "
                "numbers of pixels.",
            )
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, and settles the run's directory and the checkpoint."""
        files = configuration_files(args)
        for path in files:
            mistake = find_mistake(path)
            if mistake is not None:
                parser.error(f"{path}: {mistake}")
        self.config = parser.parse_args(args)
        config = self.config[self.config.subcommand]
        check_values(config)
        self.run_dir = Path(config.run_dir or _default_run_dir(config))
        if not any(word.partition("=")[0] == "--run_dir" for word in args):
            refuse_moved(files, self.run_dir)
        config.run_dir = str(self.run_dir)
        config.trainer.default_root_dir = str(self.run_dir)
        if self.config.subcommand == "fit":
            if config.model.schedule == "onecycle" and config.trainer.max_steps < 1:
                raise ValueError(ENDLESS)  # before there are logs
            self.start = settle_start(config, self.run_dir, args)
            if not config.trainer.fast_dev_run:
                check_folder(self.run_dir)
        else:
            config.ckpt_path = tested_checkpoint(config, self.run_dir, args)
            if self.config.subcommand == "test":
                check_folder(self.run_dir)
                _check_extras(config)

    def _parse_ckpt_path(self) -> None:
        """Takes the model's options from the checkpoint that is tested, as Lightning does.

        A training has been made sure to have those of the checkpoint that it continues.
        """
        if self.config.subcommand != "fit":
            super()._parse_ckpt_path()

    def instantiate_classes(self) -> None:
        """Makes trainer, data and model, with weights to start from or to test."""
        super().instantiate_classes()
        verb = self.config.subcommand
        pretrained = self.config[verb].get("pretrained")
        if pretrained is not None:
            self.model = VideoPredictor.from_pretrained(pretrained)
        if verb == "fit":
            self.start.apply(self.model)
        trained = verb != "fit" or self.start.notice is not None
        check_frames(self.model, self.datamodule, trained)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer, with what every run has."""
        verb = self.config.subcommand
        config = self.config_init[verb]
        callbacks: list[Callback] = []
        if config.trainer.enable_progress_bar is not False:
            callbacks.append(ProgressBar())
        callbacks.append(Termination())
        logger: Any = False
        if verb == "fit":
            logger = config.trainer.logger
            if logger in (None, True):
                # Of a run that died, what was logged behind its checkpoint is logged again.
                purge = self.start.step + 1 if self.start.step else None
                logger = TensorBoardLogger(self.run_dir, name="logs", version="", purge_step=purge)
            callbacks += self._fit_callbacks(config, bool(logger))
        elif verb == "test":
            weights = config.pretrained
            folder = "test" if weights is None else f"test-{Path(weights).stem}"
            callbacks.append(TestReport(self.run_dir / folder))
            if config.thresholds:
                scores = config.thresholds, config.fss_windows
                callbacks.append(NowcastingReport(self.run_dir / folder, *scores))
            if config.save_forecasts is not None:
                pictures = Path(config.save_forecasts)
                callbacks.append(ForecastWriter(pictures, config.num_forecasts))
        trainer_config = {**config.trainer.as_dict(), "logger": logger, **kwargs}
        plugins = [*(trainer_config["plugins"] or []), AtomicCheckpointIO()]
        if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
            # Lightning's requeueing would save in the middle of a step.
            plugins.append(SLURMEnvironment(auto_requeue=False))
        trainer_config["plugins"] = plugins
        try:
            trainer = self._instantiate_trainer(trainer_config, callbacks)
        except TypeError as error:  # of a number of devices below 0, for one
            raise ValueError(str(error)) from error
        if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy):
            raise ValueError(
                f"trainer.strategy {config.trainer.strategy} divides the weights among processes, "
                "which optimizers and checkpoints here do not know: choose ddp"
            )
        return trainer

    def _fit_callbacks(self, config: Any, logs: bool) -> list[Callback]:
        seed = config.seed_everything
        steps: list[Callback] = [
            CommonStart(self.start.step),
            Processor(),
            StepSeeds(0 if isinstance(seed, bool) or seed is None else seed),
            GradientGuard(config.nonfinite),
            *([CUDAGraph()] if config.cuda_graph else []),
        ]
        if config.trainer.fast_dev_run:  # to see that it runs: nothing is written
            return steps
        self._dump_config()
        content = {**self.config_dump, "ckpt_path": None}  # a repetition starts anew
        del content["resume"]
        # On Windows jsonargparse reads files in an encoding of its own.
        plainly = locale.getencoding().lower() not in ("utf-8", "utf8", "cp65001")
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=not plainly)
        folder = self.run_dir / "checkpoints"
        last = LastCheckpoint(folder)
        return [
            Interruption(last),  # first: it may refuse to begin
            RunRecord(self.run_dir, text),
            *steps,
            *([LearningRateMonitor("step"), ValidationWatch()] if logs else []),
            BestCheckpoint(folder),
            last,
        ]

    def fit(self, **kwargs: Any) -> None:
        """Trains, and says what came of it."""
        if self.config.fit.cuda_graph:
            CUDAGraph.check(self.trainer, self.model)  # before anything is written
        console = plain_console(quiet=not self.trainer.is_global_zero)
        if self.trainer.is_global_zero:
            # Lightning opens the logs before it asks for the data.
            self.datamodule.trainer = self.trainer
            self.datamodule.prepare_data()
            self.datamodule.setup("fit")
            self.datamodule.train_dataloader()  # which may find the data too small, as the next
            if self.trainer.limit_val_batches:
                self.datamodule.val_dataloader()
            if about := self.datamodule.describe():
                console.print(about)
        if self.start.notice is not None:
            console.print(self.start.notice)
        count = sum(p.numel() for p in self.model.parameters())
        trial = bool(self.config.fit.trainer.fast_dev_run)
        where = "a trial that writes nothing" if trial else f"the run's directory is {self.run_dir}"
        console.print(f"Training {count:,} parameters; {where}")
        writes = self.trainer.is_global_zero and not trial
        try:
            with claimed(self.run_dir) if writes else nullcontext(), self._signals_told_apart():
                self.trainer.fit(**kwargs)
        except TrainingStopped:
            step = self.trainer.global_step
            console.print(f"Stopped and saved at step {step}: continue with --resume")
            raise
        except FloatingPointError:  # the same on all processes: the first one says it
            if self.trainer.is_global_zero:
                raise
            raise SystemExit(1) from None
        if not trial:
            self._say_what_next(console)

    @contextmanager
    def _signals_told_apart(self) -> Iterator[None]:
        """Lightning ends with status 1 on Ctrl-C, and on SIGTERM with 0, as if all were well."""
        try:
            yield
        except TrainingStopped:  # of all processes
            raise
        except SystemExit as error:
            end_others(self.trainer)
            if self.trainer.received_sigterm or error.code == 128 + signal.SIGTERM:
                print(f"{TrainParser.command}: terminated", file=sys.stderr)
                raise SystemExit(128 + signal.SIGTERM) from None
            if error.code == 1 and self.trainer.interrupted:
                raise KeyboardInterrupt from None
            raise
        except BaseException:
            end_others(self.trainer)
            raise

    def _say_what_next(self, console: Console) -> None:
        """Which checkpoint there is, and what to do with it."""
        folder = self.run_dir / "checkpoints"
        # The user may have added others.
        best = next(
            (c for c in self.trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)), None
        )
        if best is not None and best.best_model_path:
            # Processes that were spawned take the score with them.
            score = best.best_model_score
            told = "" if score is None else f" (val/mse {score:.2f})"
            console.print(f"Best checkpoint: {folder / 'best.ckpt'}{told}")
        else:
            step = self.trainer.global_step
            told = f"step {step}; " if step else ""  # processes that were spawned take it with them
            console.print(f"Checkpoint: {folder / 'last.ckpt'} ({told}no validation, so no best)")
        console.print(f"Test it: convlstm test -c {quoted(self.run_dir / 'config.yaml')}")

    def validate(self, **kwargs: Any) -> None:
        """Validates, and says what."""
        self._refuse_nothing("limit_val_batches")
        self._say_whose_metrics("Validating")
        with self._signals_told_apart():
            self.trainer.validate(**kwargs)

    def test(self, **kwargs: Any) -> None:
        """Tests without Lightning's own table, and says what."""
        self._refuse_nothing("limit_test_batches")
        self._say_whose_metrics("Testing")
        with self._signals_told_apart():
            self.trainer.test(**kwargs, verbose=False)

    def _refuse_nothing(self, option: str) -> None:
        if getattr(self.trainer, option) == 0:
            raise ValueError(f"--trainer.{option} is 0, which leaves nothing: give a larger one")

    def _say_whose_metrics(self, doing: str) -> None:
        config = self.config[self.config.subcommand]
        console = plain_console(quiet=not self.trainer.is_global_zero)
        console.print(f"{doing} {config.ckpt_path or f'the weights {config.pretrained}'}")


def _check_extras(config: Any) -> None:
    """Refuses, before the test, what would fail after it or do nothing."""
    if config.fss_windows != FSS_WINDOWS and not config.thresholds:
        raise ValueError("--fss_windows is for the scores of --thresholds: give these, too")
    if config.num_forecasts < 1:
        raise ValueError(f"--num_forecasts must be >= 1, got {config.num_forecasts}")
    if config.save_forecasts is not None:
        check_folder(Path(config.save_forecasts))


def _default_run_dir(config: Any) -> Path:
    files = config.config or []
    return Path("runs") / (Path(str(files[0])).stem if files else "run")
