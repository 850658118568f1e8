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

"""The spec of Table 1: what would end a step after days is found before the first."""

from pathlib import Path

import pytest

from nemo_mshubert.alphabet import ENGLISH_LABELS
from nemo_mshubert.decoding.lexicon import write_lexicon
from nemo_mshubert.decoding.table1.spec import check_inputs, folder_name, read_spec

pytestmark = pytest.mark.unit
CONF = Path(__file__).parents[3] / "conf"


def test_shipped_spec_is_the_papers():
    """32 trials; beam 500 on dev sets, 1500 on test sets; dev-other chooses the checkpoint; recipes that exist."""
    spec = read_spec(CONF / "table1" / "librispeech.yaml")
    assert (spec.trials, spec.dev_beam, spec.test_beam, spec.validation_set) == (32, 500, 1500, "dev-other")
    assert list(spec.sets) == ["dev-clean", "dev-other", "test-clean", "test-other"]
    assert list(spec.splits) == ["1h", "10h", "100h", "960h"]
    assert [model.name for model in spec.models] == ["HuBERT", "MS-HuBERT", "- Swap", "from scratch"]
    for name, split in spec.splits.items():
        assert split.config == name and (CONF / "finetune" / f"{name}.yaml").is_file()
    for model in spec.models:  # where scripts/pretrain.py leaves the experiment of that name
        name = Path(model.ssl).stem
        assert model.ssl == f"exp/{name}/checkpoints/{name}.nemo"
        assert (CONF / "pretrain" / f"{name}.yaml").is_file()
    assert spec.models[-1].from_scratch and "freeze_encoder_updates=0" in spec.models[-1].overrides


def test_shipped_spec_names_what_the_other_commands_leave():
    """A column of dev-other headed test-other, or a row of another model: a table that is wrong and looks right."""
    spec = read_spec(CONF / "table1" / "librispeech.yaml")
    assert spec.sets == {name: f"data/manifests/{name}.json" for name in spec.sets}
    assert list(spec.dev_sets) == ["dev-clean", "dev-other"] and spec.tune_on == ["dev-other"]
    trained_on = {name: (split.train_manifest, split.train_tars) for name, split in spec.splits.items()}
    stems = {"1h": "1h", "10h": "10h", "100h": "train-clean-100", "960h": "train-960"}
    assert trained_on == {name: (f"data/manifests/{stem}.json", None) for name, stem in stems.items()}
    assert [(model.name, Path(model.ssl).stem, model.from_scratch) for model in spec.models] == [
        ("HuBERT", "hubert_iter2_base", False),
        ("MS-HuBERT", "mshubert_base", False),
        ("- Swap", "mshubert_base_noswap", False),
        ("from scratch", "mshubert_base", True),
    ]
    assert (spec.lm, spec.lexicon) == ("lm/librispeech.bin", "lm/librispeech.lexicon")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"beam": 5}, "(?s)spec.yaml: .*beam"),
        ({"trials": "many"}, "(?s)spec.yaml: .*trials"),
        ({"trials": 0}, "must be positive"),
        ({"dev_beam": 0}, "must be positive"),
        ({"test_beam": 0}, "must be positive"),
        ({"lm": "???"}, "spec.yaml: lm not set. See conf/table1/librispeech.yaml"),
        ({"tune_on": ["dev-clean"]}, r"sets of dev_sets \(dev-other\), not dev-clean"),
        ({"tune_on": []}, "not none"),
        ({"validation_set": "test-clean"}, "not test-clean"),
        (
            {"models": [{"name": "a-b", "ssl": "x"}, {"name": "a b", "ssl": "y"}]},
            "models: 'a-b' needs a name of its own",
        ),
        ({"models": [{"name": "-", "ssl": "x"}]}, "models: '-' needs a name"),
        (
            {"splits": {name: {"config": "1h", "train_manifest": "x"} for name in ("1-h", "1 h")}},
            "splits: '1-h' needs a name of its own",
        ),
        ({"dev_sets": {"dev-other": "a/x.json", "dev-clean": "b/x.json"}}, "file names of dev_sets: 'x'"),
        ({"test_sets": {"dev-other": "t.json"}}, "'dev-other' needs a name of its own"),
    ],
)
def test_wrong_values_are_named(write_spec, changes, message):
    """Two models in one folder would give one row the other's numbers."""
    with pytest.raises(ValueError, match=message):
        read_spec(write_spec(**changes))


def test_a_spec_that_is_no_yaml_is_named(tmp_path):
    (tmp_path / "spec.yaml").write_text("models: [")
    with pytest.raises(ValueError, match="spec.yaml: while parsing"):
        read_spec(tmp_path / "spec.yaml")


def test_absent_spec_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.yaml: no such file. Start from conf/table1/librispeech.yaml"):
        read_spec(tmp_path / "gone.yaml")


