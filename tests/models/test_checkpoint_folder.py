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

"""What a run finds of its checkpoints after a kill."""

import os
import time
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from nemo.constants import NEMO_ENV_VARNAME_VERSION
from omegaconf import OmegaConf

from nemo_mshubert.models import checkpoint_folder as module
from nemo_mshubert.models import run_lock
from nemo_mshubert.models.checkpoint_folder import (
    _is_in_order,
    checkpoint_folder,
    claim_folder,
    keep_whole_checkpoints,
)
from nemo_mshubert.whole_files import temporary_neighbour

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path):
    """``folder(name, ...)``: what is left of checkpoints with these names, the last one the newest, and whose weights
    it has.

    ``!`` marks an unfinished one, ``?`` one that has lost its last byte.
    """

    def make(*names):
        for age, name in enumerate(reversed(names)):
            name, kind = name.rstrip("!?"), name[-1]
            path = tmp_path / f"{name}.ckpt"
            torch.save({"name": name}, path)
            if kind == "!":
                (tmp_path / f"{name}-unfinished").touch()
            if kind == "?":
                os.truncate(path, path.stat().st_size - 1)
            os.utime(path, (1e9 - age, 1e9 - age))
        in_order = _is_in_order(tmp_path, save_top_k=1)
        before = sorted(tmp_path.iterdir())
        keep_whole_checkpoints(tmp_path)
        assert in_order == (sorted(tmp_path.iterdir()) == before)
        assert _is_in_order(tmp_path, save_top_k=1)
        left = {path.name.removesuffix(".ckpt"): path for path in tmp_path.iterdir()}
        return {
            name: "damaged" if path.suffix == ".damaged" else torch.load(path)["name"] for name, path in left.items()
        }

    return make


def test_nothing_happens_to_whole_checkpoints(folder, tmp_path):
    assert folder("m-step=5", "m-step=6-last") == {"m-step=5": "m-step=5", "m-step=6-last": "m-step=6-last"}
    keep_whole_checkpoints(tmp_path / "not there yet")
    keep_whole_checkpoints(tmp_path, save_top_k=-1)  # all of them are wanted
    assert {path.name for path in tmp_path.iterdir()} == {"m-step=5.ckpt", "m-step=6-last.ckpt"}


def test_the_last_checkpoint_is_told_by_the_end_of_its_name(folder):
    """Of a run that is called so, all but the newest would be deleted."""
    assert set(folder("last-step=5", "last-step=6-last")) == {"last-step=5", "last-step=6-last"}


def test_a_checkpoint_that_vanishes_is_at_work(tmp_path):
    """Other ranks look while rank 0 removes it, and would end the run."""
    (tmp_path / "m-step=6-last.ckpt").symlink_to("gone")
    assert not _is_in_order(tmp_path, save_top_k=1)


