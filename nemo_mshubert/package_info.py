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

"""Name and version, readable without importing the package (``setup.py`` executes this file)."""

MAJOR = 0
MINOR = 1
PATCH = 0

__version__ = f"{MAJOR}.{MINOR}.{PATCH}"
__package_name__ = "nemo_mshubert"
__description__ = "MS-HuBERT pre-training, pseudo-labels and CTC fine-tuning as a NeMo collection extension"
__license__ = "Apache-2.0"
__keywords__ = "speech recognition, self-supervised learning, HuBERT, MS-HuBERT, NeMo"
