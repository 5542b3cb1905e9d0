import math

import pytest

from samplers.hard_pool import Entry
from samplers.pool_seed import read_pool_seed


def write(folder, *lines, header="slide_id,x,y,probability,area_um2"):
    (folder / "false_positives.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


def test_places_of_our_slides_with_the_loss_the_network_had_there(tmp_path):
    write(tmp_path, "b,10.5,20.5,0.75,900", "x,1,2,0.9,50", '"a, 1",30,40,1.0,20')
    entries, others = read_pool_seed(tmp_path, ["a, 1", "b"])
    assert others == 1
    assert entries == [
        Entry(-2, 1, 0, 10.5, 20.5, pytest.approx(math.log(4))),
        Entry(-1, 0, 0, 30.0, 40.0, pytest.approx(math.log(255))),
    ]


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["a,1,2,0.5,9", "a,one,2,0.5,9"], r"line 3: .* is not a place"),
        (["a,1,2"], "line 2"),
        (["a,1,2,1.5,9"], "probability 1.5"),
        (["a,nan,2,0.5,9"], "x nan"),
        (["x,1,2,0.5,9"], "1 regions, none of them on a training slide"),
        ([], "0 regions"),
    ],
)
def test_what_is_no_list_of_places(lines, why, tmp_path):
    write(tmp_path, *lines)
    with pytest.raises(ValueError, match=why):
        read_pool_seed(tmp_path, ["a"])


def test_no_file_or_another_one(tmp_path):
    with pytest.raises(ValueError, match=r"--mine_from .* give the --out of evaluate.py"):
        read_pool_seed(tmp_path, ["a"])
    write(tmp_path, "1,2", header="p,q")
    with pytest.raises(ValueError, match="the columns must be slide_id,x,y,probability"):
        read_pool_seed(tmp_path, ["a"])
