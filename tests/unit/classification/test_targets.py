"""Tables of labels: what is accepted, what each fault is called, classes, images, the split."""

import numpy as np
import pytest

from classification.targets import Labeled, Targets, hold_out, matched, read_tables, remarks, unused

BINARY = "slide_id,label\na,0\nb,1\nc,1\n"


def table(tmp_path, text, name="train.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(tmp_path, text, val=None, **options):
    val_csv = None if val is None else table(tmp_path, val, "val.csv")
    return read_tables(table(tmp_path, text), val_csv, **options)


def fault(tmp_path, text, val=None, **options):
    with pytest.raises(ValueError, match=r".") as caught:
        read(tmp_path, text, val, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{tmp_path}/", "")


def pairs(items):
    return [(item.slide_id, item.target_K.tolist()) for item in items]


# ------------------------------------------------------------------------------------------------------------ accepted


@pytest.mark.parametrize(
    "text",
    [
        BINARY,
        "label,age,slide_id\n0,7,a\n1,8,b\n1,9,c\n",
        "slide_id;label\na;0\nb;1\nc;1\n",
        "slide_id\tlabel\na\t0\nb\t1\nc\t1\n",
        "Slide_ID, Label\r\n a , 0\r\n\r\nb,1\r\n,\r\nc,1\r\n",
        b"\xef\xbb\xbfslide_id,label\na,0\nb,1\nc,1\n",
        '"slide_id","label",\n"a","0",\n"b","1.0",\n"c","01",\n',
    ],
)
def test_tables_as_users_have_them(tmp_path, text):
    targets, train, val = read(tmp_path, text)
    assert targets == Targets("classes", ("0", "1"))
    assert targets.ordered
    assert pairs(train) == [("a", [1.0, 0.0]), ("b", [0.0, 1.0]), ("c", [0.0, 1.0])]
    assert train[0].target_K.dtype == np.float32
    assert val == []


def test_classes_by_name_and_numbers_in_their_order(tmp_path):
    targets, train, val = read(tmp_path, "slide_id,label\na,tumor\nb,normal\n", "slide_id,label\nc,tumor\n")
    assert targets.names == ("normal", "tumor")
    assert not targets.ordered
    assert pairs(val) == [("c", [0.0, 1.0])]
    assert train[0].text == "tumor"
    targets, _, _ = read(tmp_path, "slide_id,label\na,10\nb,9\nc,2\n")
    assert targets.names == ("2", "9", "10")
    targets, train, _ = read(tmp_path, "slide_id,label\na,3\nb,0\n", num_classes=5)
    assert targets.names == ("0", "1", "2", "3", "4")
    assert train[0].target_K.tolist() == [0, 0, 0, 1, 0]


@pytest.mark.parametrize("label", ["1;0;1", "[1;0;1]", "1 0 1", '"1,0,1"'])
def test_several_answers(tmp_path, label):
    targets, train, _ = read(tmp_path, f"slide_id,label\na,{label}\nb,0;0;1\n")
    assert targets == Targets("multilabel", ("0", "1", "2"))
    assert not targets.ordered
    assert pairs(train) == [("a", [1.0, 0.0, 1.0]), ("b", [0.0, 0.0, 1.0])]
    assert train[0].text == "1;0;1"


def test_numbers(tmp_path):
    targets, train, _ = read(tmp_path, "slide_id,label\na,0.5\nb,-2e1\n", kind="regression", num_classes=1)
    assert targets == Targets("regression", ("value",))
    assert pairs(train) == [("a", [0.5]), ("b", [-20.0])]
    _, train, _ = read(tmp_path, "slide_id;label\na;0,5\nb;3\n", kind="regression")
    assert pairs(train) == [("a", [0.5]), ("b", [3.0])]


def test_patients(tmp_path):
    _, train, _ = read(tmp_path, "slide_id,label,patient\na,0,P1\nb,1,P1\npatient_007_node_1,1,\nc,0,\n")
    assert [item.group for item in train] == ["P1", "P1", "patient_007", "c"]


# -------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,type\na,0\n", "labels train.csv has no column slide_id or label; its first line has image, type: it "
         "must name the columns, slide_id,label"),
        ("slide_id,class\na,0\n", "labels train.csv has no column label; its first line has slide_id, class: it must "
         "name the columns, slide_id,label"),
        ("", "labels train.csv begins with an empty line; its first line must name the columns: slide_id,label"),
        ("slide_id,label\n", "labels train.csv has no rows below its header; it needs one per slide"),
        ("slide_id,label\na,0\nb,\n", "train.csv, line 3: slide b has no label; fill it in, or remove the row"),
        ("slide_id,label\n,1\n", "train.csv, line 2: label '1' has no slide_id; fill it in, or remove the row"),
        ("slide_id,label\na,0\nb,1\na,0\n", "train.csv, line 4: slide a is also in line 2; keep one row"),
        ("slide_id,label,label\na,0,0\n", "labels train.csv has the column label twice; keep one"),
        ("slide_id;label\na;1;0;1\n", "train.csv, line 2: more values than columns, '0;1' is left over; put a label "
         'that has semicolons in it in quotes: "1;0"'),
        ("slide_id,label\na,0.5\nb,1\n", "train.csv, line 2: label '0.5': all labels are numbers and not all are "
         "whole; give --target_kind regression to learn the numbers, or classes if every number is a class"),
        ("slide_id,label\na,1;0\nb,1;0;1\n", "train.csv, line 3: label '1;0;1' has 3 answers, the first label has 2; "
         "all must have the same number"),
        (b"slide_id,label\na,\xe9\n", "labels train.csv is not a CSV table in UTF-8: 'utf-8' codec can't decode byte "
         "0xe9 in position 17: invalid continuation byte"),
    ],
)  # fmt: skip
def test_faults_of_a_table(tmp_path, text, said):
    assert fault(tmp_path, text) == said


