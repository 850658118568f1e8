#!/usr/bin/env bash
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

# Build KenLM's lmplz and build_binary from the source distribution on PyPI, and install them in PREFIX/bin.
#
#     scripts/build_kenlm.sh [PREFIX]        default: ~/.cache/nemo_mshubert/kenlm, where train_ngram.py looks
#
# Needs cmake, a C++ compiler and Boost. With zlib (zlib1g-dev), build_binary also reads .arpa.gz.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"
[[ ${1:-} != -* ]] || usage "$1"

prefix=${1:-$HOME/.cache/nemo_mshubert/kenlm}
version=0.3.0
hint="On Debian or Ubuntu: apt install build-essential cmake zlib1g-dev libboost-system-dev libboost-thread-dev
libboost-program-options-dev libboost-test-dev.
With conda: conda install -c conda-forge cmake cxx-compiler libboost-devel zlib."

if [[ -x $prefix/bin/lmplz && -x $prefix/bin/build_binary ]]; then
    echo "$prefix/bin: lmplz and build_binary are there already"
    exit 0
fi
if ! command -v cmake > /dev/null; then
    echo "cmake not found. $hint" >&2
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m pip download --quiet --no-deps --no-binary kenlm --dest "$work" "kenlm==$version"
tar -xzf "$work/kenlm-$version.tar.gz" -C "$work"
if ! cmake -S "$work/kenlm-$version" -B "$work/build" -DCMAKE_BUILD_TYPE=Release > "$work/cmake.log" 2>&1; then
    cat "$work/cmake.log" >&2
    echo "cmake failed; a missing Boost is the usual cause. $hint" >&2
    exit 1
fi
cmake --build "$work/build" --target lmplz build_binary --parallel "$(getconf _NPROCESSORS_ONLN)"

mkdir -p "$prefix/bin"
install "$work/build/bin/lmplz" "$work/build/bin/build_binary" "$prefix/bin/"
echo "$prefix/bin: lmplz and build_binary built"
