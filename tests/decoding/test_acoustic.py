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

"""Log-probabilities of a manifest: batches, and chunks of long files that leave no seam."""

import numpy as np
import pytest
import soundfile
import torch
from kaldialign import edit_distance

from nemo_mshubert.alphabet import ENGLISH_LABELS
from nemo_mshubert.decoding import acoustic
from nemo_mshubert.decoding.acoustic import (
    chunk_frames,
    long_log_probs,
    manifest_log_probs,
    model_log_probs,
    use_chunks,
)
from nemo_mshubert.decoding.greedy import greedy_text
from nemo_mshubert.modules.conv_feature_extractor import ConvFeatureExtractor
from nemo_mshubert.modules.frames import frame_count
from nemo_mshubert.modules.waveform_preprocessor import WaveformPreprocessor
from tests.conftest import TINY_ENCODER

pytestmark = pytest.mark.unit
KEPT, CONTEXT = 2500, 250  # frames: 50 s and 5 s


def noise(samples, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 6 s of which the inner 2 s are kept."""
    monkeypatch.setattr(acoustic, "MAX_CHUNK_SECONDS", 6)
    monkeypatch.setattr(acoustic, "CONTEXT_SECONDS", 2)


# --- Chunks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_frames", [1, 249, 250, 2499, 2500, 2501, 2750, 3000, 4999, 5000, 5001, 7501, 123456])
def test_kept_parts_tile_the_utterance(num_frames):
    """A lost or doubled frame is a lost or doubled letter at every seam of an hour of speech."""
    chunks = list(chunk_frames(num_frames))
    kept = [frame for _, _, start, end in chunks for frame in range(start, end)]
    assert kept == list(range(num_frames))
    for first, end, keep_first, keep_end in chunks:
        assert 0 <= first <= keep_first < keep_end <= end <= num_frames
        assert end - first <= KEPT + 2 * CONTEXT  # a minute: memory is bounded
        assert first == 0 or keep_first - first == CONTEXT
        assert end == num_frames or end - keep_end == CONTEXT


@pytest.mark.parametrize("surplus", [0, 1, 79, 319])
@pytest.mark.parametrize("num_frames", [101, 299, 300, 301, 650])
def test_chunks_of_a_model_with_local_context_leave_no_seam(small_chunks, num_frames, surplus):
    """Samples and frames of every chunk meet, whatever the length: without attention nothing differs."""
    torch.manual_seed(0)
    convolutions = ConvFeatureExtractor(
        [(4, k, s) for k, s in ((10, 5), *4 * ((3, 2),), (2, 2), (2, 2))], "layer_norm"
    )

    class Local:
        device = torch.device("cpu")
        preprocessor = WaveformPreprocessor()

        def forward(self, input_signal, input_signal_length):
            x_BTC, frames = convolutions(input_signal[:, None], input_signal_length, False)
            return x_BTC, frames, None

    wave = noise((num_frames - 1) * 320 + 400 + surplus)
    whole = model_log_probs(Local(), [wave])[0]
    chunked = long_log_probs(Local(), wave)
    assert chunked.shape == whole.shape == (num_frames, 4)
    np.testing.assert_allclose(chunked, whole, rtol=1e-4, atol=1e-4)  # convolutions of another size add up otherwise
    assert np.abs(chunked[1:] - whole[:-1]).max() > 0.1  # a frame off would show


@pytest.mark.parametrize("norm, tolerance", [("layer_norm", 0.1), ("group_norm", 2.0)])
def test_chunks_of_the_encoder_agree_with_the_whole(small_chunks, tiny_ctc, norm, tolerance):
    """Attention sees a chunk instead of the file, and so do the statistics of the base size's norm over time. Random
    weights look everywhere and make the most of it, in log-probabilities down to -20; the letters are the same.
    """
    model = tiny_ctc(conv_norm=norm)
    wave = noise(16000 * 9 + 77)
    whole, chunked = model_log_probs(model, [wave])[0], long_log_probs(model, wave)
    assert whole.shape == chunked.shape == (frame_count(len(wave)), 29)
    assert np.abs(chunked - whole).max() < tolerance
    assert (chunked.argmax(1) == whole.argmax(1)).mean() > 0.97
    assert np.abs(chunked[1:] - whole[:-1]).max() > 5 and (chunked[1:].argmax(1) == whole[:-1].argmax(1)).mean() < 0.8


def test_chunks_of_a_model_of_scaled_audio_keep_their_loudness(small_chunks, tiny_ctc):
    """A quiet minute was amplified to the loudness of the others: most of its frames came out as other letters."""
    model = tiny_ctc(conv_norm="layer_norm", conv_bias=True)
    model.preprocessor.normalized = True
    wave = noise(16000 * 12)
    wave[16000 * 4 :] *= 0.01
    whole, chunked = model_log_probs(model, [wave])[0], long_log_probs(model, wave)
    assert np.abs(chunked - whole).max() < 0.5 and (chunked.argmax(1) == whole.argmax(1)).mean() > 0.97
    assert model.preprocessor.normalized


def test_a_model_of_other_frames_is_not_cut_at_those_of_hubert(small_chunks, tiny_ctc):
    """Half of the text of a long file was lost at 100 Hz, without a word."""
    model = tiny_ctc(conv_layers=TINY_ENCODER["conv_layers"][:-1], conv_norm="layer_norm")
    model.preprocessor.normalized = True
    with pytest.raises(ValueError, match=r"makes \d+ frames of \d+ samples, HuBERT \d+.* Cut them into shorter ones"):
        long_log_probs(model, noise(16000 * 12))
    assert model.preprocessor.normalized  # also of the shorter ones


@pytest.fixture
def longest_input(monkeypatch):
    """``longest_input(model)``: a list of the samples of each pass of its encoder from now on, the longest row of
    each."""

    def watch(model):
        lengths, forward = [], model.encoder.forward

        def watched(audio_signal, length):
            lengths.append(audio_signal.shape[-1])
            return forward(audio_signal=audio_signal, length=length)

        monkeypatch.setattr(model.encoder, "forward", watched)
        return lengths

    return watch


@pytest.mark.parametrize("timestamps", [False, True])
def test_transcribe_runs_long_files_by_chunks(small_chunks, tiny_ctc, longest_input, tmp_path, timestamps):
    """An hour in one piece would take the memory of its square; the text must be that of `long_log_probs`."""
    model = tiny_ctc(conv_norm="layer_norm")
    lengths = [16000 * 20, 8000, 16000 * 6]
    files = [entry["audio_filepath"] for entry in entries_of(tmp_path, lengths)]
    expected = [greedy_text(long_log_probs(model, noise(n, seed)), ENGLISH_LABELS) for seed, n in enumerate(lengths)]
    in_one_piece = model.transcribe(files, batch_size=3, verbose=False)
    use_chunks(model)
    passes = longest_input(model)
    found = model.transcribe(files, batch_size=3, timestamps=timestamps, verbose=False)
    assert max(passes) < 16000 * 6 + 320 < lengths[0] and len(passes) > 10
    assert [" ".join(one.text.split()) for one in found] == expected
    letters = [" ".join(one.text.split()) for one in in_one_piece]
    assert letters[1:] == expected[1:] and edit_distance(letters[0], expected[0])["total"] < 0.05 * len(letters[0])
    if timestamps:
        words = found[0].timestamp["word"]
        assert 0.9 * 20 < words[-1]["end"] < 20  # in seconds of the file, not of its last chunk


def test_chunks_change_nothing_in_training(small_chunks, tiny_ctc, longest_input):
    """A loss over chunks would have no gradient: they are run without one."""
    model = tiny_ctc()
    use_chunks(model)
    passes = longest_input(model.train())
    log_probs, frames, _ = model(input_signal=torch.zeros(1, 16000 * 8), input_signal_length=torch.tensor([16000 * 8]))
    assert passes == [16000 * 8] and log_probs.requires_grad and frames.tolist() == [frame_count(16000 * 8)]


def test_chunks_leave_what_comes_without_waveforms(small_chunks, tiny_ctc):
    """NeMo may call the model with what its preprocessor has made; there is nothing to cut."""
    model = tiny_ctc(conv_norm="layer_norm")
    processed, length = model.preprocessor(input_signal=torch.randn(1, 16000), length=torch.tensor([16000]))
    arguments = {"processed_signal": processed, "processed_signal_length": length}
    expected = model(**arguments)[0]
    use_chunks(model)
    assert model(**arguments)[0].equal(expected)


def test_chunks_do_not_hinder_an_export(small_chunks, tiny_ctc, tmp_path):
    """It ended in a TypeError about arguments of forward; transcribe() must go on by chunks behind it."""
    model = tiny_ctc(conv_norm="layer_norm")
    wave = noise(16000)
    expected = model_log_probs(model, [wave])[0]
    use_chunks(model)
    model.export(str(tmp_path / "ctc.ts"))
    exported = torch.jit.load(tmp_path / "ctc.ts")
    found = exported(torch.from_numpy(wave)[None, None], torch.tensor([len(wave)]))
    np.testing.assert_allclose((found[0] if isinstance(found, tuple) else found)[0].numpy(), expected, atol=1e-3)
    long = noise(16000 * 9)
    np.testing.assert_array_equal(model_log_probs(model, [long])[0], long_log_probs(model, long))


def test_memory_of_a_long_file_is_that_of_a_chunk(small_chunks, tiny_ctc, longest_input, tmp_path):
    """An hour for chunks of a minute, scaled down: six minutes for chunks of six seconds. Nothing that the model sees
    grows with the file, and every frame is there.
    """
    model = tiny_ctc(conv_norm="layer_norm")
    passes = longest_input(model)
    samples = 16000 * 360
    results = manifest_log_probs(model, entries_of(tmp_path, [samples, 8000]), 1e9, "test")
    assert [len(results[number]) for number in (0, 1)] == [frame_count(samples), frame_count(8000)]
    assert max(passes) < 16000 * 6 + 320 and len(passes) == 360 / 2 + 1


# --- Manifests -------------------------------------------------------------------------------------------------------


def entries_of(folder, lengths):
    entries = []
    for number, samples in enumerate(lengths):
        path = folder / f"u{number}.wav"
        soundfile.write(path, noise(samples, seed=number), 16000, subtype="FLOAT")
        entries.append({"audio_filepath": str(path), "duration": samples / 16000})
    return entries


def test_results_are_those_of_every_utterance_alone(tiny_ctc, tmp_path):
    """Whatever its batch and its place in the manifest; utterances shorter than a frame have none."""
    model = tiny_ctc()
    lengths = [8000, 100, 24000, 400, 16001, 8000]
    results = manifest_log_probs(model, entries_of(tmp_path, lengths), 2.0, "test")
    assert sorted(results) == list(range(6))
    for number, samples in enumerate(lengths):
        assert results[number].shape == (frame_count(samples), 29)
        if samples >= 400:
            expected = model_log_probs(model, [noise(samples, seed=number)])[0]
            np.testing.assert_allclose(results[number], expected, rtol=1e-4, atol=1e-4)  # sums in another order


def test_model_left_in_training_mode_is_no_matter(tiny_ctc, tmp_path):
    """NeMo's transcribe() leaves the encoder in training mode: dropout and masks would be on."""
    model = tiny_ctc(mask_prob=0.8, dropout=0.5).train()
    entries = entries_of(tmp_path, [16000])
    first, second = (manifest_log_probs(model, entries, 60, "test")[0] for _ in range(2))
    assert np.array_equal(first, second)


def test_long_and_short_files_in_one_batch(small_chunks, tiny_ctc, tmp_path):
    """A long file beside one that is shorter than a frame."""
    lengths = [16000 * 7, 100, 8000]
    results = manifest_log_probs(tiny_ctc(), entries_of(tmp_path, lengths), 1000, "test")
    assert [len(results[number]) for number in range(3)] == [frame_count(samples) for samples in lengths]


def test_segments_of_a_file_are_cut_out(tiny_ctc, tmp_path):
    """A line with an offset is the log-probabilities of its samples, not of the file."""
    model = tiny_ctc()
    (whole,) = entries_of(tmp_path, [32000])
    segment = {**whole, "offset": 0.5, "duration": 1.0}
    results = manifest_log_probs(model, [segment], 60, "test")
    np.testing.assert_allclose(results[0], model_log_probs(model, [noise(32000)[8000:24000]])[0], atol=1e-5)


@pytest.mark.parametrize("kind, error", [("missing", FileNotFoundError), ("nan", ValueError), ("stereo", ValueError)])
def test_unusable_audio_is_named(tiny_ctc, tmp_path, kind, error):
    """A word error rate over the other files would be that of another test set."""
    entries = entries_of(tmp_path, [8000, 8000])
    path = tmp_path / "u1.wav"
    if kind == "missing":
        path.unlink()
    elif kind == "nan":
        soundfile.write(path, np.full(8000, np.nan, np.float32), 16000, subtype="FLOAT")
    else:
        soundfile.write(path, np.zeros((8000, 2)), 16000)
    with pytest.raises(error, match="u1.*u1.wav"):
        manifest_log_probs(tiny_ctc(), entries, 60, "test")
