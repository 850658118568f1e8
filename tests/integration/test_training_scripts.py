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

"""What the two training scripts hand to Lightning. Each part is tested where it is; a script may still leave it
out."""

import errno
import os
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import StrategyRegistry
from nemo.collections.asr.models import ASRModel

from nemo_mshubert.callbacks.data_wait import DataWait
from nemo_mshubert.callbacks.encoder_freeze import EncoderFreeze
from nemo_mshubert.callbacks.nonfinite_guard import NonfiniteGuard
from nemo_mshubert.callbacks.other_ranks import OtherRanks
from nemo_mshubert.callbacks.preemption import SaveWhenPreempted
from nemo_mshubert.callbacks.rank_watch import RankWatch
from nemo_mshubert.callbacks.same_start import SameStart
from nemo_mshubert.callbacks.saved_update import SavedUpdate
from nemo_mshubert.callbacks.sentence_average import SentenceAverage
from nemo_mshubert.models import checkpoint_folder
from nemo_mshubert.models.loading import restore_model

pytestmark = pytest.mark.integration
SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def handed_over(monkeypatch, tmp_path):
    """``handed_over("pretrain.py", ...)``: the trainer and the model that the script would train, and the seed
    then."""

    def run(script, *overrides):
        found = SimpleNamespace()

        def fit(trainer, model):
            found.trainer, found.model, found.seed = trainer, model, torch.initial_seed()

        with monkeypatch.context() as context:
            context.chdir(tmp_path)
            context.setattr(pl.Trainer, "fit", fit)
            context.setattr(sys, "argv", [script, *map(str, overrides)])
            runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        return found

    return run


def callback(found, kind):
    (one,) = [each for each in found.trainer.callbacks if type(each) is kind]
    return one


def leave_an_unfinished_checkpoint(folder):
    folder.mkdir(parents=True)
    (folder / "a-last.ckpt").write_bytes(b"half")
    (folder / "a-last-unfinished").touch()


def test_pretraining(handed_over, tiny_command_line, ssl_path, tmp_path):
    """Guards against preemption, hanging ranks, a second run and broken checkpoints; weights to start from."""
    folder = tmp_path / "exp" / "mshubert_tiny" / "checkpoints"
    leave_an_unfinished_checkpoint(folder)
    options = ["exp_manager.max_time_per_run=00:01:00:00", f"+init_from_nemo_model={ssl_path}", "model.seed=9"]
    found = handed_over("pretrain.py", "--config-name=mshubert_tiny", *tiny_command_line, *options)
    assert callback(found, SaveWhenPreempted).max_time.total_seconds() == 3600
    assert callback(found, DataWait) and callback(found, RankWatch) and callback(found, SavedUpdate)
    assert not [each for each in found.trainer.callbacks if isinstance(each, pl.callbacks.Timer)]  # NeMo's
    assert str(os.getpid()) in (folder / "run.lock").read_text()
    assert not list(folder.glob("*.ckpt"))
    assert "fsdp2" in StrategyRegistry
    start = restore_model(ssl_path).state_dict()
    assert all(torch.equal(value, start[name]) for name, value in found.model.state_dict().items())


def test_pretraining_from_an_encoder(handed_over, tiny_command_line, letters_path, tmp_path):
    """``init_encoder=``: the encoder of a CTC model at the start; where a run goes on, what its checkpoint holds."""
    start = ASRModel.restore_from(str(letters_path), map_location="cpu").encoder.state_dict()
    command = ["pretrain.py", "--config-name=mshubert_tiny", *tiny_command_line, "model.seed=9"]
    encoder = handed_over(*command, f"init_encoder={letters_path}").model.encoder.state_dict()
    assert encoder.keys() == start.keys() and all(torch.equal(value, start[name]) for name, value in encoder.items())
    torch.save({}, tmp_path / "exp" / "mshubert_tiny" / "checkpoints" / "mshubert_tiny-last.ckpt")
    resumed = handed_over(*command, "init_encoder=gone.nemo")
    assert resumed.trainer.ckpt_path.endswith("mshubert_tiny-last.ckpt")
    assert not torch.equal(resumed.model.encoder.mask_embedding, start["mask_embedding"])


