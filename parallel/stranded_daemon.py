"""Open MPI's daemon on a host that lost its network.

`orted` reports to `mpirun` that its rank has ended and waits for the next order; without a connection to `mpirun` it
waits until TCP gives up, a quarter of an hour. Keepalive does not help: it pauses while sent bytes are unacknowledged.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

DAEMONS = ("orted", "prted")
# A daemon that still has a connection to mpirun receives the order to end within seconds.
WAIT_S = 20

# $1 seconds, $2 process number, $3 when it started, in ticks since boot: another process may have the number by then.
_SCRIPT = """
sleep "$1"
now=$(sed 's/.*) //' "/proc/$2/stat" | cut -d ' ' -f 20)
if [ "$now" = "$3" ]; then kill -TERM "$2"; fi
"""


def end_daemon_later(wait_s: int = WAIT_S) -> bool:
    """End the daemon that started this rank after `wait_s`, if it still runs then.

    For a rank that ends because others cannot be reached. Returns whether there is such a daemon.
    """
    parent = os.getppid()
    try:
        if Path(f"/proc/{parent}/comm").read_text(encoding="utf-8").strip() not in DAEMONS:
            return False
        started = Path(f"/proc/{parent}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except OSError:
        return False
    # Ranks: in its own session, since the daemon ends those of its ranks; without their pipes, since it waits for them.
    subprocess.Popen(
        ["/bin/sh", "-c", _SCRIPT, "end", str(wait_s), str(parent), started],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    return True
