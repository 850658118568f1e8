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

"""Allow NeMo to instantiate ``nemo_mshubert.*`` targets, and register our learning-rate schedule.

NeMo rejects every ``_target_`` outside ``nemo.core.classes.common.ALLOWED_TARGET_PREFIXES``, so a stock script could
not restore a ``.nemo`` file with our encoder. NeMo has no function to extend the list. A post-import hook appends to
it without importing NeMo (which takes seconds). NeMo's check of the *class* of a target still applies to ours.

This module imports neither torch nor NeMo: it also runs in every Hydra application, through ``hydra_plugins``.
"""

import importlib
import os

import wrapt

OPT_OUT_VARIABLE = "NEMO_MSHUBERT_NO_AUTOREGISTER"
_PREFIX = "nemo_mshubert."


def _append_prefix(nemo_common_module) -> None:
    prefixes = getattr(nemo_common_module, "ALLOWED_TARGET_PREFIXES", None)  # if absent, NeMo blocks nothing
    if prefixes is not None and _PREFIX not in prefixes:
        prefixes.append(_PREFIX)


def _register_schedule(_) -> None:
    # The module registers itself at its end. It may have triggered this import of NeMo, and not be complete yet.
    importlib.import_module("nemo_mshubert.optim.tri_stage")


def register_with_nemo() -> None:
    """Register both now, or as soon as NeMo is imported; ``NEMO_MSHUBERT_NO_AUTOREGISTER`` switches this off."""
    if not os.environ.get(OPT_OUT_VARIABLE):
        wrapt.register_post_import_hook(_append_prefix, "nemo.core.classes.common")
        wrapt.register_post_import_hook(_register_schedule, "nemo.core.optim.lr_scheduler")
