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

"""Diagnostics of a finished pre-training: cosines by a slow loop, PNMI of known clusters, and the command."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nemo_mshubert.analysis import diagnostics
from nemo_mshubert.analysis.diagnostics import (
    diagnose_models,
    diagnosis_table,
    layer_pnmi,
    load_pretrained,
    plot_diagnoses,
    view_cosines,
)
from nemo_mshubert.analysis.hidden_states import AllHiddenStates
from nemo_mshubert.data.alignments import read_alignments
from nemo_mshubert.data.audio import load_audio
from nemo_mshubert.data.manifest import iter_manifest, read_manifest, write_manifest
from nemo_mshubert.models.loading import restore_model
from nemo_mshubert.modules.frames import frame_count
from nemo_mshubert.modules.swap import swap, swap_source
from tests.conftest import load_script, quiet_trainer


@pytest.fixture
def alignments(synthetic_corpus):
    return read_alignments([synthetic_corpus.root / "align_phones.jsonl.gz"], "phone")


@pytest.fixture
def model(ssl_path):
    return load_pretrained(ssl_path)


# --- Views -----------------------------------------------------------------------------------------------------------


def slow_cosines(model, lines, masks):
    """One utterance at a time; the transformer is run block by block, and the views exchanged by hand."""
    encoder, found = model.encoder, {}
    for (_, entry), mask_T in zip(lines, masks):
        wave = torch.from_numpy(load_audio(entry))[None, None]
        wave = (wave - wave.mean()) / wave.std(correction=0)  # as the tiny size has it
        length = torch.tensor([wave.shape[-1]])
        masked = encoder.forward_views(wave, length, mask_T[None], [0], use_swap=False).tapped[0][0]
        clean = encoder.hidden_states(wave, length)[0][0]
        for mode in ("apart", "exchanged"):
            views = torch.stack([masked, clean])
            for layer in range(len(encoder.layers) + 1):
                if layer:
                    views = torch.stack([run_block(encoder, layer, view) for view in views])
                    views = swap(views, swap_source(mask_T[None])) if mode == "exchanged" else views
                for kind, chosen in (("masked", mask_T), ("unmasked", ~mask_T)):
                    pairs = zip(*views[:, 0, chosen])
                    values = [float(a @ b / a.norm() / b.norm()) for a, b in pairs]
                    found.setdefault((mode, kind, layer), []).extend(values)
    return {key: np.mean(values) for key, values in found.items()}


def run_block(encoder, layer, view_1TD):
    """Block ``layer`` on its input; of a pre-LN model, the last LayerNorm follows the last block."""
    output = encoder.layers[layer - 1](view_1TD, None)
    return encoder.layer_norm(output) if encoder.pre_norm and layer == len(encoder.layers) else output


@torch.no_grad()
def test_cosines_are_those_of_the_frames_one_by_one(model, labelled, monkeypatch):
    """Does Swap bring the views together? Only a number that pairs the right frames of the right blocks can tell."""
    lines = list(iter_manifest(labelled.dev))[:3]
    masks, draw = [], diagnostics.span_mask

    def spy(frames, *args, **kwargs):
        mask_BT = draw(frames, *args, **kwargs)
        masks.extend(row[:count] for row, count in zip(mask_BT, frames))
        return mask_BT

    monkeypatch.setattr(diagnostics, "span_mask", spy)
    views = view_cosines(model, lines, 0.65, 10, with_exchange=True)
    expected = slow_cosines(model, lines, masks)
    for (mode, kind, layer), value in expected.items():
        assert views[mode][kind][layer] == pytest.approx(value, abs=2e-5), (mode, kind, layer)
    assert len(expected) == 2 * 2 * 5 and len({int(mask.sum()) for mask in masks}) == 3  # by their lengths
    assert views["apart"]["masked"][-1] < views["apart"]["unmasked"][-1]


def test_exchanged_views_of_the_last_block_are_those_of_pre_training(model, labelled):
    """The exchange makes no difference to a cosine of the same block, but to all that follow."""
    views = view_cosines(model, list(iter_manifest(labelled.dev))[:2], 0.65, 10, with_exchange=True)
    assert views["exchanged"]["masked"][:2] == pytest.approx(views["apart"]["masked"][:2], abs=1e-6)
    assert abs(views["exchanged"]["masked"][3] - views["apart"]["masked"][3]) > 1e-5
    assert view_cosines(model, list(iter_manifest(labelled.dev))[:2], 0.65, 10, with_exchange=True) == views


@pytest.mark.unit
def test_a_model_without_swap_has_no_exchanged_views(model, labelled, monkeypatch):
    """The curve of a network that was never trained would stand beside that of one which was."""
    monkeypatch.setattr(diagnostics, "validate", lambda *_: {})
    for swaps, modes in ((True, {"apart", "exchanged"}), (False, {"apart"})):
        model.cfg.swap = swaps
        found = diagnostics.diagnose(model, labelled.dev)
        assert set(found["views"]) == modes and found["swap"] is swaps


# --- Clusters --------------------------------------------------------------------------------------------------------


class Known(AllHiddenStates):
    """State 1 holds the phone, state 0 noise."""

    def __init__(self, encoder, alignments, utterances):
        super().__init__(encoder)
        self.alignments, self.utterances, self.num_states = alignments, utterances, 2
        self.rng = np.random.default_rng(0)

    def __call__(self, waveforms):
        outputs = []
        for waveform, output in zip(waveforms, super().__call__(waveforms)):
            units = self.alignments.frame_units(self.utterances[len(waveform)], len(output))
            phone = np.eye(len(self.alignments.names))[units] * 10
            states = np.concatenate([self.rng.normal(size=phone.shape), phone], axis=1)
            outputs.append(torch.from_numpy(states).float())
        return outputs


def test_pnmi_of_known_states(tiny_encoder, synthetic_corpus, alignments):
    """Clusters of states that are the phones tell nearly all of them, clusters of noise next to nothing."""
    lines = list(iter_manifest(synthetic_corpus.train))
    utterances = {len(load_audio(entry)): Path(entry["audio_filepath"]).stem for _, entry in lines}
    states = Known(tiny_encoder(), alignments, utterances)
    noise, phones = layer_pnmi(states, lines, alignments, clusters=60, max_frames=1200)
    assert phones["pnmi"] > 0.9 and noise["pnmi"] < 0.6 and phones["pnmi"] - noise["pnmi"] > 0.4
    assert noise["pnmi"] == pytest.approx(noise["pnmi_chance"], abs=0.05) and noise["aligned_frames"] == 600
    with pytest.raises(ValueError, match=r"are too few for 500 clusters. Give more aligned speech"):
        layer_pnmi(states, lines, alignments, clusters=500, max_frames=1200)
    twice = [*lines, ("other.json:1", lines[0][1])]
    with pytest.raises(ValueError, match='other.json:1: utterance .* is at .*:1 already.*give them "utt_id"'):
        layer_pnmi(states, twice, alignments, clusters=60, max_frames=1200)


class Placed(Known):
    """State 0 says in its first column which utterance a frame is of, and in the second which frame it is."""

    def __call__(self, waveforms):
        outputs = super().__call__(waveforms)
        for waveform, output in zip(waveforms, outputs):
            output[:, 0] = list(self.utterances).index(len(waveform))
            output[:, 1] = torch.arange(len(output))
        return outputs


@pytest.mark.unit
def test_clusters_are_measured_on_frames_they_were_not_fitted_on(
    tiny_encoder, synthetic_corpus, alignments, monkeypatch
):
    """Fitted on what it is measured on, a k-means tells more phones than it knows; fitted on the first speakers of a
    manifest, fewer."""
    lines = list(iter_manifest(synthetic_corpus.train))[:6]
    utterances = {len(load_audio(entry)): Path(entry["audio_filepath"]).stem for _, entry in lines}
    fitted, measured = [], []
    fit_kmeans, assign = diagnostics.fit_kmeans, diagnostics.assign
    monkeypatch.setattr(
        diagnostics, "fit_kmeans", lambda x, *args, **kw: fitted.append(x) or fit_kmeans(x, *args, **kw)
    )
    monkeypatch.setattr(diagnostics, "assign", lambda x, *args: measured.append(x) or assign(x, *args))
    layer_pnmi(Placed(tiny_encoder(), alignments, utterances), lines, alignments, clusters=10, max_frames=10**6)
    places = [set(map(tuple, rows[0][:, :2].tolist())) for rows in (fitted, measured)]
    assert not places[0] & places[1] and abs(len(places[0]) - len(places[1])) <= 1
    assert [{utterance for utterance, _ in half} for half in places] == [set(range(len(utterances)))] * 2
    units = [alignments.frame_units(utterance, frame_count(samples)) for samples, utterance in utterances.items()]
    assert sum(map(len, places)) == sum((unit >= 0).sum() for unit in units)  # none is left out


# --- The command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def script():
    return load_script("diagnose")


def test_script(script, ssl_path, labelled, synthetic_corpus, tmp_path, capsys, monkeypatch):
    phones = synthetic_corpus.root / "align_phones.jsonl.gz"
    arguments = f"--model tiny={ssl_path} --manifest {labelled.dev} --alignments {phones} --clusters 10 --device cpu"
    script.main([*arguments.split(), "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    (found,) = json.loads((tmp_path / "diagnostics.json").read_text())["models"]
    assert set(found["sets"]) == {"40", "20", "10"} and found["swap"] is True
    for values in found["sets"].values():
        assert 0 <= values["masked_accuracy"] <= 1 and values["predicted_codes"] >= 1
        assert {"loss", "unmasked_accuracy", "label_entropy_bits", "predicted_entropy_bits"} <= set(values)
    assert len(found["pnmi"]) == 5 and all(0 < value < 1 for value in found["pnmi"])
    assert len(found["pnmi_chance"]) == 5 and found["aligned_frames"] > 20
    assert all(0 < chance < value for chance, value in zip(found["pnmi_chance"], found["pnmi"]))
    assert "| tiny | 40 |" in printed and "PNMI of 10 clusters:" in printed and "PNMI by chance, on" in printed
    assert (tmp_path / "diagnostics.png").read_bytes().startswith(b"\x89PNG")
    with monkeypatch.context() as patch:
        patch.setattr(diagnostics, "diagnose", None)  # may not be called: the model is done
        script.main([*arguments.split(), "--output", str(tmp_path)])
    # Repaired alignments, under the same name: the PNMI of the old ones would have been shown.
    repaired = [json.loads(line) for line in gzip.open(phones, "rt")]
    for phone in (phone for line in repaired for phone in line["phones"]):
        phone["start"], phone["end"] = phone["start"] + 0.05, phone["end"] + 0.05
    (tmp_path / "repaired.jsonl").write_text("".join(json.dumps(line) + "\n" for line in repaired))
    script.main([*arguments.replace(str(phones), f"{tmp_path}/repaired.jsonl").split(), "--output", str(tmp_path)])
    assert json.loads((tmp_path / "diagnostics.json").read_text())["models"][0]["pnmi"] != found["pnmi"]


@pytest.mark.unit
def test_predictions_are_the_validation_of_the_given_manifest(model, labelled):
    """Those on the manifest of its training would be shown as if they were of this one."""
    found = {path: diagnostics.validate(model, path) for path in (labelled.dev, labelled.test)}
    for path, sets in found.items():
        model.setup_validation_data({**model.cfg.validation_ds, "manifest_filepath": str(path)})
        (logged,) = quiet_trainer().validate(model, verbose=False)
        for clusters, values in sets.items():
            assert values == {name: pytest.approx(logged[f"val_{clusters}/{name}"]) for name in values}
    assert found[labelled.dev]["40"]["loss"] != pytest.approx(found[labelled.test]["40"]["loss"])


@pytest.mark.unit
def test_masks_scaling_and_sizes_are_those_asked_for(model, labelled, alignments, monkeypatch):
    """Views of other masks than it was trained with, or clusters of audio at another scale, tell of another model."""
    seen = {}

    def views(model, lines, *masks, with_exchange):
        seen["masks"] = masks

    def pnmi(states, lines, alignments, *sizes):
        seen.update(normalized=states.normalized, sizes=sizes)
        return [{"pnmi": 0.5, "pnmi_chance": 0.1, "aligned_frames": 9}]

    for name, measure in (("validate", lambda *_: {}), ("view_cosines", views), ("layer_pnmi", pnmi)):
        monkeypatch.setattr(diagnostics, name, measure)
    model.cfg.masking.update(mask_prob=0.35, mask_length=7)
    diagnostics.diagnose(model, labelled.dev, alignments, 12, 345)
    assert seen == {"masks": (0.35, 7), "normalized": True, "sizes": (12, 345)}


@pytest.mark.unit
def test_models_are_diagnosed_in_evaluation_mode(ssl_path):
    """Dropout and layerdrop of training would be in the cosines of the views: other numbers at every call."""
    assert not any(module.training for module in load_pretrained(ssl_path).modules())


@pytest.mark.unit
def test_other_settings_or_data_are_measured_anew(ssl_path, labelled, tmp_path, monkeypatch):
    """The numbers of another manifest, or of another k-means, would be shown under this one's name."""
    calls = []

    def measure(model, manifest, alignments, clusters, max_frames):
        calls.append((str(manifest), clusters, max_frames))
        return {"call": len(calls), "sets": {}, "views": {"apart": {"masked": [0.0], "unmasked": [0.0]}}}

    monkeypatch.setattr(diagnostics, "diagnose", measure)
    write_manifest(tmp_path / "short.json", read_manifest(labelled.dev)[:1])
    wanted = [
        (str(labelled.dev), 100, 1000),
        (str(tmp_path / "short.json"), 100, 1000),
        (str(labelled.dev), 50, 1000),
        (str(labelled.dev), 100, 2000),
    ]
    for _ in range(2):  # the second time all is there
        for number, (manifest, clusters, max_frames) in enumerate(wanted, start=1):
            (found,) = diagnose_models([("tiny", ssl_path)], manifest, tmp_path, None, clusters, max_frames)
            assert found["call"] == number
    assert calls == wanted
    monkeypatch.setattr(diagnostics, "METHOD_VERSION", diagnostics.METHOD_VERSION + 1)
    (found,) = diagnose_models([("tiny", ssl_path)], *wanted[0][:1], tmp_path, None, *wanted[0][1:])
    assert found["call"] == 5


