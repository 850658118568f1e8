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

"""What all tests share: a clean process, a minute of synthetic speech with labels, and configs of minuscule models."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

REPOSITORY = Path(__file__).parents[1]
SCRIPTS = REPOSITORY / "scripts"
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
TINY_CLUSTERS = [40, 20, 10]
CONF = REPOSITORY / "conf"
PRETRAIN = {"label_maker": "km.npz", "train_manifest": "train.json", "validation_manifest": "dev.json"}
FINETUNE = {"init_model": "ctc.nemo", "train_manifest": "train.json", "validation_manifest": "dev.json"}
ASKED_FOR = {"pretrain": PRETRAIN, "finetune": FINETUNE}  # what the documentation tells the user to set

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
needs_meta_weight_norm = pytest.mark.skipif(
    not torch._C._dispatch_has_kernel_for_dispatch_key("aten::_weight_norm_interface_backward", "Meta"),
    reason="this PyTorch has no gradient of weight_norm on the device meta",
)

# 24 wide, 4 blocks: three label sets lie at blocks 4, 2 and 1. Strides and kernels are HuBERT's.
TINY_ENCODER = dict(
    conv_layers=[[16, 10, 5], [16, 3, 2], [16, 3, 2], [16, 3, 2], [16, 3, 2], [16, 2, 2], [16, 2, 2]],
    d_model=24,
    num_layers=4,
    num_heads=2,
    d_inner=48,
    pos_conv_kernel=16,
    pos_conv_groups=4,
    dropout=0.0,
    attention_dropout=0.0,
    activation_dropout=0.0,
    dropout_input=0.0,
    layerdrop=0.0,
    feature_grad_mult=1.0,
)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The models are so small that threads would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def clean_process():
    """Begin with a seed, and undo what a test does to the environment and to NeMo's singletons."""
    environment = dict(os.environ)
    torch.manual_seed(0)
    yield
    os.environ.clear()
    os.environ.update(environment)
    if "nemo.utils.metaclasses" in sys.modules:  # AppState remembers the last model's files and ranks
        sys.modules["nemo.utils.metaclasses"].Singleton._Singleton__instances.clear()


@pytest.fixture(scope="session")
def shared_data():
    """Folder of real speech beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real speech in {SHARED_DATA}")
    return SHARED_DATA


# --- Scripts and trainers --------------------------------------------------------------------------------------------


def load_script(name):
    """scripts/``name``.py as a module."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_config(group, name, *overrides):
    """The config as scripts/pretrain.py and scripts/finetune_ctc.py get it from the documented command line."""
    from hydra import compose, initialize_config_dir

    asked_for = [f"{key}={value}" for key, value in ASKED_FOR[group].items()]
    with initialize_config_dir(str(CONF / group), version_base=None):
        return compose(name, overrides=[*asked_for, *overrides])


