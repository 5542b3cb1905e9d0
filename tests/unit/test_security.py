"""Files from strangers: code in them is never run, and each is refused with a message or only its numbers are read."""

import ast
import json
import pickle
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from artifacts.checkpoints import CheckpointError, Checkpoints, read_arrays
from models import weights
from models.weights import build_with_weights, load_weights
from slides.truth.annotation import DEFAULT_LABEL_MAP, AnnotationError, read_annotations
from tests.support.hostile import Evil
from tests.support.sources import our_sources


def small() -> keras.Model:
    image = keras.Input((6, 8, 3))
    return keras.Model(image, keras.layers.Conv2D(4, 3, name="stem")(image), name="small")


def hostile_model(folder: Path) -> keras.Model:
    """A model whose Lambda layer makes the file `hacked` when it is called; its code travels in the saved file."""
    image = keras.Input((6, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="stem")(image)
    target = str(folder / "hacked")
    return keras.Model(image, keras.layers.Lambda(lambda y, t=target: (open(t, "w").close(), y)[1], name="evil")(x))


@pytest.mark.parametrize("name", ["evil.keras", "evil.h5"])
def test_a_lambda_layer_is_never_run(tmp_path: Path, name: str) -> None:
    hostile = hostile_model(tmp_path)
    hostile.save(tmp_path / name)
    (tmp_path / "hacked").unlink()  # made while the model was built here
    with pytest.raises(ValueError, match="Lambda"):
        keras.models.load_model(tmp_path / name)
    model = small()
    assert load_weights(model, tmp_path / name).loaded == ["stem"]
    np.testing.assert_array_equal(model.get_layer("stem").get_weights()[0], hostile.layers[1].get_weights()[0])
    assert not (tmp_path / "hacked").exists()


def test_a_configuration_that_names_any_function_is_never_read(tmp_path: Path) -> None:
    """The hole of CVE-2025-1550: a module and a function in place of a layer."""
    small().save(tmp_path / "plain.keras")
    call = {"class_name": "function", "config": "touch", "module": "os", "registered_name": "touch"}
    config = {"module": "builtins", "class_name": "exec", "config": {"layers": [call], "name": "evil"}}
    with zipfile.ZipFile(tmp_path / "plain.keras") as plain, zipfile.ZipFile(tmp_path / "evil.keras", "w") as evil:
        for name in plain.namelist():
            evil.writestr(name, json.dumps(config) if name == "config.json" else plain.read(name))
    model = small()
    assert load_weights(model, tmp_path / "evil.keras").loaded == ["stem"]


def test_pickled_objects_in_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"stem"]
        group = file.create_group("stem")
        group.attrs["weight_names"] = [b"stem/kernel:0"]
        group["stem/kernel:0"] = np.void(pickle.dumps(Evil(tmp_path)))
    with pytest.raises(ValueError, match=r"evil\.h5 cannot be read; .* is not an array of numbers"):
        load_weights(small(), path)
    for name in ("evil.npy", "evil.npz", "evil.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil(tmp_path)))
        with pytest.raises(ValueError, match=rf"weights .*{name} are of an unknown kind; allowed are files ending in"):
            build_with_weights(("effdetd0",), 128, 2, tmp_path / name)
    assert not (tmp_path / "hacked").exists()


def objects(path: Path, folder: Path) -> None:
    np.savez(path, state=np.array([Evil(folder)], dtype=object), allow_pickle=True)


def bare_pickle(path: Path, folder: Path) -> None:
    path.write_bytes(pickle.dumps(Evil(folder)))


def pickled_array(path: Path, folder: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([Evil(folder)], dtype=object), allow_pickle=True)


@pytest.mark.parametrize("write", [objects, bare_pickle, pickled_array])
def test_pickled_checkpoints_are_refused(tmp_path: Path, write) -> None:
    path = tmp_path / "images-000000008.npz"
    write(path, tmp_path)
    with pytest.raises(CheckpointError, match=r"holds pickled objects, which could run any program: not read"):
        read_arrays(path)
    with pytest.raises(CheckpointError, match=r"--resume .*no readable checkpoint"):
        Checkpoints(tmp_path).resume(str(path), small(), None, {})
    assert not (tmp_path / "hacked").exists()


def test_a_checkpoint_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, state=np.zeros(10**7, np.uint8))
    assert path.stat().st_size < 20_000
    with pytest.raises(CheckpointError, match="compressed"):
        read_arrays(path)


def test_weights_that_would_fill_the_disk_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "MAX_UNPACKED", 10**6)
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(10**6 + 1))
    with pytest.raises(ValueError, match=r"bomb\.keras cannot be read; .* 1000001 bytes on disk; at most 1000000"):
        load_weights(small(), tmp_path / "bomb.keras")


