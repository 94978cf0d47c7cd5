"""Functions of each element by itself, of one tensor or of two with NumPy's broadcasting."""

import torch
from torch import Tensor

from pipeline.mil.ops import operation

BINARY, UNARY = "iOS15/elementwise_binary", "iOS15/elementwise_unary"
# The type a cast ends in; the interpreter keeps whole numbers in int64 and wraps them to their width.
CASTS = {
    "fp16": None,
    "fp32": None,
    "fp64": None,
    "bool": torch.bool,
    **dict.fromkeys(("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"), torch.int64),
}


@operation(BINARY)
def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y."""
    return x + y


@operation(BINARY)
def sub(x: Tensor, y: Tensor) -> Tensor:
    """x - y."""
    return x - y


@operation(BINARY)
def mul(x: Tensor, y: Tensor) -> Tensor:
    """x y."""
    return x * y


@operation(BINARY)
def real_div(x: Tensor, y: Tensor) -> Tensor:
    """x / y; of whole numbers, the whole part towards zero."""
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


@operation(BINARY)
def floor_div(x: Tensor, y: Tensor) -> Tensor:
    """The greatest whole number not above x / y."""
    return torch.div(x, y, rounding_mode="floor")


@operation(BINARY)
def mod(x: Tensor, y: Tensor) -> Tensor:
    """x - y floor(x / y): it has the sign of y."""
    return torch.remainder(x, y)


@operation(BINARY, "pow")
def power(x: Tensor, y: Tensor) -> Tensor:
    """x to the power of y."""
    return torch.pow(x, y)


@operation(BINARY)
def maximum(x: Tensor, y: Tensor) -> Tensor:
    """The greater of the two; NaN if either is."""
    return torch.maximum(*torch.broadcast_tensors(x, y))


@operation(BINARY)
def minimum(x: Tensor, y: Tensor) -> Tensor:
    """The lesser of the two; NaN if either is."""
    return torch.minimum(*torch.broadcast_tensors(x, y))


@operation(BINARY)
def equal(x: Tensor, y: Tensor) -> Tensor:
    """x == y."""
    return x == y


@operation(BINARY)
def not_equal(x: Tensor, y: Tensor) -> Tensor:
    """x != y."""
    return x != y


@operation(BINARY)
def greater(x: Tensor, y: Tensor) -> Tensor:
    """x > y."""
    return x > y


@operation(BINARY)
def greater_equal(x: Tensor, y: Tensor) -> Tensor:
    """x >= y."""
    return x >= y


@operation(BINARY)
def less(x: Tensor, y: Tensor) -> Tensor:
    """x < y."""
    return x < y


@operation(BINARY)
def less_equal(x: Tensor, y: Tensor) -> Tensor:
    """x <= y."""
    return x <= y


@operation(BINARY)
def logical_and(x: Tensor, y: Tensor) -> Tensor:
    """Both."""
    return torch.logical_and(x, y)


@operation(BINARY)
def logical_or(x: Tensor, y: Tensor) -> Tensor:
    """Either."""
    return torch.logical_or(x, y)


@operation(BINARY)
def logical_xor(x: Tensor, y: Tensor) -> Tensor:
    """Exactly one."""
    return torch.logical_xor(x, y)


@operation(UNARY)
def logical_not(x: Tensor) -> Tensor:
    """Not."""
    return torch.logical_not(x)


@operation(UNARY)
def cast(x: Tensor, dtype: str) -> Tensor:
    """x in another type: from float to whole numbers towards zero, and wrapping around where they do not fit."""
    wanted = CASTS[dtype]
    if wanted is not None:
        return x.to(wanted)
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


@operation(UNARY, "abs")
def absolute(x: Tensor) -> Tensor:
    """|x|."""
    return x.abs()


@operation(UNARY)
def ceil(x: Tensor) -> Tensor:
    """The least whole number not below x."""
    return x.ceil()


@operation(UNARY)
def floor(x: Tensor) -> Tensor:
    """The greatest whole number not above x."""
    return x.floor()


@operation(UNARY, "round")
def nearest(x: Tensor) -> Tensor:
    """The nearest whole number, the even one of two."""
    return x.round()


@operation(UNARY)
def clip(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Not below alpha and not above beta."""
    return torch.minimum(torch.maximum(x, alpha), beta)


@operation(UNARY)
def threshold(x: Tensor, alpha: Tensor) -> Tensor:
    """Not below alpha."""
    return torch.maximum(x, alpha)


@operation(UNARY)
def cos(x: Tensor) -> Tensor:
    """Cosine."""
    return x.cos()


@operation(UNARY)
def sin(x: Tensor) -> Tensor:
    """Sine."""
    return x.sin()


@operation(UNARY)
def erf(x: Tensor) -> Tensor:
    """Gauss error function."""
    return x.erf()


@operation(UNARY)
def exp(x: Tensor) -> Tensor:
    """e^x."""
    return x.exp()


@operation(UNARY)
def exp2(x: Tensor) -> Tensor:
    """2^x."""
    return x.exp2()


@operation(UNARY)
def inverse(x: Tensor, epsilon: Tensor | float = 1e-4) -> Tensor:
    """1 / (x + epsilon)."""
    return 1 / (x + epsilon)


@operation(UNARY)
def log(x: Tensor, epsilon: Tensor | float = 1e-45) -> Tensor:
    """Natural logarithm of x + epsilon."""
    return (x + epsilon).log()


@operation(UNARY)
def sign(x: Tensor) -> Tensor:
    """-1, 0 or 1."""
    return x.sign()


@operation(UNARY)
def sqrt(x: Tensor) -> Tensor:
    """Square root."""
    return x.sqrt()


@operation(UNARY)
def rsqrt(x: Tensor, epsilon: Tensor | float = 1e-12) -> Tensor:
    """1 / sqrt(x + epsilon)."""
    return 1 / (x + epsilon).sqrt()


@operation(UNARY)
def square(x: Tensor) -> Tensor:
    """x^2."""
    return x * x


@operation(UNARY)
def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return x.tanh()


@operation("iOS15/control_flow")
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where cond holds, b elsewhere."""
    return torch.where(cond, a, b)


@operation("iOS15/tensor_operation")
def identity(x: Tensor) -> Tensor:
    """x."""
    return x