def test_refusals(letters_path, ssl_path, labelled, tmp_path):
    with pytest.raises(ValueError, match="letters.nemo: a EncDecCTCModel, expected a pre-trained model"):
        diagnose_models([("ctc", letters_path)], labelled.dev, tmp_path)
    with pytest.raises(FileNotFoundError, match="gone.json: no such manifest"):
        diagnose_models([("tiny", ssl_path)], tmp_path / "gone.json", tmp_path)


@pytest.mark.unit
def test_a_file_in_place_of_the_output_folder_is_noticed_before_any_is_measured(
    ssl_path, labelled, tmp_path, monkeypatch
):
    """A model was measured on all of the manifest, and then there was nowhere to write what was found."""
    monkeypatch.setattr(diagnostics, "diagnose", None)  # may not be called
    (tmp_path / "found").write_text("a file")
    with pytest.raises(FileExistsError, match="found"):
        diagnose_models([("tiny", ssl_path)], labelled.dev, tmp_path / "found")


def test_models_of_one_name_and_other_depth_are_refused(ssl_path, labelled, tmp_path, monkeypatch):
    """There is no mean of their curves: the plot failed after hours of measuring. What was measured stays."""
    shallow = restore_model(ssl_path)
    del shallow.encoder.layers[-1]
    monkeypatch.setattr(diagnostics, "load_pretrained", {"a": restore_model(ssl_path), "b": shallow}.get)
    measured = {"views": {"apart": {"masked": [0.0], "unmasked": [0.0]}}}
    monkeypatch.setattr(diagnostics, "diagnose", lambda *_: measured)
    models = [("ours", "a"), ("- Swap", "b"), ("ours", "b")]
    with pytest.raises(ValueError, match="b: 3 layers, where another file of ours has 4. Give models of other depths"):
        diagnose_models(models, labelled.dev, tmp_path)
    assert len(list((tmp_path / "models").iterdir())) == 2
    assert len(diagnose_models(models[:2], labelled.dev, tmp_path)) == 2