# Five levels of ten: a hundred thousand times its size.
BOMB = "<!DOCTYPE a [<!ENTITY e0 'ha'>" + "".join(
    f"<!ENTITY e{n} '{f'&e{n - 1};' * 10}'>" for n in range(1, 6)
) + "]>"  # fmt: skip
DOCTYPES = {
    "bomb": BOMB,
    "file": "<!DOCTYPE a [<!ENTITY e5 SYSTEM 'file:///etc/hostname'>]>",
    "network": "<!DOCTYPE a SYSTEM 'http://192.0.2.1/a.dtd' [<!ENTITY e5 'x'>]>",
    "parameter": "<!DOCTYPE a [<!ENTITY % p SYSTEM 'file:///etc/hostname'> %p; <!ENTITY e5 'x'>]>",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32", "utf-7", "cp037"])
@pytest.mark.parametrize("kind", list(DOCTYPES))
def test_entities_are_refused_in_every_encoding(tmp_path: Path, kind: str, encoding: str) -> None:
    path = tmp_path / "a.xml"
    text = f"<?xml version='1.0' encoding='{encoding}'?>{DOCTYPES[kind]}<ASAP_Annotations><Annotations>"
    text += '<Annotation Name="&e5;" PartOfGroup="_0"/></Annotations></ASAP_Annotations>'
    path.write_bytes(text.encode(encoding))
    with pytest.raises(AnnotationError) as refused:
        read_annotations(path, DEFAULT_LABEL_MAP)
    # an encoding that libxml2 does not know is malformed
    assert "has a DOCTYPE" in str(refused.value) or "no well-formed XML" in str(refused.value)
    assert len(str(refused.value)) < 1000
    assert Path("/etc/hostname").read_text(encoding="utf-8").strip() not in str(refused.value)


def test_xml_of_a_million_levels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.xml"
    path.write_text("<ASAP_Annotations>" + "<a>" * 10**6, encoding="ascii")
    with pytest.raises(AnnotationError, match="no well-formed XML"):
        read_annotations(path, DEFAULT_LABEL_MAP)


def test_xinclude_and_stylesheets_are_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(
        "<?xml version='1.0'?><?xml-stylesheet href='file:///etc/hostname'?>"
        "<ASAP_Annotations xmlns:xi='http://www.w3.org/2001/XInclude'>"
        "<xi:include href='file:///etc/hostname' parse='text'/><Annotations/></ASAP_Annotations>",
        encoding="utf-8",
    )
    assert read_annotations(path, DEFAULT_LABEL_MAP) == ((), ())


# Calls that run code from a file, or a shell. NumPy's and Keras' loaders are safe by default; nobody may unlock them.
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "xml.etree", "torch"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "os.system", "os.popen", "keras.config.enable_unsafe_deserialization"}
# An unpickler that refuses all but a few names (test_torch_files.py in models), and the comparison with PyTorch.
EXCEPTIONS = {
    "models/torch_files.py": {"pickle"}, "benchmarks/torch_resnet.py": {"torch"}, "benchmarks/torch_step.py": {"torch"},
}  # fmt: skip
UNLOCKED = {("allow_pickle", True), ("safe_mode", False), ("shell", True), ("resolve_entities", True)}


def unsafe(source: str) -> list[str]:
    """What of the above a source has, as `line: name`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            names = [module] if module else [alias.name for alias in node.names]
            found += [
                f"{node.lineno}: {name}"
                for name in names
                for bad in FORBIDDEN_MODULES
                if name == bad or name.startswith(f"{bad}.")
            ]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found += [f"{node.lineno}: {name}"] if name in FORBIDDEN_CALLS else []
            values = [(k.arg, k.value.value) for k in node.keywords if isinstance(k.value, ast.Constant)]
            found += [f"{node.lineno}: {key}={value}" for key, value in values if (key, value) in UNLOCKED]
    return found


def test_no_unsafe_call_in_the_program() -> None:
    sources = {path: text for path, text in our_sources().items() if not path.startswith("tests/")}
    assert "artifacts/checkpoints.py" in sources
    found = {(path, line.split(": ")[1]) for path, text in sources.items() for line in unsafe(text)}
    assert found == {(path, name) for path, names in EXCEPTIONS.items() for name in names}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from joblib import load", "eval('1')", "os.system('ls')", "subprocess.run('ls', shell=True)",
        "np.load('a', allow_pickle=True)", "keras.models.load_model('a', safe_mode=False)", "import xml.etree.C as e",
    ],
)  # fmt: skip
def test_unsafe_calls_are_found(source: str) -> None:
    assert len(unsafe(source)) == 1
