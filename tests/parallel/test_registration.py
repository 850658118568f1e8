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

"""Strategies by their names."""

import pytest

from nemo_mshubert.parallel import registration

pytestmark = pytest.mark.unit


def test_another_package_named_megatron_is_not_megatron_core(monkeypatch):
    """megatron-energon alone shares the namespace: no pre-training started, not even with DDP."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: "namespace" if name == "megatron" else None)
    assert set(registration.strategies()) == {"fsdp2"}
