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

"""Peers in the pipeline: one set of commands for every family and every layout, from a checkpoint to labels and a
WER."""

import json

import pytest
import torch
from nemo.collections.asr.models import EncDecCTCModel
from omegaconf import OmegaConf

from nemo_mshubert.clustering.features import HiddenFeatures
from nemo_mshubert.clustering.frame_sample import sample_corpus_frames
from nemo_mshubert.clustering.label_maker import fit_label_maker
from nemo_mshubert.clustering.labelling import label_manifest
from nemo_mshubert.convert.conversion import read_checkpoint, write_checkpoint
from nemo_mshubert.data.labels import check_labelled_manifest
from nemo_mshubert.decoding.evaluation import evaluate_manifests, greedy_decoder, load_ctc_model
from nemo_mshubert.models.ctc import ssl_to_ctc
from nemo_mshubert.models.finetuning import restore_for_finetuning
from nemo_mshubert.models.loading import load_encoder, save_model
from tests.conftest import quiet_trainer
from tests.convert.conftest import ENGLISH, FAMILIES, fairseq_options, make_peer, save_peer, spell_as_fairseq

pytestmark = pytest.mark.integration
CLUSTERS = [12, 5]


@pytest.fixture(params=[("wav2vec2-base", "folder"), ("wavlm-base", "fairseq"), ("data2vec-audio", "nemo")])
def checkpoint_path(request, save_peer, tmp_path):
    """One layout each."""
    family, layout = request.param
    theirs = make_peer(family, mask_time_prob=0.05)
    folder = save_peer(theirs, family)
    if layout == "fairseq":
        options = {"model": fairseq_options(theirs), "task": {"normalize": FAMILIES[family][2]}}
        torch.save({"cfg": options, "model": spell_as_fairseq(theirs)}, tmp_path / "peer.pt")
    elif layout == "nemo":
        write_checkpoint(read_checkpoint(folder), tmp_path / "peer.nemo")
    return {"folder": folder, "fairseq": tmp_path / "peer.pt", "nemo": tmp_path / "peer.nemo"}[layout]


def test_from_a_checkpoint_to_labels_and_a_wer(checkpoint_path, synthetic_corpus, tmp_path):
    """What ssl_to_ctc.py, finetune_ctc.py, evaluate.py, fit_kmeans.py and label.py call, in this order."""
    ctc_path = tmp_path / "ctc.nemo"
    save_model(ssl_to_ctc(str(checkpoint_path)), ctc_path)
    loader = {"use_lhotse": True, "sample_rate": 16000, "batch_size": 3, "num_workers": 0}
    overrides = {
        "encoder": {"mask_prob": 0.4, "mask_length": 4, "feature_grad_mult": 0.0, "layerdrop": 0.1},
        "train_ds": {**loader, "manifest_filepath": str(synthetic_corpus.train), "shuffle": True, "seed": 0},
        "validation_ds": {**loader, "manifest_filepath": str(synthetic_corpus.dev), "shuffle": False},
        "optim": {"name": "adam", "lr": 1e-3},
    }
    trainer = quiet_trainer(max_steps=2)
    model = restore_for_finetuning(str(ctc_path), OmegaConf.create(overrides), trainer)
    trainer.fit(model)
    assert trainer.global_step == 2 and torch.isfinite(trainer.callback_metrics["train_loss"])
    save_model(model, tmp_path / "finetuned.nemo")

    finetuned = load_ctc_model(str(tmp_path / "finetuned.nemo"), "cpu")
    decoders = {"greedy": greedy_decoder(finetuned)}
    results = evaluate_manifests(finetuned, "finetuned.nemo", [synthetic_corpus.test], tmp_path / "results", decoders)
    assert results[synthetic_corpus.test.stem]["greedy"]["utterances"] == len(
        synthetic_corpus.test.read_text().splitlines()
    )

    features = HiddenFeatures(load_encoder(checkpoint_path), layer=2)
    frames = sample_corpus_frames([synthetic_corpus.dev], features, max_frames=2000, seed=0)
    maker = fit_label_maker(frames, CLUSTERS, features.description, backend="sklearn")
    label_manifest(synthetic_corpus.dev, tmp_path / "labelled.json", maker, features)
    check_labelled_manifest(tmp_path / "labelled.json", maker.id)
    encoder = HiddenFeatures(load_encoder(ctc_path), layer=2)  # through the .nemo of ssl_to_ctc.py: the same labels
    maker.check_features(encoder.description)


def test_a_published_ctc_model_is_evaluated_as_it_is(save_peer, synthetic_corpus, tmp_path):
    """evaluate.py --model FOLDER: the letters and weights of its own output layer."""
    theirs = make_peer("hubert-base", "ForCTC", vocab_size=32, pad_token_id=0)
    with torch.no_grad():
        theirs.lm_head.bias[1:4] = -1e4  # as after training: special symbols never win
        torch.nn.init.normal_(theirs.lm_head.weight)
    model = load_ctc_model(str(save_peer(theirs, "hubert-base", ENGLISH)), "cpu")
    assert type(model) is EncDecCTCModel
    evaluate_manifests(model, "theirs", [synthetic_corpus.dev], tmp_path, {"greedy": greedy_decoder(model)})
    lines = (tmp_path / f"{synthetic_corpus.dev.stem}.greedy.json").read_text().splitlines()
    assert any(json.loads(line)["pred_text"] for line in lines)
