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

"""Evaluation of a manifest: the error rates, and every file it leaves behind, against independent computations."""

import copy
import hashlib
import json
import sys

import numpy as np
import pytest
import soundfile
import torch
from nemo.collections.asr.models import ASRModel, EncDecCTCModelBPE

from nemo_mshubert.data.manifest import write_manifest
from nemo_mshubert.decoding import evaluation
from nemo_mshubert.decoding.acoustic import model_log_probs
from nemo_mshubert.decoding.evaluation import (
    Decoder,
    cores_per_rank,
    error_summary,
    evaluate_manifests,
    greedy_decoder,
    lexicon_decoder,
    load_ctc_model,
)
from nemo_mshubert.decoding.log_probs import read_log_probs
from nemo_mshubert.decoding.results import results_table
from nemo_mshubert.modules.fingerprint import weights_fingerprint
from nemo_mshubert.parallel.launched import ALONE, LaunchedRanks, launched_ranks
from tests.conftest import load_script
from tests.decoding.test_error_rates import slow_edit_distance as edit_distance
from tests.parallel.ranks_of_a_test import run_on_ranks

pytestmark = pytest.mark.unit
LENGTHS = [16000, 24000, 100, 20000]
TEXTS = ["the sea is far", "a cat sat", "oh", "dogs"]


@pytest.fixture
def waves():
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.1, length).astype(np.float32) for length in LENGTHS]


@pytest.fixture
def model(letters_path):
    """A letter model of random weights."""
    return load_ctc_model(str(letters_path), device="cpu")


@pytest.fixture
def manifest(tmp_path, waves):
    entries = []
    for number, (wave, text) in enumerate(zip(waves, TEXTS)):
        path = tmp_path / "data" / f"u{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, wave, 16000, subtype="FLOAT")
        entries.append({"audio_filepath": str(path), "duration": len(wave) / 16000, "text": text, "speaker": number})
    entries[0]["pred_text"] = "of another model"  # the predictions of one are a manifest for the next
    write_manifest(tmp_path / "data" / "test.json", entries)
    return tmp_path / "data" / "test.json"


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_whole(manifest):
    """Lines whose audio is named from any folder."""
    return [{**entry, "audio_filepath": str(manifest.parent / entry["audio_filepath"])} for entry in read(manifest)]


def test_numbers_and_files_of_a_letter_model(letters_path, model, manifest, waves, tmp_path):
    """WER and CER are those of NeMo's own transcripts, file by file; the files hold what they were computed from."""
    results = evaluate_manifests(model, "a.nemo", [manifest], tmp_path / "out", {"greedy": greedy_decoder(model)})
    output = tmp_path / "out"
    names = ["results.json", "test.greedy.json", "test.log_probs.safetensors"]
    assert sorted(path.name for path in output.iterdir()) == names

    stock = ASRModel.restore_from(str(letters_path), map_location="cpu")
    files = [entry["audio_filepath"] for entry in read_whole(manifest)]
    texts = [hypothesis.text for hypothesis in stock.transcribe(files, batch_size=1, verbose=False)]
    assert texts[2] == "" and all(texts[number] for number in (0, 1, 3))  # 100 samples are less than a frame
    predictions = read(output / "test.greedy.json")
    assert [line["pred_text"] for line in predictions] == texts
    assert [(line["text"], line["speaker"]) for line in predictions] == list(zip(TEXTS, range(4)))
    assert all((output / line["audio_filepath"]).is_file() for line in predictions)

    words = [edit_distance(reference.split(), text.split()) for reference, text in zip(TEXTS, texts)]
    characters = [edit_distance(reference, " ".join(text.split())) for reference, text in zip(TEXTS, texts)]
    assert [sum(line["word_errors"].values()) for line in predictions] == words
    summary = results["test"]["greedy"]
    assert summary["utterances"] == 4 and summary["words"]["reference_length"] == 9
    assert summary["wer"] == pytest.approx(sum(words) / 9)
    assert summary["cer"] == pytest.approx(sum(characters) / sum(map(len, TEXTS)))
    for unit, expected in (("words", words), ("characters", characters)):
        assert sum(summary[unit][kind] for kind in ("substitutions", "insertions", "deletions")) == sum(expected)

    cache = read_log_probs(output / "test.log_probs.safetensors")
    assert cache.utterances == ["u0", "u1", "u2", "u3"] and cache.references == TEXTS
    assert cache.labels == list(stock.decoder.vocabulary)
    alone = model_log_probs(model, [waves[1]])[0]
    np.testing.assert_allclose(cache.log_probs[1], alone, rtol=1e-4, atol=1e-4)  # sums in another order
    assert len(cache.log_probs[2]) == 0