def test_what_kills_left_of_nemo_files_goes(tmp_path):
    """Each is as large as the model, under a hidden name of its own, and a run may be killed every few hours."""
    left = temporary_neighbour(tmp_path / "run.nemo", ".nemo")
    left.touch()
    (tmp_path / "run.nemo").touch()
    keep_whole_checkpoints(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.nemo"]


def test_a_marker_alone_goes(tmp_path):
    """NeMo writes it before the checkpoint: a run that was killed between them could not go on."""
    (tmp_path / "m-step=6-last-unfinished").touch()
    keep_whole_checkpoints(tmp_path)
    assert not list(tmp_path.iterdir())


def test_unfinished_last_checkpoint_gives_way_to_the_whole_one(folder, monkeypatch):
    """NeMo stops where all last checkpoints are unfinished, and would start anew where they are removed by hand."""
    warnings = []
    monkeypatch.setattr(module.logging, "warning", warnings.append)
    assert folder("m-step=5-last", "m-step=6-last!") == {"m-step=5-last": "m-step=5-last"}
    (warning,) = warnings
    assert "m-step=6-last.ckpt: the run was killed while it was written" in warning


def test_best_checkpoint_stands_in_for_the_last(folder):
    assert folder("m-step=3", "m-step=5", "m-step=6-last!") == {
        "m-step=3": "m-step=3",
        "m-step=5": "m-step=5",
        "m-step=5-last": "m-step=5",
    }


def test_a_kill_between_the_best_and_the_last_checkpoint(folder):
    """The update was made and saved again, beside the first as ``-v1``. The next start deleted one of them: if that
    was the one in the last checkpoint, the run forgot its best, and its .nemo became that of a worse one."""
    after = {"m--loss=0.4-step=6": "m--loss=0.4-step=6", "m--loss=0.4-step=6-last": "m--loss=0.4-step=6"}
    assert folder("m--loss=0.5-step=4-last", "m--loss=0.4-step=6", "m--loss=0.4-step=6-last!") == after


def test_a_last_checkpoint_that_is_removed_counts_no_more(folder):
    """Copied files, of which the older one is the newest: the other ranks would wait for the best one to take over."""
    after = {"m--loss=0.4-step=6": "m--loss=0.4-step=6", "m--loss=0.4-step=6-last": "m--loss=0.4-step=6"}
    assert folder("m--loss=0.5-step=10-last", "m--loss=0.4-step=6", "m--loss=0.5-step=4-last") == after


def test_copied_checkpoints_have_any_times(folder):
    """The best one of an older update, copied after the last one, would throw the run back."""
    names = ["m--loss=0.3-step=10-last", "m--loss=0.2-step=8"]
    assert folder(*names) == dict(zip(names, names))


def test_other_ranks_wait_for_a_last_checkpoint(folder):
    """Where the user has removed it, all of the files are whole; a rank that did not wait would start anew."""
    assert folder("m-step=5") == {"m-step=5": "m-step=5", "m-step=5-last": "m-step=5"}


def test_a_metric_with_a_slash_puts_checkpoints_into_folders(tmp_path):
    """As those of single label sets: they were not looked for there, and the run could not be started again."""
    below = tmp_path / "m--val_1000"
    below.mkdir()
    for age, name in enumerate(["accuracy=0.5-step=6-last", "accuracy=0.5-step=5", "accuracy=0.4-step=5-last"]):
        torch.save({"name": name}, below / f"{name}.ckpt")
        os.utime(below / f"{name}.ckpt", (1e9 - age, 1e9 - age))
    (below / "accuracy=0.5-step=6-last-unfinished").touch()
    assert not _is_in_order(tmp_path, save_top_k=1)
    keep_whole_checkpoints(tmp_path)
    assert {path.name for path in below.iterdir()} == {"accuracy=0.5-step=5.ckpt", "accuracy=0.4-step=5-last.ckpt"}
    assert _is_in_order(tmp_path, save_top_k=1)
    os.truncate(below / "accuracy=0.4-step=5-last.ckpt", 100)
    keep_whole_checkpoints(tmp_path)
    left = {"accuracy=0.5-step=5.ckpt", "accuracy=0.5-step=5-last.ckpt", "accuracy=0.4-step=5-last.ckpt.damaged"}
    assert {path.name for path in below.iterdir()} == left
    assert list(tmp_path.iterdir()) == [below]  # NeMo looks for the whole metric in the path


def test_checkpoints_that_the_user_keeps_in_a_folder_are_left_alone(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in ("m--val_loss=2.5-step=4-last", "m--val_loss=nan-step=3"):
        torch.save({}, kept / f"{name}.ckpt")
    torch.save({}, tmp_path / "m--val_loss=2.0-step=9-last.ckpt")
    keep_whole_checkpoints(tmp_path, save_top_k=0)
    assert len(list(kept.iterdir())) == 2 and _is_in_order(tmp_path, save_top_k=0)


def test_a_score_that_is_no_number_does_not_stop_a_resume(folder):
    """NeMo reads scores from the names of checkpoints, and of "nan" it ended in "could not convert string to
    float"."""
    left = folder("m--val_loss=nan-step=3", "m--val_loss=2.5-step=4", "m--val_loss=nan-step=5-last")
    assert set(left) == {"m--val_loss=nan-step=3.ckpt.nan", "m--val_loss=2.5-step=4", "m--val_loss=nan-step=5-last"}


def test_a_run_whose_name_has_nan_in_it_keeps_its_best_checkpoints(folder):
    """As "finance": none of them would be the best of the run at its end."""
    left = folder("finance--val_loss=2.5-step=4", "finance--val_loss=2.6-step=5-last")
    assert set(left) == {"finance--val_loss=2.5-step=4", "finance--val_loss=2.6-step=5-last"}


def test_best_checkpoints_are_kept_where_none_are_wanted(folder, tmp_path):
    """A run goes on without validation: NeMo deleted the best weights, and ended in an IndexError."""
    folder("m--val_loss=2.5-step=4", "m--val_loss=2.5-step=5-last")
    assert not _is_in_order(tmp_path, save_top_k=0)
    keep_whole_checkpoints(tmp_path, save_top_k=0)
    assert {path.name for path in tmp_path.iterdir()} == {
        "m--val_loss=2.5-step=4.ckpt.best",
        "m--val_loss=2.5-step=5-last.ckpt",
    }


def test_killed_in_the_first_checkpoint_starts_anew(folder):
    assert folder("m-step=1-last!") == {}


def test_a_damaged_last_checkpoint_gives_way_to_the_newest_whole_one(folder, monkeypatch):
    """A copy that broke off: torch.load would end with a message that names no file. What is damaged is kept."""
    warnings = []
    monkeypatch.setattr(module.logging, "warning", warnings.append)
    assert folder("m-step=3", "m-step=5", "m-step=6-last?") == {
        "m-step=3": "m-step=3",
        "m-step=5": "m-step=5",
        "m-step=5-last": "m-step=5",
        "m-step=6-last.ckpt.damaged": "damaged",
    }
    assert "m-step=6-last.ckpt: damaged" in warnings[0] and "m-step=5.ckpt: the newest whole" in warnings[1]


def test_a_damaged_last_checkpoint_and_the_whole_one_before_it(folder):
    """That would else be removed as the older of two."""
    assert folder("m-step=5-last", "m-step=6-last?") == {
        "m-step=5-last": "m-step=5-last",
        "m-step=6-last.ckpt.damaged": "damaged",
    }


def test_newest_of_two_last_checkpoints(folder):
    """Between writing one and removing the other; NeMo stops where there are two."""
    assert folder("m-step=5-last", "m-step=6-last") == {"m-step=6-last": "m-step=6-last"}


def test_other_ranks_wait_for_rank_0(tmp_path, monkeypatch):
    """A second run by mistake: its rank 0 is told of the first run, whose checkpoint the other ranks took for one that
    was left unfinished, and deleted while it was written."""
    torch.save({}, tmp_path / "m-step=6-last.ckpt")
    (tmp_path / "m-step=6-last-unfinished").touch()
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.0)
    rank_1, rank_0 = (SimpleNamespace(is_global_zero=is_zero) for is_zero in (False, True))
    with pytest.raises(RuntimeError, match=f"^{tmp_path}: rank 0 has not set its checkpoints in order"):
        claim_folder(tmp_path, 1, rank_1)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 60.0)
    rank_0_acts = Thread(target=lambda: (time.sleep(0.5), claim_folder(tmp_path, 1, rank_0)))
    rank_0_acts.start()
    claim_folder(tmp_path, 1, rank_1)
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]
    rank_0_acts.join()
    run_lock._held.pop().close()


