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

"""Lightning's trainer for a run, and its accumulation and validation from the seconds of audio per update."""

import math
import os
from typing import Sequence

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from nemo.utils import logging
from nemo.utils.trainer_utils import resolve_trainer_cfg
from omegaconf import DictConfig, OmegaConf, open_dict

from nemo_mshubert.callbacks.configured_schedule import ConfiguredSchedule
from nemo_mshubert.callbacks.data_wait import DataWait
from nemo_mshubert.callbacks.finished_run import FinishedRun
from nemo_mshubert.callbacks.preemption import SaveWhenPreempted, take_time_limit
from nemo_mshubert.callbacks.rank_watch import RankWatch
from nemo_mshubert.callbacks.saved_update import SavedUpdate
from nemo_mshubert.callbacks.unknown_score import UnknownScore
from nemo_mshubert.callbacks.updates_bar import UpdatesProgressBar
from nemo_mshubert.callbacks.validation_schedule import ValidationSchedule
from nemo_mshubert.models.training_options import check_options
from nemo_mshubert.models.whole_checkpoints import WholeCheckpoints
from nemo_mshubert.parallel.registration import check_strategy, own_strategy, tensor_parallel_size

ALL_DEVICES = (-1, "-1", "auto", None)  # as Lightning takes them


def num_ranks(trainer_config: DictConfig) -> int:
    """Number of training processes on all nodes, from ``trainer.devices`` and ``trainer.num_nodes``.

    Raises:
        ValueError: devices that are neither a number nor a list.
    """
    devices = trainer_config.get("devices")  # where there are none, Lightning takes all
    if isinstance(devices, str) and "," in devices:  # "0,1", as Lightning takes them, too
        devices = [part for part in devices.split(",") if part.strip()]
    if devices in ALL_DEVICES:
        per_node = torch.cuda.device_count() if trainer_config.get("accelerator", "auto") != "cpu" else 1
        per_node = max(per_node, 1)
    elif isinstance(devices, (list, tuple)) or OmegaConf.is_list(devices):
        per_node = len(devices)
    elif str(devices).isdecimal():
        per_node = int(devices)
    else:
        raise ValueError(f"trainer.devices: expected how many, a list of GPUs, -1 or auto, found {devices!r}.")
    return per_node * int(trainer_config.get("num_nodes", 1))


