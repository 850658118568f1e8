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

"""Rejects options of a training run that contradict each other, or that libraries reject late, in their own words, or
not at all."""

import re

from nemo.core.optim.lr_scheduler import EPOCH_SCHEDULERS
from nemo.utils import logging
from omegaconf import DictConfig, OmegaConf

from nemo_mshubert.data.manifest import SAMPLE_RATE
from nemo_mshubert.models.number_options import CHANCE, check_numbers

NEEDED = ("label_maker", "init_model", "train_manifest")
PRECISIONS = ("32", "32-true", "bf16-mixed", "16-mixed", "64", "64-true")

SECTIONS = ("trainer", "exp_manager", "exp_manager.checkpoint_callback_params", "model", "model.masking")
SECTIONS += ("model.preprocessor", "model.encoder", "model.label_heads", "model.loss", "model.train_ds")
SECTIONS += ("model.validation_ds", "model.optim")
SWITCHES = ("model.encoder.pre_norm", "model.encoder.conv_bias", "model.optim.fused", "trainer.enable_progress_bar")
SWITCHES += ("trainer.use_distributed_sampler", "model.use_cer")

OPTIONS = ("name", "train_manifest", "train_tars", "validation_manifest", "max_updates", "validate_every_updates")
OPTIONS += ("seconds_per_update", "model", "trainer", "exp_manager")
FINETUNING = ("init_model", "freeze_encoder_updates", "max_nonfinite_steps")
PRETRAINING = ("label_maker", "init_encoder", "init_from_nemo_model", "init_from_pretrained_model")
PRETRAINING += ("init_from_ptl_ckpt",)
PRETRAINING_MODEL = ("sample_rate", "seed", "label_maker", "label_sets", "label_layers", "swap", "loss_views")
PRETRAINING_MODEL += ("unmasked_weight", "drop_label_sets", "compile", "max_nonfinite_steps", "masking")
PRETRAINING_MODEL += ("preprocessor", "encoder", "label_heads", "loss", "train_ds", "validation_ds", "optim")


def check_options(cfg: DictConfig) -> None:
    """Check a config of conf/pretrain or conf/finetune before anything is loaded, and warn of a run that is too short
    for its schedule.

    Raises:
        ValueError: an option that is missing, that nothing reads, or that cannot be met; the message uses the words
            of the command line.
    """
    missing = [f"{name}=" for name in cfg if OmegaConf.is_missing(cfg, name)]
    if missing:
        raise ValueError(f"The command line lacks {' '.join(missing)}. conf/*/_common.yaml says what each of them is.")
    _check_nulls(cfg)
    _check_counting(cfg.trainer)
    _check_limits(cfg.trainer)
    if str(cfg.trainer.get("precision", 32)) not in PRECISIONS:
        raise ValueError(
            f"trainer.precision={cfg.trainer.precision}: weights are kept in fp32, since updates are smaller than "
            f"what bf16 can add to them. Choose one of {', '.join(PRECISIONS)}."
        )
    _check_what_nemo_cannot_do(cfg)
    if not cfg.model.train_ds.get("batch_duration"):
        raise ValueError("model.train_ds.batch_duration: give seconds of audio, from which accumulation follows.")
    check_numbers(cfg)
    for name in SWITCHES:
        if OmegaConf.select(cfg, name) not in (True, False, None):  # as for model.swap
            raise ValueError(f"{name}={OmegaConf.select(cfg, name)}: expected true or false.")
    _check_lengths(cfg)
    _check_sample_rates(cfg.model)
    _check_optimizer(cfg.model.optim)
    _check_schedule(cfg)
    _check_start(cfg)
    _check_names(cfg)
    _warn_of_a_short_run(cfg)


def _check_nulls(cfg: DictConfig) -> None:
    for name in SECTIONS:
        if OmegaConf.select(cfg, name, default={}) is None:
            raise ValueError(f"{name}=null: it holds other options, of which some are needed. Remove it.")
    for name in NEEDED:
        if name in cfg and not cfg[name]:
            raise ValueError(f"{name}={'null' if cfg[name] is None else cfg[name]}: nothing to train on. Give a file.")


def _check_counting(trainer_config: DictConfig) -> None:
    """Everything is counted in updates; what Lightning counts in micro-batches and epochs follows from these."""
    if trainer_config.get("max_epochs") not in (None, -1):
        raise ValueError(
            f"trainer.max_epochs={trainer_config.max_epochs}: training is counted in updates. Set max_updates instead."
        )
    for option, ours in (
        ("accumulate_grad_batches", "seconds_per_update"),
        ("val_check_interval", "validate_every_updates"),
        ("check_val_every_n_epoch", "validate_every_updates"),
    ):
        if trainer_config.get(option) is not None:
            raise ValueError(f"trainer.{option}={trainer_config[option]}: it follows from {ours}. Set that instead.")
    if trainer_config.get("max_time") is not None:
        raise ValueError(
            f"trainer.max_time={trainer_config.max_time} may end a run in the middle of an update. Set "
            "exp_manager.max_time_per_run instead."
        )


