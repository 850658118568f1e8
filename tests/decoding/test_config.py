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

"""Decoding configs: the shipped defaults, and what tuning writes for evaluation."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_mshubert.decoding.config import read_config, write_config

pytestmark = pytest.mark.unit
DEFAULTS = Path(__file__).resolve().parents[2] / "conf" / "decode" / "lexicon_beam.yaml"


def test_defaults_are_the_wav2vec_recipe_and_need_only_the_files():
    config = read_config(DEFAULTS, lm="lm.bin", lexicon="lm.lexicon", beam_size=None)
    assert (config.lm_weight, config.word_score, config.sil_score) == (2.0, -1.0, 0.0)
    assert (config.beam_size, config.beam_threshold, config.beam_size_token) == (500, 100.0, None)
    smallest = read_config(DEFAULTS, lm="lm.bin", lexicon="lm.lexicon", beam_size=1, beam_size_token=1)
    assert (smallest.beam_size, smallest.beam_size_token) == (1, 1)  # a greedy search is allowed
    assert read_config(DEFAULTS, lm="lm.bin", lexicon="lm.lexicon", lm_weight=0.0).lm_weight == 0  # not the default
    with pytest.raises(ValueError, match="lexicon_beam.yaml: lexicon not set. Name the files in the YAML or as arg"):
        read_config(DEFAULTS, lm="lm.bin")


def test_written_config_reads_back_from_anywhere(tmp_path, monkeypatch):
    config = read_config(DEFAULTS, lm="lm.bin", lexicon="lm.lexicon", lm_weight=1.25, beam_size=1500)
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "tuned.yaml", config, comment="12 trials")
    assert (tmp_path / "tuned.yaml").read_text().startswith("# 12 trials\n")
    keys = "lm lexicon lm_weight word_score sil_score beam_size beam_threshold beam_size_token"
    assert list(OmegaConf.load(tmp_path / "tuned.yaml")) == keys.split()
    read = read_config(tmp_path / "tuned.yaml")
    assert (read.lm, read.lm_weight, read.beam_size) == (str(tmp_path / "lm.bin"), 1.25, 1500)


@pytest.mark.parametrize(
    "line, message",
    [
        ("beem_size: 5", "beem_size"),
        ("beam_size: many", "beam_size"),
        ("beam_size: 0", "positive"),
        ("beam_threshold: 0", "positive"),
        ("beam_size_token: 0", "positive"),  # it was taken for null, all letters
        ("beam_threshold: .nan", "positive"),  # with these the search found no word, or any
        ("lm_weight: .nan", "lm_weight nan: expected a finite number"),
        ("word_score: -.inf", "word_score -inf: expected a finite"),
        ("sil_score: .inf", "sil_score inf: expected a finite"),
        ("beam_size: [", "expected the node content"),
    ],
)
def test_wrong_values_are_named(tmp_path, line, message):
    """A misspelt weight would otherwise silently keep its default."""
    values = ["lm: a", "lexicon: b", "lm_weight: 1", "word_score: 0", "sil_score: 0"]
    values += ["beam_threshold: 9", "beam_size_token: null", "beam_size: 5"]
    others = [value for value in values if value.split(":")[0] != line.split(":")[0]]
    (tmp_path / "c.yaml").write_text("\n".join([*others, line, ""]))
    with pytest.raises(ValueError, match=f"(?s)c.yaml: .*{message}"):
        read_config(tmp_path / "c.yaml")
    with pytest.raises(FileNotFoundError, match="lexicon_beam.yaml"):
        read_config(tmp_path / "absent.yaml")
    (tmp_path / "c.yaml").write_text("5")
    with pytest.raises(ValueError, match="c.yaml: "):
        read_config(tmp_path / "c.yaml")


def test_the_lexicon_is_found_from_anywhere_too(tmp_path, monkeypatch):
    """Tuned in one folder, evaluated in another: no such lexicon, or one of the same name."""
    config = read_config(DEFAULTS, lm="lm.bin", lexicon="lm.lexicon")
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "tuned.yaml", config, comment="")
    assert read_config(tmp_path / "tuned.yaml").lexicon == str(tmp_path / "lm.lexicon")
