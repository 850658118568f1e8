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

# Sourced by the scripts that install the package (quickstart.sh, compare_pretraining.sh, test.sh). Makes the virtual
# environment .venv if it is missing, installs the package there with the extras named in EXTRAS, and activates it.
# PYTHON names another interpreter and VENV another folder. TORCH is what pip installs as PyTorch, with pip's options,
# for example its CPU build (on Linux, PyPI has the CUDA build of several GB):
#     TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu" bash scripts/quickstart.sh

VENV="${VENV:-.venv}"

# NeMo unpacks .nemo files with tarfile's filters, which Python has since 3.10.12 and 3.11.4. Without them no model can
# be restored.
find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3.11 python3.12 python3.10 python3; do
        if command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys, tarfile, venv, ensurepip
sys.exit(not ((3, 10) <= sys.version_info[:2] <= (3, 12) and hasattr(tarfile, "data_filter")))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "No Python of at least 3.10.12, 3.11.4 or 3.12.0, and below 3.13, with venv found. Install one (Debian, Ubuntu: with" \
        "python3-venv; the 3.11.2 of Debian 12 is too old for NeMo), or name it: PYTHON=..." >&2
    return 1
}

python=$(find_python)
stamp="$VENV/installed-$(cat setup.py nemo_mshubert/package_info.py | sha256sum | cut -c1-16)-${EXTRAS//,/-}"
if [ ! -e "$stamp" ]; then
    echo "Installing into $VENV with $($python --version). The first time this downloads about 1 GB with PyTorch's CPU build," \
        "several GB with its CUDA build, which on Linux is PyPI's; TORCH chooses, see scripts/environment.sh."
    [ -e "$VENV/bin/activate" ] || "$python" -m venv "$VENV"
    "$VENV/bin/pip" install --quiet --upgrade pip setuptools wheel
    # PyTorch first, in the version that the tests were run with. The next command keeps it, also if it is a CPU build.
    read -ra torch <<<"${TORCH:-torch==2.13.0}"
    "$VENV/bin/pip" install --quiet "${torch[@]}"
    "$VENV/bin/pip" install --quiet -e ".[$EXTRAS]"
    touch "$stamp"
fi
# shellcheck disable=SC1091
source "$VENV/bin/activate"
