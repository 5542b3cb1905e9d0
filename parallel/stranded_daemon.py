"""Open MPI's daemon on a host that was cut off.

`orted` tells `mpirun` that its rank has ended and waits for the next order; with no way to `mpirun` it does so until
TCP gives up, a quarter of an hour. Its keepalive does not help: it sleeps while sent bytes are not acknowledged.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

DAEMONS = ("orted", "prted")
# Where it still has a way to mpirun, the daemon is told to end within seconds.
WAIT_S = 20

# $1 seconds, $2 process number, $3 when it started, in ticks since boot: the number may be another's by then.
_SCRIPT = """
sleep "$1"
now=$(sed 's/.*) //' "/proc/$2/stat" | cut -d ' ' -f 20)
if [ "$now" = "$3" ]; then kill -TERM "$2"; fi
"""


def end_daemon_later(wait_s: int = WAIT_S) -> bool:
    """Have the daemon that started this rank ended after `wait_s`, if it is still there then.

    For a rank that is about to end because others cannot be reached. Returns whether there is such a daemon.
    """
    parent = os.getppid()
    try:
        if Path(f"/proc/{parent}/comm").read_text(encoding="utf-8").strip() not in DAEMONS:
            return False
        started = Path(f"/proc/{parent}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except OSError:
        return False
    # Ranks: a session of its own, for the daemon ends those of its ranks; no pipe of the rank, for it waits for these.
    subprocess.Popen(
        ["/bin/sh", "-c", _SCRIPT, "end", str(wait_s), str(parent), started],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    return True
