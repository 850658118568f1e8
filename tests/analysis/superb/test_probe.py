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

"""Probes' parts, and the cache of frozen features: against closed forms and loops, and what a budget leaves out."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

from nemo_mshubert import file_lock
from nemo_mshubert.analysis.hidden_states import AllHiddenStates
from nemo_mshubert.analysis.superb.batches import endless, length_batches
from nemo_mshubert.analysis.superb.features import FrozenFeatures
from nemo_mshubert.analysis.superb.probe import CtcProbe, FeatureAugmentation, RecurrentLayers, WeightedSum, warp_time
from nemo_mshubert.data.audio import load_audio
from nemo_mshubert.data.manifest import iter_manifest

VOCABULARY = list("abc ")
PROBE = {"projection": 8, "recurrent": {"hidden": 6, "layers": 2, "dropout": 0.5}, "spec_augment": None}


@pytest.fixture
def hidden_states(tiny_encoder):
    class Counted(AllHiddenStates):
        calls = 0

        def __call__(self, waveforms):
            self.calls += len(waveforms)
            return super().__call__(waveforms)

    return Counted(tiny_encoder())


@pytest.fixture
def lines(synthetic_corpus):
    return list(iter_manifest(synthetic_corpus.dev))


def states(*lengths, num_states=5, width=24):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(length, num_states, width)).astype(np.float16) for length in lengths]


@pytest.fixture
def probe(hidden_states):
    return CtcProbe(
        FrozenFeatures(hidden_states), VOCABULARY, OmegaConf.create(PROBE), 1e-3, seed=0, words=True
    ).eval()


# --- The probe -------------------------------------------------------------------------------------------------------


def test_weighted_sum_is_that_of_s3prl():
    """Zero logits: the mean of all states. Then softmax weights, in fp32."""
    (x,) = states(7)
    layers = WeightedSum(5)
    np.testing.assert_allclose(layers(torch.from_numpy(x)).detach(), x.astype(np.float64).mean(axis=1), atol=1e-6)
    with torch.no_grad():
        layers.logits.copy_(torch.tensor([0.0, 1, 2, 3, 4]))
    weights = np.exp(np.arange(5)) / np.exp(np.arange(5)).sum()
    expected = sum(weight * x[:, layer].astype(np.float64) for layer, weight in enumerate(weights))
    np.testing.assert_allclose(layers(torch.from_numpy(x)).detach(), expected, atol=1e-5)
    np.testing.assert_allclose(layers.weights.detach(), weights, rtol=1e-6)


def test_padding_changes_nothing(probe):
    """A bidirectional LSTM that read padding would score an utterance by its neighbours in the batch."""
    short, long = states(9, 30)
    with torch.no_grad():
        together, frames = probe([short, long])
        alone, _ = probe([short])
    assert frames.tolist() == [9, 30] and together.shape == (2, 30, 5)
    torch.testing.assert_close(together[0, :9], alone[0], atol=1e-5, rtol=0)


def test_dropout_follows_every_recurrent_layer():
    """s3prl drops out behind the last LSTM too, where torch's own option does not."""
    layers = RecurrentLayers(4, hidden=50, layers=1, dropout=0.5).train()
    output = layers(torch.randn(1, 20, 4), torch.tensor([20]))
    assert 0.4 < (output == 0).float().mean() < 0.6
    assert (layers.eval()(torch.randn(1, 20, 4), torch.tensor([20])) != 0).all()
    layers = RecurrentLayers(4, hidden=5, layers=2, dropout=0.5).train()
    layers.dropout.eval()
    same, frames = torch.randn(1, 20, 4), torch.tensor([20])
    assert not torch.equal(layers(same, frames), layers(same, frames))  # between the two


def test_greedy_decoding_and_word_errors(probe):
    """a a _ a b _ _ ' ' c: repeats merge, blanks part them; errors are counted in words."""
    path = [0, 0, 4, 0, 1, 4, 4, 3, 2, 2]
    log_probs = torch.full((1, 12, 5), -9.0)
    log_probs[0, range(10), path] = 0.0
    log_probs[0, 10:, 0] = 0.0  # padding
    (best,) = probe.decode(log_probs, torch.tensor([10]))
    assert best == [0, 0, 1, 3, 2] and probe.spell(best) == ["aab", "c"]
    counts = probe.count_errors([0, 0, 1, 3, 1], best)
    assert (counts.substitutions, counts.reference_length) == (1, 2)
    probe.words = False
    assert probe.count_errors([0, 0, 1, 3, 1], best).reference_length == 5


