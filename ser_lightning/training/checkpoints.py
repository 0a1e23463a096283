"""The checkpoints of a run: written so that a kill at any moment leaves a whole one, and found again."""

import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from ser_lightning.errors import UserError, describe
from ser_lightning.utils.atomic import write_atomically

LAST = Path("checkpoints") / "last.ckpt"
PREVIOUS = "previous.ckpt"
_PARTS = {"state_dict": dict, "callbacks": dict, "loops": dict, "epoch": int, "global_step": int}
"""The parts of a checkpoint, and their types."""


def find_checkpoint(folder: Path | None, ckpt_path: str) -> Path | None:
    """The checkpoint that `--ckpt_path` means; None where `auto` finds nothing to go on with.

    Args:
        folder: the folder of the run, None if the user named none.
        ckpt_path: a path, `last` for the folder's own, or `auto` for `last` if there is one.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if ckpt_path in ("last", "auto"):
        if folder is None:
            raise UserError(f"--ckpt_path: got {ckpt_path} without a run; name its folder with --run_dir")
        path = folder / LAST
        if not path.exists() and ckpt_path == "auto":
            return None
        if not path.exists():
            raise UserError(
                f"--ckpt_path: got last, but there is no {path}; auto starts anew where there is nothing to resume"
            )
    else:
        path = Path(ckpt_path)
        if not path.exists():
            raise UserError(f"--ckpt_path: got {path}, which does not exist; give a checkpoint, `last` or `auto`")
    if not is_whole(path):
        good = newest_whole(path.parent)
        fix = f"go on from the newest good one with --ckpt_path {good}" if good else "no good one lies beside it"
        raise UserError(f"--ckpt_path: got {path}, which is damaged (cut off or not a checkpoint); {fix}")
    return path


def is_whole(path: Path) -> bool:
    """Whether a checkpoint matches the checksums in it; reads it whole. Folders are not checked."""
    if path.is_dir():  # as sharded strategies write them
        return True
    try:
        with zipfile.ZipFile(path) as parts:
            return parts.testzip() is None
    except OSError:
        raise
    except Exception:  # the reader of zip files fails on damage in many ways
        return False


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint in a folder that is not damaged."""
    found = [path for path in folder.glob("*.ckpt") if is_whole(path)]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


class CheckpointsInPlace(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it; Lightning's own passes through the temporary folder."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Save to a local path, whole or not at all."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            write_atomically(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load what Lightning has saved, and nothing else; `UserError` if the file is something else."""
        try:
            checkpoint = super().load_checkpoint(path, *args, **kwargs)
        except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, EOFError) as error:
            raise UserError(f"--ckpt_path: got {path}, which is no checkpoint ({describe(error)[:150]})") from error
        wrong = [
            k
            for k, kind in _PARTS.items()
            if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(k), kind)
        ]
        if wrong:
            raise UserError(f"--ckpt_path: got {path}, which holds no {wrong[0]}; give a checkpoint of a fit")
        return checkpoint


class LastCheckpoint(Checkpoint):
    """Saves `last.ckpt` at the end of every training epoch, after all other callbacks, and keeps the one before.

    `ModelCheckpoint(save_last=True)` copies a file only where it saves a second one beside it, and skips an epoch
    without an optimiser step, whose labels may have changed all the same.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save beside the last checkpoint and swap the two."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set at run time
            return
        temporary = self.path.with_name(f"{self.path.name}.new")
        trainer.save_checkpoint(temporary, weights_only=False)
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            _swap(temporary, self.path)
        trainer.strategy.barrier()


def _swap(new: Path, path: Path) -> None:
    """Put `new` in the place of `path`, which becomes the previous one; at every moment one of them is whole."""
    previous = path.with_name(PREVIOUS)
    if not new.is_file():  # sharded strategies save folders, which cannot be replaced in one go
        shutil.rmtree(previous, ignore_errors=True)
        if path.exists():
            os.replace(path, previous)
        os.replace(new, path)
        return
    with new.open("rb") as file:
        os.fsync(file.fileno())
    if path.exists():
        linked = path.with_name(f"{PREVIOUS}.new")
        linked.unlink(missing_ok=True)
        try:
            os.link(path, linked)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, linked)
        os.replace(linked, previous)
    os.replace(new, path)
