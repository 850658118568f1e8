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

"""Lightning's trainer of a run, and its accumulation and validation from the seconds of audio per update."""

import math
import os
from typing import Sequence

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from nemo.core.optim.lr_scheduler import EPOCH_SCHEDULERS
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
from nemo_mshubert.data.manifest import SAMPLE_RATE
from nemo_mshubert.models.number_options import CHANCE, check_numbers
from nemo_mshubert.parallel.registration import check_strategy, own_strategy, tensor_parallel_size

NO_LIMIT = 1_000_000_000  # of batches, as in conf/finetune
ALL_DEVICES = (-1, "-1", "auto", None)  # as Lightning takes them
SECTIONS = ("trainer", "exp_manager", "exp_manager.checkpoint_callback_params", "model", "model.masking")
SECTIONS += ("model.preprocessor", "model.encoder", "model.label_heads", "model.loss", "model.train_ds")
SECTIONS += ("model.validation_ds", "model.optim")
SWITCHES = ("model.encoder.pre_norm", "model.encoder.conv_bias", "model.optim.fused", "trainer.enable_progress_bar")
SWITCHES += ("trainer.use_distributed_sampler",)
NEEDED = ("label_maker", "init_model", "train_manifest")
PRECISIONS = ("32", "32-true", "bf16-mixed", "16-mixed", "64", "64-true")