def log_probs_of(tokens, num_labels):
    """``[T, V + 1]`` whose best path is each token in two frames and a blank."""
    frames = [frame for token in tokens for frame in (token, token, num_labels)]
    return np.log(np.eye(num_labels + 1, dtype=np.float32)[frames] * 0.9 + 0.01)


@pytest.mark.parametrize("kind", ["letters", "bpe"])
@pytest.mark.parametrize("strategy", [None, "beam_batch"])
def test_greedy_is_greedy_and_keeps_the_space_before_an_apostrophe(letters_path, bpe_path, kind, strategy):
    """NeMo takes the apostrophe for punctuation and joins it to the word before: Dutch "dat is 's avonds" lost a word
    in every such place; and a file saved with a beam search was evaluated with it, as greedy."""
    text = "dat is 's avonds"
    model = load_ctc_model(str(letters_path if kind == "letters" else bpe_path), device="cpu")
    if strategy:
        decoding = copy.deepcopy(model.cfg.decoding)
        decoding.strategy = strategy
        model.change_decoding_strategy(decoding)
    if kind == "letters":
        letters = list(model.decoder.vocabulary)
        tokens = [letters.index(letter) for letter in text]
    else:
        text = text.replace("'", "")  # which its corpus had not
        tokens = model.tokenizer.text_to_ids(text)
    array = log_probs_of(tokens, len(model.decoder.vocabulary))
    assert greedy_decoder(model).decode(["u", "empty"], [array, array[:0]]) == [text, ""]


def test_a_bpe_model_is_evaluated_without_a_cache(bpe_path, manifest, tmp_path):
    """Its tokens are no letters, so tuning could not spell words with them."""
    model = load_ctc_model(str(bpe_path), device="cpu")
    assert type(model) is EncDecCTCModelBPE
    results = evaluate_manifests(
        model, "a.nemo", [manifest], tmp_path / "out", {"greedy": greedy_decoder(model)}, batch_seconds=2
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["results.json", "test.greedy.json"]
    files = [str(manifest.parent / f"u{number}.wav") for number in range(4)]
    texts = [hypothesis.text for hypothesis in model.transcribe(files, batch_size=1, verbose=False)]
    assert [line["pred_text"] for line in read(tmp_path / "out" / "test.greedy.json")] == texts
    words = sum(edit_distance(reference.split(), text.split()) for reference, text in zip(TEXTS, texts))
    assert results["test"]["greedy"]["wer"] == pytest.approx(words / 9)
    window = evaluation._decoded_window(model, "test", read_whole(manifest), {}, 120)
    assert window.log_probs == []  # of a thousand tokens, ten hours of speech would fill the memory
    with pytest.raises(ValueError, match="this model has BPE tokens. Evaluate it greedily: leave out --decode"):
        lexicon_decoder(model, None, 1)


def test_several_decoders_share_one_pass_of_the_model(
    model, manifest, tmp_path, write_arpa, write_lexicon_of, make_config, monkeypatch
):
    """Greedy and lexicon beam side by side; the beam writes words of the lexicon and nothing else."""
    pytest.importorskip("flashlight.lib.text", reason="the beam search needs flashlight-text")
    vocabulary = ["the", "sea", "a", "wig"]
    config = make_config(write_arpa({word: -1.0 for word in vocabulary}), write_lexicon_of(vocabulary), beam_size=50)
    passes = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **inputs: passes.append(1) or forward(**inputs))
    decoders = {"greedy": greedy_decoder(model), "lexicon_beam": lexicon_decoder(model, config, 1)}
    results = evaluate_manifests(model, "a.nemo", [manifest], tmp_path / "out", decoders)
    assert len(passes) == 1 and sorted(results["test"]) == ["greedy", "lexicon_beam"]
    found = [line["pred_text"] for line in read(tmp_path / "out" / "test.lexicon_beam.json")]
    assert found[2] == "" and set(" ".join(found).split()) <= set(vocabulary) and any(found)


