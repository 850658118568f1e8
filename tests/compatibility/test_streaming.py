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

"""NeMo's buffered streaming pipeline, which asr_streaming_infer.py builds, over a word-piece model of ours."""

import kaldialign
import pytest
from nemo.collections.asr.inference.factory.pipeline_builder import PipelineBuilder
from nemo.collections.asr.models import ASRModel
from omegaconf import OmegaConf

from nemo_mshubert.data.manifest import read_manifest

pytestmark = pytest.mark.integration


def pipeline_config(path, request_type, chunk_size):
    """What conf/asr_streaming_inference/buffered_ctc.yaml says, on the CPU."""
    return OmegaConf.create(
        {
            "asr": {
                "model_name": str(path),
                "device": "cpu",
                "device_id": 0,
                "compute_dtype": "float32",
                "use_amp": False,
            },
            "confidence": {
                "exclude_blank": True,
                "aggregation": "mean",
                "method_cfg": {"name": "entropy", "entropy_type": "tsallis", "alpha": 0.5, "entropy_norm": "exp"},
            },
            "itn": {"left_padding_size": 4, "batch_size": 32, "n_jobs": 1},  # read, though no ITN is done
            "endpointing": {"stop_history_eou": 800, "residue_tokens_at_end": 2},
            "streaming": {
                "sample_rate": 16000,
                "batch_size": 4,
                "left_padding_size": 1.6,
                "right_padding_size": 1.6,
                "chunk_size": chunk_size,
                "word_boundary_tolerance": 4,
                "request_type": request_type,
                "padding_mode": "right",
            },
            "matmul_precision": "high",
            "log_level": 20,
            "pipeline_type": "buffered",
            "asr_decoding_type": "ctc",
            "enable_itn": False,
            "enable_pnc": False,  # which the config of NeMo 2.7 has
            "enable_nmt": False,
            "asr_output_granularity": "segment",
            "lang": "en",
            "return_tail_result": False,
        }
    )


def edits(one, other):
    return kaldialign.edit_distance(list(one), list(other))["total"] / max(len(one), len(other))


@pytest.mark.parametrize("chunk_size", [4.8, 0.8])
def test_streaming_hears_what_transcribe_hears(bpe_path, synthetic_corpus, chunk_size):
    """In one chunk, and in several: each text is nearest to the one that its own utterance has offline.

    They are not equal: the pipeline normalises a buffer and pads it with zeros, and attention sees the whole buffer.
    """
    files = [entry["audio_filepath"] for entry in read_manifest(synthetic_corpus.test)]
    model = ASRModel.restore_from(str(bpe_path), map_location="cpu").eval()
    offline = [hypothesis.text for hypothesis in model.transcribe(files, batch_size=1, verbose=False)]
    texts = {}
    for request_type in ("frame", "feature_buffer"):
        pipeline = PipelineBuilder.build_pipeline(pipeline_config(bpe_path, request_type, chunk_size))
        output = pipeline.run(files)
        texts[request_type] = [output[index]["text"] for index in range(len(files))]
    assert texts["frame"] == texts["feature_buffer"]
    for index, text in enumerate(texts["frame"]):
        distances = [edits(text, other) for other in offline]
        assert distances[index] == min(distances) < 0.75, distances
