"""Who may import whom, held by reading the syntax tree of every file."""

import ast
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.support.paths import ROOT
from tests.support.sources import our_sources

# Folder -> folders of ours it may import, besides itself.
PARTS = {
    "system": set(),
    "models": set(),
    "metrics": set(),
    "pages": set(),
    "slides": {"system"},
    "parallel": {"system"},
    "cohorts": {"system", "slides"},
    "samplers": {"system", "slides"},
    "inference": {"system", "slides", "samplers"},
    "options": {"system", "parallel", "slides"},
    "training": {"system", "parallel", "pages"},
    "artifacts": {"system", "models", "slides"},
    "streaming": {"system", "models", "slides"},
    "preprocessing": {"system", "parallel", "slides", "cohorts", "options"},
    "evaluation": {"system", "metrics", "inference", "samplers", "slides", "cohorts", "artifacts", "pages"},
    "tuning": {"system", "parallel", "options", "pages"},
    "launch": set(),
}
# Each trains and applies networks for another purpose; all parts are theirs, but no other task.
TASKS = ("segmentation", "classification")
MAY_IMPORT = {**PARTS, **{task: set(PARTS) for task in TASKS}, "doctor": {*PARTS, *TASKS}}
# They run things and are not run by the rest, so they may import anything of ours.
FREE = {"tests", "benchmarks", ".ci"}
# Imports nothing, so that vocabularies stand once; any folder may import it.
LEAF = "options.choices"
TENSORFLOW = {"tensorflow", "keras", "tf_keras"}
USES_TENSORFLOW = {"models", "training", "artifacts", "parallel", "segmentation", "classification", "streaming"}
USES_TENSORFLOW_TOO = {"samplers/pipeline.py", "samplers/augment.py"}
USES_HOROVOD = {"parallel/comm.py"}
BY_CALL = "by a call"


def imported(source: str, path: str) -> list[tuple[int, str]]:
    """Modules a file imports anywhere, as (line, dotted name).

    Relative names are resolved; `from a import b` gives `a.b`.

    Args:
        source: text of the file.
        path: of the file below the root of the repository, with `/`.

    Returns:
        One entry per name; `BY_CALL` for a call of `import_module` or `__import__`.
    """
    package = path.split("/")[:-1]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: max(0, len(package) - node.level + 1)] if node.level else []
            base = [*above, *([node.module] if node.module else [])]
            found += [(node.lineno, ".".join([*base, alias.name])) for alias in node.names]
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            found += [(node.lineno, BY_CALL)] if called in {"import_module", "__import__"} else []
    return found


def violations(sources: dict[str, str]) -> list[str]:
    """Imports that break the rules.

    Args:
        sources: path below the root, with `/` -> text of the file.

    Returns:
        `path:line imports name: reason`, sorted by path and line.
    """
    entries = {path[: -len(".py")] for path in sources if "/" not in path}
    folders = {path.split("/")[0] for path in sources if "/" in path}
    found = [f"{folder}/ has no rule: add it to MAY_IMPORT" for folder in sorted(folders - set(MAY_IMPORT) - FREE)]
    for path in sorted(sources):
        for line, name in sorted(imported(sources[path], path)):
            reason = None if _is_leaf(name) else _refused(path, name.split(".")[0], entries, folders)
            if reason:
                found.append(f"{path}:{line} imports {name}: {reason}")
    return found


def _is_leaf(name: str) -> bool:
    return name == LEAF or name.startswith(f"{LEAF}.")


def _refused(path: str, target: str, entries: set[str], folders: Iterable[str]) -> str | None:
    """Why a file may not import a top-level module; None when it may."""
    folder = path.split("/", maxsplit=1)[0] if "/" in path else None
    if folder in FREE:
        return None
    if target == BY_CALL:
        return "nobody sees then who imports whom; use an import statement"
    if target == "horovod" and path not in USES_HOROVOD:
        return "only parallel/comm.py knows Horovod"
    if target in TENSORFLOW and folder and folder not in USES_TENSORFLOW and path not in USES_TENSORFLOW_TOO:
        return f"{folder} works without TensorFlow"
    if target in FREE & set(folders):
        return "tests and benchmarks are not imported"
    if target in entries:
        return "entry scripts are not imported"
    allowed = MAY_IMPORT.get(folder or "", set())
    if folder is None or target not in MAY_IMPORT or target == folder or target in allowed:
        return None
    return f"{folder} may import {', '.join(sorted(allowed)) or 'nothing'} of ours"


def circle(sources: dict[str, str]) -> list[str]:
    """Modules that import each other in a circle, the first also last; empty without one.

    Imports inside functions count: they only hide a circle.

    Args:
        sources: path below the root, with `/` -> text of the file.
    """
    modules = {path.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): path for path in sources}
    imports = {}
    for module, path in modules.items():
        names = {name for _, name in imported(sources[path], path)}
        # `from package import name` names a module or something in one
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        imports[module] = {name for name in found if name in modules and name != module}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other() -> None:
    assert circle({path: text for path, text in our_sources().items() if path.split("/")[0] not in FREE}) == []


