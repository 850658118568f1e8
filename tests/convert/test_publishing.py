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

"""A published folder: loads in NeMo and in transformers, and its card says what the hub and a reader want to know."""

import re
import runpy
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers
import yaml
from huggingface_hub import ModelCard
from nemo.collections.asr.models import ASRModel
from omegaconf import OmegaConf

from nemo_mshubert.convert.model_card import Facts, model_card
from nemo_mshubert.convert.publishing import publish
from nemo_mshubert.decoding.evaluation import load_ctc_model
from nemo_mshubert.decoding.results import Source, Stored, read_results, write_results
from nemo_mshubert.models.loading import restore_model, save_model
from nemo_mshubert.modules.fingerprint import weights_fingerprint
from nemo_mshubert.package_info import __version__
from tests.conftest import REPOSITORY, TINY_CLUSTERS
from tests.convert.conftest import ENGLISH, assert_same_weights

pytestmark = pytest.mark.unit
SUMMARY = {
    "utterances": 2,
    "wer": 0.12345,
    "cer": 0.05,
    "words": {"reference_length": 81, "substitutions": 4, "insertions": 3, "deletions": 3},
}
RESULTS = {"dev-other": {"greedy": SUMMARY, "lexicon_beam": {**SUMMARY, "wer": 0.1}}}
SUMMARY_LACKING = '{"model": "x", "weights": "0", "manifests": {}, "results": {"dev": {"greedy": {}}}}'
DATA = ["Pre-training: synthetic speech", "Fine-tuning: half a minute", "Voices: Jörg and Zoë"]
FACTS = Facts("cc-by-4.0", DATA, "en", RESULTS)


def test_folder_of_a_letter_model(letters_path, tmp_path):
    """NeMo by file, transformers by folder, ours by folder: one set of weights; the card in both places."""
    files = publish(letters_path, tmp_path / "ms-hubert-mini", FACTS)
    folder = tmp_path / "ms-hubert-mini"
    assert {"README.md", "ms-hubert-mini.nemo", "config.json", "model.safetensors", "vocab.json"} <= set(files)
    expected = restore_model(letters_path)
    model = ASRModel.restore_from(str(folder / "ms-hubert-mini.nemo"), map_location="cpu")
    assert_same_weights(model.state_dict(), expected.state_dict())
    assert_same_weights(restore_model(folder).state_dict(), expected.state_dict())
    theirs = transformers.AutoModelForCTC.from_pretrained(folder).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)  # which scales, as our preprocessor does
    signal = 0.1 * torch.randn(1, 8000) + 0.2
    scaled = extractor(signal[0].numpy(), sampling_rate=16000, return_tensors="pt").input_values
    with torch.no_grad():
        ours, _, _ = expected.eval()(input_signal=signal, input_signal_length=torch.tensor([8000]))
        logits = theirs(scaled).logits.log_softmax(-1)  # the blank is their first row, our last
    torch.testing.assert_close(logits.roll(-1, dims=-1), ours, rtol=1e-3, atol=1e-3)
    with tarfile.open(folder / "ms-hubert-mini.nemo") as archive:
        assert archive.extractfile("./README.md").read() == (folder / "README.md").read_bytes()
        assert archive.getmember("./README.md").mode == 0o644  # whoever unpacks it can read it


def millions_of(model):
    return f"{len(torch.nn.utils.parameters_to_vector(model.parameters())) / 1e6:.1f}"


