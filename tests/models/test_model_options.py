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

"""Options of the pre-training model that make no sense."""

import pytest

from tests.models.fixed_update import trainer_of


@pytest.mark.unit
@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ["model.label_sets=[40,30]"],
            r"label_sets \[30\] are not in the label maker .*which has \[40, 20, 10\].*fit_kmeans.py --centres",
        ),
        (["model.label_sets=20"], "model.label_sets=20: expected a list"),
        (["model.encoder.num_layers=2"], "3 label sets do not fit between blocks 0 and 2.*label_layers"),
        (["model.label_layers={4:40,2:20}"], r"places the sets \[20, 40\] but label_sets are \[10, 20, 40\]"),
        (["model.label_layers={9:40,2:20,1:10}"], r"blocks \[9\] do not exist"),
        (["model.loss_views=second"], "loss_views: expected one of .*'second'"),
        (["model.drop_label_sets=3"], "drop_label_sets: 3 of 3 sets; at least one must be kept"),
        (["model.masking.mask_prob=0"], "model.masking: mask_prob 0 .*masks no frame, and val_loss.* would be 0"),
        (["model.masking.mask_length=0"], "model.masking: .*mask_length 0 masks no frame"),
        (["model.train_ds.crop=longest"], "crop: expected one of"),
        (
            ["model.encoder.conv_layers=[[8,10,5],[8,3,2],[8,3,2],[8,3,2],[8,3,2],[8,2,2]]"],
            r"labels and masks are of HuBERT's frames, so \(kernel, stride\) must be \(\(10, 5\), \(3, 2\)",
        ),
        # a shape of a product and a KeyError, in the first update
        (["model.label_heads.d_model=8"], "label_heads.d_model=8: it follows from model.encoder.d_model, which is 24"),
        (
            ["model.label_heads.label_sets=[40]"],
            r"label_sets=\[40\]: it follows from model.label_sets, which is \[40, 20",
        ),
        (["model.swap=no"], "model.swap=no: expected true or false"),  # was Swap
        (["model.compile=off"], "model.compile=off: expected true or false"),
    ],
)
def test_impossible_configs_are_refused(make_model, overrides, message):
    """At construction, with the name of the setting: not in the first update on 32 GPUs."""
    with pytest.raises(ValueError, match=message):
        model = make_model(*overrides)
        model.trainer = trainer_of()
        model.train_dataloader()
