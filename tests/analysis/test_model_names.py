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

"""NAME=FILE.nemo."""

import argparse

import pytest

from nemo_mshubert.analysis.model_names import named_model

pytestmark = pytest.mark.unit


def test_files_may_hold_equals_signs():
    """As those that Lightning names: the file would be 0.25.nemo."""
    assert named_model("- Swap=exp/val_loss=0.25.nemo") == ("- Swap", "exp/val_loss=0.25.nemo")


@pytest.mark.parametrize("text", ["a.nemo", "=a.nemo", "A=", ""])
def test_name_and_file_are_needed(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected NAME=FILE.nemo"):
        named_model(text)
