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

"""On SIGTERM, which a scheduler sends before it takes the machine away, or at a time limit, a run ends with a
checkpoint from which it resumes exactly.

Unlike NeMo's ``PreemptionCallback`` and ``StatelessTimer``, this also works on CPUs and without torch.distributed. It
never ends a run in the middle of accumulated micro-batches, whose gradients no checkpoint holds.
"""

import multiprocessing
import re
import signal
import sys
import time
from datetime import timedelta
from typing import Optional

import lightning.pytorch as pl
import torch
from nemo.utils import logging
from omegaconf import DictConfig

from nemo_mshubert.callbacks.finished_run import has_all_updates


def take_time_limit(exp_manager_config: DictConfig) -> Optional[timedelta]:
    """Take NeMo's option ``max_time_per_run``, days:hours:minutes:seconds, out of the config for `SaveWhenPreempted`.

    Raises:
        ValueError: the option does not have that form.
    """
    text = exp_manager_config.get("max_time_per_run")
    if text is None:
        return None
    if not re.fullmatch(r"\d+:\d\d?:\d\d?:\d\d?", str(text)):
        raise ValueError(
            f"exp_manager.max_time_per_run={text}: expected days:hours:minutes:seconds, as in 00:03:50:00 (in a YAML "
            'file in quotes, "01:03:50:00", or it is read as a number).'
        )
    exp_manager_config.max_time_per_run = None
    days, hours, minutes, seconds = map(int, text.split(":"))
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


class SaveWhenPreempted(pl.Callback):
    """After the update in which any rank was sent SIGTERM, write the last checkpoint and end the process with code 0.
    After the last update, go on to its validation, which no resumed run would reach.

    Args:
        max_time: training time after which the run ends in the same way.
    """

    def __init__(self, max_time: Optional[timedelta] = None):
        self.max_time = max_time
        self._asked = False
        self._started = None
        self._original_handler = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # SLURM also signals the loader processes and their children. These inherit this mask, so that they live until
        # the checkpoint is written: without them the update would fail.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._original_handler = signal.signal(signal.SIGTERM, self._note)
        self._started = time.monotonic()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop_listening()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        _kill_loader_processes()
        self._stop_listening()

    def _stop_listening(self) -> None:
        self._takes_pending()  # the run ends anyway
        if self._original_handler is not None:
            signal.signal(signal.SIGTERM, self._original_handler)
            self._original_handler = None
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    @staticmethod
    def _takes_pending() -> bool:
        """Whether SIGTERM is pending, because no other thread of this process has let it through; if so, take it."""
        if signal.SIGTERM not in signal.sigpending():
            return False
        signal.sigwait({signal.SIGTERM})
        return True

    def _note(self, *_) -> None:
        self._end_for("SIGTERM")

    def _end_for(self, reason: str) -> None:
        logging.warning(f"{reason}: a checkpoint is written after this update, then the run ends.")
        self._asked = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx
    ) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        if self._takes_pending():
            self._note()
        elif self.max_time is not None and time.monotonic() - self._started >= self.max_time.total_seconds():
            self._end_for(f"The time limit of {self.max_time}")
        if not self._any_rank_was_asked(pl_module.device):
            return
        checkpoints = trainer.checkpoint_callback
        if checkpoints is None:
            logging.error("No checkpoint is written, since this run has no checkpoint callback.")
        else:
            checkpoints._save_last_checkpoint(trainer, checkpoints._monitor_candidates(trainer))
            logging.warning(
                f"Update {trainer.global_step} is in {checkpoints.last_model_path}; the same command goes on from it."
            )
        if not has_all_updates(trainer):
            sys.exit(0)
        if checkpoints is not None:  # else the validation that remains would write no checkpoint of its own
            checkpoints._last_global_step_saved = 0

    def _any_rank_was_asked(self, device: torch.device) -> bool:
        """Schedulers may signal the ranks at different times, or only some of them."""
        if not torch.distributed.is_initialized():
            return self._asked
        asked = torch.tensor(int(self._asked), device=device)
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        return bool(asked)


def _kill_loader_processes() -> None:
    """When Python exits, it sends them SIGTERM and waits; since their mask blocks SIGTERM, it would wait forever."""
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would raise an error of its own
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
            process.join()
    signal.signal(signal.SIGCHLD, handler)
