"""Which signals of which layers a set of losses looks at: nothing else is computed, kept or cached."""

from collections.abc import Iterable, Mapping

from pipeline.base import plugins
from pipeline.families import Shape
from pipeline.losses import LayerLossParams, LossParams
from pipeline.models.layer_maps import layer_pairs
from pipeline.signals.reader import LAYERED

Layers = dict[str, frozenset[int]]


def needs_of(losses: Mapping[str, LossParams], student: Shape, teacher: Shape) -> tuple[Layers, Layers]:
    """The layers, counted from 1, that the losses look at for each signal: the student's and the teacher's.

    0 is the embedding output. Signals that belong to no layer map to an empty set.
    """
    ours: Layers = {}
    theirs: Layers = {}
    for name, params in losses.items():
        file = plugins.load("loss", name)
        if hasattr(file, "layers"):
            small, large = file.layers(student, teacher, params)
        elif isinstance(params, LayerLossParams):
            pairs = layer_pairs(params.map, student.layers, teacher.layers)
            small, large = {s for s, _ in pairs}, {t for _, t in pairs}
        else:
            small, large = range(student.layers + 1), range(teacher.layers + 1)
        for need in file.NEEDS:
            if need not in getattr(file, "TEACHER_ONLY", ()):
                _add(ours, need, small)
            # Labels and the distillation token are the student's alone.
            if need not in ("targets", "token") and getattr(file, "READS_TEACHER", True):
                _add(theirs, need, large)
    return ours, theirs


def reads_teacher(losses: Iterable[str]) -> bool:
    """Whether any of these losses looks at the teacher."""
    return any(getattr(plugins.load("loss", name), "READS_TEACHER", True) for name in losses)


def aligned_by(name: str) -> str:
    """What a loss needs to belong together in the texts of the two models: 'tokens', 'characters' or 'rows'."""
    file = plugins.load("loss", name)
    return getattr(file, "ALIGNED_BY", "rows" if file.KIND == "logit" else "tokens")


def _add(needs: Layers, need: str, layers: Iterable[int]) -> None:
    found: frozenset[int] = frozenset(layers) if need in LAYERED else frozenset()
    if need != "hidden":
        found -= {0}  # the embedding output has no attention
    needs[need] = needs.get(need, frozenset()) | found
