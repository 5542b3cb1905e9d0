"""Outlines of predictions: exact edges, how far simplified ones may lie, and files that read back to the same areas."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import shapely

from inference import annotations
from inference.annotations import write_asap, write_geojson
from inference.polygons import Region, regions
from slides.geometry import Window
from slides.reader import Slide
from slides.synthetic.demo import position_coded
from slides.truth.annotation import DEFAULT_LABEL_MAP
from slides.truth.asap_areas import asap_label_map
from slides.truth.asap_areas import filled_holes as holes_of
from slides.truth.raster import edges_of, rasterize
from slides.truth.xml_truth import XmlTruth
from tests.support.maps_on_disk import write_maps

NAMES = {0: "normal", 1: "tumor", 2: "benign", 3: "necrosis"}


def filled_holes(found):
    return holes_of([region.polygon for region in found])


def drawn(text):
    return np.array([[int(px) if px.isdigit() else 0 for px in row] for row in text.split()], np.uint8)


def corners(polygon):
    """Rings as sets of corners, shell first."""
    return [set(map(tuple, np.asarray(ring.coords).tolist())) for ring in (polygon.exterior, *polygon.interiors)]


def label_of(found, size_xy, step=1.0):
    """Class of each px of a grid by the centers that the polygons hold."""
    label = np.zeros((round(size_xy[1] / step), round(size_xy[0] / step)), np.uint8)
    for region in found:
        label[rasterize(edges_of([region.polygon]), Window((0.0, 0.0), label.shape, (step, step)))] = region.cls
    return label


def slide_of(size_xy):
    """What XmlTruth asks of a slide."""
    return SimpleNamespace(id="a", size_xy_l0=size_xy, path="a.tif")


def read_back(path, size_xy, label_map=DEFAULT_LABEL_MAP, step=1.0):
    truth = XmlTruth(path, slide_of(size_xy), label_map)
    hw = round(size_xy[1] / step), round(size_xy[0] / step)
    return truth.label(Window((0.0, 0.0), hw, (step, step)))


def test_outlines_are_the_edges_of_px_in_level_0(tmp_path):
    """Steps of 4 and 8 level-0 px; half a px off would be 2 and 4."""
    maps = write_maps(tmp_path, drawn("...... .111.. .1.1.. .111.. ......"), step_xy=(4.0, 8.0))
    found, small = regions(maps, simplify_um=0)
    assert small == 0
    assert len(found) == 1
    assert corners(found[0].polygon) == [
        {(4, 8), (16, 8), (16, 32), (4, 32)},
        {(8, 16), (12, 16), (12, 24), (8, 24)},
    ]
    assert found[0].cls == 1
    assert found[0].area_um2 == pytest.approx(8 * (4 * 0.25) * (8 * 0.25))
    assert found[0].probability == 1.0


def test_outlines_at_the_border_end_with_the_slide(tmp_path):
    """Three px of 4.5 level-0 px over 12 columns, two over 8 rows: 13.5 and 9 reach beyond."""
    maps = write_maps(tmp_path, drawn("..1 ..1"), step_xy=(4.5, 4.5), size_xy_l0=(12, 8))
    found, _ = regions(maps, simplify_um=0)
    assert corners(found[0].polygon) == [{(9, 0), (12, 0), (12, 8), (9, 8)}]
    assert found[0].area_um2 == 24 * 0.0625


def test_px_that_begin_where_the_slide_ends_have_no_outline(tmp_path):
    """12 / 4 = 3 columns; a quotient a last bit larger is rounded up to 4."""
    maps = write_maps(tmp_path, drawn("..11 ..11 .1.1"), size_xy_l0=(12, 8))
    found, _ = regions(maps, simplify_um=0)
    assert [corners(region.polygon) for region in found] == [[{(8, 0), (12, 0), (12, 8), (8, 8)}]]
    assert [corners(region.polygon) for region in regions(maps)[0]] == [corners(found[0].polygon)]


def test_no_prediction_gives_no_outline(tmp_path):
    maps = write_maps(tmp_path, np.zeros((5, 7)))
    assert regions(maps) == ([], 0)
    write_geojson(tmp_path / "a.geojson", [], NAMES)
    write_asap(tmp_path / "a.xml", [], NAMES)
    assert json.loads((tmp_path / "a.geojson").read_text()) == {"type": "FeatureCollection", "features": []}
    assert (read_back(tmp_path / "a.xml", (28, 20)) == 0).all()


def test_everything_tumor_is_the_whole_slide(tmp_path):
    maps = write_maps(tmp_path, np.ones((5, 7)), size_xy_l0=(27, 18))
    found, _ = regions(maps)
    assert corners(found[0].polygon) == [{(0, 0), (27, 0), (27, 18), (0, 18)}]


def test_one_px_of_tumor_stays_itself(tmp_path):
    label = np.zeros((40, 30))
    label[7, 9] = 1
    maps = write_maps(tmp_path, label, label * 128)
    found, _ = regions(maps)
    assert corners(found[0].polygon) == [{(36, 28), (40, 28), (40, 32), (36, 32)}]
    assert found[0].probability == 128 / 255


def test_regions_below_the_least_area_are_left_out_and_counted(tmp_path):
    maps = write_maps(tmp_path, drawn("1....11 .....1. .1.1..."))
    found, small = regions(maps, min_area_um2=2.5)
    assert [region.area_um2 for region in found] == [3.0]
    assert small == 3
    assert len(regions(maps, min_area_um2=1.0)[0]) == 4


def test_mean_probability_of_each_region(tmp_path):
    label = drawn("11..1 .1..1 11... .....")
    probability = np.array([[10, 20, 255, 0, 200], [0, 30, 0, 0, 100], [40, 50, 0, 0, 0], [0] * 5])
    found, _ = regions(write_maps(tmp_path, label, probability))
    assert [region.probability for region in found] == pytest.approx([30 / 255, 150 / 255])


def test_regions_come_by_class_and_in_reading_order_with_their_own_probability(tmp_path):
    maps = write_maps(tmp_path, drawn("...2.1 3....1 .11..."), classes=4)
    found, _ = regions(maps)
    assert [region.cls for region in found] == [1, 1, 2, 3]
    assert [region.polygon.bounds[:2] for region in found] == [(20, 0), (4, 8), (12, 0), (0, 4)]
    assert [region.probability for region in found] == pytest.approx([201 / 255, 201 / 255, 202 / 255, 203 / 255])


def test_large_maps_are_outlined_on_a_coarser_level(tmp_path, monkeypatch):
    label = np.zeros((100, 60))
    label[33, 21] = 1
    maps = write_maps(tmp_path, label)
    real = maps.label.finest
    monkeypatch.setattr(maps.label, "finest", lambda: real(1600))
    found, _ = regions(maps)
    # The px of the level of 30 x 50 px: columns 20-21, rows 32-33.
    assert corners(found[0].polygon) == [{(80, 128), (88, 128), (88, 136), (80, 136)}]


# Simplified outlines


def blobs(hw, seed=0, sigma=4.0, classes=2):
    """Smooth regions with holes and islands."""
    noise = np.random.default_rng(seed).normal(size=hw).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), sigma)
    return np.digitize(smooth / smooth.std(), [0.0, 0.6, 1.2][: classes - 1]).astype(np.uint8)


def farthest(one, other):
    """Largest distance from a point of one outline to the other."""
    points = shapely.points(shapely.get_coordinates(shapely.segmentize(one, 0.05)))
    tree = shapely.STRtree([shapely.LineString(pair) for pair in zip(other.coords, other.coords[1:], strict=False)])
    return tree.query_nearest(points, return_distance=True, all_matches=False)[1].max()


@pytest.mark.parametrize(("step_xy", "um"), [((4.0, 4.0), 2.0), ((4.0, 8.0), 3.0), ((4.0, 4.0), 0.7)])
def test_simplified_outlines_are_near_the_exact_ones_valid_and_disjoint(tmp_path, step_xy, um):
    maps = write_maps(tmp_path, blobs((120, 170), sigma=6.0, classes=3), step_xy=step_xy, classes=3)
    exact, _ = regions(maps, simplify_um=0)
    simple, _ = regions(maps, simplify_um=um)
    assert len(exact) == len(simple) > 8
    before, after = (sum(shapely.get_num_coordinates(r.polygon) for r in found) for found in (exact, simple))
    assert after < 0.7 * before
    assert sum(len(region.polygon.interiors) for region in exact) > 3
    for a, b in zip(exact, simple, strict=True):
        assert b.polygon.is_valid
        assert len(a.polygon.interiors) == len(b.polygon.interiors)
        assert a.area_um2 == b.area_um2
        assert b.polygon.area == pytest.approx(a.polygon.area, rel=0.1)
        for ring, other in zip(
            (a.polygon.exterior, *a.polygon.interiors), (b.polygon.exterior, *b.polygon.interiors), strict=True
        ):
            ring_um, other_um = (shapely.transform(r, lambda xy: xy * 0.25) for r in (ring, other))
            assert farthest(ring_um, other_um) <= um + 0.001
            assert farthest(other_um, ring_um) <= um + 0.001
    whole = shapely.union_all([region.polygon for region in simple])
    assert whole.area == pytest.approx(sum(region.polygon.area for region in simple), rel=1e-9)


def test_the_default_is_two_px_of_the_map(tmp_path):
    maps = write_maps(tmp_path, blobs((120, 170)))
    assert regions(maps)[0] == regions(maps, simplify_um=2.0)[0]
    assert regions(maps)[0] != regions(maps, simplify_um=1.9)[0]


@pytest.mark.parametrize("seed", [1, 2, 4, 10])
def test_simple_outlines_do_not_cross(tmp_path, seed):
    """Two regions with a wandering gap of one px between them: each simplified for itself, they would overlap."""
    steps = np.random.default_rng(seed).integers(-1, 2, 60)
    top = 20 + np.cumsum(steps).clip(-4, 4)
    label = np.ones((60, 60), np.uint8)
    for column in range(60):
        ends = top[column], top[min(column + 1, 59)]
        label[min(ends) : max(ends) + 1, column] = 0
    found, _ = regions(write_maps(tmp_path, label), simplify_um=2.0)
    assert len(found) == 2
    assert shapely.intersection(found[0].polygon, found[1].polygon).area == 0
    assert all(region.polygon.is_valid for region in found)


# Files

NESTED = """
..............
.1111111111...
.1........1...
.1.111111.1...
.1.1....1.1.2.
.1.1.11.1.1...
.1.1....1.1.11
.1.111111.1.1.
.1........1.11
.1111111111...
..............
"""


def test_geojson_is_what_qupath_reads(tmp_path):
    label = drawn("...... .111.. .1.1.. .111.. .....2")
    maps = write_maps(tmp_path, label, classes=3)
    found, _ = regions(maps)
    path = tmp_path / "a.geojson"
    write_geojson(path, found, {0: "normal", 1: 'tumor "ä"', 2: "benign"})
    features = json.loads(path.read_text())["features"]
    assert [feature["type"] for feature in features] == ["Feature", "Feature"]
    assert features[1]["properties"] == {
        "objectType": "annotation",
        "classification": {"name": "benign", "color": [0, 114, 178]},
        "measurements": {"Probability mean": 0.792157, "Area um^2": 1.0},
    }
    assert features[0]["properties"]["classification"] == {"name": 'tumor "ä"', "color": [213, 94, 0]}
    assert features[0]["properties"]["measurements"] == {"Probability mean": 0.788235, "Area um^2": 8.0}
    rings = features[0]["geometry"]["coordinates"]
    assert features[0]["geometry"]["type"] == "Polygon"
    assert [ring[0] == ring[-1] for ring in rings] == [True, True]
    assert [set(map(tuple, ring)) for ring in rings] == corners(found[0].polygon)
    for feature, region in zip(features, found, strict=True):
        assert shapely.geometry.shape(feature["geometry"]).equals(region.polygon)


def test_a_hole_is_an_exclusion_as_in_camelyon(tmp_path):
    found, _ = regions(write_maps(tmp_path, drawn("...... .111.. .1.1.. .111..")))
    write_asap(tmp_path / "a.xml", found, NAMES)
    text = (tmp_path / "a.xml").read_text()
    assert text.count('PartOfGroup="_0"') == 1
    assert text.count('PartOfGroup="_2"') == 1
    truth = XmlTruth(tmp_path / "a.xml", slide_of((24, 16)))
    assert truth.notes == ()
    assert [corners(polygon) for polygon in truth.regions(1)] == [corners(found[0].polygon)]


@pytest.mark.parametrize("touching", [False, True])
def test_islands_in_holes_read_back(tmp_path, touching):
    """A ring in the hole of a ring, with an island of two px in its own hole."""
    label = drawn(NESTED)
    label[label == 2] = 1
    if touching:
        label[4, 9] = label[4, 7] = 1  # the inner ring joined to the outer one, and touching its island at a corner
    maps = write_maps(tmp_path, label)
    found, _ = regions(maps, simplify_um=0)
    assert max(map(sum, filled_holes(found))) == 1
    write_asap(tmp_path / "a.xml", found, NAMES)
    size = label.shape[1] * 4, label.shape[0] * 4
    expected = np.kron(label, np.ones((4, 4), np.uint8))
    np.testing.assert_array_equal(label_of(found, size), expected)
    np.testing.assert_array_equal(read_back(tmp_path / "a.xml", size), expected)


def test_only_holes_with_something_in_them_are_entered(tmp_path):
    label = drawn("1111111 1.1...1 111.1.1 1.1...1 1111111")
    found, _ = regions(write_maps(tmp_path, label))
    assert [sorted(filled) for filled in filled_holes(found)] == [[False, False, True], []]
    write_asap(tmp_path / "a.xml", found, NAMES)
    assert (tmp_path / "a.xml").read_text().count('PartOfGroup="_2"') == 2


def test_more_classes_nested_in_each_other_read_back(tmp_path):
    label = drawn("......... .1111111. .1222221. .1211121. .1213121. .1211121. .1222221. .1111111. .........")
    maps = write_maps(tmp_path, label, classes=4)
    found, _ = regions(maps)
    write_asap(tmp_path / "a.xml", found, NAMES)
    assert asap_label_map(4) == {"_0": 1, "class_2": 2, "class_3": 3, "_2": 0}
    expected = np.kron(label, np.ones((4, 4), np.uint8))
    np.testing.assert_array_equal(read_back(tmp_path / "a.xml", (36, 36), asap_label_map(4)), expected)


@pytest.mark.parametrize(("classes", "step_xy"), [(2, (4.0, 4.0)), (4, (4.115226171875, 4.0)), (2, (3.3, 6.7))])
def test_any_map_reads_back_as_its_polygons(tmp_path, classes, step_xy):
    label = blobs((90, 130), seed=classes, sigma=2.5, classes=classes)
    maps = write_maps(tmp_path, label, step_xy=step_xy, classes=classes)
    found, _ = regions(maps, simplify_um=1.5)
    write_asap(tmp_path / "a.xml", found, NAMES)
    back = read_back(tmp_path / "a.xml", maps.size_xy_l0, asap_label_map(classes))
    np.testing.assert_array_equal(back, label_of(found, maps.size_xy_l0))
    # And they are about the label map itself.
    under = label[
        ((np.arange(back.shape[0]) + 0.5) / step_xy[1]).astype(int)[:, None],
        ((np.arange(back.shape[1]) + 0.5) / step_xy[0]).astype(int),
    ]
    assert (back == under).mean() > 0.94


def test_a_real_slide_reads_the_xml(tmp_path):
    """Through `Slide`, not a stand-in, and a name that needs escaping."""
    position_coded(tmp_path / "ä 'b' & \"c\".tif", (90, 70), tile=16)
    slide = Slide(tmp_path / "ä 'b' & \"c\".tif")
    label = np.zeros((18, 23), np.uint8)
    label[3:9, 5:20] = 1
    maps = write_maps(tmp_path / "maps", label, size_xy_l0=slide.size_xy_l0)
    found, _ = regions(maps)
    write_asap(tmp_path / "ä 'b' & \"c\".xml", found, {0: "a", 1: "<tumor> & 'ä' \"b\""})
    truth = XmlTruth(tmp_path / "ä 'b' & \"c\".xml", slide)
    np.testing.assert_array_equal(
        truth.label(Window((0.0, 0.0), (70, 90), (1.0, 1.0))), np.kron(label, np.ones((4, 4)))[:70, :90]
    )


def test_nothing_is_left_when_writing_fails(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    square = Region(1, shapely.box(0, 0, 4, 4), 1.0, 1.0)
    monkeypatch.setattr(annotations, "_feature", full)
    monkeypatch.setattr(annotations, "outlines_of", full)
    for write, name in ((write_geojson, "a.geojson"), (write_asap, "a.xml")):
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path / name, [square], NAMES)
    assert list(tmp_path.iterdir()) == []