def test_runs_that_do_not_resume_have_folders_of_their_own(handed_over, tiny_command_line, tmp_path, monkeypatch):
    """Lock and mark lay in a folder that all versions shared: a second run was refused while the first was under way,
    and what a kill had left in the folder of a version that was named again was not set in order."""
    command = ["pretrain.py", "--config-name=mshubert_tiny", *tiny_command_line]
    leave_an_unfinished_checkpoint(tmp_path / "exp" / "mshubert_tiny" / "mine" / "checkpoints")
    fresh = "exp_manager.resume_if_exists=false"
    for option, version in ((fresh, "version_0"), (fresh, "version_1"), ("+exp_manager.version=mine", "mine")):
        monkeypatch.setenv("NEMO_EXPM_VERSION", "of an earlier test")
        monkeypatch.delenv("NEMO_EXPM_VERSION")  # a new process
        found = handed_over(*command, option)
        folder = tmp_path / "exp" / "mshubert_tiny" / version / "checkpoints"
        assert (folder / "run.lock").is_file() and Path(found.trainer.checkpoint_callback.dirpath) == folder
        assert not list(folder.glob("*.ckpt"))


def test_fine_tuning(handed_over, letters_path, synthetic_corpus, tmp_path):
    """The same guards, the frozen encoder, the loss of an update over utterances, and a seed that is the config's."""
    folder = tmp_path / "exp" / "finetune_tiny" / "checkpoints"
    leave_an_unfinished_checkpoint(folder)
    (folder / "finished").touch()
    found = handed_over(
        "finetune_ctc.py",
        "--config-name=tiny",
        f"init_model={letters_path}",
        f"train_manifest={synthetic_corpus.train}",
        f"validation_manifest={synthetic_corpus.dev}",
        *("model.train_ds.num_buckets=2", "model.encoder.mask_length=4", "model.train_ds.seed=11"),
        *("freeze_encoder_updates=17", "max_nonfinite_steps=3", "exp_manager.max_time_per_run=00:00:02:00"),
        *("trainer.devices=1", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"),
    )
    assert callback(found, EncoderFreeze).num_updates == 17
    assert callback(found, SaveWhenPreempted).max_time.total_seconds() == 120
    assert callback(found, NonfiniteGuard) and callback(found, DataWait) and callback(found, RankWatch)
    assert callback(found, SavedUpdate) and callback(found, OtherRanks)
    order = [type(each) for each in found.trainer.callbacks]
    assert order.index(SentenceAverage) < order.index(NonfiniteGuard)  # which looks at the gradients of the average
    assert callback(found, SameStart) and found.seed == 11
    assert str(os.getpid()) in (folder / "run.lock").read_text()
    assert not list(folder.glob("*.ckpt")) and not (folder / "finished").exists()
    start = ASRModel.restore_from(str(letters_path), map_location="cpu").state_dict()
    assert all(torch.equal(value, start[name]) for name, value in found.model.state_dict().items())


@pytest.mark.parametrize("script, config", [("pretrain.py", "mshubert_tiny"), ("finetune_ctc.py", "tiny")])
def test_a_disk_that_is_full_at_the_start_is_named(handed_over, tmp_path, monkeypatch, script, config):
    """A run that ended on a full disk is started again before there is room: the error was of no file."""

    def full(*_):
        raise OSError(
            errno.ENOSPC, "No space left on device"
        )  # as writing the lock or the log of the command tells it

    monkeypatch.setattr(checkpoint_folder, "hold_folder", full)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # else Hydra prints the error and exits
    files = ["label_maker=km.npz"] if script == "pretrain.py" else ["init_model=ctc.nemo"]
    options = [*files, "train_manifest=a.json", "validation_manifest=b.json", "trainer.devices=1", "name=run"]
    with pytest.raises(OSError, match="No space left on device: '.*/?run/checkpoints'$"):
        handed_over(script, f"--config-name={config}", "trainer.accelerator=cpu", *options)