def test_batches_are_as_long_as_wanted(model, manifest, tmp_path, monkeypatch):
    """Where the memory of a GPU is short, ``--batch_seconds`` is all there is to turn."""
    rows, forward = [], model.forward
    monkeypatch.setattr(
        model, "forward", lambda **inputs: rows.append(len(inputs["input_signal"])) or forward(**inputs)
    )
    for seconds, expected in ((1, [1, 1, 1, 1]), (120, [4])):
        folder = tmp_path / str(seconds)
        evaluate_manifests(model, "a", [manifest], folder, {"greedy": greedy_decoder(model)}, seconds)
        assert rows == expected
        rows.clear()


def test_a_beam_search_has_the_processes_it_was_given(
    model, manifest, tmp_path, write_arpa, write_lexicon_of, make_config, monkeypatch
):
    """``--workers 16`` on one core takes a day, and nobody is told."""
    pytest.importorskip("flashlight.lib.text", reason="the beam search needs flashlight-text")
    from nemo_mshubert.decoding.parallel import ParallelDecoder

    monkeypatch.setattr(evaluation, "cores_per_rank", lambda: 7)
    config = make_config(write_arpa({"the": -1.0, "a": -1.0}), write_lexicon_of(["the", "a"]), beam_size=5)
    searches = []

    class Watched(ParallelDecoder):
        def __init__(self, decoder, workers):
            super().__init__(decoder, 1)
            self.given, self.entered = workers, 0
            searches.append(self)

        def __enter__(self):
            self.entered += 1
            return super().__enter__()

    monkeypatch.setattr("nemo_mshubert.decoding.parallel.ParallelDecoder", Watched)
    decoders = {"default": lexicon_decoder(model, config), "three": lexicon_decoder(model, config, 3)}
    evaluate_manifests(model, "a", [manifest], tmp_path / "out", decoders)
    assert [(search.given, search.entered) for search in searches] == [(7, 1), (3, 1)]


@pytest.mark.parametrize("num_ranks", [2, 5])  # 5: more than the utterances
def test_ranks_share_an_evaluation(model, manifest, tmp_path, num_ranks):
    """Eight GPUs must find what one finds, in its order."""

    def evaluate(folder):
        with launched_ranks() as ranks:
            return evaluate_manifests(model, "a.nemo", [manifest], folder, {"greedy": greedy_decoder(model)}, 2, ranks)

    alone = evaluate(tmp_path / "alone")
    together = run_on_ranks(num_ranks, evaluate, tmp_path / "together")
    assert together == [alone, *[None] * (num_ranks - 1)]
    one, many = (read_log_probs(next((tmp_path / name).glob("*.safetensors"))) for name in ("alone", "together"))
    assert one.utterances == many.utterances
    for expected, found in zip(one.log_probs, many.log_probs):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    (expected,), (found,) = ((tmp_path / name).glob("*.greedy.json") for name in ("alone", "together"))
    assert found.read_text() == expected.read_text()


