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

"""The Hydra plugin: it makes our targets loadable in every NeMo process, at no cost and once."""

import json
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from nemo_mshubert import target_registration

pytestmark = pytest.mark.unit

SCAN = """
import json, sys
from hydra.core.plugins import Plugins
Plugins.instance()
names = ("torch", "nemo", "lightning", "nemo_mshubert", "hydra_plugins.nemo_mshubert.register")
print(json.dumps([name for name in names if name in sys.modules]))
"""


def test_plugin_is_found_by_hydra_and_imports_neither_torch_nor_nemo():
    """Every Hydra application of a machine runs it: it must not cost seconds, nor break `import nemo.core`."""
    found = subprocess.run([sys.executable, "-c", SCAN], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == ["nemo_mshubert", "hydra_plugins.nemo_mshubert.register"]
    assert not found.stderr  # a plugin that fails to import is a warning of Hydra's


def test_prefix_is_appended_once():
    """The plugin and the package both register; NeMo's list must not grow with each."""
    from nemo.core.classes import common

    before = list(common.ALLOWED_TARGET_PREFIXES)
    assert before.count("nemo_mshubert.") == 1
    target_registration.register_with_nemo()
    assert common.ALLOWED_TARGET_PREFIXES == before


def test_older_nemo_without_a_list_is_left_alone():
    """Before 2.6 nothing is blocked."""
    old = SimpleNamespace()
    target_registration._append_prefix(old)
    assert not vars(old)


def test_only_nemo_classes_of_ours_can_be_targets():
    """The check of the class still applies: opening our prefix must not let a .nemo call any function of ours."""
    from nemo.core.classes.common import Serialization

    from nemo_mshubert.modules.mshubert_encoder import MSHuBERTEncoder

    config = {"_target_": "nemo_mshubert.modules.mshubert_encoder.MSHuBERTEncoder", "num_layers": 1, "d_inner": 8}
    assert isinstance(Serialization.from_config_dict(config), MSHuBERTEncoder)
    with pytest.raises(Exception, match="unsafe target .*atomic_write"):
        Serialization.from_config_dict({"_target_": "nemo_mshubert.whole_files.atomic_write", "path": "written"})
    assert not os.path.exists("written")


def test_schedule_is_registered():
    """`optim.sched.name: TriStageAnnealing` works in stock scripts."""
    from nemo.core.optim.lr_scheduler import AVAILABLE_SCHEDULERS

    assert "TriStageAnnealing" in AVAILABLE_SCHEDULERS


def test_the_module_of_the_schedule_may_be_what_imports_nemo(monkeypatch):
    """Then NeMo's hook comes while it is half loaded; asking it for anything ended the import."""
    half_loaded = ModuleType("nemo_mshubert.optim.tri_stage")
    monkeypatch.setitem(sys.modules, half_loaded.__name__, half_loaded)
    target_registration._register_schedule(None)


@pytest.mark.parametrize("opted_out", [False, True])
def test_opting_out_registers_nothing(monkeypatch, opted_out):
    """For those who must keep NeMo's list as it is; the other case shows that the hooks are what registers."""
    hooks = []
    monkeypatch.setattr(target_registration.wrapt, "register_post_import_hook", lambda *hook: hooks.append(hook[1]))
    monkeypatch.delenv(target_registration.OPT_OUT_VARIABLE, raising=False)
    if opted_out:
        monkeypatch.setenv(target_registration.OPT_OUT_VARIABLE, "1")
    target_registration.register_with_nemo()
    assert hooks == ([] if opted_out else ["nemo.core.classes.common", "nemo.core.optim.lr_scheduler"])