def _check_limits(trainer_config: DictConfig) -> None:
    """Reject options that would end an epoch early, after which the data would start again, or divide by zero.

    Not even a limit beyond all data will do: Lightning takes it for the length of the epoch, and would not know the
    last batch. An epoch that is shorter than an update would never make one.
    """
    limit = trainer_config.get("limit_train_batches")
    ends_early = limit is not None and not (isinstance(limit, float) and limit == 1.0)
    if ends_early or trainer_config.get("overfit_batches"):
        option = "limit_train_batches" if ends_early else "overfit_batches"
        raise ValueError(
            f"trainer.{option}={trainer_config[option]}: the data would begin anew after as many batches, and what "
            "comes behind them would never be seen. Remove it; max_updates and validate_every_updates count updates."
        )
    if trainer_config.get("log_every_n_steps") == 0:
        raise ValueError("trainer.log_every_n_steps=0: NeMo divides by it. Give a large number to log seldom.")


def _check_lengths(cfg: DictConfig) -> None:
    """NeMo gives the schedule the number of updates of the trainer. Both must be ``max_updates``, by which everything
    else is counted."""
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
    if not optim.get("name"):
        raise ValueError("model.optim.name: expected an optimizer, as adamw; NeMo would take Adam.")
    betas = optim.get("betas")
    are_some = OmegaConf.is_list(betas) and len(betas) >= 2 and all(map(CHANCE.takes, betas))
    if "betas" in optim and not are_some:
        raise ValueError(f"model.optim.betas={betas}: expected numbers from 0 to below 1, as in [0.9,0.98].")


def _check_schedule(cfg: DictConfig) -> None:
    schedule = cfg.model.optim.get("sched") or {}
    if schedule.get("name") in EPOCH_SCHEDULERS and "label_maker" in cfg:
        raise ValueError(
            f"model.optim.sched.name={schedule.name}: it steps behind each epoch, and that of pre-training has no "
            "end. Choose a schedule that is counted in updates, as CosineAnnealing."
        )
    for phase in ("warmup", "hold"):
        steps, ratio = f"{phase}_steps", f"{phase}_ratio"
        if schedule.get(steps) is not None and schedule.get(ratio) is not None:
            raise ValueError(
                f"model.optim.sched has both {steps} and {ratio}. Remove one of them: ~model.optim.sched.{ratio} "
                "keeps the number of updates."
            )


def _check_what_nemo_cannot_do(cfg: DictConfig) -> None:
    if OmegaConf.select(cfg, "exp_manager.ema.enable"):
        raise ValueError(
            "exp_manager.ema.enable=true: NeMo cannot load the checkpoints that it writes with it. Remove it."
        )
    if OmegaConf.select(cfg, "exp_manager.checkpoint_callback_params.save_weights_only"):
        raise ValueError(
            "exp_manager.checkpoint_callback_params.save_weights_only=true: no run goes on from such a checkpoint, "
            "and NeMo fails over it when it makes the .nemo. Remove it."
        )
    if OmegaConf.select(cfg, "exp_manager.checkpoint_callback_params.monitor", default="val_loss") is None:
        raise ValueError(
            "exp_manager.checkpoint_callback_params.monitor=null: NeMo names checkpoints by it. Give val_loss or "
            "another metric of the validation; the last checkpoint is kept beside the best."
        )
    if OmegaConf.select(cfg, "exp_manager.disable_validation_on_resume"):
        raise ValueError(
            "exp_manager.disable_validation_on_resume=true: NeMo would also leave out one that was due when the run "
            "was ended, and its weights could not become the best. Remove it: none is made twice."
        )
    if "sched" in cfg.model.optim and cfg.model.optim.sched is None:
        raise ValueError("model.optim.sched=null: for a constant rate remove it, ~model.optim.sched.")


def _check_start(cfg: DictConfig) -> None:
    """Check ``init_encoder``, which `initial_encoder` would start from."""
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


def _check_names(cfg: DictConfig) -> None:
    """For a misspelt option Hydra says "use +option", and then nothing reads it, unless another option refers to
    it."""
    is_finetuning = "init_model" in cfg  # the options of its model are checked when the model is restored
    others = {
        name: cfg[name] for name in cfg if name not in (*OPTIONS, *(FINETUNING if is_finetuning else PRETRAINING))
    }
    if not is_finetuning:
        others.update({f"model.{name}": cfg.model[name] for name in cfg.model if name not in PRETRAINING_MODEL})
    for name, value in others.items():
        if not re.search(rf"\${{{re.escape(name)}[.}}]", OmegaConf.to_yaml(cfg)):
            raise ValueError(f"{name}={value}: nothing reads this option. Correct its name, or remove it.")


def _warn_of_a_short_run(cfg: DictConfig) -> None:
    schedule = cfg.model.optim.get("sched") or {}
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