def quiet_trainer(**options):
    """A Lightning trainer on one CPU that writes and prints nothing; ``options`` go before."""
    import lightning.pytorch as pl

    quiet = dict(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    quiet.update(enable_progress_bar=False, enable_model_summary=False)
    return pl.Trainer(**{**quiet, **options})


@pytest.fixture
def held_elsewhere():
    """``held_elsewhere(path)``: another process, which holds this file of `file_lock.alone` until the test ends."""
    code = "import fcntl, sys; lock = open(sys.argv[1], 'a'); fcntl.lockf(lock, fcntl.LOCK_EX); print(flush=True)"
    processes = []

    def hold(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", f"{code}; sys.stdin.read()", str(path)]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        processes[-1].stdout.readline()
        return processes[-1]

    yield hold
    for process in processes:
        process.communicate()


# --- Speech and labels -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def synthetic_corpus(tmp_path_factory):
    """Paths of the manifests ``train``, ``dev`` and ``test`` of about a minute of synthetic speech."""
    pytest.importorskip("espeakng_loader", reason="synthetic speech needs espeakng-loader")
    from nemo_mshubert.data.librispeech import prepare_librispeech
    from nemo_mshubert.data.synthetic.corpus import SUBSETS, synthesize_corpus

    root = tmp_path_factory.mktemp("speech")
    synthesize_corpus(root, train_minutes=0.5, dev_minutes=0.2, test_minutes=0.2, seed=0)
    prepare_librispeech(root, root / "manifests")
    paths = {name.split("-")[0]: root / "manifests" / f"{name}.json" for name in SUBSETS}
    return SimpleNamespace(root=root, **paths)


@pytest.fixture(scope="session")
def labelled(synthetic_corpus):
    """``maker``, its file ``maker_path``, and labelled manifests ``train``, ``dev``, ``test``."""
    from nemo_mshubert.clustering.features import MfccFeatures
    from nemo_mshubert.clustering.frame_sample import sample_corpus_frames
    from nemo_mshubert.clustering.label_maker import fit_label_maker
    from nemo_mshubert.clustering.labelling import label_manifest

    folder = synthetic_corpus.root / "labelled"
    features = MfccFeatures()
    frames = sample_corpus_frames([synthetic_corpus.train], features, max_frames=100_000, seed=0)
    maker = fit_label_maker(frames, TINY_CLUSTERS, features.description, backend="sklearn")
    maker.save(folder / "km.npz")
    paths = {}
    for name in ("train", "dev", "test"):
        paths[name] = folder / f"{name}.json"
        label_manifest(getattr(synthetic_corpus, name), paths[name], maker, features)
    return SimpleNamespace(maker=maker, maker_path=folder / "km.npz", folder=folder, **paths)


# --- Audio that says where it was cut --------------------------------------------------------------------------------


def counting_audio(num_samples: int) -> np.ndarray:
    """Sample s holds the number of its hop, s // 320, as a 16-bit value: a crop tells where it begins."""
    return (np.arange(num_samples) // 320).astype(np.int16)


def counting_labels(utterance: int, num_frames: int, clusters: int) -> np.ndarray:
    """Label of frame t: (7 * utterance + t) modulo the clusters."""
    return ((7 * utterance + np.arange(num_frames)) % clusters).astype(np.uint16)


@pytest.fixture
def counting_corpus(tmp_path):
    """``counting_corpus([8000, 9000], sets=(50, 10), maker="m")``: a manifest of WAVs of so many samples.

    Utterance ``u<n>`` counts its hops (`counting_audio`), its labels count its frames (`counting_labels`). ``changes``
    maps an utterance's number to fields of its line.
    """
    from nemo_mshubert.data.labels import FrameLabels
    from nemo_mshubert.data.manifest import write_manifest
    from nemo_mshubert.modules.frames import frame_count

    def write(lengths, sets=(50,), maker="maker-one", name="counting.json", changes=None):
        (tmp_path / "audio").mkdir(exist_ok=True)
        entries = []
        for number, num_samples in enumerate(lengths):
            path = tmp_path / "audio" / f"u{number}.wav"
            soundfile.write(path, counting_audio(num_samples), 16000, subtype="PCM_16")
            streams = {clusters: counting_labels(number, frame_count(num_samples), clusters) for clusters in sets}
            labels = FrameLabels(maker, num_samples, streams).to_manifest()
            entry = {"audio_filepath": str(path), "duration": num_samples / 16000, "text": "", "labels": labels}
            entries.append({**entry, **(changes or {}).get(number, {})})
        write_manifest(tmp_path / name, entries)
        return tmp_path / name

    return write


# --- Models ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_encoder():
    """``tiny_encoder(pre_norm=True, ...)``: a seeded encoder of `TINY_ENCODER` with changes, in eval mode."""
    from nemo_mshubert.modules.mshubert_encoder import MSHuBERTEncoder

    def make(seed=0, **changes):
        torch.manual_seed(seed)
        return MSHuBERTEncoder(**{**TINY_ENCODER, **changes}).eval()

    return make


@pytest.fixture
def tiny_config(labelled):
    """``tiny_config("model.swap=false", ...)``: conf/pretrain/mshubert_tiny.yaml on synthetic speech, smaller."""
    return partial(compose_tiny, labelled)


@pytest.fixture
def model_config(tiny_config):
    """``model_config("model.swap=false", optim={...})``: the ``model`` section, with a constant learning rate."""

    def make(*overrides, optim=None):
        config = tiny_config(*overrides)
        config.model.optim = optim or {"name": "sgd", "lr": 0.5}
        return model_section(config)

    return make


@pytest.fixture
def tiny_command_line(labelled):
    """The overrides of `tiny_config`, for a script."""
    return tiny_overrides(labelled)


def compose_tiny(labelled, *overrides, config_name="mshubert_tiny"):
    """The config of `tiny_config`, for fixtures of other scopes."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(REPOSITORY / "conf" / "pretrain"), version_base=None):
        return compose(config_name, overrides=[*tiny_overrides(labelled), *overrides])


def model_section(config):
    """What the model is made from, without references to the rest of the config."""
    from omegaconf import OmegaConf

    return OmegaConf.create(OmegaConf.to_container(config, resolve=True)["model"])


def tiny_overrides(labelled):
    """Command-line overrides that make a minuscule model of an experiment of conf/pretrain."""
    encoder = {key: json.dumps(value).replace(" ", "") for key, value in TINY_ENCODER.items()}
    return [
        f"label_maker={labelled.maker_path}",
        f"train_manifest={labelled.train}",
        f"validation_manifest={labelled.dev}",
        "max_updates=4",
        *(f"++model.encoder.{key}={value}" for key, value in encoder.items()),
        f"model.label_sets={json.dumps(TINY_CLUSTERS).replace(' ', '')}",
        "model.label_heads.d_head=16",
        "model.drop_label_sets=0",
        "model.train_ds.batch_duration=12",
        "model.train_ds.num_buckets=2",
        "model.optim.sched.warmup_steps=2",
        "trainer.devices=1",
        "trainer.accelerator=cpu",
        "trainer.enable_progress_bar=false",
    ]


@pytest.fixture
def tarred_overrides(labelled, tmp_path):
    """Overrides for a training on the same speech in four shards, in ``tars`` of the test's folder."""
    from nemo_mshubert.data.tarred import make_tarred

    make_tarred(labelled.train, tmp_path / "tars", 4)
    return [
        f"train_manifest={tmp_path}/tars/sharded_manifests/manifest__OP_0..3_CL_.json",
        f"train_tars={tmp_path}/tars/audio__OP_0..3_CL_.tar",
        "model.train_ds.num_cuts_for_bins_estimate=50",
    ]


@pytest.fixture
def tiny_ctc():
    """``tiny_ctc(dropout=0.1, ...)``: a stock letter CTC model, seeded, in eval mode; `TINY_ENCODER` with changes."""
    from nemo.collections.asr.models import EncDecCTCModel

    from nemo_mshubert.alphabet import ENGLISH_LABELS
    from nemo_mshubert.models.ctc import ctc_config

    preprocessor = {"_target_": "nemo_mshubert.modules.waveform_preprocessor.WaveformPreprocessor"}
    preprocessor.update(sample_rate=16000, window_stride=6.25e-05, features=1, normalize=None)

    def make(config_changes=None, seed=0, **changes):
        encoder = {"_target_": "nemo_mshubert.modules.mshubert_encoder.MSHuBERTEncoder", **TINY_ENCODER, **changes}
        config = ctc_config(preprocessor, encoder, ENGLISH_LABELS, None)
        config.update(config_changes or {})
        torch.manual_seed(seed)
        model = EncDecCTCModel(config).eval()
        torch.nn.init.normal_(model.decoder.decoder_layers[0].weight)  # steep enough to write letters, not blanks only
        return model

    return make


# --- Saved models ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def ssl_path(labelled, tmp_path_factory):
    """``.nemo`` of a pre-training model as minuscule as that of `tiny_config`, with random weights."""
    from nemo_mshubert.models import MSHuBERTModel
    from nemo_mshubert.models.loading import save_model

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "ssl.nemo"
    save_model(MSHuBERTModel(model_section(compose_tiny(labelled))), path)
    return path


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    """Folder with a SentencePiece tokenizer of 40 pieces, as NeMo's process_asr_text_tokenizer.py leaves it."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("tokenizer")
    words = "the sea and a ship that sails far away where quick brown foxes jump over lazy dogs by night".split()
    lines = [" ".join(words[start:] + words[:start]) for start in range(len(words))]
    (folder / "text.txt").write_text("\n".join(lines))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=40,
        model_type="bpe",
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    pieces = [line.split("\t")[0] for line in (folder / "tokenizer.vocab").read_text(encoding="utf-8").splitlines()]
    (folder / "vocab.txt").write_text("\n".join(piece.replace("▁", "##") for piece in pieces), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def letters_path(ssl_path):
    """``.nemo`` of a letter CTC model around the encoder of `ssl_path`."""
    return save_talkative(ssl_path, None, "letters.nemo")


@pytest.fixture(scope="session")
def bpe_path(ssl_path, tokenizer_dir):
    """``.nemo`` of a BPE CTC model around the encoder of `ssl_path`."""
    return save_talkative(ssl_path, tokenizer_dir, "bpe.nemo")


def save_talkative(ssl_path, tokenizer_dir, name):
    """A CTC model whose random output layer is so steep that it writes letters, not blanks only."""
    from nemo_mshubert.models.ctc import ssl_to_ctc
    from nemo_mshubert.models.loading import save_model

    torch.manual_seed(1)
    model = ssl_to_ctc(str(ssl_path), tokenizer_dir and str(tokenizer_dir))
    torch.nn.init.normal_(model.decoder.decoder_layers[0].weight)
    save_model(model, ssl_path.with_name(name))
    return ssl_path.with_name(name)
