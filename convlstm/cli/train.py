"""`convlstm fit | validate | test`: Lightning's own command line around predictor and data."""

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console

import datamodules  # noqa: F401 (so that configs may name its classes without the package)
from convlstm.callbacks import (
    AtomicCheckpointIO,
    ForecastWriter,
    ProgressBar,
    RunRecord,
    TestReport,
    run_checkpoints,
)
from convlstm.checkpoint import read_checkpoint
from convlstm.cli.parser import OneLineErrors
from convlstm.module import VideoPredictor
from datamodules import VideoDataModule

DESCRIPTIONS = {
    "fit": "Train a model: convlstm fit -c configs/moving_mnist.yaml [--KEY VALUE ...]. Every key "
    "of the configuration is also an option, such as --trainer.max_steps 2000, "
    "--model.learning_rate 0.0005 or --data.batch_size 8.",
    "validate": "Metrics of a trained model on the validation split: convlstm validate -c "
    "runs/moving_mnist/config.yaml.",
    "test": "Metrics of a trained model on the test split, beside those of repeating the last "
    "frame: convlstm test -c runs/moving_mnist/config.yaml.",
}

SILENCED = (
    ".*does not have many workers.*",  # Moving MNIST is drawn faster than any model reads it
    ".*Checkpoint directory .* exists and is not empty.*",  # a run that goes on
    ".*callbacks used to create the checkpoint.*",  # a test needs no checkpoint callback
    ".*`max_epochs` was not set.*",
    ".*number of training batches .* smaller than the logging interval.*",
    ".*LeafSpec.*is deprecated.*",  # Lightning 2.6.6 on torch 2.14
    "(?s).*deprecated.*will be removed in v5",  # Lightning 2.6.6 on jsonargparse 4.53, this
    "(?s).*JSONARGPARSE_DEPRECATION_WARNINGS",  # and this
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
        except MisconfigurationException as error:
            raise ValueError(str(error)) from error
        except ValueError as error:
            # jsonargparse wraps what a class says of its arguments in an account of their types.
            if isinstance(error.__cause__, ValueError):
                raise error.__cause__ from None
            raise
    return 0


class TrainParser(OneLineErrors, LightningArgumentParser):
    """The parser of `fit`, `validate` and `test`."""


class VideoCLI(LightningCLI):
    """LightningCLI with a run directory, and checkpoints that go by the names `best` and `last`."""

    run_dir: Path

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
            help="The run's directory: configuration, logs and checkpoints. Default: runs/NAME, "
            "NAME being that of the first configuration file.",
        )
        parser.link_arguments("data.init_args.context_length", "model.context_length")

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "test":
            parser.add_argument(
                "--save_forecasts",
                type=str | None,
                default=None,
                help="A folder for a GIF and a film strip of each of the first test clips.",
            )
            parser.add_argument(
                "--num_forecasts",
                type=int,
                default=16,
                help="For how many clips --save_forecasts writes pictures.",
            )
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, and settles the run's directory and the checkpoint."""
        self.config = parser.parse_args(args)
        config = self.config[self.config.subcommand]
        self.run_dir = Path(config.run_dir or _default_run_dir(config))
        config.run_dir = str(self.run_dir)
        config.trainer.default_root_dir = str(self.run_dir)
        self._settle_checkpoint(config)

    def _settle_checkpoint(self, config: Any) -> None:
        """Turns `best` and `last` into paths; a test without a checkpoint takes the best."""
        folder = self.run_dir / "checkpoints"
        name = config.ckpt_path
        if self.config.subcommand == "fit":
            existing = sorted(folder.glob("*.ckpt"))
            if name is None and existing:
                raise ValueError(
                    f"{self.run_dir} already holds a run: continue it with --ckpt_path last, or "
                    "name another --run_dir"
                )
        elif name is None:
            name = "best"
        if name in ("best", "last"):
            name = str(folder / f"{name}.ckpt")
        if name is not None:
            checkpoint = read_checkpoint(name)
            config.ckpt_path = name
            for schedule in checkpoint.get("lr_schedulers", ()):
                steps = schedule.get("total_steps", config.trainer.max_steps)
                if self.config.subcommand == "fit" and steps != config.trainer.max_steps:
                    raise ValueError(
                        f"the learning rate of {name} was planned for {steps} steps: continue it "
                        f"with --trainer.max_steps {steps}, not {config.trainer.max_steps}"
                    )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer, with what every run has."""
        verb = self.config.subcommand
        config = self.config_init[verb]
        callbacks: list[Callback] = []
        if config.trainer.enable_progress_bar is not False:
            callbacks.append(ProgressBar())
        logger: Any = False
        if verb == "fit":
            self._dump_config()
            content = {**self.config_dump, "ckpt_path": None}  # a repetition starts anew
            text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
            callbacks += [RunRecord(self.run_dir, text), *run_checkpoints(self.run_dir)]
            logger = config.trainer.logger
            if logger in (None, True):
                logger = TensorBoardLogger(self.run_dir, name="logs", version="")
            if logger:
                callbacks.append(LearningRateMonitor("step"))
        elif verb == "test":
            callbacks.append(TestReport(self.run_dir / "test"))
            if config.save_forecasts is not None:
                folder = Path(config.save_forecasts)
                callbacks.append(ForecastWriter(folder, config.num_forecasts))
        trainer_config = {**config.trainer.as_dict(), "logger": logger, **kwargs}
        trainer_config["plugins"] = [*(trainer_config["plugins"] or []), AtomicCheckpointIO()]
        return self._instantiate_trainer(trainer_config, callbacks)

    def fit(self, **kwargs: Any) -> None:
        """Trains, and says what came of it."""
        count = sum(p.numel() for p in self.model.parameters())
        console = Console(soft_wrap=True, highlight=False)
        console.print(f"Training {count:,} parameters; the run's directory is {self.run_dir}")
        try:
            self.trainer.fit(**kwargs)
        except SystemExit as error:  # Lightning makes this of Ctrl-C, with status 1
            if error.code == 1 and self.trainer.interrupted:
                raise KeyboardInterrupt from None
            raise
        best = self.trainer.checkpoint_callback
        if isinstance(best, ModelCheckpoint) and best.best_model_score is not None:
            score = f"val/mse {best.best_model_score:.2f}"
            console.print(
                f"Best checkpoint: {self.run_dir / 'checkpoints' / 'best.ckpt'} ({score})"
            )

    def test(self, **kwargs: Any) -> None:
        """Tests without Lightning's own table."""
        self.trainer.test(**kwargs, verbose=False)


def _default_run_dir(config: Any) -> Path:
    files = config.config or []
    return Path("runs") / (Path(str(files[0])).stem if files else "run")
