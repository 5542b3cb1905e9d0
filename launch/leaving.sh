#!/usr/bin/env bash
# What run_train.sh does when it is preempted; it sources this file.

# Variables belong to run_train.sh, which calls the functions, also by traps.
# shellcheck disable=SC2034,SC2154,SC2329

started=0
launched=("$@")
# Set-up and the first checks are no work that could be lost; run_train.sh notes SIGUSR1, other signals end them at once.
trap 'leave_if_asked' EXIT
# Nobody to read a message is no reason to end.
trap '' PIPE

# leave_if_asked: exits with code 75 if SIGUSR1 came before anything was started.
leave_if_asked() {
    if [[ -z $asked ]] || ((started)); then return 0; fi
    printf 'run_train.sh: SIG%s before the start: nothing was to be saved\n' "$asked" >&2 || true
    started=1
    requeue
    exit 75
}

# supervise COMMAND...: runs it under launch/supervise.py, forwards signals there, and exits with its code.
supervise() {
    local status child signal
    leave_if_asked
    started=1
    "$wf_python" "$root/launch/supervise.py" "$launcher" "$@" &
    child=$!
    for signal in TERM INT HUP USR1; do
        # shellcheck disable=SC2064
        trap "asked=$signal; forward $signal" "$signal"
    done
    # Ctrl-Z stops the ranks, too.
    trap 'forward TSTP; kill -STOP $$' TSTP
    trap 'forward CONT' CONT
    if [[ -n $asked ]]; then forward USR1; fi
    while :; do
        status=0
        # bash itself would report a child that was killed.
        wait "$child" 2>/dev/null || status=$?
        # More than 128 and still alive: a signal interrupted the wait.
        if ((status <= 128)) || ! kill -0 "$child" 2>/dev/null; then break; fi
    done
    # Sent to the whole process group, SIGUSR1 may have come before the child was ready for it.
    if ((status == 138)) && [[ $asked == USR1 ]]; then status=75; fi
    if ((status == 75)); then requeue; fi
    exit "$status"
}

# forward SIGNAL: to launch/supervise.py, which tells its meaning; it would be killed before it is ready.
forward() {
    local tries=0
    until takes_signals || ((tries++ >= 100)) || ! kill -0 "$child" 2>/dev/null; do sleep 0.1; done
    kill "-$1" "$child" 2>/dev/null || true
}

# takes_signals: whether the child has a handler for SIGUSR1 (bit 9).
takes_signals() {
    local name mask
    while read -r name mask; do
        if [[ $name == SigCgt: ]]; then
            ((16#${mask: -4} & 512)) && return 0
            return 1
        fi
    done 2>/dev/null <"/proc/$child/status"
    return 1
}

# requeue: the job was preempted after writing a checkpoint, from which it can resume. Not if the user canceled it.
requeue() {
    local state
    [[ -n ${SLURM_JOB_ID:-} && ${REQUEUE:-1} != 0 ]] || return 0
    if [[ " ${launched[*]} " != *" --resume"[\ =]* ]]; then
        printf 'run_train.sh: not requeued: without --resume the job would start from the beginning.\n' >&2
        return 0
    fi
    state=$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p') || state=''
    [[ $state == RUNNING ]] || return 0
    if scontrol requeue "$SLURM_JOB_ID"; then
        printf 'run_train.sh: requeued job %s.\n' "$SLURM_JOB_ID"
    else
        printf 'run_train.sh: SLURM refused to requeue job %s; submit it again.\n' "$SLURM_JOB_ID" >&2
    fi
}