def test_time_warp_moves_a_point_and_keeps_the_length():
    """A ramp stays monotonous, its ends stay, and a point is up to W frames from where it was."""
    ramp = torch.linspace(0, 1, 60)[:, None].repeat(1, 3)
    shifts = []
    for _ in range(50):
        warped = warp_time(ramp, 5)
        assert warped.shape == ramp.shape and warped[0, 0] < 0.03 and warped[-1, 0] > 0.97
        shifts.append((warped - ramp).abs().max().item() * 59)
    assert max(shifts) > 2 and max(shifts) < 6.5
    assert torch.equal(warp_time(ramp[:10], 5), ramp[:10])
    assert torch.equal(warp_time(ramp, 0), ramp)


def test_masks_are_of_the_published_number_and_width():
    augment = FeatureAugmentation(time_warp=0, time_masks=2, time_width=4, freq_masks=3, freq_width=5)
    frames, dimensions, lengths = [], [], []
    augment.masks.register_forward_pre_hook(lambda _, __, inputs: lengths.append(inputs["length"]), with_kwargs=True)
    for _ in range(40):
        first, second = augment([torch.ones(50, 40), torch.ones(30, 40)])
        assert first.shape == (50, 40) and second.shape == (30, 40)
        frames.append(int((first == 0).all(dim=1).sum()))
        dimensions.append(int((first == 0).all(dim=0).sum()))
    assert 0 < max(frames) <= 2 * 4 and 0 < max(dimensions) <= 3 * 5
    assert np.mean(frames) > 1 and np.mean(dimensions) > 3
    assert lengths[0].tolist() == [50, 30]  # or the masks of a short utterance fall behind its end


def test_masked_features_have_gradients_where_they_are_not_masked():
    """NeMo masks without gradients: the weights of the layers were never trained, and every ASR probe had their
    mean."""
    augment = FeatureAugmentation(time_warp=5, time_masks=2, time_width=4, freq_masks=3, freq_width=5)
    features = [torch.rand(50, 40).add(0.1).requires_grad_() for _ in range(2)]
    masked = augment(features)
    for x_TD in masked:
        kept = x_TD != 0
        assert 0 < kept.sum() < kept.numel()
    torch.cat(masked).sum().backward()
    for x_TD in features:
        assert x_TD.grad.abs().sum() > 0


def test_the_weights_of_the_layers_learn_behind_masks(hidden_states):
    masks = dict(time_warp=5, time_masks=2, time_width=4, freq_masks=4, freq_width=2)
    config = OmegaConf.create({**PROBE, "spec_augment": masks})
    probe = CtcProbe(FrozenFeatures(hidden_states), VOCABULARY, config, 1e-3, seed=0, words=True).train()
    log_probs_BTV, _ = probe(states(30, 25))
    log_probs_BTV[..., 0].sum().backward()
    assert (probe.weighted_sum.logits.grad != 0).all()


def test_the_seed_draws_the_initial_weights(hidden_states):
    features, config = FrozenFeatures(hidden_states), OmegaConf.create(PROBE)
    probes = [CtcProbe(features, VOCABULARY, config, 1e-3, seed=seed, words=True) for seed in (0, 0, 1)]
    first, again, other = (probe.state_dict() for probe in probes)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["projection.weight"], other["projection.weight"])


# --- Batches ---------------------------------------------------------------------------------------------------------


def test_batches_hold_every_utterance_once_and_long_ones_are_halved():
    durations = [3.0, 20.0, 5.0, 19.0, 4.0, 18.75, 2.0, 1.0]
    batches = length_batches(durations, 4, halve_above_seconds=18.75)
    assert batches == [[1, 3], [5, 2, 4, 0], [6, 7]]
    assert length_batches(durations, 4) == [[1, 3, 5, 2], [4, 0, 6, 7]]
    assert length_batches([30.0], 1, 18.75) == [[0]]


def test_the_stream_is_shuffled_anew_in_every_pass_and_repeatable():
    batches = [[number] for number in range(6)]
    drawn = list(itertools.islice(endless(batches, seed=1), 18))
    passes = [drawn[start : start + 6] for start in (0, 6, 12)]
    assert all(sorted(one) == batches for one in passes) and passes[0] != passes[1] != passes[2]
    assert drawn == list(itertools.islice(endless(batches, seed=1), 18))
    assert drawn != list(itertools.islice(endless(batches, seed=2), 18))


# --- Frozen features -------------------------------------------------------------------------------------------------


def test_a_trainers_precision_is_not_that_of_the_encoder(hidden_states, lines):
    """States that did not fit the cache were of bf16, those in it of fp32, in one training."""
    features = FrozenFeatures(hidden_states)
    loaded = [features.load(line) for line in lines]
    expected = features.finish(lines, loaded)
    with torch.autocast("cpu", torch.bfloat16):
        found = features.finish(lines, loaded)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(found, expected))