def test_bf16_is_close_to_fp32(letters_path, manifest, waves):
    """`--precision bf16` casts the model; log-probabilities come back as fp32."""
    expected = model_log_probs(load_ctc_model(str(letters_path), "cpu"), waves[:2])
    model = load_ctc_model(str(letters_path), "cpu", "bf16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16} and not model.training
    for found, reference in zip(model_log_probs(model, waves[:2]), expected):
        assert found.dtype == np.float32 and (found.argmax(1) == reference.argmax(1)).mean() > 0.9


def test_the_table_holds_the_counts():
    """In the table of a paper: percent, with the counts behind them."""
    summary = error_summary([{"text": "the cat sat"}, {"text": "a dog"}], ["the bat sat", "a big dog"])
    row = results_table({"test-clean": {"greedy": summary}}).splitlines()[-1]
    assert row == "| test-clean | greedy | 2 | 5 | 40.00 | 1 | 1 | 0 | 31.25 |"  # 2 of 5 words, 5 of 16 characters


def test_results_of_one_model_add_up(model, manifest, tmp_path):
    """dev-other first, test-other another day: the second call must not take away the numbers of the first."""
    output = tmp_path / "out"
    decoders = {"greedy": greedy_decoder(model)}
    evaluate_manifests(model, "a.nemo", [manifest], output, decoders)
    write_manifest(tmp_path / "dev.json", [{**read_whole(manifest)[1], "text": "a dog"}])
    table = results_table(evaluate_manifests(model, "b.nemo", [tmp_path / "dev.json"], output, decoders))
    assert "| dev |" in table and "| test |" not in table  # what this call has found
    stored = json.loads((output / "results.json").read_text())
    assert stored["model"] == "b.nemo"  # the newest of its names
    results = stored["results"]
    assert list(results) == list(stored["manifests"]) == ["test", "dev"]  # another test.json is refused still
    for name, reference_words in (("test", 9), ("dev", 2)):
        assert results[name]["greedy"]["words"]["reference_length"] == reference_words
    write_manifest(tmp_path / "dev.json", [{**read_whole(manifest)[1], "text": "one big dog"}])
    evaluate_manifests(model, "b.nemo", [tmp_path / "dev.json"], output, decoders)
    results = json.loads((output / "results.json").read_text())["results"]
    assert results["dev"]["greedy"]["words"]["reference_length"] == 3  # the newest


@pytest.fixture
def other_folder(manifest, tmp_path):
    """Write lines as test.json into another folder than that of ``manifest``."""

    def write(entries, folder="elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test.json").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        return tmp_path / folder / "test.json"

    return write


def test_another_set_of_the_same_name_is_refused(model, manifest, other_folder, tmp_path, monkeypatch):
    """LibriSpeech's test.json, then Common Voice's: numbers, predictions and log-probabilities of the first were
    gone."""
    output = tmp_path / "out"
    decoders = {"greedy": greedy_decoder(model)}
    evaluate_manifests(model, "a.nemo", [manifest], output, decoders)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    another = other_folder(read_whole(manifest)[:2])
    monkeypatch.setattr(model, "forward", None)  # refused before an hour of it
    write_manifest(tmp_path / "dev.json", read_whole(manifest)[:1])
    message = f"results.json: its 'test' is {manifest}, .* those of {another} would replace. Choose another --output"
    with pytest.raises(ValueError, match=f"{message}, or rename the manifest"):
        evaluate_manifests(model, "a.nemo", [tmp_path / "dev.json", another], output, decoders)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_another_set_in_the_folder_it_is_evaluated_from_is_refused(
    model, manifest, other_folder, tmp_path, monkeypatch
):
    """``cd corpus; evaluate.py --manifest test.json`` for one corpus after another: the same path, another set."""
    decoders = {"silent": Decoder(lambda utterances, _: [""] * len(utterances))}
    another = other_folder(read_whole(manifest)[:2])
    monkeypatch.chdir(manifest.parent)
    evaluate_manifests(model, "a.nemo", [manifest.name], tmp_path / "out", decoders)
    monkeypatch.chdir(another.parent)
    with pytest.raises(ValueError, match=f"its 'test' is {manifest}, .* those of {another} would replace"):
        evaluate_manifests(model, "a.nemo", [another.name], tmp_path / "out", decoders)


def test_decodings_of_one_manifest_add_up(model, manifest, other_folder, tmp_path):
    """A beam search with hours behind it, then greedy alone: the second call took away the numbers of the first."""
    output = tmp_path / "out"

    def right(utterances, log_probs):
        return TEXTS

    def silent(utterances, log_probs):
        return [""] * len(utterances)

    def evaluate(manifest, **decoders):
        """WER of each decoding, and the manifest, in results.json."""
        ways = {name: Decoder(decode) for name, decode in decoders.items()}
        evaluate_manifests(model, "a.nemo", [manifest], output, ways)
        stored = json.loads((output / "results.json").read_text())
        wers = {decoder: summary["wer"] for decoder, summary in stored["results"]["test"].items()}
        return wers, stored["manifests"]["test"]

    here, copied = other_folder(read_whole(manifest), "here"), other_folder(read_whole(manifest), "copy")
    digest = hashlib.sha256(here.read_bytes()).hexdigest()
    assert evaluate(here, beam=silent) == ({"beam": 1.0}, {"path": str(here), "sha256": digest})
    both = {"beam": 1.0, "greedy": 0.0}
    assert evaluate(copied, greedy=right) == (both, {"path": str(copied), "sha256": digest})  # the same set
    assert evaluate(copied, beam=right)[0] == {"beam": 0.0, "greedy": 0.0}  # with another LM
    copied.write_text(copied.read_text().replace("dogs", "a dog"))  # a corrected set: no table of both
    assert evaluate(copied, greedy=silent)[0] == {"greedy": 1.0}


def test_results_of_another_model_are_not_replaced(letters_path, model, manifest, tmp_path, monkeypatch):
    """A table of two models, or the numbers of the first gone."""
    output = tmp_path / "out"
    decoders = {"greedy": greedy_decoder(model)}
    evaluate_manifests(model, "a.nemo", [manifest], output, decoders)
    before = (output / "results.json").read_text()
    again = load_ctc_model(letters_path, "cpu")
    assert weights_fingerprint(again) == weights_fingerprint(model)
    with torch.no_grad():
        again.encoder.layers[0].attention.q_proj.weight[0, 0] += 1e-3
    monkeypatch.setattr(again, "forward", None)
    with pytest.raises(ValueError, match="results.json: holds results of a.nemo, .*Choose another --output"):
        evaluate_manifests(again, "a.nemo", [manifest], output, decoders)  # trained anew under its old name
    assert (output / "results.json").read_text() == before
    damaged = {**json.loads(before), "manifests": {"test": {"path": "a"}}}
    others = [{**json.loads(before), "results": results} for results in ([], {"test": {"greedy": {"wer": 0.1}}})]
    for content in ("[]", "{}", *map(json.dumps, [damaged, *others])):
        (output / "results.json").write_text(content)
        with pytest.raises(ValueError, match="results.json: not a results.json of scripts/evaluate.py"):
            evaluate_manifests(model, "a.nemo", [manifest], output, decoders)


def test_predictions_are_there_when_all_is_counted(model, manifest, tmp_path, monkeypatch):
    """A quickstart that was killed while the errors of the beam were counted took the greedy predictions of the last
    set for a sign that all is done; its numbers were missing in the report."""
    output = tmp_path / "out"
    decoders = {"greedy": greedy_decoder(model), "beam": Decoder(lambda utterances, _: ["killed"] * len(utterances))}

    def killed(entries, texts):
        if texts[0] == "killed":
            raise KeyboardInterrupt
        return error_summary(entries, texts)

    monkeypatch.setattr(evaluation, "error_summary", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate_manifests(model, "a.nemo", [manifest], output, decoders)
    partial, cache = sorted(path.name for path in output.iterdir())
    assert cache == "test.log_probs.safetensors" and partial.startswith(".test.")


def test_results_are_there_after_each_manifest(model, manifest, tmp_path):
    """Hours of a beam of 1500 on the first set, and then a file of the second that cannot be decoded."""
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    write_manifest(
        tmp_path / "dev.json", [{"audio_filepath": str(tmp_path / "broken.wav"), "duration": 1.0, "text": "a"}]
    )
    with pytest.raises(ValueError, match="broken.wav: cannot be read as audio"):
        evaluate_manifests(
            model, "a", [manifest, tmp_path / "dev.json"], tmp_path / "out", {"greedy": greedy_decoder(model)}
        )
    assert list(json.loads((tmp_path / "out" / "results.json").read_text())["results"]) == ["test"]


# --- Interruptions ---------------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(model, manifest, tmp_path, monkeypatch):
    """Evaluate dev.json, of the same utterances, and test.json into ``out``, until the last window of test.json is
    decoded. Yields a list that gets the number of utterances of each pass of the model from then on, and a function
    that makes the same call with other arguments."""
    monkeypatch.setattr(evaluation, "WINDOW_SECONDS", 2.0)  # windows of 1, 1 and 2 utterances
    write_manifest(tmp_path / "dev.json", read_whole(manifest))
    windows, passes, forward = [], [], model.forward

    def counted(**inputs):
        passes.append(len(inputs["input_signal"]))
        return forward(**inputs)

    def killed_in_the_last(utterances, log_probs):
        windows.append(utterances)
        if len(windows) == 6:
            raise KeyboardInterrupt
        return greedy_decoder(model).decode(utterances, log_probs)

    def evaluate(decode=greedy_decoder(model).decode, setup=(("lm", "a"),), output="out", ranks=ALONE):
        decoders = {"beam": Decoder(decode, dict(setup))}
        manifests = [tmp_path / "dev.json", manifest]
        return evaluate_manifests(model, "a.nemo", manifests, tmp_path / output, decoders, 120, ranks)

    monkeypatch.setattr(model, "forward", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(killed_in_the_last)
    assert passes == 2 * [1, 1, 2]
    passes.clear()
    return passes, evaluate


def test_an_interrupted_evaluation_goes_on(interrupted, tmp_path):
    """Hours of a beam search of 1500 were lost. What was decoded before and after is one result, in order."""
    passes, evaluate = interrupted
    results = evaluate()
    assert passes == [2]  # the last window alone
    assert results == evaluate(output="whole") and passes == [2] + 2 * [1, 1, 2]
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names == {path.name for path in (tmp_path / "out").iterdir()} and len(names) == 5
    for name in names:
        found, expected = tmp_path / "out" / name, tmp_path / "whole" / name
        if name.endswith(".json"):
            assert found.read_bytes() == expected.read_bytes()
        else:
            np.testing.assert_array_equal(
                *map(np.concatenate, (read_log_probs(path)[3] for path in (found, expected)))
            )


def test_finished_windows_stay_until_all_results_are_written(model, manifest, tmp_path):
    """A rank that removes its own before rank 0 has written them would have to begin anew if that one is killed."""
    folder, left = tmp_path / "out", []

    def wait():
        left.extend([(folder / "results.json").is_file(), len(list(folder.glob(".test.*.partial")))])

    ranks = LaunchedRanks(0, 1, wait, ALONE.gather)
    evaluate_manifests(model, "a", [manifest], folder, {"greedy": greedy_decoder(model)}, 120, ranks)
    assert left == [True, 1] and not list(folder.glob(".test.*"))


@pytest.mark.parametrize(
    "change, windows", [("setup", [1, 1, 2]), ("weights", [1, 1, 2]), ("manifest", [1, 1, 2]), ("ranks", [1, 1])]
)
def test_an_evaluation_of_other_things_begins_anew(interrupted, model, manifest, tmp_path, change, windows):
    """Texts of another LM or model, or of other utterances, among those of this one."""
    passes, evaluate = interrupted
    arguments = {}
    if change == "setup":
        arguments["setup"] = {"lm": "b"}
    elif change == "ranks":  # utterances 1 and 3
        arguments["ranks"] = LaunchedRanks(1, 2, lambda: None, lambda value: None)
    elif change == "weights":
        (tmp_path / "out" / "results.json").unlink()  # of the first manifest; otherwise it is refused
        with torch.no_grad():
            model.decoder.decoder_layers[0].bias += 1
    else:
        entries = read_whole(manifest)
        write_manifest(tmp_path / "dev.json", entries[::-1])
        write_manifest(manifest, entries[::-1])
    evaluate(**arguments)
    assert passes == 2 * windows
    left = [path.name for path in (tmp_path / "out").glob(".*")]  # of the evaluation that was interrupted
    assert len(left) == 2 and all(name.endswith(".0of1.partial") for name in left)


def test_beam_searches_are_told_apart(model, write_arpa, write_lexicon_of, make_config):
    """By weights and contents: an LM may be made anew under its old name."""
    pytest.importorskip("flashlight.lib.text", reason="the beam search needs flashlight-text")

    def setup(words=("the", "sea"), score=-1.0, **options):
        lm = write_arpa({word: score for word in ("the", "sea", "a")})
        config = make_config(lm, write_lexicon_of(words), **options)
        return json.dumps(lexicon_decoder(model, config, 1).setup)

    setups = [setup(), setup(score=-2.0), setup(("sea", "the", "a")), setup(lm_weight=0.5), setup(beam_size=7)]
    assert len(set(setups)) == 5 and setup() == setups[0]


def test_ranks_share_the_cores_of_their_machine(monkeypatch):
    """Eight ranks with a process per core each are eight times as many as there are cores."""
    monkeypatch.setattr("nemo_mshubert.decoding.evaluation.available_cores", lambda: 12)
    assert cores_per_rank() == 12
    for ranks, cores in ((4, 3), (8, 1), (16, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        assert cores_per_rank() == cores


# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["text", "duration"])
def test_a_line_without_text_is_named(model, manifest, tmp_path, field):
    """Before the model has run for an hour; and no result may be left that looks like one."""
    entries = read(manifest)
    del entries[1][field]
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    with pytest.raises(ValueError, match=f'test.json:2: no "{field}".* Add .* or remove the line'):
        evaluate_manifests(model, "a.nemo", [manifest], tmp_path / "out", {"greedy": greedy_decoder(model)})
    assert not (tmp_path / "out").exists()


def test_a_set_without_words_is_refused_before_the_model_runs(model, manifest, tmp_path, monkeypatch):
    """Its rate is 0 / 0. One empty text among others is speech of nothing, and counts."""
    entries = [{**entry, "text": " "} for entry in read(manifest)]
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    monkeypatch.setattr(model, "forward", None)
    with pytest.raises(ValueError, match='test.json: the "text" of all lines is empty, so there is no WER. Add'):
        evaluate_manifests(model, "a.nemo", [manifest], tmp_path / "out", {"greedy": greedy_decoder(model)})


def test_missing_files_are_named(model, ssl_path, manifest, tmp_path):
    """The audio, the manifest, the model, and a model of the step before."""
    decoders = {"greedy": greedy_decoder(model)}
    (manifest.parent / "u3.wav").unlink()
    with pytest.raises(FileNotFoundError, match="test.json:4: .*u3.wav: no such audio file"):
        evaluate_manifests(model, "a.nemo", [manifest], tmp_path / "out", decoders)
    with pytest.raises(FileNotFoundError, match="gone.json: no such manifest"):
        evaluate_manifests(model, "a.nemo", [tmp_path / "gone.json"], tmp_path / "out", decoders)
    (tmp_path / "empty.json").write_text("\n")
    with pytest.raises(ValueError, match="empty.json: the manifest is empty"):
        evaluate_manifests(model, "a.nemo", [tmp_path / "empty.json"], tmp_path / "out", decoders)
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError, match="gone.nemo: no such file"):
        load_ctc_model(str(tmp_path / "gone.nemo"))
    with pytest.raises(ValueError, match="ssl.nemo: a MSHuBERTModel, expected a CTC model.*ssl_to_ctc.py"):
        load_ctc_model(str(ssl_path))


def test_texts_in_another_case_are_refused_for_letters(model, manifest, tmp_path, monkeypatch):
    """Every word would count as an error, and a WER of 100 % looks like a training that failed."""
    entries = [{**entry, "text": entry["text"].upper()} for entry in read(manifest)]
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    monkeypatch.setattr(model, "forward", None)  # refused before an hour of it
    with pytest.raises(
        ValueError, match="test.json:1: the reference 'THE SEA IS FAR' is not in the case of the model's letters"
    ):
        evaluate_manifests(model, "a.nemo", [manifest], tmp_path / "out", {"greedy": greedy_decoder(model)})


@pytest.mark.parametrize(
    "change, message",
    [
        (str.upper, "test.json:1: the reference 'THE SEA IS FAR' is not in the case"),
        (lambda text: text.replace("s", "\uff53"), "test.json:1: .*in NFKC"),
    ],
)
@pytest.mark.parametrize("name", ["letters_path", "bpe_path"])
def test_texts_that_the_model_never_writes_are_refused(name, request, manifest, tmp_path, change, message):
    """A tokenizer takes capitals and wide letters for others, as in training: its model learns, and each word counts
    as an error."""
    entries = [{**entry, "text": change(entry["text"])} for entry in read(manifest)]
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    model = load_ctc_model(str(request.getfixturevalue(name)), device="cpu")
    with pytest.raises(ValueError, match=message):
        evaluate_manifests(model, "a.nemo", [manifest], tmp_path / "out", {"greedy": greedy_decoder(model)})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"text": "A CAT SAT"}, "last.json:2: the reference 'A CAT SAT' is not in the case"),
        ({"duration": None}, 'last.json:2: no "duration"'),
        ({"audio_filepath": "gone.wav"}, "last.json:2: .*gone.wav: no such audio file"),
        ({"text": ""}, 'last.json: the "text" of all lines is empty'),
    ],
)
def test_mistakes_in_the_last_manifest_are_found_first(model, manifest, tmp_path, monkeypatch, changes, message):
    """Found when its turn comes, they cost the passes over the sets before it."""
    good, bad = read_whole(manifest)[:2]
    write_manifest(
        tmp_path / "last.json", [{**good, **({"text": ""} if "text" in changes else {})}, {**bad, **changes}]
    )
    monkeypatch.setattr(model, "forward", None)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate_manifests(model, "a", [manifest, tmp_path / "last.json"], tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["letters_path", "bpe_path"])