def num_ranks(trainer_config: DictConfig) -> int:
    """Training processes of all nodes that ``trainer.devices`` and ``trainer.num_nodes`` stand for.

    Raises:
        ValueError: devices that are neither a number nor a list.
    """
    devices = trainer_config.get("devices", 1)
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
    """Ranks, or groups of ranks that share a model, among which the data is shared out."""
    return max(num_ranks(trainer_config) // tensor_parallel_size(trainer_config.get("strategy", "auto")), 1)


def plan_updates(cfg: DictConfig) -> None:
    """Set ``trainer.accumulate_grad_batches`` so that an update sees ``seconds_per_update`` of audio, whatever the
    number of GPUs, and ``trainer.val_check_interval`` (which Lightning counts in micro-batches) from
    ``validate_every_updates``. Without a validation, checkpoints are written as often as it would have been.

    The number of micro-batches is rounded to the nearest, and at least one.

    Raises:
        ValueError: options that are missing, or that contradict the counting in updates.
    """
    _check_options(cfg)
    check_strategy(cfg.trainer.get("strategy", "auto"))
    _check_launch(cfg.trainer)
    _choose_device(cfg.trainer)
    per_micro_batch = cfg.model.train_ds.batch_duration * num_data_parts(cfg.trainer)
    accumulate = max(1, round(cfg.seconds_per_update / per_micro_batch))
    interval = min(cfg.validate_every_updates, cfg.max_updates) * accumulate
    with open_dict(cfg.trainer):
        cfg.trainer.accumulate_grad_batches = accumulate
        cfg.trainer.val_check_interval = interval
    if not cfg.validation_manifest or cfg.trainer.get("limit_val_batches") == 0:
        _save_without_validation(cfg)
    asked, planned = cfg.seconds_per_update, accumulate * per_micro_batch
    logging.info(f"{accumulate} micro-batches per update: up to {planned:g} s of audio, asked for {asked:g} s.")
    if not math.isclose(asked, planned, rel_tol=0.1):
        logging.warning(f"An update sees up to {planned:g} s of audio instead of {asked:g} s: change batch_duration.")


def _check_options(cfg: DictConfig) -> None:
    """Say in the words of the command line what OmegaConf and Lightning would say in their own, or not at all."""
    missing = [f"{name}=" for name in cfg if OmegaConf.is_missing(cfg, name)]
    if missing:
        raise ValueError(f"The command line lacks {' '.join(missing)}. conf/*/_common.yaml says what each of them is.")
    _check_nulls(cfg)
    if cfg.trainer.get("max_epochs") not in (None, -1):
        raise ValueError(
            f"trainer.max_epochs={cfg.trainer.max_epochs}: training is counted in updates. Set max_updates instead."
        )
    for option, ours in (
        ("accumulate_grad_batches", "seconds_per_update"),
        ("val_check_interval", "validate_every_updates"),
        ("check_val_every_n_epoch", "validate_every_updates"),
    ):
        if cfg.trainer.get(option) is not None:
            raise ValueError(f"trainer.{option}={cfg.trainer[option]}: it follows from {ours}. Set that instead.")
    if cfg.trainer.get("max_time") is not None:
        raise ValueError(
            f"trainer.max_time={cfg.trainer.max_time} may end a run in the middle of an update. Set "
            "exp_manager.max_time_per_run instead."
        )
    _check_limits(cfg.trainer)
    if str(cfg.trainer.get("precision", 32)) not in PRECISIONS:
        raise ValueError(
            f"trainer.precision={cfg.trainer.precision}: weights are kept in fp32, since updates are smaller than what "
            f"bf16 can add to them. Choose one of {', '.join(PRECISIONS)}."
        )
    _check_what_nemo_cannot_do(cfg)
    if not cfg.model.train_ds.get("batch_duration"):
        raise ValueError("model.train_ds.batch_duration: give seconds of audio, from which accumulation follows.")
    check_numbers(cfg)
    for name in SWITCHES:
        if OmegaConf.select(cfg, name) not in (True, False, None):  # as model.swap
            raise ValueError(f"{name}={OmegaConf.select(cfg, name)}: expected true or false.")
    _check_lengths(cfg)
    _check_sample_rates(cfg.model)
    _check_optimizer(cfg.model.optim)
    schedule = cfg.model.optim.get("sched") or {}
    if schedule.get("name") in EPOCH_SCHEDULERS and "label_maker" in cfg:
        raise ValueError(
            f"model.optim.sched.name={schedule.name}: it steps behind each epoch, and that of pre-training has no end. "
            "Choose a schedule that is counted in updates, as CosineAnnealing."
        )
    _check_start(cfg)
    warmup = schedule.get("warmup_steps") or int((schedule.get("warmup_ratio") or 0) * cfg.max_updates)
    if warmup >= cfg.max_updates:
        option = "warmup_steps" if schedule.get("warmup_steps") else "warmup_ratio"
        logging.warning(
            f"The learning rate never reaches model.optim.lr: it rises for {warmup} updates, and the run has "
            f"{cfg.max_updates}. Lower model.optim.sched.{option}, or raise max_updates."
        )
    if cfg.get("freeze_encoder_updates", 0) >= cfg.max_updates:
        logging.warning(
            f"The encoder is never trained: it is frozen for {cfg.freeze_encoder_updates} updates, and the run has "
            f"{cfg.max_updates}. Lower freeze_encoder_updates, or raise max_updates."
        )


def _check_nulls(cfg: DictConfig) -> None:
    for name in SECTIONS:
        if OmegaConf.select(cfg, name, default={}) is None:
            raise ValueError(f"{name}=null: it holds other options, of which some are needed. Remove it.")
    for name in NEEDED:
        if name in cfg and not cfg[name]:
            raise ValueError(f"{name}={'null' if cfg[name] is None else cfg[name]}: nothing to train on. Give a file.")


def _check_lengths(cfg: DictConfig) -> None:
    """NeMo gives the schedule the updates of the trainer, and both have to be those that all else here is counted by."""
    schedule = OmegaConf.select(cfg, "model.optim.sched.max_steps")
    for name, steps in (("trainer", cfg.trainer.get("max_steps")), ("model.optim.sched", schedule or cfg.max_updates)):
        if steps != cfg.max_updates:
            raise ValueError(f"{name}.max_steps={steps}: it follows from max_updates. Set that instead.")


def _check_sample_rates(model_config: DictConfig) -> None:
    for section in (None, "preprocessor", "train_ds", "validation_ds"):
        name = f"{section}.sample_rate" if section else "sample_rate"
        rate = OmegaConf.select(model_config, name)
        if rate not in (None, SAMPLE_RATE):
            raise ValueError(
                f"model.{name}={rate}: the encoder hears {SAMPLE_RATE} samples a second, to which recordings at other "
                "rates are resampled. Remove it."
            )


def _check_optimizer(optim: DictConfig) -> None:
    betas = optim.get("betas")
    are_some = OmegaConf.is_list(betas) and len(betas) >= 2 and all(map(CHANCE.takes, betas))
    if "betas" in optim and not are_some:
        raise ValueError(f"model.optim.betas={betas}: expected numbers from 0 to below 1, as in [0.9,0.98].")
    schedule = optim.get("sched") or {}
    for phase in ("warmup", "hold"):
        steps, ratio = f"{phase}_steps", f"{phase}_ratio"
        if schedule.get(steps) is not None and schedule.get(ratio) is not None:
            raise ValueError(
                f"model.optim.sched has both {steps} and {ratio}. Remove one of them: ~model.optim.sched.{ratio} keeps "
                "the number of updates."
            )


def _check_what_nemo_cannot_do(cfg: DictConfig) -> None:
    if OmegaConf.select(cfg, "exp_manager.ema.enable"):
        raise ValueError(
            "exp_manager.ema.enable=true: NeMo cannot load the checkpoints that it writes with it. Remove it."
        )
    if OmegaConf.select(cfg, "exp_manager.checkpoint_callback_params.save_weights_only"):
        raise ValueError(
            "exp_manager.checkpoint_callback_params.save_weights_only=true: no run goes on from such a checkpoint, and "
            "NeMo fails over it when it makes the .nemo. Remove it."
        )
    if OmegaConf.select(cfg, "exp_manager.checkpoint_callback_params.monitor", default="val_loss") is None:
        raise ValueError(
            "exp_manager.checkpoint_callback_params.monitor=null: NeMo names checkpoints by it. Give val_loss or another "
            "metric of the validation; the last checkpoint is kept beside the best."
        )
    if "sched" in cfg.model.optim and cfg.model.optim.sched is None:
        raise ValueError("model.optim.sched=null: for a constant rate remove it, ~model.optim.sched.")


def _check_start(cfg: DictConfig) -> None:
    """What `initial_encoder` would begin with."""
    name = cfg.get("init_encoder")
    if name is None:
        return
    if not isinstance(name, str) or not name:
        raise ValueError(f"init_encoder={name}: expected a file, a folder or an id of the Hugging Face hub, or null.")
    others = [option for option in cfg if option.startswith("init_from_") and cfg[option] is not None]
    if others:
        raise ValueError(
            f"init_encoder={name} with {others[0]}={cfg[others[0]]}: both say which weights a run begins with. Give "
            "one of them; init_encoder also checks that none stays random."
        )


def _check_limits(trainer_config: DictConfig) -> None:
    """Options that would let an epoch end early, and the data begin anew behind it, or divide by zero."""
    limit = trainer_config.get("limit_train_batches")
    ends_early = limit is not None and not (isinstance(limit, float) and limit == 1.0) and limit < NO_LIMIT
    if ends_early or trainer_config.get("overfit_batches"):
        option = "limit_train_batches" if ends_early else "overfit_batches"
        raise ValueError(
            f"trainer.{option}={trainer_config[option]}: the data would begin anew after as many batches, and what "
            "comes behind them would never be seen. Remove it; max_updates and validate_every_updates count updates."
        )
    if trainer_config.get("log_every_n_steps") == 0:
        raise ValueError("trainer.log_every_n_steps=0: NeMo divides by it. Give a large number to log seldom.")


def _check_launch(trainer_config: DictConfig) -> None:
    """Raise ``ValueError`` where torchrun or SLURM has started other ranks than the trainer expects: each would train
    alone, on a part of the data and of the update."""
    expected = num_ranks(trainer_config)
    if TorchElasticEnvironment.detect():
        launched = int(os.environ.get("WORLD_SIZE", 1))
        if launched != expected:
            raise ValueError(
                f"torchrun has started {launched} processes, but trainer.devices and trainer.num_nodes make "
                f"{expected}: set trainer.devices={os.environ.get('LOCAL_WORLD_SIZE', launched)} and trainer.num_nodes "
                "to the number of machines."
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
    """One process where no NVIDIA GPU is used; Apple's have no float64, which sums over the data are in."""
    if torch.cuda.is_available() and trainer_config.accelerator != "cpu":
        return
    with open_dict(trainer_config):
        if trainer_config.devices in ALL_DEVICES:
            trainer_config.devices = 1
        if trainer_config.accelerator == "auto" and torch.backends.mps.is_available():
            logging.warning("Training runs on the CPU: Apple's GPUs lack float64.")
            trainer_config.accelerator = "cpu"


def _save_without_validation(cfg: DictConfig) -> None:
    """Lightning writes checkpoints behind validations: without one, a run that is killed would start anew."""
    with open_dict(cfg.exp_manager):
        cfg.exp_manager.checkpoint_callback_params.update(
            every_n_train_steps=min(cfg.validate_every_updates, cfg.max_updates),
            every_n_epochs=None,
            save_top_k=0,
            save_best_model=False,  # the .nemo holds the last weights
        )


def make_trainer(cfg: DictConfig, callbacks: Sequence[pl.Callback] = ()) -> pl.Trainer:
    """The trainer of a run, with ``callbacks`` behind those that its config names and before those of every run, and a
    progress bar of updates where it wants a bar and names none of its own.

    Its time limit is taken out of the config, as `take_time_limit` does: call it before NeMo's ``exp_manager``.
    """
    strategy = own_strategy(cfg.trainer.get("strategy"))
    options = resolve_trainer_cfg(OmegaConf.merge(cfg.trainer, {"strategy": "auto"}) if strategy else cfg.trainer)
    if strategy:
        options["strategy"] = strategy
    callbacks = [*(options.get("callbacks") or []), *callbacks]
    callbacks += [SaveWhenPreempted(take_time_limit(cfg.exp_manager)), DataWait(), RankWatch()]
    callbacks += [ConfiguredSchedule(), UnknownScore(), SavedUpdate(), ValidationSchedule(), FinishedRun()]
    if options.get("enable_progress_bar", True) and not any(isinstance(one, ProgressBar) for one in callbacks):
        callbacks.append(UpdatesProgressBar())
    return pl.Trainer(**{**options, "callbacks": callbacks})
