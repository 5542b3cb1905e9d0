"""QuPath's GeoJSON as labels: classes, holes, several parts, frames, what is skipped, what is an error."""

import json

import numpy as np
import pytest

from cohorts.camelyon import camelyon
from cohorts.pairing import pair
from slides.geometry import Window
from slides.reader import Slide
from slides.synthetic.demo import position_coded
from slides.truth.annotation import AnnotationError
from slides.truth.interface import open_truth
from slides.truth.qupath import read_geojson
from tests.support.scn_files import write_scn

MAP = {"tumor": 1, "normal": 0}


def ring(left, top, right, bottom):
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def feature(kind, coordinates, name="Tumor", **properties):
    """As QuPath 0.5 writes it."""
    if name is not None:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    geometry = {"type": kind, "coordinates": coordinates}
    return {
        "type": "Feature",
        "id": "00000000-0000-4000-8000-000000000000",
        "geometry": geometry,
        "properties": {"objectType": "annotation", **properties},
    }


def written(folder, data, name="a.geojson"):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return path


def area(path, **more):
    return sum(part.area for annotation in read_geojson(path, MAP, **more)[0] for part in annotation.polygons)


@pytest.fixture
def slide(tmp_path):
    position_coded(tmp_path / "a.tif", (90, 70), tile=16)
    return Slide(tmp_path / "a.tif")


HOLE = feature("Polygon", [ring(10, 20, 50, 50), ring(20, 30, 30, 35)])
TWO = feature("MultiPolygon", [[ring(60, 5, 70, 10)], [ring(75, 5, 80, 12)]])
POINTS = feature("MultiPoint", [[1, 1], [2, 2]], name="Other")


@pytest.mark.parametrize(
    "data",
    [
        {"type": "FeatureCollection", "features": [HOLE, TWO, POINTS]},
        [HOLE, TWO, POINTS],
        b"\xef\xbb\xbf" + json.dumps([HOLE, TWO, POINTS]).encode(),
    ],
    ids=["collection", "list", "byte order mark"],
)
def test_holes_parts_and_points(tmp_path, slide, data):
    truth = open_truth(written(tmp_path, data), slide, MAP)
    label = truth.label(Window((0.0, 0.0), (70, 90), (1.0, 1.0)))
    # 40 x 30 without a hole of 10 x 5, and parts of 50 and 35 px.
    assert int((label == 1).sum()) == 1200 - 50 + 50 + 35
    assert (label[32, 25], label[32, 31], label[6, 65], label[6, 72], label[11, 76]) == (0, 1, 1, 0, 1)
    assert truth.notes == (f"{tmp_path}/a.geojson: annotation 'number 2': MultiPoint has no area, skipped",)


def test_a_single_feature_and_a_collection_of_geometries(tmp_path):
    one = feature("Polygon", [ring(0, 0, 7, 3)])
    assert area(written(tmp_path, one)) == 21
    one["geometry"] = {"type": "GeometryCollection", "geometries": [one["geometry"], TWO["geometry"]]}
    assert area(written(tmp_path, one)) == 21 + 50 + 35


def test_coordinates_count_from_what_qupath_shows(tmp_path):
    write_scn(tmp_path / "a.scn")
    slide = Slide(tmp_path / "a.scn")
    truth = open_truth(written(tmp_path, [feature("Polygon", [ring(10, 20, 17, 23)])]), slide, MAP)
    (region,) = truth.regions(1)
    # The corner of the bounds is (200, 130).
    assert region.bounds == (210, 150, 217, 153)


def test_classes_of_every_version(tmp_path):
    features = [
        feature("Polygon", [ring(0, 0, 1, 1)], name=None, classification={"names": ["Tumor", "Positive"]}),
        feature("Polygon", [ring(0, 0, 2, 1)], name=None, classification="Immune cells"),
        feature("Polygon", [ring(0, 0, 3, 1)], name=None),
        feature("Polygon", [ring(0, 0, 4, 1)], name=None, classification=None),
    ]
    label_map = {"tumor: positive": 1, "immune cells": 2}
    found, notes = read_geojson(written(tmp_path, features), label_map)
    assert [annotation.group for annotation in found] == ["tumor: positive", "immune cells"]
    assert [note.rpartition(": ")[2] for note in notes] == ["group 'none' is ignored"] * 2