def test_a_model_that_diverged_has_no_error_rate(name, request, manifest, tmp_path):
    """Greedy decoding of NaN gives some text, and that a WER."""
    model = load_ctc_model(request.getfixturevalue(name), "cpu")
    with torch.no_grad():
        model.decoder.decoder_layers[0].bias[0] = float("nan")
    with pytest.raises(ValueError, match="u0: log-probabilities are NaN or infinite at frame 0"):
        evaluate_manifests(model, "a.nemo", [manifest], tmp_path / "out", {"greedy": greedy_decoder(model)})
    assert not (tmp_path / "out").exists()


@pytest.fixture
def script():
    """scripts/evaluate.py as a module."""
    return load_script("evaluate")


def test_the_last_manifest_is_read_before_the_model(script, manifest, tmp_path, monkeypatch):
    """Found after the first set has been decoded with a beam of 1500, an empty one costs hours."""
    (tmp_path / "empty.json").write_text("")
    for name, error in (("gone.json", FileNotFoundError), ("empty.json", ValueError)):
        arguments = ["--model", "gone.nemo", "--output", "out", "--manifest", str(manifest), str(tmp_path / name)]
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
        with pytest.raises(error, match=name):
            script.main()
    (tmp_path / "file").touch()
    arguments = ["--model", "gone.nemo", "--output", str(tmp_path / "file"), "--manifest", str(manifest)]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    with pytest.raises(FileExistsError, match="file"):  # where its results could not be written
        script.main()


