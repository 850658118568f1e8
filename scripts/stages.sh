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

# override KEY VALUE: KEY=VALUE for Hydra, the value in quotes where its grammar would read more than text in it, as in
# a path with spaces, brackets or letters that are not English.
override() {
    local LC_ALL=C quote="\\'"
    if [[ $2 =~ ^[A-Za-z0-9_./-]+$ ]]; then echo "$1=$2"; else echo "$1='${2//\'/$quote}'"; fi
}

# stage NAME OUTPUT COMMAND...: run the command unless OUTPUT is there.
stage() {
    if announce "$@"; then run_stage "$@"; fi
}

# beside NAME OUTPUT COMMAND...: the same in the background, with its output in its log alone, beside the stages that
# follow, until `wait_beside`. When the script ends, however it does, so do they.
beside=()
beside() {
    announce "$@" || return 0
    set -m # a group of processes of its own, which is ended as a whole
    run_stage "$@" >/dev/null &
    set +m
    beside+=("$!")
}
wait_beside() {
    local group
    for group in "${beside[@]}"; do
        wait "$group" || exit 1
    done
    beside=()
}
end_beside() {
    local group
    for group in "${beside[@]}"; do kill -- "-$group" 2>/dev/null || true; done
}
trap end_beside EXIT

announce() {
    if [ -e "$2" ]; then
        printf '\n== %s: done, %s is there\n' "$1" "$2"
        return 1
    fi
    printf '\n== %s\n   %s\n' "$1" "$(quoted "${@:3}")"
}

# A command line as one may type it.
quoted() {
    local line
    printf -v line '%q ' "$@"
    echo "${line% }"
}

# Notes for the report, in the folder $exp, when the stage started and how long it took.
run_stage() {
    local name=$1 output=$2 start
    shift 2
    mkdir -p "$exp/logs"
    start=$(date +%s)
    # tee outlives the signal of end_beside: a training says on its way out that it writes a checkpoint
    "$@" 2>&1 | (trap "" TERM && tee "$exp/logs/${name// /_}.log") ||
        { echo "$name failed; see $exp/logs" >&2; exit 1; }
    [ -e "$output" ] || { echo "$name ended without $output; see $exp/logs" >&2; exit 1; }
    printf '%s\t%s\t%s\t%s\n' "$name" "$start" "$(($(date +%s) - start))" "$(quoted "$@")" >>"$exp/stages.tsv"
}
