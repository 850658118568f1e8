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

"""Labels from a published encoder and a published k-means: those of fairseq's scripts; and nothing in the file
runs."""

import hashlib
import os
import pickle

import joblib
import numpy as np
import pytest
import soundfile
import torch
from joblib.numpy_pickle import NumpyArrayWrapper
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.decomposition import PCA

from nemo_mshubert.clustering.label_maker import LabelMaker
from nemo_mshubert.convert.joblib_kmeans import _PlainArray, read_joblib_kmeans
from nemo_mshubert.data.labels import FrameLabels
from nemo_mshubert.data.manifest import iter_manifest, write_manifest
from tests.conftest import load_script
from tests.convert.conftest import FAMILIES, fairseq_options, spell_as_fairseq
from tests.convert.test_pickles import attacks

LAYER, CLUSTERS = 2, 12


@pytest.fixture(scope="module")
def label_script():
    """scripts/label.py as a module."""
    return load_script("label")


@pytest.fixture
def frames():
    return np.random.default_rng(0).normal(size=(400, 24)).astype(np.float32)


@pytest.fixture
def published(tmp_path, frames):
    """``published(kmeans)``: the file that ``learn_kmeans.py`` leaves."""

    def dump(content=None, name="km.bin", **options):
        content = content or MiniBatchKMeans(CLUSTERS, n_init=1, random_state=np.random.RandomState(0)).fit(frames)
        joblib.dump(content, tmp_path / name, **options)
        return tmp_path / name

    return dump


# --- Labels ----------------------------------------------------------------------------------------------------------


def fairseq_labels(theirs, waves, normalize, kmeans_path):
    """dump_hubert_feature.py and dump_km_label.py, written out: features one file at a time, squared distances."""
    centres = joblib.load(kmeans_path).cluster_centers_.transpose()  # [D, K]
    norms = (centres**2).sum(0, keepdims=True)
    labels = []
    for wave in waves:
        source = torch.from_numpy(wave)
        if normalize:
            source = torch.nn.functional.layer_norm(source, source.shape)
        with torch.no_grad():
            x = theirs(source[None], output_hidden_states=True).hidden_states[LAYER][0].numpy()
        distances = (x**2).sum(1, keepdims=True) - 2 * np.matmul(x, centres) + norms
        labels.append(np.argmin(distances, axis=1))
    return labels


