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

"""The folder of a run's checkpoints: used by one run only, and put in order after a kill so that NeMo can resume."""

import os
import re
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
PATIENCE_SECONDS = 1200.0  # that other ranks wait, while rank 0 may be copying gigabytes


def checkpoint_folder(exp_manager_config: DictConfig) -> Path:
    """Where NeMo's exp_manager keeps the checkpoints of a run. If the run does not resume, its version is chosen
    now. Raises ``ValueError`` for a name with a slash, which would put them elsewhere."""
    config = exp_manager_config
    if os.sep in str(config.name):
        raise ValueError(
            f"name={config.name}: checkpoints have the run's name, and the slash would put them into folders in which "
            f"no run looks for them. Name it {Path(config.name).name}; exp_manager.exp_dir takes folders."
        )
    runs = "nemo_experiments" if config.get("exp_dir") is None else config.exp_dir
    log_folder = config.get("explicit_log_dir") or Path(runs) / (config.name or "default") / _version(config)
    return Path(config.checkpoint_callback_params.get("dirpath") or Path(log_folder) / "checkpoints")


def _version(config: DictConfig) -> str:
    """The version of the run, if any. NeMo stores its choice in the environment, and looks there first."""
    version = config.get("version") or os.environ.get(NEMO_ENV_VARNAME_VERSION)
    if not version and not config.get("resume_if_exists", True):
        new = {name: config[name] for name in ("exp_dir", "name", "use_datetime_version") if name in config}
        *_, version = get_log_dir(SimpleNamespace(logger=None), **new)
    return version or ""


def claim_folder(folder: Path, save_top_k: int, trainer: pl.Trainer) -> None:
    """Keep other runs out of the folder of checkpoints (`run_lock.hold_folder`), and prepare its files for resuming
    (`keep_whole_checkpoints`). Rank 0 does this, and the others wait for it.

    Raises:
        RuntimeError: another run is under way in the folder.
    """
    hold_folder(folder, trainer)
    if trainer.is_global_zero:
        keep_whole_checkpoints(folder, save_top_k)
        return
    # Only rank 0: if this is a second run in the folder, only its rank 0 finds that out, and the checkpoint that the
    # first run is writing looks like one that was left unfinished.
    end = time.monotonic() + PATIENCE_SECONDS
    while not _is_in_order(folder, save_top_k):
        if time.monotonic() > end:
            raise RuntimeError(
                f"{folder}: rank 0 has not set its checkpoints in order within {PATIENCE_SECONDS:g} s. See its log: "
                "it may have ended, or another run writes checkpoints there."
            )
        time.sleep(1)


def keep_whole_checkpoints(folder: Path, save_top_k: int = 1) -> None:
    """Leave files from which a run can resume after it was killed while it wrote a checkpoint: NeMo would stop and ask
    the user to do this. Checkpoints are in subfolders if the name of their metric has a slash.

    Unfinished checkpoints and ``.nemo`` files are removed; damaged ones are set aside under another name. Of several
    last checkpoints the newest stays; if there is none, or a best one has more updates, a copy of the newest such one,
    which holds as much, takes its place. A checkpoint whose score is not a number is set aside, since NeMo cannot read
    this back from the name. So are the best ones if the run no longer keeps any (``save_top_k`` 0), as without
    validation: NeMo would delete them and stop.
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
        newest_first.remove(path)
    beyond = _beyond_last(newest_first)
    if beyond:
        path = max(beyond, key=_updates)  # the newest of several with as many
        logging.warning(f"{path}: the newest whole checkpoint, from which the run goes on.")
        with atomic_path(path.with_name(f"{path.stem}-last.ckpt")) as copy:
            shutil.copy(path, copy)
        for older in last[:1]:
            older.unlink()
    for path in _unwanted(folder, save_top_k):
        _set_aside(path, "nan" if NO_SCORE in path.name else "best")


def _is_in_order(folder: Path, save_top_k: int) -> bool:
    """Whether there is nothing for `keep_whole_checkpoints` to do."""
    checkpoints = _checkpoints(folder)
    one_is_last = sum(map(_is_last, checkpoints)) == bool(checkpoints)
    try:
        is_broken = any(_markers(folder)) or any(map(_is_damaged, checkpoints))
    except FileNotFoundError:  # rank 0 is at work
        return False
    return one_is_last and not is_broken and not _beyond_last(checkpoints) and not _unwanted(folder, save_top_k)


def _beyond_last(checkpoints: List[Path]) -> List[Path]:
    """Those with more updates than the last one; all if there is none. The best checkpoint is written first, and the
    run may have been killed before the last one of the same update. The update would be made and saved once more, as
    ``-v1``, and at the next start NeMo may delete the one of the two that the run knows as its best. Names tell, as
    copying can give the files any times."""
    last = max((_updates(path) for path in checkpoints if _is_last(path)), default=-1)
    return [path for path in checkpoints if _updates(path) > last]


def _updates(path: Path) -> int:
    """The number of updates in the name of a checkpoint; 0 if there is none."""
    return int((re.findall(r"step=(\d+)", path.stem) or [0])[-1])


def _unwanted(folder: Path, save_top_k: int) -> List[Path]:
    """Checkpoints other than the last one that NeMo cannot read, or would delete."""
    checkpoints = [path for path in _checkpoints(folder) if not _is_last(path)]
    return [path for path in checkpoints if save_top_k == 0 or NO_SCORE in path.name]


def _markers(folder: Path) -> List[Path]:
    """NeMo's marker files, beside checkpoints that are being written."""
    return _files(folder, f"*{NeMoModelCheckpoint.UNFINISHED_CHECKPOINT_SUFFIX}")


def _checkpoints(folder: Path) -> List[Path]:
    return _files(folder, "*.ckpt")


def _files(folder: Path, pattern: str) -> List[Path]:
    """The files of the run. Names are ``<run>--<metric>=...``, and a slash in the metric makes folders. Files in other
    folders are the user's."""
    return [*folder.glob(pattern), *folder.glob(f"*--*/**/{pattern}")]


def _is_last(path: Path) -> bool:
    return path.stem.endswith("last")


def _is_damaged(path: Path) -> bool:
    """Whether the end of the file is missing: it was cut off, for example by a full disk or while it was copied."""
    with open(path, "rb") as stream:
        return not zipfile.is_zipfile(stream)


def _set_aside(path: Path, suffix: str) -> None:
    """Give the file a name that NeMo does not read."""
    os.replace(path, path.with_name(f"{path.name}.{suffix}"))
