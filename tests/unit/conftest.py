"""One thread per process, and which tests share a worker of pytest-xdist.

`run_tests.sh single` starts two workers with `--dist loadgroup`. The tests of a file stay together, so that its
fixtures are made once; `@pytest.mark.xdist_group` puts more of them together, or fewer.
"""

import os

# Before anything loads TensorFlow, OpenCV or libvips: two workers with pools of threads would wait for each other.
for _name in (
    "OMP_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
    "OPENCV_FOR_THREADS_NUM",
    "VIPS_CONCURRENCY",
):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest  # noqa: E402

# What takes longest begins first, so that two workers end at about the same time.
LONGEST_FIRST = (
    "test_training_pass", "test_precision", "test_exporting", "test_recompute", "test_freeze", "test_loading.",
    "test_public_weights", "test_models", "test_heartbeat", "models/", "training/", "preprocessing/",
)  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest first; tests are grouped by file, unless they name their group."""
    items.sort(key=turn)
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))


def turn(item: pytest.Item) -> int:
    """Place of a test's file in the order."""
    return next((place for place, name in enumerate(LONGEST_FIRST) if name in item.nodeid), len(LONGEST_FIRST))
