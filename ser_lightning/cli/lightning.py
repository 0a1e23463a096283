"""`fit`, `validate`, `test` and `predict`: LightningCLI with composable YAMLs, one folder a run, one line a problem."""

import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from jsonargparse import Namespace
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ModelSummary, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from tqdm.contrib.logging import logging_redirect_tqdm

from ser_lightning.callbacks.evolution import EvolutionCallback
from ser_lightning.callbacks.progress import ParameterLine, PhaseProgressBar
from ser_lightning.cli.arguments import Arguments
from ser_lightning.cli.commands import COMMANDS, PROGRAM, RUNS
from ser_lightning.cli.diagnosis import Diagnosis, ParseError, null_problems
from ser_lightning.datamodules.base import PairFiles, model_problems
from ser_lightning.errors import NothingToDo, Terminated, UserError, raise_problems
from ser_lightning.modules.policy_base import PolicyModule
from ser_lightning.report.outcome import next_steps, same_flags
from ser_lightning.runs.files import ROUNDS, is_run, read_rounds
from ser_lightning.runs.folder import (
    RUN_DIR_VARIABLE,
    MetricsFile,
    RunFolder,
    choose_folder,
    lock,
    recorded_config,
    tidy,
    unlock,
)
from ser_lightning.settings.refused import MODULES, lightning_problems, model_name, trust_problems
from ser_lightning.training.checkpoints import LAST, CheckpointsInPlace, LastCheckpoint
from ser_lightning.training.rank_failure import FOLLOW_UP_SECONDS, EndAfterSigterm, end_with_parent, lost_rank
from ser_lightning.training.strategies import strategy_problems, supported_accelerator
from ser_lightning.utils.quiet import LOGGERS, plain_warnings
from ser_lightning.utils.terminal import say, visible


class Parser(LightningArgumentParser):
    """Raises what is wrong instead of printing it with a page of usage."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Called by argparse and jsonargparse for any problem."""
        raise ParseError(message) from ex


