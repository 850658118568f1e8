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

# Sourced by the other scripts: their options, and the stages that some of them run.

# usage OPTION: print the comment at the head of the script, and end; with an error where OPTION is not --help.
usage() {
    local text
    text=$(sed -n '16,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]%/*}/${0##*/}")
    case "$1" in -h | --help) echo "$text"; exit ;; esac
    printf '%s\n\n%s: unknown option, or without its value: %s\n' "$text" "${0##*/}" "$1" >&2
    exit 2
}

# existing OPTION PATH: the absolute path of a file or folder.
existing() {
    realpath -e -- "$2" 2>/dev/null || { echo "${0##*/}: $1 $2: no such file or folder." >&2; exit 2; }
}

# stage NAME OUTPUT COMMAND...: run the command unless OUTPUT is there; note its seconds for the report, in the folder $exp.
stage() {
    local name=$1 output=$2 start seconds
    shift 2
    if [ -e "$output" ]; then
        printf '\n== %s: done, %s is there\n' "$name" "$output"
        return
    fi
    printf '\n== %s\n   %s\n' "$name" "$*"
    mkdir -p "$exp/logs"
    start=$(date +%s)
    "$@" 2>&1 | tee "$exp/logs/${name// /_}.log"
    seconds=$(($(date +%s) - start))
    [ -e "$output" ] || { echo "$name ended without $output; see $exp/logs" >&2; exit 1; }
    printf '%s\t%s\t%s\n' "$name" "$seconds" "$*" >>"$exp/stages.tsv"
}
