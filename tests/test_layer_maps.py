"""Layer maps: which student layer learns from which teacher layer."""

import pytest

from pipeline.base.errors import SettingsError
from pipeline.models.layer_maps import layer_misfit, layer_pairs


@pytest.mark.parametrize(
    ("name", "student_layers", "teacher_layers", "expected"),
    [
        ("uniform", 4, 12, ((1, 3), (2, 6), (3, 9), (4, 12))),
        ("uniform", 6, 6, tuple((n, n) for n in range(1, 7))),
        ("uniform", 4, 6, ((1, 2), (2, 3), (3, 4), (4, 6))),  # 1.5 and 4.5 go to the even neighbour
        ("first", 3, 12, ((1, 1), (2, 2), (3, 3))),
        ("last", 3, 12, ((1, 10), (2, 11), (3, 12))),
        ("last_only", 3, 12, ((3, 12),)),
        ("last_only", 6, 2, ((6, 2),)),
        (((1, 5), (3, 12)), 3, 12, ((1, 5), (3, 12))),
    ],
)
def test_a_map_stands_for_these_pairs(name, student_layers, teacher_layers, expected):
    """The pairs of each map, worked by hand."""
    assert layer_pairs(name, student_layers, teacher_layers) == expected


@pytest.mark.parametrize("name", ["uniform", "first", "last"])
def test_every_student_layer_gets_a_teacher_layer_of_its_own(name):
    """Whatever the depths: in order, none twice, none outside the teacher; uniform and last end on the last."""
    for teacher_layers in range(1, 26):
        for student_layers in range(1, teacher_layers + 1):
            pairs = layer_pairs(name, student_layers, teacher_layers)
            teachers = [teacher for _, teacher in pairs]
            assert [student for student, _ in pairs] == list(range(1, student_layers + 1))
            assert teachers == sorted(set(teachers))
            assert teachers[0] >= 1
            assert teachers[-1] == (student_layers if name == "first" else teacher_layers)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unifrom", "no layer map 'unifrom'; did you mean 'uniform'"),
        (((0, 1),), r"no pair \[0, 1\]; student layers are 1 to 2, teacher layers 1 to 4"),
        (((1, 5),), r"no pair \[1, 5\]"),
        (((1, 2), (1, 2)), "a pair stands twice"),
        ((), "empty"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(name, message):
    """The message says what was found and what would do; a loss's misfit says the same."""
    with pytest.raises(SettingsError, match=message):
        layer_pairs(name, 2, 4)
    assert layer_misfit(name, 2, 4)


@pytest.mark.parametrize("name", ["uniform", "first", "last"])
def test_a_student_deeper_than_its_teacher_is_refused(name):
    """Such a student could not have a teacher layer for each of its own."""
    with pytest.raises(SettingsError, match="the student has 4 layers and the teacher 2; use 'last_only'"):
        layer_pairs(name, 4, 2)


def test_a_map_that_fits_is_no_misfit():
    """None says that there is nothing to complain about."""
    assert layer_misfit("uniform", 2, 4) is None