def test_cached_and_computed_states_are_the_same_numbers(hidden_states, lines, tmp_path):
    """Whoever has no disk for the cache gets the same WER, and a second run computes nothing."""
    features = FrozenFeatures(hidden_states, tmp_path, gigabytes=1)
    fresh = FrozenFeatures(hidden_states).finish(lines, [FrozenFeatures(hidden_states).load(line) for line in lines])
    use = features.fill(lines)
    assert use.cached == use.utterances == len(lines)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.npy"))
    assert use.gigabytes == pytest.approx(size / 1e9, rel=0.01)
    calls = hidden_states.calls
    cached = features.finish(lines, [features.load(line) for line in lines])
    assert features.fill(lines).cached == len(lines) and hidden_states.calls == calls
    for ours, theirs, (_, entry) in zip(cached, fresh, lines):
        assert ours.dtype == np.float16 and ours.shape[1:] == (5, 24)
        expected = hidden_states([load_audio(entry)])[0].reshape(ours.shape)
        np.testing.assert_allclose(ours.astype(np.float32), expected, atol=2e-3)
        np.testing.assert_allclose(ours.astype(np.float32), theirs.astype(np.float32), atol=2e-3)


def test_the_budget_is_kept_and_the_rest_is_computed(hidden_states, lines, tmp_path):
    everything = FrozenFeatures(hidden_states, tmp_path / "all", 1).fill(lines).gigabytes
    features = FrozenFeatures(hidden_states, tmp_path / "half", everything / 2)
    use = features.fill(lines)
    assert 0 < use.cached < len(lines) and use.gigabytes <= everything / 2
    loaded = [features.load(line) for line in lines]
    assert sorted({array.ndim for array in loaded}) == [1, 3]
    finished = features.finish(lines, loaded)
    assert [array.ndim for array in finished] == [3] * len(lines)
    assert [len(array) for array in finished] == [math.floor(entry["duration"] * 50 - 0.25) for _, entry in lines]


def test_other_encoders_and_scalings_have_folders_of_their_own(hidden_states, tiny_encoder, lines, tmp_path):
    from nemo_mshubert.modules.waveform_preprocessor import WaveformPreprocessor

    preprocessor = WaveformPreprocessor(sample_rate=16000, window_stride=6.25e-05, features=1, normalize="per_feature")
    for states_of in (
        hidden_states,
        AllHiddenStates(tiny_encoder(seed=1)),
        AllHiddenStates(tiny_encoder(), preprocessor),
    ):
        FrozenFeatures(states_of, tmp_path, 1).fill(lines[:1])
    assert len(list(tmp_path.iterdir())) == 3 and len(list(tmp_path.rglob("*.npy"))) == 3


def test_replaced_audio_is_not_served_from_the_cache(hidden_states, lines, tmp_path):
    """A corpus that was cut or scaled anew under the same names would be probed as it was before, for good."""
    path = tmp_path / "a.wav"
    path.write_bytes(Path(lines[0][1]["audio_filepath"]).read_bytes())
    line = ("here:1", {**lines[0][1], "audio_filepath": str(path)})
    features = FrozenFeatures(hidden_states, tmp_path / "cache", 1)
    features.fill([line, lines[1]])
    samples = load_audio(line[1])
    soundfile.write(path, samples[::-1], 16000)
    assert features.load(line).shape == samples.shape  # what is to be computed, not what is cached
    calls = hidden_states.calls
    use = features.fill([line, lines[1]])
    assert use.cached == 2 and hidden_states.calls == calls + 1
    (expected,) = FrozenFeatures(hidden_states).finish([line], [samples[::-1].copy()])
    np.testing.assert_allclose(features.load(line), expected, atol=2e-2)
    # The budget is for what is in use: neither states of the old audio are kept nor those of an earlier version.
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 2
    (found,) = (tmp_path / "cache").rglob(f"{features._path(line[1]).name}")
    found.rename(found.with_name(f"{found.name[:32]}.npy"))
    assert features.fill([line]).cached == 1 and len(list((tmp_path / "cache").rglob("*.npy"))) == 2


def test_damaged_cache_and_states_beyond_float16(hidden_states, lines, tmp_path):
    features = FrozenFeatures(hidden_states, tmp_path, 1)
    features.fill(lines[:1])
    (path,) = tmp_path.rglob("*.npy")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{path.name}: damaged .*Delete it"):
        features.load(lines[0])
    with torch.no_grad():
        hidden_states.encoder.layers[-1].get_parameter(_last_norm(hidden_states)).mul_(1e6)
    with pytest.raises(ValueError, match="beyond float16"):
        FrozenFeatures(hidden_states).finish(lines[:1], [load_audio(lines[0][1])])