def num_data_parts(trainer_config: DictConfig) -> int:
    """Number of ranks, or of groups of ranks that share a model, among which the data is divided."""
    return max(num_ranks(trainer_config) // tensor_parallel_size(trainer_config.get("strategy", "auto")), 1)


def micro_batches_per_update(cfg: DictConfig, data_parts: int) -> int:
    """Number of accumulated micro-batches, at least one, that comes nearest to ``seconds_per_update`` of audio. Each
    has ``batch_duration`` on each of ``data_parts``."""
    return max(1, round(cfg.seconds_per_update / (cfg.model.train_ds.batch_duration * data_parts)))


def plan_updates(cfg: DictConfig) -> None:
    """Set ``trainer.accumulate_grad_batches`` so that an update sees ``seconds_per_update`` of audio, whatever the
    number of GPUs, and ``trainer.val_check_interval`` (which Lightning counts in micro-batches) from
    ``validate_every_updates``. Without validation, checkpoints are written at the same interval.

    Raises:
        ValueError: options that are missing, or that contradict the counting in updates.
    """
    check_options(cfg)
    check_strategy(cfg.trainer.get("strategy", "auto"))
    _check_launch(cfg.trainer)
    _choose_device(cfg.trainer)
    data_parts = num_data_parts(cfg.trainer)
    accumulate = micro_batches_per_update(cfg, data_parts)
    interval = min(cfg.validate_every_updates, cfg.max_updates) * accumulate
    with open_dict(cfg.trainer):
        cfg.trainer.accumulate_grad_batches = accumulate
        cfg.trainer.val_check_interval = interval
    if not cfg.validation_manifest or cfg.trainer.get("limit_val_batches") == 0:
        _save_without_validation(cfg)
    asked, planned = cfg.seconds_per_update, accumulate * cfg.model.train_ds.batch_duration * data_parts
    logging.info(f"{accumulate} micro-batches per update: up to {planned:g} s of audio, asked for {asked:g} s.")
    if not math.isclose(asked, planned, rel_tol=0.1):
        logging.warning(f"An update sees up to {planned:g} s of audio instead of {asked:g} s: change batch_duration.")


def _check_launch(trainer_config: DictConfig) -> None:
    """Raise ``ValueError`` if torchrun or SLURM has started more or fewer ranks than the trainer expects: each would
    train alone, on a part of the data and of the update."""
    expected = num_ranks(trainer_config)
    if TorchElasticEnvironment.detect():
        launched = int(os.environ.get("WORLD_SIZE", 1))
        if launched != expected:
            raise ValueError(
                f"torchrun has started {launched} processes, but trainer.devices and trainer.num_nodes make "
                f"{expected}: set trainer.devices={os.environ.get('LOCAL_WORLD_SIZE', launched)} and "
                "trainer.num_nodes to the number of machines."
            )
    elif SLURMEnvironment.detect():
        launched = int(os.environ["SLURM_NTASKS"])
        if launched != expected:
            raise ValueError(
                f"SLURM's job or step has {launched} tasks, but trainer.devices and trainer.num_nodes make {expected} "
                "processes, and Lightning starts none itself where SLURM has tasks. Start one task per GPU with srun "
                "(scripts/slurm/train.sh), or use torchrun, or `unset SLURM_NTASKS` for the GPUs of this machine."
            )


def _choose_device(trainer_config: DictConfig) -> None:
    """Use one process if no NVIDIA GPU is used. Apple's GPUs lack float64, the dtype of sums over the data."""
    if torch.cuda.is_available() and trainer_config.get("accelerator") != "cpu":
        return
    with open_dict(trainer_config):
        if trainer_config.get("devices") in ALL_DEVICES:
            trainer_config.devices = 1
        if trainer_config.get("accelerator", "auto") == "auto" and torch.backends.mps.is_available():
            logging.warning("Training runs on the CPU: Apple's GPUs lack float64.")
            trainer_config.accelerator = "cpu"


def _allow_tf32(trainer_config: DictConfig) -> None:
    """For training in half precision on a GPU: run the few products that autocast leaves in fp32, those of label heads
    and of spectra, on tensor cores. These round to 10 bits what earlier layers have rounded to 7 or 10."""
    half = str(trainer_config.get("precision")).startswith(("bf16", "16"))
    if half and torch.cuda.is_available() and trainer_config.get("accelerator") != "cpu":
        torch.set_float32_matmul_precision("high")


def _save_without_validation(cfg: DictConfig) -> None:
    """Lightning writes checkpoints after validations: without one, a run that is killed would start from scratch."""
    with open_dict(cfg.exp_manager):
        cfg.exp_manager.checkpoint_callback_params.update(
            every_n_train_steps=min(cfg.validate_every_updates, cfg.max_updates),
            every_n_epochs=None,
            save_top_k=0,
            save_best_model=False,  # the .nemo holds the last weights
        )


def make_trainer(cfg: DictConfig, callbacks: Sequence[pl.Callback] = ()) -> pl.Trainer:
    """The trainer of a run. ``callbacks`` come after those that the config names and before those of every run. A
    progress bar of updates is added if the config asks for a bar and names none of its own.

    `take_time_limit` takes the time limit out of the config: call `make_trainer` before NeMo's ``exp_manager``.
    """
    _allow_tf32(cfg.trainer)
    strategy = own_strategy(cfg.trainer.get("strategy"))
    options = resolve_trainer_cfg(OmegaConf.merge(cfg.trainer, {"strategy": "auto"}) if strategy else cfg.trainer)
    if strategy:
        options["strategy"] = strategy
    callbacks = [*(options.get("callbacks") or []), *callbacks]
    callbacks += [SaveWhenPreempted(take_time_limit(cfg.exp_manager)), DataWait(), RankWatch()]
    callbacks += [ConfiguredSchedule(), UnknownScore(), SavedUpdate(), ValidationSchedule(), FinishedRun()]
    if options.get("enable_progress_bar", True) and not any(isinstance(one, ProgressBar) for one in callbacks):
        callbacks.append(UpdatesProgressBar())
    plugins = [*(options.get("plugins") or []), WholeCheckpoints()]
    return pl.Trainer(**{**options, "callbacks": callbacks, "plugins": plugins})