def test_objects_that_qupath_computed_are_no_labels(tmp_path):
    cell = feature("Polygon", [ring(0, 0, 5, 5)], objectType="cell")
    old = {**feature("Polygon", [ring(0, 0, 5, 5)]), "id": "PathDetectionObject"}
    del old["properties"]["objectType"]
    path = written(tmp_path, [cell, cell, old, HOLE])
    found, notes = read_geojson(path, MAP)
    assert len(found) == 1
    assert notes == (
        f"{path}: 2 x cell has no area to learn from, skipped",
        f"{path}: 1 x PathDetectionObject has no area to learn from, skipped",
    )


def test_a_ring_that_crosses_itself_is_filled_and_said(tmp_path):
    twice = [*ring(0, 0, 10, 8)[:-1], *ring(0, 0, 6, 5)]  # the even-odd rule would leave out 30 px2
    path = written(tmp_path, [feature("Polygon", [twice, ring(2, 2, 4, 3)])])
    assert area(path) == pytest.approx(80 - 2)
    assert read_geojson(path, MAP)[1][0].endswith("the outline crosses or touches itself, repaired into 1 polygons")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no well-formed JSON"),
        (b"[" * 100_000, "no well-formed JSON"),
        ({"slides": 3}, "entry 0 is no Feature"),
        ([3], "entry 0 is no Feature"),
        ({"type": "FeatureCollection"}, "holds no list of features"),
        ([feature("Polygon", [[[0, 0], ["x", 1], [2, 2]]])], "coordinates that are not pairs of numbers"),
        (b'[{"type":"Feature","geometry":{"type":"Polygon","coordinates":[[[0,0],[NaN,1],[2,2]]]},"properties":'
         b'{"classification":{"name":"Tumor"}}}]', "a coordinate that is not a place on a slide"),
        ([feature("Circle", [1, 2])], "unknown geometry 'Circle'"),
        ([feature("Polygon", [[]][0])], "a polygon without rings"),
        ([feature("Polygon", [ring(0, 0, 5, 5)], name="Immune cells")],
         "unknown group 'Immune cells'; known are normal, tumor. Give it a class with --label_map 'immune cells:CLASS' "
         "or skip it with --ignore_groups 'immune cells'"),
    ],
)  # fmt: skip
def test_errors_name_the_file_and_what_is_wrong(tmp_path, data, said):
    path = written(tmp_path, data)
    with pytest.raises(AnnotationError) as error:
        read_geojson(path, MAP)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)


def test_missing_and_huge_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(AnnotationError, match=r"none\.geojson: cannot be read"):
        read_geojson(tmp_path / "none.geojson", MAP)
    path = written(tmp_path, feature("Polygon", [ring(0, 0, 9, 9)]))
    monkeypatch.setattr("slides.truth.qupath.MAX_BYTES", 100)
    with pytest.raises(AnnotationError, match="annotations of at most 100 bytes are read; omit cells"):
        read_geojson(path, MAP)


def test_annotations_without_a_class_are_an_error(tmp_path, slide):
    path = written(tmp_path, [feature("Polygon", [ring(0, 0, 5, 5)], name=None)])
    with pytest.raises(AnnotationError, match="its only annotation is ignored, as of group None"):
        open_truth(path, slide, MAP)


def test_files_pair_with_or_without_the_suffix_of_the_slide(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "l").mkdir()
    for name in ("a.svs", "b.svs", "c.1.svs"):
        (tmp_path / "s" / name).touch()
    for name in ("a.geojson", "b.svs.geojson", "c.1.geojson"):
        (tmp_path / "l" / name).touch()
    cases = pair(tmp_path / "s", tmp_path / "l", "svs", "geojson")
    assert [case.label_path.name for case in cases if case.label_path] == ["a.geojson", "b.svs.geojson", "c.1.geojson"]


def test_masks_written_from_geojson_are_what_training_sees(tmp_path, slide):
    from preprocessing.xml_to_mask import xml_to_mask
    from slides.truth.mask_truth import MaskTruth

    path = written(tmp_path, [HOLE, TWO])
    xml_to_mask(path, slide, tmp_path / "m.tif", MAP)
    window = Window((0.0, 0.0), (70, 90), (1.0, 1.0))
    np.testing.assert_array_equal(
        MaskTruth(tmp_path / "m.tif", slide).label(window), open_truth(path, slide, MAP).label(window)
    )


def test_camelyon_with_geojson_in_the_folder_of_annotations(tmp_path):
    for name in ("images/normal_1.tif", "images/tumor_1.tif", "annotations/tumor_1.geojson"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    sets = camelyon("16", tmp_path, label_format="geojson")
    assert [case.label_path for case in sets.train] == [None, tmp_path / "annotations/tumor_1.geojson"]
