"""Comparing class probabilities: the arithmetic that the losses on logits share."""

from jaxtyping import Float
from torch import Tensor

from pipeline.families import Shape


def classes_misfit(student: Shape, teacher: Shape) -> str | None:
    """Why the two models' classes cannot be compared one by one, or None."""
    if student.choices != teacher.choices:
        return f"the student has {student.choices} classes and the teacher {teacher.choices}; they must be the same"
    return None


def softened_log_probs(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"], temperature: float
) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
    """Log-probabilities of the student and of the teacher, float32, with no gradient into the teacher.

    Finite for finite logits: a class that is out of the question has a large negative number and probability 0, so a
    product of the two is 0, not NaN.

    Raises:
        ValueError: temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    log_student = (student.float() / temperature).log_softmax(-1)
    log_teacher = (teacher.detach().float() / temperature).log_softmax(-1)
    return log_student, log_teacher


def class_kl(
    log_target: Float[Tensor, "batch classes"], log_other: Float[Tensor, "batch classes"]
) -> Float[Tensor, " batch"]:
    """KL(target || other) in nats for each example, both given as log-probabilities."""
    return (log_target.exp() * (log_target - log_other)).sum(-1)