def test_other_faults(tmp_path):
    assert fault(tmp_path, BINARY, "slide_id,label\nd,2\ne,1\n") == (
        "val.csv, line 2: class 2 does not occur in train.csv, which has 0, 1; 1 slide of val.csv cannot be scored "
        "(classes 2): correct the labels, or train on every class"
    )
    assert fault(tmp_path, BINARY, "slide_id,label\na,0\n").startswith(
        "train.csv and val.csv share 1 slide: a; a slide is trained on or validated on"
    )
    assert fault(tmp_path, BINARY, num_classes=1) == (
        "--num_classes 1, but the labels of train.csv have 2 outputs (classes); give --num_classes 2, or leave it out"
    )
    assert fault(tmp_path, "slide_id,label\na,1;0\nb,2\n", kind="multilabel").startswith(
        "train.csv, line 3: label '2': several labels are 0 or 1 each, as in 1;0;1"
    )
    assert fault(tmp_path, "slide_id,label\na,high\n", kind="regression").startswith(
        "train.csv, line 2: label 'high' is not a number"
    )
    assert fault(tmp_path, "slide_id,label\na,nan\n", kind="regression").endswith("which regression needs")
    with pytest.raises(ValueError, match=r"labels .*none.csv cannot be read: No such file or directory; give a CSV"):
        read_tables(tmp_path / "none.csv")


# -------------------------------------------------------------------------------------------------------------- images


def labeled(*names, text="0", group=None):
    return [Labeled(name, np.array([1, 0], np.float32), group or name, text) for name in names]


def test_labels_without_images_and_images_without_labels(tmp_path):
    kept, notes = matched(
        labeled("a", "b.tif", "x", "in\\\\d.SVS", "/in/e.f"), ["a", "b", "c", "d", "e.f"], tmp_path, "D"
    )
    assert [item.slide_id for item in kept] == ["a", "b", "d", "e.f"]
    assert [item.group for item in kept] == ["a", "b", "d", "e.f"]
    assert notes == [f"1 slide of {tmp_path} left out, no image in D: x"]
    assert unused(["a", "b", "c"], kept, []) == ["1 image without a label not used: c"]
    assert unused(["a"], labeled("a")) == []
    for ids, shown in ((["a"], "a"), (["a", "b", "c", "d"], r"a, b, c, \.\.\.")):
        said = rf"^no slide of t has an image in D: the table has x, the images are {shown}; a slide_id is the name"
        with pytest.raises(ValueError, match=said):
            matched(labeled("x"), ids, "t", "D")
    with pytest.raises(ValueError, match=r"t names a twice, as id and as file; keep one row"):
        matched(labeled("a", "a.png"), ["a"], "t", "D")


# --------------------------------------------------------------------------------------------------------------- split


def test_the_split_keeps_classes_and_patients():
    targets = Targets("classes", ("0", "1"))
    items = [
        Labeled(f"s{number}", np.eye(2, dtype=np.float32)[number % 2], f"p{number // 4}", str(number % 2))
        for number in range(80)
    ]
    train, val = hold_out(targets, items, 0.25, 1)
    assert len(train) + len(val) == 80
    assert 16 <= len(val) <= 24
    assert {item.text for item in val} == {"0", "1"}
    assert not {item.group for item in train} & {item.group for item in val}
    again = hold_out(targets, items[::-1], 0.25, 1)[1]
    assert {item.slide_id for item in again} == {item.slide_id for item in val}
    assert {item.slide_id for item in hold_out(targets, items, 0.25, 2)[1]} != {item.slide_id for item in val}


def test_numbers_are_split_by_quartiles():
    items = [Labeled(f"s{number}", np.array([number], np.float32), f"s{number}", str(number)) for number in range(40)]
    _, val = hold_out(Targets("regression", ("value",)), items, 0.2, 0)
    values = sorted(int(item.target_K[0]) for item in val)
    assert [sum(low <= value < low + 10 for value in values) for low in (0, 10, 20, 30)] == [2, 2, 2, 2]


def test_what_cannot_be_split():
    targets = Targets("classes", ("0", "1"))
    with pytest.raises(ValueError, match=r"2 slides of 1 patient cannot be divided into training and validation"):
        hold_out(targets, labeled("a", "b", group="p"), 0.5, 0)
    with pytest.raises(ValueError, match=r"too few patients to train and to validate on class 0"):
        hold_out(targets, [*labeled("a"), *labeled("b", text="1")], 0.5, 0)
    with pytest.raises(ValueError, match=r"--val_split 1 must be above 0 and below 1"):
        hold_out(targets, labeled("a", "b"), 1.0, 0)


def test_remarks():
    targets = Targets("classes", ("0", "1"))
    train, val = [*labeled("a", "b"), *labeled("c", text="1", group="p")], labeled("d", "e", group="p")
    assert remarks(targets, train, val) == [
        "train 3 slides: 2 of 0, 1 of 1",
        "val 2 slides: 2 of 0, 0 of 1",
        "val has one class only, 0: AUC is undefined",
        "1 patient in training and validation, scores are too good: p",
    ]
    assert remarks(targets, labeled("a"), [])[1] == "train has one class only, 0: nothing can be learned"
