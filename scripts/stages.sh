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

# Sourced by the other shell scripts: helpers for options, and for the stages that some of them run.

# In a SLURM job, Lightning would take the job's tasks for the ranks of a training and start none on the other GPUs.
unset SLURM_NTASKS

# usage OPTION: print the comment at the head of the script and exit, with an error if OPTION is not --help.
usage() {
    local text
    text=$(sed -n '16,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]%/*}/${0##*/}")
    case "$1" in -h | --help) echo "$text"; exit ;; esac
    printf '%s\n\n%s: unknown option, or without its value: %s\n' "$text" "${0##*/}" "$1" >&2
    exit 2
}

# existing OPTION PATH: print the absolute path of a file or folder.
existing() {
    realpath -e -- "$2" 2>/dev/null || { echo "${0##*/}: $1 $2: no such file or folder." >&2; exit 2; }
}

# number OPTION VALUE: print the value, which must be a whole number above 0.
number() {
    [[ $2 =~ ^[1-9][0-9]*$ ]] || { echo "${0##*/}: $1 $2: expected a whole number above 0." >&2; exit 2; }
    echo "$2"
}

# new_folder PATH: print its absolute path, and refuse one that NeMo's readers would take for a pattern.
new_folder() {
    local path
    path=$(realpath -m -- "$1")
    case "$path" in
        *[][\(\)\<\>{}]*) echo "${0##*/}: --exp $path: NeMo reads brackets in paths as patterns. Give another folder." >&2; exit 2 ;;
    esac
    [ ! -f "$path" ] || { echo "${0##*/}: --exp $path: a file. Give another folder." >&2; exit 2; }
    echo "$path"
}

# alone_in FOLDER: end the script if another one is at work in the folder. Otherwise begun.tsv could hold the options
# of one script for a stage, while the output comes from the other. The lock ends with the last process started here.
alone_in() {
    local status=0
    mkdir -p "$1"
    exec {folder_lock}>>"$1/.lock"
    flock --nonblock --conflict-exit-code 75 "$folder_lock" 2>/dev/null || status=$?
    [ "$status" -ne 75 ] || { echo "${0##*/}: --exp $1: another script is at work there. Wait for it, or give another folder." >&2; exit 1; }
}

# override KEY VALUE: print KEY=VALUE for Hydra. The value is quoted if Hydra's grammar would not read it as plain
# text, for example a path with spaces, brackets or non-English letters.
override() {
    local LC_ALL=C quote="\\'"
    if [[ $2 =~ ^[A-Za-z0-9_./-]+$ ]]; then echo "$1=$2"; else echo "$1='${2//\'/$quote}'"; fi
}

# stage NAME OUTPUT COMMAND...: run the command unless OUTPUT exists.
stage() {
    if announce "$@"; then run_stage "$@"; fi
}

# resuming NAME OUTPUT COMMAND...: run a script even if OUTPUT exists, since its options may have changed (one more
# model, for example). The script itself repeats nothing that is done.
resuming() {
    show "$1" "${@:3}"
    if [ -e "$2" ] && is_noted "$1" "${@:3}"; then
        run_logged "$@" # no new note: the report must show the time of the work, not of this check
    else
        run_stage "$@"
    fi
}

# beside NAME OUTPUT COMMAND...: as `stage`, but in the background, while the next stages run. Its output goes only to
# its log. `wait_beside` waits for all such stages. When the script ends, for whatever reason, they end, too.
beside=()
beside() {
    announce "$@" || return 0
    set -m # a process group of its own, which can be ended as a whole
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

# quoted WORD...: print the words as a command line that can be typed.
quoted() {
    local line
    printf -v line '%q ' "$@"
    echo "${line% }"
}

# The line of a stage in begun.tsv: its name, output and command. EXP stands for the folder $exp, which may be moved or
# written in another way.
as_begun() {
    local fields=("${@//"$exp"/EXP}")
    printf '%s\t%s\t%s\n' "${fields[0]}" "${fields[1]}" "$(quoted "${fields[@]:2}")"
}

# End the script if another command made the output of a stage: its results would be shown as those of this command. If
# no stage made the output, nothing is known about it and the script goes on.
refuse_other_options() {
    local name command earlier="" now
    [ -f "$exp/begun.tsv" ] || return 0
    while IFS=$'\t' read -r name _ command; do
        if [ "$name" = "$1" ]; then earlier=$command; fi # the last of these lines made the output
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

# words_of LINE OTHER: print the words of LINE that are not in OTHER, or all of them if only their order differs.
words_of() {
    local words word found=() line
    read -ra words <<<"$1"
    for word in "${words[@]}"; do
        [[ " $2 " == *" $word "* ]] || found+=("$word")
    done
    line=${found[*]:-$1}
    echo "${line//EXP\//"$exp"/}"
}

# made_since NAME: print the output folders of a stage and of all stages begun after it. For a training this is its
# whole folder, including checkpoints.
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

# Run a stage, and note for the report in $exp/stages.tsv when it started and how long it took.
run_stage() {
    local start
    start=$(date +%s)
    run_logged "$@"
    printf '%s\t%s\t%s\t%s\n' "$1" "$start" "$(($(date +%s) - start))" "$(quoted "${@:3}")" >>"$exp/stages.tsv"
}

# is_noted NAME COMMAND...: true if the stage has already ended with this command.
is_noted() {
    [ -f "$exp/stages.tsv" ] && grep -qxF -- "$1"$'\t'"$(quoted "${@:2}")" <(cut -f 1,4- "$exp/stages.tsv")
}

run_logged() {
    local name=$1 output=$2
    shift 2
    mkdir -p "$exp/logs"
    # tee ignores the signal of end_beside, so that the log gets the last messages of a training, which then writes a
    # checkpoint
    "$@" 2>&1 | (trap "" TERM && tee "$exp/logs/${name// /_}.log") ||
        { echo "$name failed; see $exp/logs" >&2; exit 1; }
    [ -e "$output" ] || { echo "$name ended without $output; see $exp/logs" >&2; exit 1; }
}