def test_two_do_not_evaluate_into_one_folder_at_once(script, manifest, tmp_path, monkeypatch, held_elsewhere):
    """dev on one GPU and test on another: each wrote the results that it had read at its start, without the
    other's."""
    first = held_elsewhere(tmp_path / "out" / ".lock")
    arguments = ["--model", "gone.nemo", "--output", str(tmp_path / "out"), "--manifest", str(manifest)]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    with pytest.raises(RuntimeError, match="out/.lock: another process evaluates here. Wait for it, or give another"):
        script.main()
    first.kill()
    first.wait()
    with pytest.raises(FileNotFoundError, match="gone.nemo"):
        script.main()
    assert not list((tmp_path / "out").iterdir())


def test_two_manifests_of_one_name_are_refused(script, monkeypatch, capsys):
    """Their results are named after them: the second would replace the first, unnoticed."""
    arguments = ["--model", "m.nemo", "--output", "out", "--manifest", "a/test.json", "b/test.json"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    with pytest.raises(SystemExit):
        script.parse_args()
    assert "two manifests have one file name" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments[:-1], "b/dev.json"])
    assert script.parse_args().manifest == ["a/test.json", "b/dev.json"]


@pytest.mark.parametrize("option", ["--beam_size 0", "--batch_seconds nan", "--workers -1"])
def test_numbers_of_nothing_are_refused(script, monkeypatch, capsys, option):
    """They were taken for the default."""
    arguments = f"--model m.nemo --output out --manifest a.json --decode d.yaml {option}"
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments.split()])
    with pytest.raises(SystemExit):
        script.parse_args()
    assert f"{option}: expected more than 0" in capsys.readouterr().err