def test_card_of_a_letter_model(letters_path, tmp_path):
    """Header and text."""
    publish(letters_path, tmp_path / "ms-hubert-mini", FACTS)
    card = ModelCard.load(tmp_path / "ms-hubert-mini" / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.library_name == "nemo" and card.data.language == "en"
    assert card.data.pipeline_tag == "automatic-speech-recognition"
    assert card.data.tags == ["NeMo", "speech", "hubert", "ms-hubert", "transformers"]  # by which the hub lists it
    assert {(result.task_type, result.metric_type) for result in card.data.eval_results} == {
        ("automatic-speech-recognition", "wer")
    }
    measured = {(result.dataset_name, result.metric_name): result.metric_value for result in card.data.eval_results}
    assert measured == {("dev-other", "WER %, greedy"): 12.35, ("dev-other", "WER %, lexicon_beam"): 10.0}
    model = restore_model(letters_path)
    for fact in (
        f"A CTC speech recogniser over 28 letters around a pre-trained encoder, {millions_of(model)} M parameters",
        'ASRModel.from_pretrained("ORGANISATION/ms-hubert-mini")',
        f"`pip install .` in its source tree, which brings NVIDIA NeMo; version {__version__} wrote",
        "AutoModelForCTC",
        "- Fine-tuning: half a minute",
        "- Voices: Jörg and Zoë",
        "| dev-other | greedy | 2 | 81 | 12.35 |",
        f"k-means sets of {', '.join(map(str, TINY_CLUSTERS))} clusters of 39 MFCC features",
        f"label maker {model.cfg.pretraining_labels.label_maker}",
        "d_model: 24",
        "## Licence\n\ncc-by-4.0",
        "arXiv:2406.05661",
    ):
        assert fact in card.text, fact
    (config,) = re.findall("```yaml\n(.*?)```", card.text, re.DOTALL)
    config, parts = yaml.safe_load(config), ("preprocessor", "encoder", "decoder")
    assert config == {part: OmegaConf.to_container(model.cfg[part], resolve=True) for part in parts}


def test_cards_of_other_models(ssl_path, bpe_path, labelled, tiny_ctc):
    """A pre-trained model knows its labels, a converted encoder has none; word pieces are no letters."""
    facts = Facts("apache-2.0", ["Pre-training: synthetic speech"])
    card = model_card(restore_model(ssl_path), "ssl", facts, True)
    assert "A pre-trained speech encoder" in card and "ModelPT.from_pretrained" in card and "None were given." in card
    assert "model-index" not in card  # an empty one is no result
    assert (
        f"label maker {labelled.maker.id}" in card and "feature-extraction" in card and "AutoModelForCTC" not in card
    )
    card = model_card(restore_model(bpe_path), "bpe", facts, False)
    assert "over 40 word pieces" in card and "transformers" not in card
    card = model_card(restore_model(bpe_path), "bpe", facts, True)  # whose output layer transformers cannot hold
    assert "AutoModel.from_pretrained" in card and "AutoModelForCTC" not in card
    assert "## Labels of the pre-training" not in model_card(tiny_ctc(), "converted", facts, True)


def test_the_imports_of_cards_work(ssl_path, letters_path):
    """The first line that whoever downloads the model types."""
    for path, names in ((ssl_path, ["ModelPT", "AutoModel"]), (letters_path, ["ASRModel", "AutoModelForCTC"])):
        imports = re.findall("^from .* import .*$", model_card(restore_model(path), "x", FACTS, True), re.MULTILINE)
        imported = {}
        exec("\n".join(imports), imported)
        assert [name for name in imported if name != "__builtins__"] == names


def test_the_code_of_cards_runs(ssl_path, letters_path, tmp_path, monkeypatch, capsys):
    """What whoever downloads the model pastes; the folder stands for the hub."""
    for path, kind in ((ssl_path, "HubertModel"), (letters_path, "HubertForCTC")):
        publish(path, tmp_path / path.stem / "mini", FACTS)
        monkeypatch.chdir(tmp_path / path.stem / "mini")
        soundfile.write("speech.wav", 0.1 * np.random.default_rng(0).normal(size=24000), 16000)
        blocks = re.findall("```python\n(.*?)```", Path("README.md").read_text(encoding="utf-8"), re.DOTALL)
        by_nemo, by_transformers = {}, {}
        exec(re.sub(r"\S+\(\"ORGANISATION/mini\"\)  # or ", "", blocks[0]), by_nemo)
        exec(blocks[1].replace("ORGANISATION/mini", "."), by_transformers)
        assert type(by_transformers["model"]).__name__ == kind
        if path == ssl_path:
            assert_same_weights(by_nemo["encoder"].state_dict(), restore_model(path).encoder.state_dict())
    text = restore_model(letters_path).transcribe(["speech.wav"])[0].text
    assert text.strip() and text in capsys.readouterr().out.splitlines()


def test_an_encoder_that_transformers_lacks(tiny_ctc, tmp_path):
    """The .nemo and the card alone, which must not promise more."""
    save_model(tiny_ctc(pos_conv_depth=2), tmp_path / "odd.nemo")  # stacked positions behind a group norm
    assert publish(tmp_path / "odd.nemo", tmp_path / "odd", FACTS) == ["README.md", "odd.nemo"]
    assert "transformers" not in (tmp_path / "odd" / "README.md").read_text(encoding="utf-8")


def test_a_diverged_model_is_not_published(tiny_ctc, tmp_path):
    """Nor converted: it would write nothing but blanks, wherever it is loaded."""
    model = tiny_ctc()
    model.encoder.layers[1].final_layer_norm.bias.data[3] = torch.nan
    save_model(model, tmp_path / "diverged.nemo")
    with pytest.raises(ValueError, match="diverged.nemo: layers.1.final_layer_norm.bias holds NaN or infinity"):
        publish(tmp_path / "diverged.nemo", tmp_path / "new", FACTS)
    assert not (tmp_path / "new").exists()


def test_an_encoder_without_an_output_layer_is_no_recogniser(peer, save_peer, tmp_path):
    """The card of a speech recogniser whose random output layer nobody has trained."""
    folder = save_peer(peer("hubert-base"), "hubert-base")
    with pytest.raises(ValueError, match="peer: has no output layer over letters.*Fine-tune it"):
        publish(folder, tmp_path / "hubert", FACTS)
    assert not (tmp_path / "hubert").exists()
    theirs = save_peer(peer("hubert-base", "ForCTC", vocab_size=32, pad_token_id=0), "hubert-base", ENGLISH, "ctc")
    publish(theirs, tmp_path / "ctc-model", FACTS)
    card = (tmp_path / "ctc-model" / "README.md").read_text()
    assert "A CTC speech recogniser over 28 letters" in card


def test_whole_or_not_at_all(letters_path, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(FileExistsError, match="full: exists and is not empty"):
        publish(letters_path, tmp_path / "full", FACTS)
    monkeypatch.setattr("nemo_mshubert.convert.publishing.add_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        publish(letters_path, tmp_path / "new", FACTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def stored_of(model):
    """`RESULTS` as those of ``model``."""
    return Stored("x.nemo", weights_fingerprint(model), {"dev-other": Source("dev.json", "0")}, RESULTS)


def test_command_line(letters_path, tmp_path, monkeypatch, capsys):
    write_results(tmp_path / "results.json", stored_of(load_ctc_model(letters_path, "cpu")))
    arguments = ["--model", letters_path, "--output", tmp_path / "mini", "--licence", "cc0-1.0", "--data", "Nothing"]
    arguments += ["--results", tmp_path / "results.json", "--language", "de"]
    monkeypatch.setattr("sys.argv", ["publish.py", *map(str, arguments)])
    runpy.run_path(str(REPOSITORY / "scripts" / "publish.py"), run_name="__main__")
    assert "README.md" in capsys.readouterr().out
    assert "| dev-other | lexicon_beam |" in (tmp_path / "mini" / "README.md").read_text()
    assert ModelCard.load(tmp_path / "mini" / "README.md").data.language == "de"  # by which the hub is searched


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_results_are_those_of_the_model(letters_path, bpe_path, tmp_path, monkeypatch, precision):
    """The card of one model with the WER of another, which whoever downloads it would not reach."""
    write_results(tmp_path / "results.json", stored_of(load_ctc_model(letters_path, "cpu", precision)))

    def publish_it(path):
        arguments = ["--model", path, "--output", tmp_path / path.stem, "--licence", "cc0-1.0", "--data", "Nothing"]
        arguments += ["--results", tmp_path / "results.json"]
        monkeypatch.setattr("sys.argv", ["publish.py", *map(str, arguments)])
        runpy.run_path(str(REPOSITORY / "scripts" / "publish.py"), run_name="__main__")

    publish_it(letters_path)
    published = ASRModel.restore_from(str(tmp_path / "letters" / "letters.nemo"), map_location="cpu")
    assert_same_weights(published.state_dict(), restore_model(letters_path).state_dict())  # in fp32, as it was
    with pytest.raises(ValueError, match="bpe.nemo: the results are of a model with other weights. Evaluate this one"):
        publish_it(bpe_path)
    assert not (tmp_path / "bpe").exists()


@pytest.mark.parametrize("content", ["[]", "{", "{}", SUMMARY_LACKING])
def test_results_of_something_else(tmp_path, content):
    """Who names the predictions beside it instead must not be told to remove them."""
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(
        ValueError, match="results.json: not a results.json of scripts/evaluate.py .* If it was one, re"
    ):
        read_results(tmp_path / "results.json")
    with pytest.raises(FileNotFoundError, match="gone.json: no such file. Write it with scripts/evaluate.py"):
        read_results(tmp_path / "gone.json")