def _last_norm(hidden_states):
    names = dict(hidden_states.encoder.layers[-1].named_parameters())
    return [name for name in names if "norm" in name and name.endswith("weight")][-1]


@pytest.mark.unit
def test_the_budget_is_of_all_sets_together(hidden_states, lines, tmp_path):
    """Training, dev and test sets are put there one after another: each with the whole budget, the disk is full."""
    everything = FrozenFeatures(hidden_states, tmp_path / "all", 1).fill(lines).gigabytes
    features = FrozenFeatures(hidden_states, tmp_path / "part", 0.6 * everything)
    uses = [features.fill(part) for part in (lines[::2], lines[1::2])]
    size = sum(path.stat().st_size for path in (tmp_path / "part").rglob("*.npy")) / 1e9
    assert 0 < uses[0].gigabytes < size <= 0.6 * everything and uses[1].cached < len(lines[1::2])
    assert uses[1].gigabytes == pytest.approx(size, rel=0.01)


@pytest.mark.unit
def test_two_tasks_fill_one_cache_in_turn(hidden_states, lines, tmp_path, held_elsewhere, monkeypatch):
    """Speech and phone recognition at the same time: both computed all states, and each spent the whole budget."""
    features = FrozenFeatures(hidden_states, tmp_path, 1)
    first, files = held_elsewhere(features.folder / ".lock"), []

    def end_first(_):
        files.extend(tmp_path.rglob("*.npy"))
        first.kill()
        first.wait()

    monkeypatch.setattr(file_lock.time, "sleep", end_first)
    assert features.fill(lines).cached == len(lines) and first.poll() is not None and not files


@pytest.mark.unit
def test_an_interrupted_fill_leaves_whole_files(hidden_states, lines, tmp_path, monkeypatch):
    """A file that was half written when the job ended would end every later one."""
    features, save = FrozenFeatures(hidden_states, tmp_path, 1), np.save

    def die(stream, states):
        save(stream, states)
        stream.truncate(100)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(np, "save", die)
        features.fill(lines[:1])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert features.fill(lines[:1]).cached == 1 and features.load(lines[0]).ndim == 3


@pytest.mark.unit
def test_audio_shorter_than_a_frame_is_named(hidden_states, tmp_path):
    """It has no states: an LSTM ends in an error that names nothing."""
    soundfile.write(tmp_path / "short.wav", np.zeros(399), 16000)
    line = ("dev.json:7", {"audio_filepath": str(tmp_path / "short.wav"), "duration": 399 / 16000, "text": "a"})
    with pytest.raises(ValueError, match="dev.json:7: short: shorter than one frame. Remove the line"):
        FrozenFeatures(hidden_states).load(line)


@pytest.mark.unit
def test_errors_are_of_the_reference(probe):
    """Reference and hypothesis in each other's place: insertions as deletions, and rates of other lengths."""
    probe.words = False
    counts = probe.count_errors([0, 1, 2], [0])
    assert (counts.insertions, counts.deletions, counts.reference_length) == (0, 2, 3)


@pytest.mark.unit
def test_more_tokens_than_frames_are_no_infinite_loss(probe):
    """One fast speaker in the training set: every update with such an utterance would be skipped as not finite."""
    log_probs_BTV = torch.zeros(2, 6, 5).log_softmax(dim=-1).requires_grad_()
    targets_BN, lengths_B = torch.tensor([[0, 1, 2, 0], [0, 1, 0, 0]]), torch.tensor([4, 2])
    frames_B = torch.tensor([3, 6])
    loss = probe.loss(log_probs=log_probs_BTV, targets=targets_BN, input_lengths=frames_B, target_lengths=lengths_B)
    loss.backward()
    assert loss.isfinite() and log_probs_BTV.grad.isfinite().all() and log_probs_BTV.grad[1].any()


@pytest.mark.unit
def test_the_loss_is_that_of_s3prl(probe):
    """torch's mean over utterances of the loss per token: s3prl's learning rates are for it."""
    log_probs_BTV = torch.randn(2, 9, 5).log_softmax(dim=-1)
    targets_BN, lengths_B = torch.tensor([[0, 1, 2, 0], [3, 1, 0, 0]]), torch.tensor([4, 2])
    frames_B = torch.tensor([9, 6])
    loss = probe.loss(log_probs=log_probs_BTV, targets=targets_BN, input_lengths=frames_B, target_lengths=lengths_B)
    rows = zip(log_probs_BTV, targets_BN, frames_B.tolist(), lengths_B.tolist())
    alone = [
        torch.nn.functional.ctc_loss(x[:frames], tokens[:count], (frames,), (count,), blank=4, reduction="sum") / count
        for x, tokens, frames, count in rows
    ]
    assert loss.item() == pytest.approx(sum(alone).item() / 2, rel=1e-5)