def test_best_checkpoints_are_set_aside_before_any_rank_goes_on(tmp_path, monkeypatch):
    """NeMo deletes them where none are kept, on whichever rank comes first."""
    for name in ("m-step=5", "m-step=6-last"):
        torch.save({}, tmp_path / f"{name}.ckpt")
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(RuntimeError, match="rank 0 has not set its checkpoints in order"):
        claim_folder(tmp_path, 0, SimpleNamespace(is_global_zero=False))
    claim_folder(tmp_path, 0, SimpleNamespace(is_global_zero=True))
    run_lock._held.pop().close()
    assert {path.name for path in tmp_path.iterdir()} == {"m-step=5.ckpt.best", "m-step=6-last.ckpt", "run.lock"}


def test_folder_is_that_of_exp_manager():
    """The lock and the mark of a finished run would lie elsewhere, among those of others, as with ``name=$UNSET``."""
    config = {"exp_dir": "exp", "name": "run", "checkpoint_callback_params": {"save_top_k": 1}}
    assert str(checkpoint_folder(OmegaConf.create(config))) == "exp/run/checkpoints"
    assert str(checkpoint_folder(OmegaConf.create({**config, "name": ""}))) == "exp/default/checkpoints"
    nowhere = OmegaConf.create({**config, "exp_dir": None})  # a TypeError: NeMo's default
    assert str(checkpoint_folder(nowhere)) == "nemo_experiments/run/checkpoints"
    assert str(checkpoint_folder(OmegaConf.create({**config, "exp_dir": ""}))) == "run/checkpoints"
    assert str(checkpoint_folder(OmegaConf.create({**config, "explicit_log_dir": "logs"}))) == "logs/checkpoints"
    config["checkpoint_callback_params"] = {"dirpath": "/scratch/kept"}
    assert str(checkpoint_folder(OmegaConf.create(config))) == "/scratch/kept"


def test_a_name_with_a_slash_is_refused():
    """Its checkpoints are named ``a/b--...``: after a kill, an unfinished one would be taken for whole."""
    with pytest.raises(ValueError, match="name=a/b: .* Name it b; exp_manager.exp_dir takes folders"):
        checkpoint_folder(OmegaConf.create({"name": "a/b", "checkpoint_callback_params": {}}))


@pytest.mark.parametrize("resumes", [True, False])
def test_folder_of_a_version_is_that_of_exp_manager(monkeypatch, resumes):
    """Ranks that Lightning starts find in the environment which one rank 0 has chosen; the lock and the mark of a
    finished run would lie elsewhere."""
    config = {"exp_dir": "exp", "name": "run", "checkpoint_callback_params": {}, "resume_if_exists": resumes}
    monkeypatch.setenv(NEMO_ENV_VARNAME_VERSION, "version_7")
    assert str(checkpoint_folder(OmegaConf.create(config))) == "exp/run/version_7/checkpoints"
    assert str(checkpoint_folder(OmegaConf.create({**config, "version": "mine"}))) == "exp/run/mine/checkpoints"