def test_utterances_are_checked_before_any_model_is_read(labelled, tmp_path, alignments):
    """Two of one id would end the call after the measuring of the first model."""
    entries = read_manifest(labelled.dev)
    write_manifest(tmp_path / "twice.json", [*entries, entries[0]])
    with pytest.raises(ValueError, match="utterance .* is at .*twice.json:1 already"):
        diagnose_models([("tiny", "gone.nemo")], tmp_path / "twice.json", tmp_path, alignments)


def test_plot_and_table_of_models_with_and_without_swap():
    views = {"apart": {"masked": [0.1, 0.2], "unmasked": [0.9, 0.8]}}
    sets = {"50": dict(masked_accuracy=0.1234, unmasked_accuracy=0.5, loss=2.0, predicted_codes=7.0)}
    sets["50"].update(label_entropy_bits=5.0, predicted_entropy_bits=2.5)
    without = {"name": "- Swap", "swap": False, "sets": sets, "views": views}
    with_swap = {
        **without,
        "name": "ours",
        "views": {**views, "exchanged": views["apart"]},
        "pnmi": [0.2, 0.3],
        "pnmi_chance": [0.1, 0.15],
        "aligned_frames": 700,
        "clusters": 9,
    }
    cosine, pnmi = plot_diagnoses([without, with_swap]).axes
    assert [line.get_label() for line in cosine.get_lines()] == ["- Swap, apart", "ours, apart", "ours, exchanged"]
    assert [line.get_ydata().tolist() for line in cosine.get_lines()] == [[0.1, 0.2]] * 3  # of masked frames
    assert len({(line.get_color(), line.get_linestyle()) for line in cosine.get_lines()}) == 3
    assert pnmi.get_lines()[0].get_ydata().tolist() == [0.2, 0.3]
    assert all(axes.get_legend() is not None for axes in (cosine, pnmi))  # else the labels are not to be seen
    assert [line.get_label() for line in pnmi.get_lines()] == ["ours", "ours, by chance"]
    assert pnmi.get_lines()[1].get_ydata().tolist() == [0.1, 0.15]
    assert "PNMI by chance, on 700 frames: 0.100 0.150" in diagnosis_table([with_swap])
    assert "by chance" not in diagnosis_table([without])
    table = diagnosis_table([without, with_swap])
    assert "| - Swap | 50 | 12.34 | 50.00 | 2.000 | 7 | 5.00 | 2.50 |" in table
    assert "PNMI of 9 clusters: 0.200 0.300" in table
    for kind, values in (("masked", "0.100 0.200"), ("unmasked", "0.900 0.800")):
        assert f"cosine of the views, exchanged, {kind} frames: {values}" in table
    assert "ours, layers 0 to 1:" in table


@pytest.mark.unit
def test_seeds_of_one_name_are_their_mean_within_their_range():
    """The best of three seeds, drawn as if it were all of them, would win a comparison by chance."""
    runs = [{"name": "ours", "views": {"apart": {"masked": [value, value]}}} for value in (0.1, 0.6, 0.2)]
    (axes,) = plot_diagnoses(runs).axes
    (line,), (band,) = axes.get_lines(), axes.collections
    assert line.get_ydata().tolist() == pytest.approx([0.3, 0.3])
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((0.1, 0.6))
