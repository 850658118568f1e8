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

"""Models by name: a file, a folder, a checkpoint of another ecosystem, a model of the hub (from its cache,
offline)."""

from fnmatch import fnmatch

import lightning.pytorch as pl
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from nemo.collections.asr.models import ASRModel, EncDecCTCModel
from omegaconf import OmegaConf

from nemo_mshubert.convert.conversion import read_checkpoint, write_checkpoint
from nemo_mshubert.models import loading
from nemo_mshubert.models.ctc import ssl_to_ctc
from nemo_mshubert.models.finetuning import restore_for_finetuning
from nemo_mshubert.models.loading import load_encoder, local_path, restore_model
from tests.convert.conftest import assert_same_weights

pytestmark = pytest.mark.unit


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """``hub_cache("me/model", "model.nemo", path)`` puts a file where huggingface_hub keeps what it fetched."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(repository, *sources):
        folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("0123456789abcdef")
        snapshot = folder / "snapshots" / "0123456789abcdef"
        snapshot.mkdir(parents=True)
        for name, source in sources:
            (snapshot / name).write_bytes(source.read_bytes())

    return put


@pytest.fixture
def hf_folder(ssl_path, tmp_path):
    """The encoder of `ssl_path` for transformers."""
    write_checkpoint(read_checkpoint(ssl_path), tmp_path / "for_transformers")
    return tmp_path / "for_transformers"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_without_their_folder(hf_folder, name):
    """Their config lies beside them; NeMo would say that they are no gzip file."""
    path = (hf_folder / "model.safetensors").rename(hf_folder / name)
    for load in (restore_model, load_encoder):
        with pytest.raises(ValueError, match=f"{name}: give its folder, which holds config.json too"):
            load(path)


def test_a_folder_with_a_nemo(letters_path, hf_folder, tmp_path):
    """A published folder: the .nemo counts, whatever lies beside it."""
    (hf_folder / "ours.nemo").write_bytes(letters_path.read_bytes())
    (hf_folder / ".ours.77.tmp.nemo").write_bytes(b"a writer was killed")
    model = restore_model(hf_folder)
    assert type(model) is EncDecCTCModel
    assert_same_weights(model.state_dict(), restore_model(letters_path).state_dict())
    (hf_folder / "other.nemo").write_bytes(b"")
    with pytest.raises(ValueError, match="several .nemo files .other.nemo, ours.nemo.. Name one"):
        restore_model(hf_folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: neither a .nemo nor the config.json"):
        restore_model(tmp_path / "empty")


@pytest.mark.parametrize("layout", ["folder", "fairseq", "nemo"])
def test_other_ecosystems_take_the_place_of_a_nemo(ssl_path, hf_folder, tmp_path, layout):
    """ssl_to_ctc.py --ssl, and --encoder of fit_kmeans.py and label.py: the same weights by every way."""
    name = {"folder": hf_folder, "fairseq": tmp_path / "ours.pt", "nemo": ssl_path}[layout]
    if layout == "fairseq":
        write_checkpoint(read_checkpoint(ssl_path), name)
    expected = restore_model(ssl_path).encoder.state_dict()
    encoder = load_encoder(name)
    assert_same_weights(encoder.state_dict(), expected)
    assert not encoder.training  # with dropout, features would differ from one call to the next
    model = ssl_to_ctc(str(name))
    assert_same_weights(model.encoder.state_dict(), expected)
    assert model.preprocessor.normalized is encoder.normalized_input


def test_a_checkpoint_of_our_training_is_sent_back(tiny_ctc, tmp_path):
    """It lies beside the .nemo that is meant, and was taken for a file of fairseq with unknown tensors."""
    trainer = pl.Trainer(accelerator="cpu", logger=False, max_steps=1, enable_progress_bar=False)
    trainer.strategy.connect(tiny_ctc())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    for load in (restore_model, load_encoder, ssl_to_ctc):
        with pytest.raises(ValueError, match="last.ckpt: a training's state.*Give the .nemo in its folder"):
            load(str(tmp_path / "last.ckpt"))


def test_by_hub_id(letters_path, hub_cache):
    """The conventions of ``ASRModel.from_pretrained``, whose own call finds the same file."""
    hub_cache("somebody/ms-hubert", ("ms-hubert.nemo", letters_path))
    ours = restore_model("somebody/ms-hubert")
    assert_same_weights(ours.state_dict(), restore_model(letters_path).state_dict())
    theirs = ASRModel.from_pretrained("somebody/ms-hubert", map_location=torch.device("cpu"))
    assert_same_weights(ours.state_dict(), theirs.state_dict())


def test_a_model_for_transformers_by_hub_id(ssl_path, hf_folder, hub_cache):
    hub_cache("somebody/hubert", *((path.name, path) for path in hf_folder.iterdir()))
    assert_same_weights(load_encoder("somebody/hubert").state_dict(), restore_model(ssl_path).encoder.state_dict())


def test_what_is_fetched_from_the_hub(tmp_path, monkeypatch):
    """Weights in either format with their configs, as facebook/hubert-base-ls960 has them, and not those of other
    libraries, which are as large again."""
    asked = []

    def lacks_it(*_):
        raise LocalEntryNotFoundError("model.nemo")

    monkeypatch.setattr(loading, "hf_hub_download", lacks_it)
    monkeypatch.setattr(
        loading, "snapshot_download", lambda _, allow_patterns: asked.extend(allow_patterns) or str(tmp_path)
    )
    (tmp_path / "config.json").touch()
    assert local_path("somebody/hubert") == tmp_path
    needed = {"config.json", "preprocessor_config.json", "model.safetensors", "pytorch_model.bin"}
    needed |= {"pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"}
    others = {"tf_model.h5", "flax_model.msgpack", "README.md", "model.onnx"}
    assert {name for name in needed | others if any(fnmatch(name, pattern) for pattern in asked)} == needed


def test_what_is_nowhere(hub_cache):
    with pytest.raises(
        FileNotFoundError, match="somebody/gone: no such file or folder, and not to be had from the hub"
    ):
        restore_model("somebody/gone")
    for name in ("exp/gone.nemo", "exp/gone.pt"):  # a path with a slip, which is not looked for in the hub
        with pytest.raises(FileNotFoundError, match=f"{name}: no such file. Expected"):
            restore_model(name)
    with pytest.raises(FileNotFoundError, match=r"gone.pt: no such file. Expected .* a .pt"):  # not a .nemo alone
        restore_model("gone.pt")


def test_what_finetuning_takes(hf_folder, letters_path):
    """init_model= of finetune_ctc.py: a folder with a .nemo reaches the checks of its options; others are sent
    back."""
    with pytest.raises(ValueError, match="for_transformers: not a .nemo. Make one of it with scripts/ssl_to_ctc.py"):
        restore_for_finetuning(str(hf_folder), OmegaConf.create(), None)
    (hf_folder / "ours.nemo").write_bytes(letters_path.read_bytes())
    with pytest.raises(ValueError, match="MSHuBERTEncoder has no options .'mask'."):
        restore_for_finetuning(str(hf_folder), OmegaConf.create({"encoder": {"mask": 1}}), None)