def test_names_become_folders():
    assert [folder_name(name) for name in ("- Swap", "MS-HuBERT", "test-other")] == ["Swap", "MS_HuBERT", "test_other"]


@pytest.fixture
def write_inputs(tmp_path, write_arpa):
    """``write_inputs()``: all the files that `write_spec` names, in order; what is given is written instead."""
    pytest.importorskip("ax", reason="the inputs are checked with Ax at hand")

    def write(texts=None, words=("the", "sea"), lm_words=("the", "sea")):
        write_arpa({word: -1.0 for word in lm_words}, name="lm.arpa")
        write_lexicon(tmp_path / "lm.lexicon", words, ENGLISH_LABELS)
        (tmp_path / "ssl.nemo").touch()
        (tmp_path / "x.wav").touch()
        for name in ("train", "dev", "test"):
            text = (texts or {}).get(name, "the sea")
            line = f'{{"audio_filepath": "x.wav", "duration": 1.0, "text": "{text}"}}\n'
            (tmp_path / f"{name}.json").write_text(line if text is not None else "\n")

    return write


def check(path):
    spec = read_spec(path)
    check_inputs(spec, spec.models, list(spec.splits), CONF)


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"texts": {"dev": None}}, "dev.json: the manifest is empty"),
        ({"texts": {"test": "THE SEA"}}, "test.json:1: .*the text has 'AEHST'"),
        ({"texts": {"train": "the 3 seas"}}, "train.json:1: .*the text has '3'"),
        ({"lm_words": ("\u043c\u043e\u0440\u0435",)}, "lm.arpa: the language model knows none of the 2 words"),
        ({"lm_words": ("THE", "SEA")}, "upper and the other in lower case"),
    ],
)
def test_data_and_lm_that_do_not_fit_are_refused_first(write_inputs, write_spec, inputs, message):
    """An empty dev set, another case, another alphabet: found after the fine-tuning, they cost days."""
    write_inputs()
    check(write_spec())
    write_inputs(**inputs)
    with pytest.raises(ValueError, match=message):
        check(write_spec())


def test_a_lexicon_of_other_letters_is_refused_first(write_inputs, write_spec, tmp_path):
    write_inputs()
    for spelling, message in (("T H E |", "lm.lexicon:1: .*wrong case"), ("t h \u00e9 |", "not among the model's")):
        (tmp_path / "lm.lexicon").write_text(f"the\t{spelling}\n")
        with pytest.raises(ValueError, match=message):
            check(write_spec())


@pytest.mark.parametrize("name", ["ssl.nemo", "train.json", "dev.json", "test.json", "lm.arpa", "lm.lexicon"])
def test_absent_files_are_named_first(write_inputs, write_spec, tmp_path, name):
    write_inputs()
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: no such"):
        check(write_spec())


def test_an_absent_recipe_is_named_first(write_inputs, write_spec, tmp_path):
    write_inputs()
    splits = {"1h": {"config": "one_hour", "train_manifest": str(tmp_path / "train.json")}}
    with pytest.raises(FileNotFoundError, match="one_hour.yaml: no such recipe for the split '1h'"):
        check(write_spec(splits=splits))
    spec = read_spec(write_spec(splits=splits))
    with pytest.raises(FileNotFoundError, match="one_hour.yaml"):  # also of a split that is left for later
        check_inputs(spec, spec.models, [], CONF)


@pytest.mark.parametrize("name", ["dev", "test"])
def test_sets_that_cannot_be_evaluated_are_named_first(write_inputs, write_spec, tmp_path, name):
    """Found by the first evaluation, when the first model had been fine-tuned for a day."""
    write_inputs()
    path = tmp_path / f"{name}.json"
    line = path.read_text()
    path.write_text(line.replace("x.wav", "gone.wav"))
    with pytest.raises(FileNotFoundError, match=f"{name}.json:1: .*gone.wav: no such audio file"):
        check(write_spec())
    path.write_text(line.replace('"duration": 1.0, ', ""))
    with pytest.raises(ValueError, match=f'{name}.json:1: no "duration"'):
        check(write_spec())


def test_names_of_shards_are_no_file(write_inputs, write_spec):
    """LibriSpeech's 960 h on tars could not be run: its manifest, a pattern, was no such manifest."""
    write_inputs()
    split = {"config": "960h", "train_manifest": "m__OP_0..3_CL_.json", "train_tars": "a__OP_0..3_CL_.tar"}
    check(write_spec(splits={"960h": split}))


def test_what_tuning_needs_is_missed_first(write_spec, monkeypatch):
    """Found when the first model has been fine-tuned, it costs a day."""

    def absent():
        raise ImportError("tuning needs Ax")

    monkeypatch.setattr("nemo_mshubert.decoding.table1.spec.require_ax", absent)
    with pytest.raises(ImportError, match="tuning needs Ax"):
        check(write_spec())
