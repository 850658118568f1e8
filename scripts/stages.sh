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

# In a job of SLURM Lightning would take its tasks for the ranks of a training, and start none on the other GPUs.
unset SLURM_NTASKS

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

# number OPTION VALUE: the value, a whole number above 0.
number() {
    [[ $2 =~ ^[1-9][0-9]*$ ]] || { echo "${0##*/}: $1 $2: expected a whole number above 0." >&2; exit 2; }
    echo "$2"
}

# new_folder PATH: its absolute path; none that NeMo's readers would take for a pattern.
new_folder() {
    local path
    path=$(realpath -m -- "$1")
    case "$path" in
        *[][\(\)\<\>{}]*) echo "${0##*/}: --exp $path: NeMo reads brackets in paths as patterns. Give another folder." >&2; exit 2 ;;
    esac
    [ ! -f "$path" ] || { echo "${0##*/}: --exp $path: a file. Give another folder." >&2; exit 2; }
    echo "$path"
}

# alone_in FOLDER: end the script where another one is at work in the folder: what begun.tsv says of a stage would be the
# options of the one, and what the stage makes the work of the other. The lock ends with the last process that was started.
alone_in() {
    local status=0
    mkdir -p "$1"
    exec {folder_lock}>>"$1/.lock"
    flock --nonblock --conflict-exit-code 75 "$folder_lock" 2>/dev/null || status=$?
    [ "$status" -ne 75 ] || { echo "${0##*/}: --exp $1: another script is at work there. Wait for it, or give another folder." >&2; exit 1; }
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

# resuming NAME OUTPUT COMMAND...: run a script that itself repeats nothing of what is done, whatever is there: its
# options may have changed, as to one more model.
resuming() {
    show "$1" "${@:3}"
    if [ -e "$2" ] && is_noted "$1" "${@:3}"; then
        run_logged "$@" # the time of the report is that of the work, not of a look at it
    else
        run_stage "$@"
    fi
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
        refuse_other_options "$@"
        printf '\n== %s: done, %s is there\n' "$1" "$2"
        return 1
    fi
    show "$1" "${@:3}"
    mkdir -p "$exp"
    as_begun "$@" >>"$exp/begun.tsv"
}

show() {
    printf '\n== %s\n   %s\n' "$1" "$(quoted "${@:2}")"
}

# A command line as one may type it.
quoted() {
    local line
    printf -v line '%q ' "$@"
    echo "${line% }"
}

# The line of a stage in the file begun.tsv: its name, output and command, with EXP for the folder $exp, which may be
# moved or written in another way.
as_begun() {
    local fields=("${@//"$exp"/EXP}")
    printf '%s\t%s\t%s\n' "${fields[0]}" "${fields[1]}" "$(quoted "${fields[@]:2}")"
}

# End the script where the output of a stage was made by another command: its results would be shown as those of this
# one. Of an output that no stage made nothing is known.
refuse_other_options() {
    local name command earlier="" now
    [ -f "$exp/begun.tsv" ] || return 0
    while IFS=$'\t' read -r name _ command; do
        if [ "$name" = "$1" ]; then earlier=$command; fi # the last time is the one that made it
    done <"$exp/begun.tsv"
    now=$(as_begun "$@")
    now=${now##*$'\t'}
    if [ -z "$earlier" ] || [ "$earlier" = "$now" ]; then return 0; fi
    {
        printf '\n%s: the stage "%s" is done, but was given other options:\n' "${0##*/}" "$1"
        printf '    then  %s\n    now   %s\n' "$(words_of "$earlier" "$now")" "$(words_of "$now" "$earlier")"
        printf 'Give the same again, or another --exp, or remove what this stage and those after it have made:\n'
        printf '    rm -r %s\n' "$(made_since "$1")"
    } >&2
    exit 1
}

# words_of LINE OTHER: the words of the one that are not in the other, or all where only their order differs.
words_of() {
    local words word found=() line
    read -ra words <<<"$1"
    for word in "${words[@]}"; do
        [[ " $2 " == *" $word "* ]] || found+=("$word")
    done
    line=${found[*]:-$1}
    echo "${line//EXP\//"$exp"/}"
}

# made_since NAME: the folders of the outputs of a stage and those begun after it, of a training with its checkpoints.
made_since() {
    local name output made since=()
    while IFS=$'\t' read -r name output _; do
        if [ "$name" = "$1" ]; then since=(); fi
        made=${output/#EXP/"$exp"}
        case "$output" in EXP/*/*) made=${made%/*} made=${made%/checkpoints} ;; esac
        if [ -e "$made" ] && [[ " ${since[*]} " != *" $(quoted "$made") "* ]]; then since+=("$(quoted "$made")"); fi
    done <"$exp/begun.tsv"
    echo "${since[*]}"
}

# Notes for the report, in the folder $exp, when the stage started and how long it took.
run_stage() {
    local start
    start=$(date +%s)
    run_logged "$@"
    printf '%s\t%s\t%s\t%s\n' "$1" "$start" "$(($(date +%s) - start))" "$(quoted "${@:3}")" >>"$exp/stages.tsv"
}

# is_noted NAME COMMAND...: has the stage ended before, with this command?
is_noted() {
    [ -f "$exp/stages.tsv" ] && grep -qxF -- "$1"$'\t'"$(quoted "${@:2}")" <(cut -f 1,4- "$exp/stages.tsv")
}

run_logged() {
    local name=$1 output=$2
    shift 2
    mkdir -p "$exp/logs"
    # tee outlives the signal of end_beside: a training says on its way out that it writes a checkpoint
    "$@" 2>&1 | (trap "" TERM && tee "$exp/logs/${name// /_}.log") ||
        { echo "$name failed; see $exp/logs" >&2; exit 1; }
    [ -e "$output" ] || { echo "$name ended without $output; see $exp/logs" >&2; exit 1; }
}
