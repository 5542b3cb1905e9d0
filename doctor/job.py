"""How a run would be started, as described by `run_train.sh`, and the options of the run that the checks use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Launch:
    """How ranks would be started.

    Attributes:
        launcher: `mpirun`, `hydra`, `srun`, `horovodrun` or `none`.
        program: program that must be on PATH; empty for `none`.
        ranks: number of ranks.
        hosts: hosts given by HOSTS or HOSTFILE, as written there; empty for this host.
        built_for: MPI that Horovod was built with: openmpi, mpich, intel or unknown.
        started_by: MPI that the launcher belongs to; empty if none.
        horovod: version of Horovod that the set-up builds.
        command: arguments that start the ranks' part of the doctor.
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
    """Read what `run_train.sh` passes: NAME=VALUE items, an empty one, the command, each with a final zero byte."""
    items = path.read_bytes().decode("utf-8", "surrogateescape").split("\0")[:-1]
    at = items.index("")
    given = dict(item.split("=", 1) for item in items[:at])
    return Launch(
        launcher=given["launcher"],
        program=given["program"],
        ranks=int(given["ranks"]),
        hosts=tuple(host for host in given["hosts"].split(",") if host),
        built_for=given["built_for"],
        started_by=given["started_by"],
        horovod=given["horovod"],
        command=tuple(items[at + 1 :]),
    )


@dataclass(frozen=True)
class Task:
    """Options of the run to check.

    Attributes:
        network: name of the network; the first candidate if the weights decide.
        img_size: side of the field of view, px.
        um_px: spacing of the patch, um per px.
        channels: number of image channels.
        precision: precision of the network.
        recompute: what the backward pass recomputes.
        stream: tile of a streamed network, px, or None.
        batch: patches per rank and pass.
        passes: passes per update.
        images: length of the run, images over all ranks.
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
        log_dir: output folder of the run, or None.
        stage_dir: folder on a local disk of the node for copies of slides, or None.
        stage_bytes: maximum number of bytes to copy there.
        inputs: option -> path that every rank reads.
        resumes: whether the run resumes from a checkpoint.
        tolerance: share of `um_px` within which a level of a slide is taken as it is.
    """

    network: str
    img_size: int
    um_px: float
    channels: int
    precision: str
    recompute: str
    stream: int | None
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
    tolerance: float = 0.0

    def joint(self, ranks: int) -> int:
        """Images of one step."""
        return self.batch * self.passes * ranks

    def steps(self, ranks: int) -> int:
        """Updates of the whole run."""
        return -(-self.images // self.joint(ranks))
