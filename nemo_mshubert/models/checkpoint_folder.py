# Copyright (c) 2026, The nemo_mshubert authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""The folder of a run's checkpoints: of one run alone, and after a kill with what NeMo can go on from."""

import os
import shutil
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import List

import lightning.pytorch as pl
from nemo.constants import NEMO_ENV_VARNAME_VERSION
from nemo.utils import logging
from nemo.utils.callbacks.nemo_model_checkpoint import NeMoModelCheckpoint
from nemo.utils.exp_manager import get_log_dir
from omegaconf import DictConfig

from nemo_mshubert.models.run_lock import hold_folder
from nemo_mshubert.whole_files import atomic_path, remove_left_over

NO_SCORE = "=nan-"  # in the name of a checkpoint
PATIENCE_SECONDS = 1200.0  # of other ranks, while rank 0 copies what may be gigabytes


def checkpoint_folder(exp_manager_config: DictConfig) -> Path:
    """Where NeMo's exp_manager keeps the checkpoints of a run. Of one that does not resume it chooses the version
    now."""
    config = exp_manager_config
    runs = "nemo_experiments" if config.get("exp_dir") is None else config.exp_dir
    log_folder = config.get("explicit_log_dir") or Path(runs) / (config.name or "default") / _version(config)
    return Path(config.checkpoint_callback_params.get("dirpath") or Path(log_folder) / "checkpoints")


def _version(config: DictConfig) -> str:
    """That of the run, if any. NeMo notes in the environment which it has chosen, and asks there first."""
    version = config.get("version") or os.environ.get(NEMO_ENV_VARNAME_VERSION)
    if not version and not config.get("resume_if_exists", True):
        new = {name: config[name] for name in ("exp_dir", "name", "use_datetime_version") if name in config}
        *_, version = get_log_dir(SimpleNamespace(logger=None), **new)
    return version or ""


def claim_folder(folder: Path, save_top_k: int, trainer: pl.Trainer) -> None:
    """Have this run alone in the folder of its checkpoints (`run_lock.hold_folder`), and go on from what is there
    (`keep_whole_checkpoints`): rank 0 does so, and the others wait until it has.

    Raises:
        RuntimeError: another run is under way in the folder.
    """
    hold_folder(folder, trainer)
    if trainer.is_global_zero:
        keep_whole_checkpoints(folder, save_top_k)
        return
    # Not all ranks: a second run in the folder is found out by its rank 0 alone, and the checkpoint that the first run
    # is writing looks like one that was left unfinished.
    end = time.monotonic() + PATIENCE_SECONDS
    while not _is_in_order(folder, save_top_k):
        if time.monotonic() > end:
            raise RuntimeError(
                f"{folder}: rank 0 has not set its checkpoints in order within {PATIENCE_SECONDS:g} s. See its log: "
                "it may have ended, or another run writes checkpoints there."
            )
        time.sleep(1)


def keep_whole_checkpoints(folder: Path, save_top_k: int = 1) -> None:
    """Leave what a run can go on from, where it was killed while it wrote a checkpoint: NeMo would stop and ask for
    that. Checkpoints are in folders below where their metric has a slash in its name.

    Unfinished checkpoints and ``.nemo`` files go, damaged ones are set aside under another name. Of several last ones
    the newest stays; where there is none, the newest other one, which holds as much, becomes it. One whose score is
    not a number, which NeMo cannot read back from its name, is set aside. So are the best ones where the run no longer
    keeps any (``save_top_k`` 0), as without a validation: NeMo would delete them, and stop.
    """
    remove_left_over(folder)
    for marker in _markers(folder):
        name = marker.name.removesuffix(NeMoModelCheckpoint.UNFINISHED_CHECKPOINT_SUFFIX)
        unfinished = marker.with_name(f"{name}.ckpt")
        logging.warning(f"{unfinished}: the run was killed while it was written; it is removed.")
        unfinished.unlink(missing_ok=True)
        marker.unlink()
    for path in filter(_is_damaged, _checkpoints(folder)):
        _set_aside(path, "damaged")
        logging.warning(
            f"{path}: damaged, since the end of the file is missing. It is now {path.name}.damaged, and the run goes "
            "on from the newest whole checkpoint; copy it again if you have it elsewhere."
        )
    newest_first = sorted(_checkpoints(folder), key=lambda path: path.stat().st_mtime, reverse=True)
    last = [path for path in newest_first if _is_last(path)]
    for path in last[1:]:
        path.unlink()
    if newest_first and not last:
        path = newest_first[0]
        logging.warning(f"{path}: the newest whole checkpoint, from which the run goes on.")
        with atomic_path(path.with_name(f"{path.stem}-last.ckpt")) as copy:
            shutil.copy(path, copy)
    for path in _unwanted(folder, save_top_k):
        _set_aside(path, "nan" if NO_SCORE in path.name else "best")


def _is_in_order(folder: Path, save_top_k: int) -> bool:
    """Whether there is nothing for `keep_whole_checkpoints` to do."""
    checkpoints = _checkpoints(folder)
    one_is_last = sum(map(_is_last, checkpoints)) == bool(checkpoints)
    try:
        is_broken = any(_markers(folder)) or any(map(_is_damaged, checkpoints))
    except FileNotFoundError:  # at work
        return False
    return one_is_last and not is_broken and not _unwanted(folder, save_top_k)


def _unwanted(folder: Path, save_top_k: int) -> List[Path]:
    """Checkpoints besides the last one that NeMo cannot read, or would delete."""
    checkpoints = [path for path in _checkpoints(folder) if not _is_last(path)]
    return [path for path in checkpoints if save_top_k == 0 or NO_SCORE in path.name]


def _markers(folder: Path) -> List[Path]:
    """NeMo's, beside checkpoints that are being written."""
    return _files(folder, f"*{NeMoModelCheckpoint.UNFINISHED_CHECKPOINT_SUFFIX}")


def _checkpoints(folder: Path) -> List[Path]:
    return _files(folder, "*.ckpt")


def _files(folder: Path, pattern: str) -> List[Path]:
    """Those of the run: names are ``<run>--<metric>=...``, where a slash in that of the metric makes folders. What is
    in others, the user has put there."""
    return [*folder.glob(pattern), *folder.glob(f"*--*/**/{pattern}")]


def _is_last(path: Path) -> bool:
    return path.stem.endswith("last")


def _is_damaged(path: Path) -> bool:
    """By the end of the file: one that was cut off, as by a full disk or a copy, has none."""
    with open(path, "rb") as stream:
        return not zipfile.is_zipfile(stream)


def _set_aside(path: Path, suffix: str) -> None:
    """Give it a name that NeMo does not read."""
    os.replace(path, path.with_name(f"{path.name}.{suffix}"))