# --- Kinds of errors -------------------------------------------------------------------------------------------------

KINDS = ["the see is far", "a cat sat down here", "", "dogs"]  # of TEXTS: a substitution, two insertions, a deletion


def test_kinds_of_errors_are_told_apart_in_predictions_and_table(model, manifest, tmp_path):
    """One in the other's place: a model that drops words would look like one that makes them up."""
    results = evaluate_manifests(
        model, "a.nemo", [manifest], tmp_path / "out", {"beam": Decoder(lambda utterances, log_probs: KINDS)}
    )
    found = [line["word_errors"] for line in read(tmp_path / "out" / "test.beam.json")]
    kinds = ("substitutions", "insertions", "deletions")
    assert [tuple(counts[kind] for kind in kinds) for counts in found] == [(1, 0, 0), (0, 2, 0), (0, 0, 1), (0, 0, 0)]
    summary = error_summary([{"text": "a"}, {"text": "b"}, {"text": "c d e"}], ["x", "b y z", ""])
    assert "| test | beam | 4 | 9 | 44.44 | 1 | 2 | 1 |" in results_table(results)
    assert "| dev | beam | 3 | 5 | 120.00 | 1 | 2 | 3 |" in results_table({"dev": {"beam": summary}})


def test_ranks_know_the_utterances_of_their_share(model, manifest, tmp_path):
    """Else an error would name a sound utterance of another rank."""

    def evaluate():
        with launched_ranks() as ranks:
            decoders = {"names": Decoder(lambda utterances, log_probs: list(utterances))}
            return evaluate_manifests(model, "a.nemo", [manifest], tmp_path / "out", decoders, 2, ranks)

    run_on_ranks(2, evaluate)
    lines = read(tmp_path / "out" / "test.names.json")
    assert [line["pred_text"] for line in lines] == ["u0", "u1", "u2", "u3"]
