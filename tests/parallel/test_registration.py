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


def test_names_say_how_many_ranks_share_a_model():
    """Counted as data parallelism, an update would be of a part of its audio; without sequence parallelism, the
    activations would not fit."""
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    found = {name: options for name, (_, options) in registration.strategies().items()}
    assert found["megatron_tp4"] == {"tensor_parallel_size": 4, "sequence_parallel": False}
    assert found["megatron_tp4_sp"] == {"tensor_parallel_size": 4, "sequence_parallel": True}
    for name, options in found.items():
        assert registration.tensor_parallel_size(name) == options.get("tensor_parallel_size", 1), name


@pytest.mark.parametrize("kind", ["FSDP", "DeepSpeed", "ModelParallel"])
def test_lightnings_ways_of_splitting_weights_are_refused_by_their_classes_too(kind):
    """Each rank would clip its part of the gradients by a norm of its own, and the .nemo hold a part of the model."""
    strategy = {"_target_": f"lightning.pytorch.strategies.{kind}Strategy"}
    with pytest.raises(ValueError, match=f"^trainer.strategy=.*{kind}Strategy.*parallel=fsdp2"):
        registration.check_strategy(strategy)