@pytest.fixture
def corpus(tmp_path):
    """Three WAVs, another tone every 50 ms, and their manifest."""
    rng = np.random.default_rng(1)
    waves, entries = [], []
    for number, length in enumerate((16000, 9000, 21003)):
        hertz = np.repeat(rng.uniform(80, 4000, length // 800 + 1), 800)[:length]
        wave = 0.3 * np.sin(2 * np.pi * np.cumsum(hertz) / 16000) + rng.normal(0, 0.02, length)
        waves.append(wave.astype(np.float32))
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, waves[-1], 16000, subtype="FLOAT")
        entries.append({"audio_filepath": str(path), "duration": length / 16000, "text": ""})
    write_manifest(tmp_path / "train.json", entries)
    return waves, tmp_path / "train.json"


def centres_amid_features(theirs, waves, normalize, path):
    """A k-means of their own features: labels that differ from frame to frame."""
    features = []
    for wave in waves:
        source = torch.from_numpy(wave)
        source = torch.nn.functional.layer_norm(source, source.shape) if normalize else source
        with torch.no_grad():
            features.append(theirs(source[None], output_hidden_states=True).hidden_states[LAYER][0].numpy())
    joblib.dump(MiniBatchKMeans(CLUSTERS, n_init=1, random_state=0).fit(np.concatenate(features)), path)
    return path


@pytest.mark.integration
@pytest.mark.parametrize("family", ["hubert-base", "hubert-large", "wavlm-base"])
@pytest.mark.parametrize("layout", ["folder", "fairseq"])
def test_labels_are_those_of_fairseqs_scripts(peer, save_peer, corpus, label_script, tmp_path, family, layout):
    """One command line for both layouts of a checkpoint; every label of every utterance."""
    theirs, (waves, manifest), normalize = peer(family), corpus, FAMILIES[family][2]
    encoder = save_peer(theirs, family)
    if layout == "fairseq":
        encoder = tmp_path / "hubert.pt"
        options = {"model": fairseq_options(theirs), "task": {"normalize": normalize}}
        torch.save({"cfg": options, "model": spell_as_fairseq(theirs)}, encoder)
    kmeans = centres_amid_features(theirs, waves, normalize, tmp_path / "km.bin")
    output = tmp_path / "labelled.json"
    arguments = ["--kmeans", kmeans, "--encoder", encoder, "--layer", LAYER, "--manifest", manifest]
    label_script.main(["make", *map(str, arguments), "--output", str(output), "--device", "cpu"])
    found = [
        FrameLabels.from_manifest(entry["labels"], where).sets[CLUSTERS] for where, entry in iter_manifest(output)
    ]
    expected = fairseq_labels(theirs, waves, normalize, kmeans)
    assert len(np.unique(np.concatenate(expected))) > CLUSTERS // 2
    for ours, other in zip(found, expected):
        assert np.array_equal(ours, other)
    maker = LabelMaker.load(tmp_path / "labelled.kmeans.npz")  # what pretrain.py takes as label_maker
    label_script.main(["check", "--manifest", str(output), "--kmeans", str(tmp_path / "labelled.kmeans.npz")])
    assert maker.sets == [CLUSTERS] and maker.features.layer == LAYER


@pytest.mark.unit
def test_what_the_file_does_not_say_is_asked_for(published, label_script, tmp_path, capsys):
    with pytest.raises(SystemExit):
        label_script.main(["make", "--kmeans", str(published()), "--manifest", "m.json", "--output", "o.json"])
    assert "give --encoder and --layer" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        label_script.main(
            ["make", "--kmeans", "gone.bin", "--layer", "2", "--manifest", "m.json", "--output", "o.json"]
        )
    assert "--layer: of which --encoder?" in capsys.readouterr().err


@pytest.mark.unit
def test_a_compressed_or_missing_file_is_named_by_the_command(folder, published, corpus, label_script, tmp_path):
    """Who gives --layer, as for such a file, must not read that the file itself says of which layer it is."""
    features = ["--encoder", str(folder), "--layer", str(LAYER), "--manifest", str(corpus[1]), "--device", "cpu"]
    for path, error, message in (
        (published(compress=3), ValueError, "km.bin: neither a k-means file .* dump it with compress=0"),
        (tmp_path / "gone.bin", FileNotFoundError, "gone.bin: no such k-means file"),
    ):
        with pytest.raises(error, match=message):
            label_script.main(["make", "--kmeans", str(path), *features, "--output", str(tmp_path / "o.json")])


@pytest.mark.unit
def test_centres_of_another_width(folder, published, corpus, label_script, tmp_path):
    wide = KMeans(3, n_init=1).fit(np.random.default_rng(0).normal(size=(50, 7)))
    arguments = ["--kmeans", published(wide), "--encoder", folder, "--layer", LAYER, "--manifest", corpus[1]]
    with pytest.raises(ValueError, match="km.bin: centres of 7 dimensions do not fit 24 hidden features of layer 2"):
        label_script.main(["make", *map(str, arguments), "--output", str(tmp_path / "o.json"), "--device", "cpu"])
    assert not (tmp_path / "o.json").exists() and not (tmp_path / "o.kmeans.npz").exists()


# --- Nested sets of published centres --------------------------------------------------------------------------------


@pytest.fixture
def fit(tmp_path):
    """``fit(centres, "--clusters 12 6 3 ...")``: the label maker that scripts/fit_kmeans.py makes of a file."""

    def run(centres, options, name="nested.npz"):
        command = ["--centres", str(centres), "--output", str(tmp_path / name), "--device", "cpu", *options.split()]
        load_script("fit_kmeans").main(command)
        return LabelMaker.load(tmp_path / name)

    return run


@pytest.mark.unit
@pytest.mark.parametrize("assignment", ["nested", "nearest"])
def test_coarser_sets_are_those_of_the_centres(folder, published, frames, fit, assignment):
    """As if the published k-means had been the first step of ours; labels of its own set stay."""
    path = published()
    maker = fit(path, f"--encoder {folder} --layer {LAYER} --clusters 12 6 3 --seed 4 --assignment {assignment}")
    finest = joblib.load(path).cluster_centers_
    six = KMeans(6, n_init=10, random_state=4).fit(finest).cluster_centers_
    three = KMeans(3, n_init=10, random_state=4).fit(six).cluster_centers_
    for clusters, expected in ((12, finest), (6, six), (3, three)):
        np.testing.assert_array_equal(maker.centres[clusters], expected)
    six_of_12 = [np.argmin(((six - centre) ** 2).sum(1)) for centre in finest]
    three_of_6 = [np.argmin(((three - centre) ** 2).sum(1)) for centre in six]
    assert maker.tables[6].tolist() == six_of_12
    assert maker.tables[3].tolist() == [three_of_6[label] for label in six_of_12]
    assert np.array_equal(maker.label(frames)[12], joblib.load(path).predict(frames))
    assert (maker.sets, maker.assignment, maker.seed) == ([12, 6, 3], assignment, 4)
    assert maker.versions["file"] == "km.bin" and maker.features.layer == LAYER
    assert (
        maker.versions["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    )  # which of many files of this name


@pytest.mark.integration
def test_labels_with_the_coarser_sets(folder, published, corpus, label_script, fit, tmp_path):
    """label.py takes the new file as one of ours: the encoder of the features, and the labels of the published set."""
    path, features = published(), f"--encoder {folder} --layer {LAYER}"
    nested = fit(path, f"{features} --clusters 12 4")
    common = f"--manifest {corpus[1]} --encoder {folder} --device cpu"
    label_script.main(f"make --kmeans {tmp_path}/nested.npz {common} --output {tmp_path}/nested.json".split())
    label_script.main(f"make --kmeans {path} --layer {LAYER} {common} --output {tmp_path}/published.json".split())
    labels = [
        [FrameLabels.from_manifest(entry["labels"], where) for where, entry in iter_manifest(tmp_path / name)]
        for name in ("nested.json", "published.json")
    ]
    for ours, theirs in zip(*labels):
        assert ours.maker == nested.id != theirs.maker
        assert list(ours.sets) == [12] and np.array_equal(ours.sets[12], theirs.sets[12])
    alone = fit(path, f"{features} --clusters 12", "alone.npz")
    assert alone.id == LabelMaker.load(tmp_path / "published.kmeans.npz").id


@pytest.mark.unit
def test_centres_of_a_file_of_ours(folder, published, fit, tmp_path):
    """Its header says what it is of; its own coarser sets are left out."""
    first = fit(published(), f"--encoder {folder} --layer {LAYER} --clusters 12 6 3")
    again = fit(tmp_path / "nested.npz", "--clusters 12 5", "again.npz")
    assert again.sets == [12, 5] and again.features == first.features and again.versions["finest set of"] == first.id
    np.testing.assert_array_equal(again.centres[12], first.centres[12])
    assert fit(tmp_path / "again.npz", "--clusters 12 6 3", "back.npz").id == first.id


@pytest.mark.unit
@pytest.mark.parametrize(
    "options, message",
    [
        ("--centres km.bin --manifest train.json", "not allowed with argument --centres"),
        ("--features mfcc", "one of the arguments --manifest --centres is required"),
        ("--manifest train.json", "--manifest needs --features"),
        ("--centres km.bin --features hidden", "--features is for --manifest"),
        ("--centres km.bin", "km.bin is of joblib and does not say what it was fitted on: give --encoder and --layer"),
        (
            "--centres km.bin --encoder a.nemo",
            "km.bin is of joblib and does not say what it was fitted on: give --encoder and",
        ),
        ("--centres km.npz --encoder a.nemo --layer 9", "--encoder and --layer: km.npz itself says what it is of"),
        ("--centres km.npz --layer 9", "--encoder and --layer: km.npz itself says what it is of"),
        ("--centres gone.bin --layer 9", "--encoder and --layer: give both"),
    ],
)
def test_options_that_do_not_go_together(published, monkeypatch, tmp_path, capsys, options, message):
    published()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        load_script("fit_kmeans").main([*options.split(), "--output", "new.npz"])
    assert message in capsys.readouterr().err


@pytest.mark.unit
def test_files_without_such_centres(folder, published, fit, tmp_path):
    features = f"--encoder {folder} --layer {LAYER}"
    with pytest.raises(
        ValueError, match="km.bin: its finest set has 12 centres, but --clusters begins with 1000. Begin"
    ):
        fit(published(), features)
    with pytest.raises(ValueError, match="wide.bin: centres of 7 dimensions do not fit 24 hidden features of layer 2"):
        fit(published(KMeans(3, n_init=1).fit(np.eye(7)), "wide.bin"), f"{features} --clusters 3 2")
    with pytest.raises(ValueError, match="small.bin: neither a k-means file .* dump it with compress=0"):
        fit(published(name="small.bin", compress=3), f"{features} --clusters 12 6")
    for options in ("--clusters 12 6", f"{features} --clusters 12 6"):
        with pytest.raises(FileNotFoundError, match="gone.bin: no such k-means file"):
            fit(tmp_path / "gone.bin", options)
    assert not (tmp_path / "nested.npz").exists()


# --- The file --------------------------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize("kind", [KMeans, MiniBatchKMeans])
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_centres_are_those_of_joblib(published, frames, kind, protocol):
    path = published(kind(CLUSTERS, n_init=1, random_state=0).fit(frames), protocol=protocol)
    assert np.array_equal(read_joblib_kmeans(path), joblib.load(path).cluster_centers_)


@pytest.mark.unit
def test_centres_in_double_precision_are_rounded(published, frames):
    path = published(KMeans(CLUSTERS, n_init=1).fit(frames.astype(np.float64)))
    centres = read_joblib_kmeans(path)
    assert centres.dtype == np.float32
    np.testing.assert_allclose(centres, joblib.load(path).cluster_centers_, rtol=1e-6)


@pytest.mark.unit
@pytest.mark.parametrize("name", attacks(""))
def test_code_is_refused_and_not_run(tmp_path, published, frames, name):
    """Inside an otherwise good k-means."""
    witness, kmeans = tmp_path / "witness", KMeans(3, n_init=1).fit(frames)
    kmeans.verbose = attacks(witness)[name]
    path = published(kmeans)
    with pytest.raises(ValueError, match="km.bin: its pickle asks for .* Nothing was executed"):
        read_joblib_kmeans(path)
    assert not witness.exists()


@pytest.mark.unit
def test_the_attack_works_on_joblib(tmp_path, published, frames):
    """Or the test above proves nothing."""
    witness, kmeans = tmp_path / "witness", KMeans(3, n_init=1).fit(frames)
    kmeans.verbose = attacks(witness)["os.system"]
    joblib.load(published(kmeans))
    assert witness.exists()


@pytest.mark.unit
def test_arrays_of_objects_are_refused(tmp_path, published, frames):
    """joblib reads such an array with a pickle of its own inside the file."""
    witness, kmeans = tmp_path / "witness", KMeans(3, n_init=1).fit(frames)
    kmeans.cluster_centers_ = np.array([attacks(witness)["os.system"]], dtype=object)
    path = published(kmeans)
    with pytest.raises(ValueError, match="km.bin: one of its arrays holds objects.*Nothing was executed"):
        read_joblib_kmeans(path)
    assert not witness.exists()


@pytest.mark.unit
def test_a_pickle_cannot_change_joblib(tmp_path):
    """Opcode BUILD sets attributes of a class it was given."""
    path = tmp_path / "km.bin"
    path.write_bytes(b"\x80\x02cjoblib.numpy_pickle\nNumpyArrayWrapper\nN}X\x04\x00\x00\x00evilK\x01s\x86b.")
    with pytest.raises(ValueError):
        read_joblib_kmeans(path)
    assert not hasattr(NumpyArrayWrapper, "evil") and not hasattr(_PlainArray, "evil")


@pytest.mark.unit
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.98])
def test_truncated(published, share):
    path = published()
    path.write_bytes(path.read_bytes()[: int(share * os.path.getsize(path))])
    with pytest.raises(ValueError, match="km.bin: cut short|km.bin: neither a k-means file"):
        read_joblib_kmeans(path)


@pytest.mark.unit
def test_other_files(published, frames, tmp_path):
    with pytest.raises(ValueError, match="load and dump it with compress=0"):
        read_joblib_kmeans(published(compress=3))
    with pytest.raises(ValueError, match="holds a PCA, expected a fitted k-means"):
        read_joblib_kmeans(published(PCA(2).fit(frames)))
    with pytest.raises(ValueError, match="holds a KMeans, expected a fitted k-means"):
        read_joblib_kmeans(published(KMeans(3)))
    with pytest.raises(ValueError, match="holds a dict, expected"):
        read_joblib_kmeans(published({"cluster_centers_": frames}))
    for value in (np.nan, np.inf):
        broken = KMeans(3, n_init=1).fit(frames)
        broken.cluster_centers_[1, 2] = value
        with pytest.raises(ValueError, match="km.bin: cluster_centers_ holds NaN or infinity. Get another file"):
            read_joblib_kmeans(published(broken))
    with pytest.raises(FileNotFoundError, match="gone.bin: no such k-means file"):
        read_joblib_kmeans(tmp_path / "gone.bin")
