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

"""The cache must give back what the model said, and refuse what would waste hours of tuning."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from nemo_mshubert.decoding.greedy import greedy_text
from nemo_mshubert.decoding.log_probs import checked_log_probs, read_log_probs, write_log_probs

pytestmark = pytest.mark.unit
AB = [" ", "a", "b"]


def utterances(emit):
    return [("u1", "ab a", emit("ab|a", AB)), ("u2", "", emit("", AB)), ("u3", "b", torch.from_numpy(emit("_b_", AB)))]


def test_round_trip(tmp_path, emit):
    path = tmp_path / "dev.safetensors"
    write_log_probs(path, AB, utterances(emit))
    cache = read_log_probs(path)
    assert (cache.labels, cache.utterances, cache.references) == (AB, ["u1", "u2", "u3"], ["ab a", "", "b"])
    assert len(cache.log_probs) == 3
    for (_, _, expected), found in zip(utterances(emit), cache.log_probs):
        assert found.dtype == np.float32 and found.shape == tuple(expected.shape)
        np.testing.assert_array_equal(found, np.asarray(expected))
    assert [greedy_text(log_probs, AB) for log_probs in cache.log_probs] == ["ab a", "", "b"]
    assert greedy_text(emit("|ab|_|a|", AB), AB) == "ab a"  # two delimiters are no two spaces


@pytest.mark.parametrize("texts", [["ab", ""], ["", "ab", "", ""], [""]])
def test_utterances_without_a_frame_anywhere(tmp_path, emit, texts):
    """A clip shorter than a frame at the end of a dev set, and tuning could not read what evaluation wrote."""
    path = tmp_path / "dev.safetensors"
    write_log_probs(path, AB, [(f"u{number}", text, emit(text, AB)) for number, text in enumerate(texts)])
    found = read_log_probs(path).log_probs
    assert [array.shape for array in found] == [(len(text), 4) for text in texts]
    assert [greedy_text(array, AB) for array in found] == texts
    assert {array.dtype for array in found} == {np.dtype(np.float32)}


def test_empty_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="dev.safetensors: no utterances"):
        write_log_probs(tmp_path / "dev.safetensors", AB, [])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_probability_is_refused_and_leaves_no_file(tmp_path, emit, value):
    broken = emit("ab", AB)
    broken[1, 0] = value
    with pytest.raises(ValueError, match="u2: .*frame 1"):
        write_log_probs(tmp_path / "dev.safetensors", AB, [("u1", "a", emit("a", AB)), ("u2", "a", broken)])
    assert list(tmp_path.iterdir()) == []


def test_a_model_s_bf16_is_taken(emit):
    """NumPy has no such type; a probability of zero is one."""
    log_probs = emit("ab", AB)
    log_probs[0, 1] = -np.inf
    found = checked_log_probs(torch.from_numpy(log_probs).bfloat16().requires_grad_(), len(AB), "u1")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, log_probs, rtol=2**-8)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="evaluate.py"):
        read_log_probs(tmp_path / "absent")
    (tmp_path / "text").write_text("hello")
    save_file({"weight": np.zeros(2)}, tmp_path / "model")
    save_file({"weight": np.zeros(2)}, tmp_path / "labelled", metadata={"labels": "[]"})
    for name in ("text", "model", "labelled"):
        with pytest.raises(
            ValueError, match=f"{name}: not a file of log-probabilities .*Write it anew with scripts/ev"
        ):
            read_log_probs(tmp_path / name)
