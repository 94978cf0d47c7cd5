"""Which student layer learns from which teacher layer: one rule for every loss that compares layers.

Layers are counted from 1; hidden state 0, the embedding output, belongs to no map.
"""

from pipeline.base.errors import SettingsError
from pipeline.base.plugins import nearest
from pipeline.families import Shape

CKA = "cka"  # `pipeline.distillation.chosen_maps` puts pairs in its place before training
NAMES = ("uniform", "first", "last", "last_only", CKA)
Pairs = tuple[tuple[int, int], ...]


def layer_pairs(layer_map: str | Pairs, student_layers: int, teacher_layers: int) -> Pairs:
    """Pairs (student layer, teacher layer), counted from 1, that a map stands for.

    Args:
        layer_map: "uniform" spreads the student's layers over the teacher's, the last on the last (s * N / M, rounded
            half to even); "first" and "last" take the teacher's lowest or highest layers in order; "last_only" pairs
            the two last layers; or the pairs themselves. For "cka", whose pairs only the models can tell, the uniform
            ones stand in.
        student_layers: how many layers the student has (M).
        teacher_layers: how many layers the teacher has (N).

    Raises:
        SettingsError: an unknown name, a pair outside the models, or more student layers than teacher layers.

    Source: uniform as in TinyBERT's code, last as in PKD's "last". Both have M divide N; the rounding is ours.
    """
    if not isinstance(layer_map, str):
        return _checked(layer_map, student_layers, teacher_layers)
    if layer_map not in NAMES:
        raise SettingsError(f"map: no layer map '{layer_map}'{nearest(layer_map, NAMES)}, or pairs [student, teacher]")
    if layer_map == "last_only":
        return ((student_layers, teacher_layers),)
    if student_layers > teacher_layers:
        raise SettingsError(
            f"map: '{layer_map}' gives each student layer a teacher layer of its own, but the student has "
            f"{student_layers} layers and the teacher {teacher_layers}; use 'last_only' or write the pairs"
        )
    students = range(1, student_layers + 1)
    if layer_map == "first":
        return tuple((s, s) for s in students)
    if layer_map == "last":
        return tuple((s, teacher_layers - student_layers + s) for s in students)
    # Two student layers never meet on one teacher layer: the targets lie at least 1 apart before rounding, and
    # exactly 1 apart only when they are whole.
    return tuple((s, round(s * teacher_layers / student_layers)) for s in students)


def layer_misfit(layer_map: str | Pairs, student_layers: int, teacher_layers: int) -> str | None:
    """Why a map does not fit two models, or None; for a loss's `misfit`, which reports rather than raises."""
    try:
        layer_pairs(layer_map, student_layers, teacher_layers)
    except SettingsError as error:
        return str(error)
    return None


def heads_misfit(student: Shape, teacher: Shape) -> str | None:
    """Why heads of two models cannot be compared one by one, or None; the message says which losses take any counts."""
    if student.heads == teacher.heads:
        return None
    return (
        f"the student has {student.heads} attention heads and the teacher {teacher.heads}; they must be the same, or "
        "use a loss that compares any: minilm_v2, a2d, attention_mean_kl, or shd for fewer student heads"
    )


def _checked(pairs: Pairs, student_layers: int, teacher_layers: int) -> Pairs:
    if not pairs:
        raise SettingsError("map: the list of pairs is empty; give at least one [student layer, teacher layer]")
    for pair in pairs:
        if not (1 <= pair[0] <= student_layers and 1 <= pair[1] <= teacher_layers):
            raise SettingsError(
                f"map: no pair {list(pair)}; student layers are 1 to {student_layers}, "
                f"teacher layers 1 to {teacher_layers}"
            )
    if len(set(pairs)) < len(pairs):
        raise SettingsError(f"map: a pair stands twice in {[list(pair) for pair in pairs]}; give each once")
    return tuple(pairs)
