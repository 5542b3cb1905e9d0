#!/usr/bin/env bash
# ssh with a watch on the connection, started by mpirun and mpiexec.hydra under run_train.sh:
#
#   remote.sh [-x] HOST COMMAND...
#
# If a host falls silent in mid-run (power, cable), the launcher waits for its daemon there: Open MPI for a quarter of an
# hour after asking it to end, hydra forever. This script notices within 40 s, reports the host, and kills the launcher
# unless it exits first; the daemons and ranks on the other hosts end with their launcher.

set -uo pipefail
case ${1:-} in
    -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" && exit 0 ;;
    '') printf 'remote.sh: HOST and COMMAND are missing; see remote.sh --help\n' >&2 && exit 2 ;;
esac
launcher=$PPID
if [[ $1 == -x ]]; then shift; fi
host=$1

# Clock ticks from boot to the start of a process; with the process id they identify it.
started() { awk '{ sub(/.*\) /, ""); print $20 }' "/proc/$1/stat" 2>/dev/null; }

asked=0
begun=$(started "$launcher")
# Three times 10 s: a silence of that length is not congestion. stdin: a background job would get none.
ssh -x -o ServerAliveInterval=10 -o ServerAliveCountMax=3 "$@" <&0 &
ssh=$!
trap 'asked=1; kill "$ssh" 2>/dev/null' TERM INT HUP
wait "$ssh"
code=$?
# A trapped signal ends the wait, not ssh.
if ((asked)); then wait "$ssh"; fi

# 255 is ssh's own code: no connection, or a lost one. Exit codes of the remote command are for the launcher.
if ((code == 255 && !asked)); then
    printf 'run_train.sh: lost the connection to %s; the job ends\n' "$host" >&2
    # KILL: after TERM, both would wait for the lost host again. In the background: our exit code may end Open MPI.
    (
        sleep 5
        if [[ -n $begun && $(started "$launcher") == "$begun" ]]; then kill -KILL "$launcher"; fi
    ) </dev/null >/dev/null 2>&1 &
fi
exit "$code"
