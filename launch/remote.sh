#!/usr/bin/env bash
# ssh as mpirun and mpiexec.hydra start it through run_train.sh: remote.sh [-x] HOST COMMAND...
#
# When a machine falls silent in mid-run (power, cable), a launcher waits for its daemon there: Open MPI, once it has
# told it to end, for a quarter of an hour, hydra for ever. This notices within 40 s, says which machine it is, and ends
# a launcher that does not end by itself; the daemons and ranks on the other machines end with their launcher.

set -uo pipefail
launcher=$PPID
if [[ $1 == -x ]]; then shift; fi
host=$1

# Processor ticks from boot to the start of a process: with its number, its identity.
started() { awk '{ sub(/.*\) /, ""); print $20 }' "/proc/$1/stat" 2>/dev/null; }

asked=0
begun=$(started "$launcher")
# Three times 10 s: so long a silence is no congestion. stdin: a job in the background would get none.
ssh -x -o ServerAliveInterval=10 -o ServerAliveCountMax=3 "$@" <&0 &
ssh=$!
trap 'asked=1; kill "$ssh" 2>/dev/null' TERM INT HUP
wait "$ssh"
code=$?
# A trapped signal ends the wait, not ssh.
if ((asked)); then wait "$ssh"; fi

# 255 is ssh's own: no connection, or none any more. What the command there returns is the launcher's business.
if ((code == 255 && !asked)); then
    printf 'run_train.sh: no connection to %s any more; the job ends\n' "$host" >&2
    # KILL: after TERM, both wait for the lost machine once more. In the background: Open MPI may end by our exit code.
    (
        sleep 5
        if [[ -n $begun && $(started "$launcher") == "$begun" ]]; then kill -KILL "$launcher"; fi
    ) </dev/null >/dev/null 2>&1 &
fi
exit "$code"
