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

"""The benchmark of decoding: every decoder on the same input, and nothing measured that is not there."""

import builtins
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("flashlight.lib.text", reason="the beam search needs flashlight-text")

from nemo_mshubert.alphabet import ENGLISH_LABELS  # noqa: E402
from nemo_mshubert.benchmarks import decoding  # noqa: E402
from nemo_mshubert.benchmarks.measurement import table_of  # noqa: E402
from nemo_mshubert.decoding.config import read_config  # noqa: E402
from nemo_mshubert.decoding.lexicon import write_lexicon  # noqa: E402
from nemo_mshubert.decoding.lexicon_beam import LexiconBeamSearchDecoder  # noqa: E402
from nemo_mshubert.decoding.log_probs import write_log_probs  # noqa: E402

pytestmark = pytest.mark.unit
DEFAULTS = Path(__file__).parents[2] / "conf" / "decode" / "lexicon_beam.yaml"
WORDS = ["the", "sea", "see"]


def emissions(text):
    """A frame of each letter and a blank behind it."""
    tokens = [index for letter in text for index in (ENGLISH_LABELS.index(letter), len(ENGLISH_LABELS))]
    array = np.full((len(tokens), len(ENGLISH_LABELS) + 1), math.log(0.1 / len(ENGLISH_LABELS)), np.float32)
    array[np.arange(len(tokens)), tokens] = math.log(0.9)
    return array + np.random.default_rng(len(text)).uniform(0, 1e-4, array.shape).astype(np.float32)


@pytest.fixture
def arguments(tmp_path):
    lm = tmp_path / "lm.arpa"
    unigrams = "".join(f"-1.0\t{word}\t0\n" for word in WORDS)
    head = "\\data\\\nngram 1=6\nngram 2=1\n\n\\1-grams:\n-6\t<unk>\t0\n-99\t<s>\t0\n-1\t</s>\t0\n"
    lm.write_text(f"{head}{unigrams}\n\\2-grams:\n-0.1\tthe sea\n\n\\end\\\n")
    write_lexicon(tmp_path / "lm.lexicon", WORDS, ENGLISH_LABELS)
    texts = ["the sea", "see the sea", "sea"]
    utterances = [(f"u{n}", text, emissions(text)) for n, text in enumerate(texts)]
    write_log_probs(tmp_path / "dev.safetensors", ENGLISH_LABELS, utterances)
    return dict(
        log_probs=tmp_path / "dev.safetensors",
        decode=DEFAULTS,
        lm=str(lm),
        lexicon=str(tmp_path / "lm.lexicon"),
        beams=[5, 50],
        cores=[1],
        utterances=3,
        repeats=2,
        device=torch.device("cpu"),
    )


def test_rows_of_all_decoders(arguments):
    """All hear what was said: a speed at which something else was decoded says nothing."""
    pytest.importorskip("pyctcdecode", reason="the peer is not installed")
    rows = decoding.benchmark(**arguments)
    names = ["ours", "plain flashlight", "pyctcdecode"]
    assert [(row["decoder"], row["beam"], row["cores"]) for row in rows] == [(n, b, 1) for b in (5, 50) for n in names]
    assert all(row["utterances_per_second"] > 0 and row["cpu_seconds"] >= 0 for row in rows)
    assert [row["wer"] for row in rows] == [0.0] * 6


def test_several_cores_and_fewer_utterances(arguments):
    """What cannot use a second core has no row for it."""
    rows = decoding.benchmark(**{**arguments, "cores": [2], "beams": [5], "utterances": 2})
    assert [row["decoder"] for row in rows] == ["ours", "pyctcdecode"] and rows[0]["wer"] == 0.0
    assert not any("cpu_seconds" in row for row in rows)  # this process only waits


def test_without_pyctcdecode_its_row_says_so(arguments, monkeypatch):
    real_import = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pyctcdecode":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    rows = decoding.benchmark(**{**arguments, "beams": [5]})
    assert "wer" not in rows[-1] and rows[0]["wer"] == 0.0
    table = table_of(rows, decoding.COLUMNS).splitlines()
    assert table[-1] == "| pyctcdecode | 5 | 1 | not measured | not measured | not measured |"


def test_figures_of_a_decoder_by_hand(monkeypatch):
    """The fastest of the repetitions counts, without the first call, which loads the LM."""
    clock = SimpleNamespace(wall=0.0, cpu=0.0)
    costs, frames = iter([(100.0, 100.0), (4.0, 3.0), (2.0, 5.0), (8.0, 9.0)]), []

    def decode(utterances):
        wall, cpu = next(costs)
        clock.wall, clock.cpu = clock.wall + wall, clock.cpu + cpu
        frames.append([len(array) for _, array in utterances])
        return ["the sea", "ship is here"]

    stand_in = SimpleNamespace(perf_counter=lambda: clock.wall, process_time=lambda: clock.cpu)
    monkeypatch.setattr(decoding, "time", stand_in)
    utterances = [("u0", np.zeros((70, 3))), ("u1", np.zeros((60, 3)))]
    found = decoding._measure(decode, utterances, ["the sea", "ship"], repeats=3)
    assert found == {"utterances_per_second": 1, "cpu_seconds": 1.5, "wer": pytest.approx(100 * 2 / 3)}
    assert frames == [[50, 50]] + [[70, 60]] * 3


@pytest.mark.parametrize("name", ["ours", "plain flashlight", "pyctcdecode"])
@pytest.mark.parametrize("advantage, expected", [(1.5, "the see"), (0.7, "the sea")])
def test_weights_mean_the_same_to_every_decoder(arguments, name, advantage, expected):
    """The LM prefers "the sea" to "the see" by 0.9 in log10. A decoder with other weights searches for something else,
    and its speed is not that of the same work."""
    if name == "pyctcdecode":
        pytest.importorskip("pyctcdecode", reason="the peer is not installed")
    config = read_config(DEFAULTS, lm=arguments["lm"], lexicon=arguments["lexicon"])
    array = emissions("the see")
    last = len(array) - 2  # the last letter; behind it is a blank
    a, e = (ENGLISH_LABELS.index(letter) for letter in "ae")
    array[last, e] = math.log(0.6)
    array[last, a] = array[last, e] - advantage * 0.9 * config.lm_weight
    if name == "ours":
        text = LexiconBeamSearchDecoder(ENGLISH_LABELS, config).decode(array, "u").text
    elif name == "plain flashlight":
        plain = decoding.plain_flashlight(ENGLISH_LABELS, config)
        (text,) = decoding._decode_plainly(ENGLISH_LABELS, *plain, [("u", array)])
    else:
        text = decoding.pyctcdecode_decoder(ENGLISH_LABELS, config).decode(array)
    assert text == expected


def test_an_upper_case_lm_is_not_for_pyctcdecode(arguments, tmp_path):
    """It looks words up in the letters of the model: each would be unknown, and its rate not its own."""
    pytest.importorskip("pyctcdecode", reason="the peer is not installed")
    write_lexicon(tmp_path / "upper.lexicon", [word.upper() for word in WORDS], ENGLISH_LABELS)
    config = read_config(DEFAULTS, lm=arguments["lm"], lexicon=str(tmp_path / "upper.lexicon"))
    assert decoding.pyctcdecode_decoder(ENGLISH_LABELS, config) is None