def test_a_circle_is_found_also_inside_functions_and_through_packages() -> None:
    a, b, c = "from b.m import f", "def f():\n    from c import x", "import a.n"
    assert circle({"a/n.py": a, "b/m.py": b, "c/__init__.py": ""}) == []
    assert sorted(set(circle({"a/n.py": a, "b/m.py": b, "c/__init__.py": c}))) == ["a.n", "b.m", "c"]


def test_the_leaf_imports_nothing_of_ours() -> None:
    sources = our_sources()
    ours = {path.split("/")[0].removesuffix(".py") for path in sources}
    path = f"{LEAF.replace('.', '/')}.py"
    assert [name for _, name in imported(sources[path], path) if name.split(".")[0] in ours] == []


def test_the_repository_keeps_the_rules() -> None:
    sources = our_sources()
    assert "cohorts/pairing.py" in sources
    assert violations(sources) == []


ALLOWED = {
    "train.py": "import options, horovod_like\nimport tensorflow as tf\nfrom training import step\nimport models",
    "predict.py": "import argparse",
    "models/__init__.py": "from options.choices import MODELS",
    "slides/reader.py": "import numpy\nfrom slides.geometry import Window\nfrom . import geometry",
    "samplers/pipeline.py": "import tensorflow\nfrom slides import reader",
    "samplers/__init__.py": "from samplers import radboud, surf",
    "parallel/comm.py": "def start():\n    import horovod.tensorflow as hvd",
    "segmentation/validation.py": "from metrics.confusion import miou\nfrom keras import ops",
    "tests/unit/test_a.py": "import train, horovod, tensorflow",
    "benchmarks/input.py": "import train, tensorflow, samplers",
}


def test_allowed_imports_pass() -> None:
    assert violations(ALLOWED) == []


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("slides/a.py", "import samplers.grid", "1 imports samplers.grid: slides may import system of ours"),
        ("samplers/a.py", "import os, training", "1 imports training: samplers may import slides, system"),
        ("samplers/a.py", "from ..models import build", "1 imports models.build: samplers may import slides, system"),
        (
            "samplers/b/a.py",
            "from ...models import build",
            "1 imports models.build: samplers may import slides, system",
        ),
        ("samplers/a.py", "from .. import models", "1 imports models: samplers may import slides, system"),
        ("models/a.py", "from options.choices2 import b", "1 imports options.choices2.b: models may import nothing"),
        ("metrics/a.py", "from slides.reader import Slide", "1 imports slides.reader.Slide: metrics may import"),
        ("models/a.py", "import evaluation", "1 imports evaluation: models may import nothing of ours"),
        (
            "training/a.py",
            "def f():\n    import slides",
            "2 imports slides: training may import pages",
        ),
        (
            "inference/a.py",
            "import training",
            "1 imports training: inference may import samplers, slides, system",
        ),
        ("preprocessing/a.py", "if x:\n  import keras", "2 imports keras: preprocessing works without TensorFlow"),
        ("samplers/grid.py", "import tensorflow.io", "1 imports tensorflow.io: samplers works without TensorFlow"),
        ("slides/a.py", "__import__('os')", "1 imports by a call: nobody sees then who imports whom"),
        ("slides/a.py", "importlib.import_module(f'a.{x}')", "1 imports by a call: nobody sees"),
        ("train.py", "def f():\n    import_module(name='x', *['y'])", "2 imports by a call: nobody sees"),
        ("training/step.py", "import horovod.tensorflow", "1 imports horovod.tensorflow: only parallel/comm.py knows"),
        ("train.py", "from horovod import tensorflow", "1 imports horovod.tensorflow: only parallel/comm.py knows"),
        (
            "training/a.py",
            "from options import parse",
            "1 imports options.parse: training may import pages",
        ),
        ("predict.py", "import train", "1 imports train: entry scripts are not imported"),
        ("train.py", "import tests.unit", "1 imports tests.unit: tests and benchmarks are not imported"),
    ],
)
def test_each_violation_is_found(path: str, source: str, expected: str) -> None:
    found = violations({**ALLOWED, path: source})
    assert len(found) == 1
    assert found[0].startswith(f"{path}:{expected}")


def test_a_folder_without_a_rule_is_found() -> None:
    assert violations({**ALLOWED, "extra/a.py": "import os"}) == ["extra/ has no rule: add it to MAY_IMPORT"]


def test_every_violation_of_a_file_is_listed() -> None:
    assert violations({"slides/a.py": "import models\nimport numpy\nfrom metrics import confusion, froc"}) == [
        "slides/a.py:1 imports models: slides may import system of ours",
        "slides/a.py:3 imports metrics.confusion: slides may import system of ours",
        "slides/a.py:3 imports metrics.froc: slides may import system of ours",
    ]


def test_the_table_of_the_docs_is_the_rule() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("<!-- imports: begin -->")[1].split("<!-- imports: end -->")[0]
    assert table.strip() == imports_table().strip()


def imports_table() -> str:
    """The rules as a table for docs/architecture.md."""
    rows = ["| room | may import |", "|---|---|"]
    rows += [f"| `{room}` | {', '.join(f'`{n}`' for n in sorted(of)) or '-'} |" for room, of in MAY_IMPORT.items()]
    return "\n".join(rows)
