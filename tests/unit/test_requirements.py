"""What setup_env.sh looks for in an environment that is active already."""

import re

from tests.support.paths import ROOT

# Of Horovod's build, of TensorFlow's own choice, or needed by export.py alone.
NOT_LOOKED_FOR = {
    "protobuf", "tf2onnx", "onnx", "onnxruntime", "openslide-bin", "pyvips-binary",
    "cffi", "cloudpickle", "cmake", "packaging", "pyyaml", "setuptools", "wheel",
}  # fmt: skip


def test_every_requirement_is_looked_for() -> None:
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    required = set(re.findall(r"^([\w-]+)==", text, flags=re.MULTILINE))
    script = (ROOT / "setup_env.sh").read_text(encoding="utf-8")
    table = script[script.index("module_of_package = {") :].split("}", 1)[0]
    assert required - set(re.findall(r'"([\w-]+)": "', table)) == NOT_LOOKED_FOR
