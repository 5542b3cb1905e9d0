"""What a study is: program, arguments, space and how values are chosen; constant for its whole life."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from options.choices import SearchPruner, SearchSampler
from options.tune import TuneCommand
from system.atomic_files import write_bytes
from tuning import programs
from tuning.space import SpaceError

if TYPE_CHECKING:
    from tuning.study import Search

FILE = "study.json"


@dataclass(frozen=True)
class Definition:
    """See the module.

    Attributes:
        program: path of the program.
        arguments: of the program, in front of those that are searched.
        cwd: folder in which it runs.
        space: text of the space file.
        objective: score that is searched for.
        minimize: whether small values are good.
        sampler: how values are chosen.
        pruner: which trials are ended early.
        prune_after: image counter before which none is.
        seed: of the choice.
        ranks: of a trial.
    """

    program: Path
    arguments: tuple[str, ...]
    cwd: Path
    space: str
    objective: str
    minimize: bool
    sampler: SearchSampler
    pruner: SearchPruner
    prune_after: int
    seed: int
    ranks: int

    @classmethod
    def of(cls, command: TuneCommand) -> Definition:
        """The study of a command line; program and space may be left out where the folder has them.

        Raises:
            ValueError: they are missing, or the program does not exist.
        """
        rules = command.options.study
        before = cls.read(command.folder) if (command.folder / FILE).exists() else None
        if before is None and (rules.space is None or command.program is None):
            raise ValueError(
                f"{command.folder} is a new study: give --space FILE, and behind -- the program with its arguments"
            )
        if rules.sampler == "gp":
            raise ValueError("--sampler gp needs PyTorch, which widefov does not have; tpe is the usual choice")
        text = before.space if before else ""
        if rules.space is not None:
            try:
                text = rules.space.read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise SpaceError(f"--space {rules.space} cannot be read: {error}") from error
        here = command.program is not None
        return cls(
            programs.find(command.program) if command.program is not None else before.program,  # type: ignore[union-attr]
            command.arguments if here else before.arguments,  # type: ignore[union-attr]
            Path.cwd() if here else before.cwd,  # type: ignore[union-attr]
            text, rules.objective, rules.minimize, rules.sampler, rules.pruner, rules.prune_after, rules.seed,
            command.options.workers.ranks,
        )  # fmt: skip

    @classmethod
    def read(cls, folder: Path) -> Definition:
        """The study in a folder.

        Raises:
            ValueError: there is none.
        """
        try:
            stored: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{folder} is no study: it has no {FILE}") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder / FILE} cannot be read: {error}") from error
        paths = {name: Path(stored[name]) for name in ("program", "cwd")}
        return cls(**(stored | paths | {"arguments": tuple(stored["arguments"])}))

    def agree_with(self, folder: Path) -> None:
        """Store the definition in a new folder; compare it with that of a folder that has one.

        Raises:
            ValueError: the folder has another study.
        """
        if not (folder / FILE).exists():
            text = json.dumps({name: _plain(value) for name, value in asdict(self).items()}, indent=1)
            write_bytes(folder / FILE, text.encode() + b"\n")
            return
        before = self.read(folder)
        for entry in fields(self):
            was, now = getattr(before, entry.name), getattr(self, entry.name)
            if entry.name != "cwd" and was != now:
                other = "other" if entry.name == "arguments" else "another"
                raise ValueError(
                    f"{folder} is a study that began with {other} {entry.name}: {_brief(was)}, not {_brief(now)}; "
                    "choose another folder, or the same options as before"
                )

    def search(self) -> Search:
        """How trials are chosen."""
        from tuning.study import Search

        return Search(self.sampler, self.pruner, self.minimize, self.seed, self.prune_after)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _brief(value: Any) -> str:
    text = " ".join(value) if isinstance(value, tuple) else str(value)
    text = "; ".join(line.strip() for line in text.splitlines() if line.strip())
    return text if len(text) <= 80 else f"{text[:77]}..."
