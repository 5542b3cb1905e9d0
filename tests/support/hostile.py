"""What a hostile file may hold."""

from pathlib import Path


class Evil:
    """Unpickling this makes the file `hacked`."""

    def __init__(self, folder: Path) -> None:
        self.target = folder / "hacked"

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.target,)
