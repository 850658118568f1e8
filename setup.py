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

"""Packaging, and ``python setup.py style [--fix]``: isort and black with NeMo's settings, and a check of line lengths,
since black does not shorten comments and strings."""

import subprocess
import sys
from pathlib import Path

from setuptools import Command, find_namespace_packages, find_packages, setup

ROOT = Path(__file__).resolve().parent
INFO = {}
exec((ROOT / "nemo_mshubert" / "package_info.py").read_text(encoding="utf-8"), INFO)

EXTRAS = {
    "gpu": ["cuml-cu13>=25.10"],
    "megatron": ["megatron-core>=0.14,<0.17"],
    "decoding": ["flashlight-text>=0.0.7", "kenlm>=0.2", "ax-platform>=1.0,<2"],
    "test": [
        "megatron-core>=0.14,<0.17",
        "pytest>=7",
        "pytest-timeout",
        "black==25.12.0",
        "isort==6.1.0",
        "pycodestyle==2.14.0",
        "espeakng-loader>=0.2.4",
        "onnxruntime>=1.20",
    ],
}


class StyleCommand(Command):
    """Check isort and black (or apply them with --fix), and check the length of lines."""

    description = "check the style with isort, black and pycodestyle"
    user_options = [("fix", None, "rewrite the files"), ("scope=", None, "file or folder, the repository by default")]
    boolean_options = ["fix"]

    def initialize_options(self):
        self.fix = False
        self.scope = "."

    def finalize_options(self):
        pass

    def run(self):
        # No cache: black identifies cached files by date and size, and once passed an unformatted file as clean.
        black = ["black", "--no-cache"]
        tools = [["isort"], black] if self.fix else [["isort", "--check-only", "--diff"], [*black, "--check"]]
        tools.append(["pycodestyle"])
        failed = [tool[0] for tool in tools if subprocess.call([sys.executable, "-m", *tool, self.scope]) != 0]
        if failed:
            found = f"{', '.join(failed)} failed"
            sys.exit(f"{found}; `python setup.py style --fix` rewrites the files, except for lines that are too long.")


setup(
    name=INFO["__package_name__"],
    version=INFO["__version__"],
    description=INFO["__description__"],
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license=INFO["__license__"],
    keywords=INFO["__keywords__"],
    # NeMo cannot restore a .nemo without tarfile's filters, which Python has from 3.10.12, 3.11.4 and 3.12 on.
    python_requires=">=3.10.12,!=3.11.0,!=3.11.1,!=3.11.2,!=3.11.3,<3.13",
    # Gives editable installs a static path entry, too: Hydra finds `hydra_plugins` only there, and not through
    # setuptools' import finder.
    package_dir={"": "."},
    packages=find_packages(include=["nemo_mshubert*"]) + find_namespace_packages(include=["hydra_plugins.*"]),
    install_requires=[
        "torch>=2.7",
        "nemo_toolkit[asr]>=2.7,<4",
        "transformers>=4.46",
        "scikit-learn>=1.3",
        "scipy",
        "joblib>=1.5,<2",  # upper bound: we use its reader of pickles, which it does not promise to keep
        "librosa>=0.10.1",
        "soundfile>=0.12",
        "soxr>=0.3",
        "kaldialign>=0.9",
        "matplotlib>=3.7",
        "tqdm",
        "wrapt",
    ],
    extras_require={
        **EXTRAS,
        "all": sorted({package for name, group in EXTRAS.items() if name != "gpu" for package in group}),
    },
    cmdclass={"style": StyleCommand},
    classifiers=[
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