class SerCLI(LightningCLI):
    """The command line of a run."""

    def __init__(self, arguments: Arguments) -> None:
        self.arguments = arguments
        self._lock: IO[str] | None = None
        self._chosen: Path | None = None
        try:
            self._run()
        except BaseException:
            self._unlock()
            if self._chosen is not None and not _get_rank():
                tidy(self._chosen)
            raise
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            unlock(self._lock)

    def _run(self) -> None:
        super().__init__(
            LightningModule,
            LightningDataModule,
            save_config_callback=None,
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={"prog": PROGRAM, "allow_abbrev": False},
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # no module saves its hyper-parameters, and dumping them takes long
            args=self.arguments.tokens(),
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # a static method in Lightning
        """The one command of the command line: a parser for each of all four takes four times as long to build."""
        return {self.arguments.command: super().subcommands()[self.arguments.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what every command takes."""
        parser.add_argument(
            "--run_dir",
            type=str | None,
            help="Folder of the run; a new one under runs/ by default. One that holds a run needs --ckpt_path.",
        )
        parser.add_argument(
            "--evolution",
            type=EvolutionCallback | None,
            default=None,
            help="The rounds of self-evolution of a reward model; null trains it on the seed alone.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the command line, or raise a `UserError` with a line for every problem in it."""
        if not self.arguments.configs:
            run_dir, ckpt_path = self.arguments.value("--run_dir"), self.arguments.value("--ckpt_path")
            recorded = recorded_config(run_dir, ckpt_path, names_model=bool(self.arguments.model_class()))
            self.arguments.configs += [str(recorded)] if recorded else []
        try:
            self.config = parser.parse_args(self.arguments.tokens())
        except (ParseError, UnicodeDecodeError) as error:
            parser.__dict__.pop("print_config", None)
            problems = Diagnosis(parser.parse_args, self.arguments).run()
            raise UserError(problems or " ".join(str(error).split())) from None
        config = self.config[self.arguments.command]
        raise_problems(
            [*trust_problems(config, self.arguments.flags), *lightning_problems(self.arguments.command, config)]
        )

    @property
    def command(self) -> str:
        """The command's name."""
        return str(self.subcommand)

    def _parse_ckpt_path(self) -> None:
        """Leave the config as it is: the command line wins over the hyper-parameters that a checkpoint remembers."""

    def before_instantiate_classes(self) -> None:
        """Choose the run folder and point everything that writes at it."""
        config = self.config[self.subcommand]
        strategy = config.trainer.strategy
        raise_problems(strategy_problems(strategy if isinstance(strategy, str) else strategy.class_path))
        if "weights_only" in config and config.weights_only is None:
            config.weights_only = True  # a checkpoint is read as data: one from elsewhere can run no code
        parts = Namespace({key: config.get(key) for key in ("model", "data", "evolution")})
        if "verbose" in config and model_name(config) in MODULES:
            config.verbose = False  # the table of `EvaluationCallback` has digits that mean something
        raise_problems([*null_problems(parts), *null_problems(config.trainer, "trainer", Trainer)])
        if config.trainer.default_root_dir is not None:
            raise UserError(
                f"trainer.default_root_dir: got {config.trainer.default_root_dir}; name the run folder with --run_dir"
            )
        is_student = any(Path(path).name == "student.yaml" for path in self.arguments.configs)
        if is_student and self.command == "fit" and not config.get("data.init_args.teacher"):
            rank_zero_warn(
                "data.teacher: got none with student.yaml, so that it trains on the seed labels alone; name the "
                "finished run that teaches with --data.teacher RUN"
            )
        self.recipe = self._dump_recipe(config)
        config.trainer.accelerator = supported_accelerator(config.trainer.accelerator)
        self.run_folder = self._choose_folder(config)
        self._chosen = self.run_folder.path
        if config.get("ckpt_path"):
            config.ckpt_path = self.run_folder.ckpt_path
        config.trainer.default_root_dir = str(self.run_folder.path)
        for logger in _as_list(config.trainer.logger):
            init_args = logger.get("init_args") if isinstance(logger, Namespace) else None
            if init_args is not None and init_args.get("save_dir") in ("", "."):
                init_args.save_dir = str(self.run_folder.path)

    def _dump_recipe(self, config: Namespace) -> str:
        """The resolved config without what belongs to this one start: replaying it makes the same run elsewhere."""
        recipe = config.clone()
        for key in ("config", "run_dir", *self._subcommand_method_arguments[self.command]):
            recipe.pop(key, None)
        return self._parser(self.subcommand).dump(recipe, skip_none=False, skip_validation=True)

    def _choose_folder(self, config: Namespace) -> RunFolder:
        if _get_rank():
            return RunFolder(self._folder_of_rank_zero(config), _last_of(config), continues=False)
        first = Path(self.arguments.configs[0]) if self.arguments.configs else Path("run")
        stem = first.parent.name if is_run(first.parent) else first.stem  # a run that goes on from another
        folder = choose_folder(self.command, config.run_dir, config.ckpt_path, stem)
        if self.command == "fit":
            self._lock = lock(folder.path)  # and look again: who had it may have made a run of the folder
            folder = choose_folder(self.command, config.run_dir or str(folder.path), config.ckpt_path, stem)
        folder.check_same_config(self.recipe)
        os.environ[RUN_DIR_VARIABLE] = str(folder.path)
        return folder

    def _folder_of_rank_zero(self, config: Namespace) -> Path:
        name = os.environ.get(RUN_DIR_VARIABLE) or config.run_dir
        if not name:
            raise UserError("--run_dir: got none, but the ranks were started one by one; name one folder for all")
        return Path(name)

    def instantiate_classes(self) -> None:
        """Instantiate everything; `UserError` with the problems of all parts, not only of the first."""
        try:
            super().instantiate_classes()
        except Exception as error:
            problems = dict.fromkeys(_user_problems(error))
            parts: dict[str, Any] = {}
            for key in ("model", "data", "evolution", "trainer") if problems else ():
                problems |= dict.fromkeys(self._problems_of(key, parts))
            if problems:
                problems |= dict.fromkeys(self._start_problems(parts.get("model"), parts.get("data")))
                raise UserError(problems) from error
            raise
        raise_problems(self._start_problems(self.model, self.datamodule))

    def _problems_of(self, key: str, parts: dict[str, Any]) -> list[str]:
        """Those of making one part; what could be made comes into `parts`."""
        part = Namespace({key: self.config[self.subcommand].get(key)})
        try:
            parts[key] = self._parser(self.subcommand).instantiate_classes(part)[key]
        except Exception as error:
            return _user_problems(error)
        return []

    def _start_problems(self, model: Any, data: Any) -> list[str]:
        if isinstance(data, PairFiles):
            return data.start_problems(model)
        return model_problems(model, self.config[self.subcommand].get("data.init_args.max_length"))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with this project's callbacks and metrics file; its own objections become a `UserError`."""
        config = self._get(self.config_init, "trainer")
        evolution = self._get(self.config_init, "evolution")
        given = [*_as_list(config.callbacks), *_as_list(evolution)]  # last: it labels when all others have looked
        config.callbacks = [*_shown(given, config), *given, *self._own_callbacks(given, config)]
        if not _holds(_as_list(config.plugins), CheckpointIO):
            config.plugins = [*_as_list(config.plugins), CheckpointsInPlace()]
        if config.logger is not False:
            name = "metrics.csv" if self.subcommand == "fit" else f"metrics-{self.subcommand}.csv"
            config.logger = [MetricsFile(self.run_folder.path / name), *_as_list(config.logger)]
        try:
            trainer = super().instantiate_trainer(**kwargs)
            use_tensor_cores(trainer.strategy.root_device)
            return trainer
        except (MisconfigurationException, ValueError, TypeError) as error:
            if "invalid strategy name" in str(error):
                raise UserError(f"trainer.strategy: got {config.strategy}; use auto, ddp or fsdp") from error
            fix = "; use trainer.accelerator auto or cpu" if "backend found" in str(error) else ""
            raise UserError(f"trainer: {' '.join(str(error).split())}{fix}") from error

    def _own_callbacks(self, given: list[Callback], config: Namespace) -> Iterator[Callback]:
        folder = self.run_folder.path
        yield from _reading_callbacks(self.command, self.model, given)
        checkpoints = [callback for callback in given if isinstance(callback, ModelCheckpoint)]
        for callback in checkpoints:
            callback.dirpath = callback.dirpath or str(folder / LAST.parent)
        if self.subcommand == "fit" and config.enable_checkpointing is not False:
            yield LastCheckpoint(folder / LAST)
        if self.subcommand == "fit":
            yield EndAfterSigterm()

    def _how_to_go_on(self) -> str:
        """One line for a run that was interrupted."""
        folder = self.run_folder.path
        if self.command == "fit" and (folder / LAST).is_file():
            run = shlex.quote(str(folder))
            return f"interrupted; go on with python -m ser_lightning fit --run_dir {run} --ckpt_path last"
        if self.command == "fit":
            return f"interrupted before anything was saved in {folder}; give the same command again"
        return "interrupted; give the same command again"

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """A fit that goes on says so from the start: its module need not choose what the checkpoint holds."""
        arguments: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "fit":
            self.trainer.ckpt_path = arguments.pop("ckpt_path", None)
        return arguments

    def _run_subcommand(self, subcommand: str) -> None:
        if not _get_rank():
            self.run_folder.open(self.recipe)
            say(f"run folder: {self.run_folder.path}")
        try:
            super()._run_subcommand(subcommand)
        except (SIGTERMException, Terminated, SystemExit) as stop:
            if self.trainer.state.status != TrainerStatus.INTERRUPTED:
                raise
            number = signal.SIGTERM if isinstance(stop, SIGTERMException | Terminated) else signal.SIGINT
            if not _get_rank():
                print(visible(self._how_to_go_on()), file=sys.stderr, flush=True)
            raise SystemExit(128 + number) from None
        except NothingToDo as error:
            if self.arguments.value("--ckpt_path") != "auto":
                raise
            say(f"nothing to do: {error}")
            return
        if subcommand == "fit" and not _get_rank():
            say(*self._next_steps())

    def _next_steps(self) -> list[str]:
        """What to do with a run that is finished, where it left something."""
        run, commands = self.run_folder.path, [*RUNS, *COMMANDS]
        name = shlex.quote(str(run))
        if (run / ROUNDS).is_file():
            has_pool = read_rounds(run)[-1]["scored"] > 0
            return next_steps(PROGRAM, name, [one for one in commands if has_pool or one != "label"])
        if not isinstance(self.model, PolicyModule) or not (run / LAST).is_file():
            return []
        same = same_flags(self.model.backbone, self.datamodule.paths["path"])
        return next_steps(PROGRAM, name, commands, self.model.use, same)


def run(arguments: Arguments) -> None:
    """Run one command line; `UserError` for what its user can mend."""
    if _get_rank() and RUN_DIR_VARIABLE in os.environ:  # started by rank 0, not one by one
        end_with_parent()
    plain_warnings()
    try:
        with logging_redirect_tqdm([logging.getLogger(name) for name in LOGGERS]):
            SerCLI(arguments)
    except MisconfigurationException as error:
        raise UserError(" ".join(str(error).split())) from error
    except torch.OutOfMemoryError as error:
        raise UserError(out_of_memory(error)) from error
    except RuntimeError as error:
        lost = lost_rank(error)
        if lost is None:
            raise
        time.sleep(FOLLOW_UP_SECONDS)
        raise UserError(lost) from error
    finally:
        if not _get_rank():
            os.environ.pop(RUN_DIR_VARIABLE, None)


def out_of_memory(error: BaseException) -> str:
    """One line for PyTorch's many."""
    text = " ".join(str(error).split()).split(". ")
    tried = next((part for part in text if part.startswith("Tried to allocate")), "a batch does not fit")
    return (
        f"out of memory on the GPU ({tried[0].lower()}{tried[1:]}); halve tokens_per_batch where it trained, "
        "tokens_per_scoring_batch where it scored or tokens_per_sampling_batch where it sampled (the result stays the "
        "same), or set model.backbone.gradient_checkpointing"
    )


def use_tensor_cores(device: torch.device) -> None:
    """Products of float32 in TF32 on CUDA, as most trainings have them, unless something else was set before.

    PyTorch leaves it to be asked for, and Lightning's config has no place to.
    """
    if device.type == "cuda" and torch.get_float32_matmul_precision() == "highest":
        torch.set_float32_matmul_precision("high")
        rank_zero_info("Precision: products of float32 are in TF32 on this GPU.")


def _user_problems(error: BaseException | None) -> list[str]:
    """What the user's or Lightning's error says that `error` is or wraps: jsonargparse reports all as its own."""
    while error is not None and not isinstance(error, UserError | MisconfigurationException):
        error = error.__cause__ or error.__context__
    if isinstance(error, MisconfigurationException):
        return [" ".join(str(error).split())]
    return [] if error is None else error.problems


def _reading_callbacks(command: str, model: LightningModule, given: list[Callback]) -> Iterator[Callback]:
    """What writes down what `predict`, `validate` and `test` find; imported for these alone, with all that it needs."""
    if command == "predict":
        from ser_lightning.callbacks.prediction_writers import PoolWriter, PredictionWriter
        from ser_lightning.modules.generate import GenerateModule

        writer = PoolWriter if isinstance(model, GenerateModule) else PredictionWriter
        if not _holds(given, writer):
            yield writer()
    elif command in ("validate", "test"):
        from ser_lightning.callbacks.evaluation import EvaluationCallback

        if not _holds(given, EvaluationCallback):
            yield EvaluationCallback()


def _shown(given: list[Callback], config: Namespace) -> Iterator[Callback]:
    """What shows the run, first: its line is over before the others print something."""
    if config.enable_progress_bar is not False and not _holds(given, ProgressBar):
        yield PhaseProgressBar()
    if config.enable_model_summary is not False and not _holds(given, ModelSummary):
        yield ParameterLine()


def _holds(callbacks: list[Any], kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)


def _as_list(value: Any) -> list[Any]:
    """A setting that may be one, several or none as a list; `True` and `False` name no object."""
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _last_of(config: Namespace) -> str | None:
    """The checkpoint as a rank other than 0 finds it: the folder is rank 0's, which has checked it."""
    if config.ckpt_path not in ("last", "auto"):
        return config.ckpt_path
    path = Path(os.environ.get(RUN_DIR_VARIABLE) or config.run_dir or "") / LAST
    return str(path) if config.ckpt_path == "last" or path.exists() else None
