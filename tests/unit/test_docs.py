"""Docs name files, modules and links that exist."""

import importlib.util
import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.sources import our_files

TRACKED = set(our_files())
FOLDERS = {str(parent) for name in TRACKED for parent in Path(name).parents}
# Results are dated: what they name existed at their commit.
DOCS = sorted(n for n in TRACKED if n.endswith(".md") and not n.startswith("docs/results/"))
TOP = {name.split("/")[0] for name in TRACKED if "/" in name}
SHORT = {Path(name).name for name in TRACKED}
# Names that stand for other names, and scripts that users write.
OTHERS = re.compile(r"NAME|STEP|^discover\.sh$|^hosts\.sh$")
GONE = {"CHANGELOG.md": {"prepro.py", "run_launchers.sh", "run_remote.sh", "setup_build.sh"}}


def missing_files(text: str) -> list[str]:
    """Files of ours that are named in backticks or commands but not tracked."""
    found = []
    for name in re.findall(r"(?<![\w/.-])((?:[\w.-]+/)*[\w.-]+\.(?:py|sh|sbatch|args))(?![\w/])", text):
        if OTHERS.search(name):
            continue
        known = name in TRACKED or name.removeprefix("./") in TRACKED or ("/" not in name and name in SHORT)
        ours = "/" not in name or name.split("/")[0] in TOP
        if ours and not known:
            found.append(name)
    return found


def missing_folders(text: str) -> list[str]:
    """Folders of ours that are named in backticks, such as `tests/unit`, but do not exist."""
    names = re.findall(r"`((?:[a-z_]+/)+[a-z_]*)`", text)
    # CAMELYON has a folder `training`, too.
    return [name for name in names if name.split("/")[0] in TOP - {"training"} and name.rstrip("/") not in FOLDERS]


def missing_modules(text: str) -> list[str]:
    """Modules behind `python -m` that cannot be found."""
    names = re.findall(r"python3? -m ([\w.]+)", text)
    ours = [name for name in names if name.split(".")[0] in TOP and "STEP" not in name]
    return [name for name in ours if importlib.util.find_spec(name) is None]


def broken_links(name: str, text: str) -> list[str]:
    """Relative links whose file does not exist, or whose heading the file lacks."""
    found = []
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        path = (ROOT / name).parent / target if target else ROOT / name
        if not path.exists():
            found.append(target)
        elif anchor and anchor not in headings(path.read_text(encoding="utf-8")):
            found.append(f"{target}#{anchor}")
    return found


def headings(text: str) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", DOCS)
def test_what_a_page_names_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert set(missing_files(text)) <= GONE.get(name, set())
    assert missing_folders(text) == []
    assert missing_modules(text) == []
    assert broken_links(name, text) == []


def test_each_kind_of_stale_name_is_found() -> None:
    assert missing_files("see `slides/nowhere.py`, `absent.sh` and `train.py`") == ["slides/nowhere.py", "absent.sh"]
    assert missing_folders("`tests/nowhere`, `tests/unit`, `out/x`") == ["tests/nowhere"]
    assert missing_modules("python -m slides.nowhere; python -m samplers.replay") == ["slides.nowhere"]
    assert broken_links("README.md", "[a](docs/nowhere.md) [b](docs/data.md#slides) [c](docs/data.md#no)") == [
        "docs/nowhere.md",
        "docs/data.md#no",
    ]


def test_the_readme_is_a_tour() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = [n.removeprefix("docs/") for n in DOCS if n.startswith("docs/") and n != "docs/README.md"]
    assert len(pages) > 10
    assert [page for page in pages if f"]({page})" not in index] == []
