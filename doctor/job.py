"""How a run would be started, as `run_train.sh` tells it, and what it would do, as far as checks want to know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Launch:
    """How ranks would be started.

    Attributes:
        launcher: `mpirun`, `hydra`, `srun`, `horovodrun` or `none`.
        program: what must be on PATH for that; empty for none.
        ranks: number of ranks.
        hosts: machines asked for by HOSTS or HOSTFILE, as they were named; empty for this one.
        built_for: MPI that Horovod was built with: openmpi, mpich, intel or unknown.
        started_by: MPI that the launcher belongs to; empty where it belongs to none.
        horovod: version of Horovod that the set-up builds.
        command: words that start the ranks' part of the doctor.
    """

    launcher: str
    program: str
    ranks: int
    hosts: tuple[str, ...]
    built_for: str
    started_by: str
    horovod: str
    command: tuple[str, ...]


def read_launch(path: Path) -> Launch:
    """Read what `run_train.sh` passes on: NAME=VALUE words, an empty one, the command; each ended by a zero byte."""
    words = path.read_bytes().decode("utf-8", "surrogateescape").split("\0")[:-1]
    at = words.index("")
    given = dict(word.split("=", 1) for word in words[:at])
    return Launch(
        launcher=given["launcher"],
        program=given["program"],
        ranks=int(given["ranks"]),
        hosts=tuple(host for host in given["hosts"].split(",") if host),
        built_for=given["built_for"],
        started_by=given["started_by"],
        horovod=given["horovod"],
        command=tuple(words[at + 1 :]),
    )


@dataclass(frozen=True)
class Task:
    """What the run would do.

    Attributes:
        network: name of the network; the first choice where weights decide.
        img_size: side of the field of view, px.
        um_px: spacing of the patch, um per px.
        channels: of the image.
        precision: of the network.
        recompute: what the backward pass computes again.
        batch: patches of a rank in one pass.
        passes: passes before an update.
        images: length of the run, over all ranks.
        log_every: images between log lines.
        validate_every: images between validations.
        checkpoint_every: images between checkpoints.
        warmup: images of rising learning rate.
        sync_bn: whether batch norm goes over all ranks.
        frozen_bn: whether batch norm keeps its statistics.
        gpus: whether GPUs may be used.
        sample_processes: readers per rank.
        tile_cache_mb: decoded tiles kept per rank.
        memory_check: whether a run that cannot fit is refused.
        log_dir: where the run writes, or None.
        stage_dir: disk of the node for copies of slides, or None.
        stage_bytes: most bytes to copy there.
        inputs: option -> path that every rank reads.
        resumes: whether an earlier run is gone on with.
    """

    network: str
    img_size: int
    um_px: float
    channels: int
    precision: str
    recompute: str
    batch: int
    passes: int
    images: int
    log_every: int
    validate_every: int
    checkpoint_every: int
    warmup: int
    sync_bn: bool
    frozen_bn: bool
    gpus: bool
    sample_processes: int
    tile_cache_mb: int
    memory_check: bool
    log_dir: Path | None
    stage_dir: Path | None
    stage_bytes: int
    inputs: dict[str, Path]
    resumes: bool

    def joint(self, ranks: int) -> int:
        """Images of one step."""
        return self.batch * self.passes * ranks

    def steps(self, ranks: int) -> int:
        """Updates of the whole run."""
        return -(-self.images // self.joint(ranks))
