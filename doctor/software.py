"""Check installed versions against the pins, and Horovod's MPI against the launcher's, without slow imports."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from doctor.job import Launch
from doctor.report import Finding, failed, passed, warned

PYTHONS = ((3, 10), (3, 12))
SHOWN = ("tensorflow", "keras", "numpy")
# MPICH's and Intel's libraries have one binary interface.
_FAMILY = {"openmpi": "Open MPI", "mpich": "MPICH", "intel": "MPICH"}
_SET_UP = "run ./setup_env.sh (or install requirements.txt into the active environment)"


def python_version(found: tuple[int, int] = sys.version_info[:2]) -> Iterator[Finding]:
    """Whether TensorFlow 2.18 has wheels for this Python."""
    text = f"{found[0]}.{found[1]}" if found != sys.version_info[:2] else platform.python_version()
    if PYTHONS[0] <= found <= PYTHONS[1]:
        yield passed("python", f"{text} on {platform.system()} {platform.machine()}")
    else:
        yield failed(
            "python", f"{text}; 3.10 to 3.12 are supported", "WIDEFOV_PYTHON=/path/to/python3.11 ./setup_env.sh"
        )


def packages(requirements: Path) -> Iterator[Finding]:
    """Whether installed packages have the pinned versions."""
    absent, other, versions = [], [], {}
    for line in requirements.read_text(encoding="utf-8").splitlines():
        pin = line.split("#", 1)[0].strip()
        if not pin:
            continue
        wanted = Requirement(pin)
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            versions[wanted.name] = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            absent.append(wanted.name)
            continue
        if not wanted.specifier.contains(versions[wanted.name], prereleases=True):
            other.append(f"{wanted.name} {versions[wanted.name]} (pinned {wanted.specifier})")
    if absent:
        yield failed("packages", f"not installed: {', '.join(absent)}", _SET_UP)
    if other:
        yield warned("packages", f"untested versions: {', '.join(other)}", _SET_UP)
    if not absent and not other:
        shown = ", ".join(f"{name} {versions[name]}" for name in SHOWN if name in versions)
        yield passed("packages", f"all {len(versions)} as pinned: {shown}")


def horovod(launch: Launch) -> Iterator[Finding]:
    """Whether Horovod is installed, in the version that the set-up builds."""
    try:
        version = metadata.version("horovod")
    except metadata.PackageNotFoundError:
        if launch.ranks > 1:
            yield failed("horovod", f"not installed, but needed for {launch.ranks} ranks", "run ./setup_env.sh")
        else:
            yield warned("horovod", "not installed: only one rank can train", "run ./setup_env.sh before using more")
        return
    if launch.horovod and version != launch.horovod:
        yield warned("horovod", f"{version}; tested with {launch.horovod}", "run ./setup_env.sh")
    else:
        built = f", built for {_FAMILY.get(launch.built_for, 'an unknown MPI')}" if launch.built_for else ""
        yield passed("horovod", f"{version}{built}")


def launcher(launch: Launch) -> Iterator[Finding]:
    """Whether the launcher exists and belongs to the MPI that Horovod was built with."""
    if launch.launcher == "none":
        yield passed("launcher", "not needed for one rank")
        return
    name = Path(launch.program).name
    path = shutil.which(launch.program)
    if path is None:
        yield failed(
            "launcher",
            f"{launch.program} is not on PATH",
            "load the MPI module that Horovod was built with, or choose another launcher (LAUNCHER)",
        )
        return
    built, started = _FAMILY.get(launch.built_for), _FAMILY.get(launch.started_by)
    if built and started and built != started:
        yield failed(
            "launcher",
            f"{name} is {started}'s ({path}), but Horovod was built with {built}: ranks would not find each other",
            f"put {built}'s programs on PATH and LAUNCHER={'mpirun' if built == 'Open MPI' else 'hydra'}, or build "
            "Horovod for this MPI: load its module, then WIDEFOV_MPI=system ./setup_env.sh",
        )
    elif launch.started_by and (built is None or started is None):
        yield warned(
            "launcher",
            f"{path}: its MPI is {launch.started_by}, Horovod was built with {launch.built_for}",
            "check below that the ranks found each other",
        )
    else:
        yield passed("launcher", f"{path}, {launch.ranks} rank{'s' if launch.ranks > 1 else ''}")
