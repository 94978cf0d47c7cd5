"""Reads a `.mlpackage` from disk: its specification as typed operations, its weights from the weight file.

Read from the protocol buffers as they stand, not through coremltools' own builder, which would infer types anew and
could mend on the way what a phone would find broken.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.errors import ModelError
from pipeline.mil.blobs import BITS, WeightFile, unpack

SPECIFICATION, WEIGHTS = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights"
# Version of the specification that each system introduced (coremltools 9.0, coremltools/__init__.py).
SYSTEMS = {6: "iOS15", 7: "iOS16", 8: "iOS17", 9: "iOS18", 10: "iOS26"}
MAX_SPECIFICATION_BYTES, MAX_MANIFEST_BYTES = 256 * 2**20, 2**20
MAX_WEIGHTS_BYTES = 4 * 2**30

DTYPES: dict[str, Any] = {
    "bool": np.bool_,
    "fp16": np.float16,
    "fp32": np.float32,
    "fp64": np.float64,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
}


@dataclass(frozen=True)
class Type:
    """The declared type of a value; a dimension that is not fixed is None."""

    dtype: str
    shape: tuple[int | None, ...] = ()

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join('?' if size is None else str(size) for size in self.shape)}]"


@dataclass(frozen=True, eq=False)
class Constant:
    """A value that stands in the file: an array, a text, a list, or a dictionary."""

    type: Type
    value: Any


Argument = str | Constant


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation: its arguments by parameter name, each a value's name or a constant."""

    kind: str
    name: str
    inputs: Mapping[str, tuple[Argument, ...]]
    outputs: tuple[tuple[str, Type], ...]
    attributes: Mapping[str, Constant] = field(default_factory=dict)

    @property
    def reads(self) -> list[str]:
        """Names of the values that it takes, constants that stand in it left out."""
        return [one for given in self.inputs.values() for one in given if isinstance(one, str)]

    @property
    def place(self) -> str:
        """For messages: kind, and the name of the result, which casts and compression add to and never replace."""
        return f"{self.kind} '{self.outputs[0][0] if self.outputs else self.name}'"


@dataclass(frozen=True)
class InputFact:
    """What the description promises of an input: its type, and every length that is accepted."""

    dtype: str
    lengths: tuple[int, ...] | range


@dataclass(frozen=True, eq=False)
class Package:
    """An ML Program and what its specification says around it."""

    path: Path
    version: int
    inputs: Mapping[str, Type]
    # names of the model's outputs, in the order of the description
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    labels: tuple[str, ...] | None
    # by name, from the description, which is what a phone refuses inputs by
    described: Mapping[str, InputFact]
    # names of the outputs that are the label and the probabilities
    predicted: tuple[str, str]

    @property
    def system(self) -> str:
        """The oldest system that runs it."""
        return SYSTEMS.get(self.version, f"specification version {self.version}")

    def constants(self) -> Iterator[tuple[str, Type, np.ndarray]]:
        """Every numeric constant: its name or 'operation.parameter', declared type, value."""
        for op in self.operations:
            if op.kind == "const":
                found = op.attributes["val"]
                if isinstance(found.value, np.ndarray):
                    yield op.outputs[0][0], found.type, found.value
                continue
            for parameter, arguments in {**{k: (v,) for k, v in op.attributes.items()}, **op.inputs}.items():
                for argument in arguments:
                    if isinstance(argument, Constant) and isinstance(argument.value, np.ndarray):
                        yield f"{op.name}.{parameter}", argument.type, argument.value


def read_package(path: Path) -> Package:
    """The program of a saved package.

    Raises:
        ModelError: it is no ML Program in a package, a part of it is missing, or the weight file does not hold what
            the specification says.
    """
    try:
        return _read(path)
    except (
        KeyError,
        IndexError,
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
        MemoryError,
        RecursionError,
    ) as error:
        raise ModelError(
            f"{path}: its specification is not what an ML Program has: {type(error).__name__}: {error}; export it again"
        ) from error


def _read(path: Path) -> Package:
    manifest = _read_manifest(path)
    spec = _read_specification(path)
    if spec.WhichOneof("Type") != "mlProgram":
        raise ModelError(
            f"{path}: found a Core ML '{spec.WhichOneof('Type')}', expected an ML Program; export it again"
        )
    program = spec.mlProgram
    if list(program.functions) != ["main"]:
        raise ModelError(f"{path}: found functions {sorted(program.functions)}, expected the one function 'main'")
    function = program.functions["main"]
    if function.opset not in function.block_specializations:
        raise ModelError(f"{path}: no block for its own opset '{function.opset}'; export it again")
    _check_system(path, spec.specificationVersion, function.opset)
    block = function.block_specializations[function.opset]
    reader = _Reader(path, manifest)
    try:
        operations = tuple(reader.operation(op) for op in block.operations)
    finally:
        reader.close()
    described = spec.description
    outputs = tuple(value.name for value in described.output)
    computed = {name: kind for op in operations for name, kind in op.outputs}
    if missing := [name for name in outputs if name not in computed]:
        raise ModelError(f"{path}: its description has the output '{missing[0]}', which nothing computes")
    if missing := [name for name in outputs if name not in block.outputs]:
        raise ModelError(
            f"{path}: its description has the output '{missing[0]}', which the program does not give; export it again"
        )
    inputs = {value.name: reader.type(value.type) for value in function.inputs}
    _check_described(path, "input", described.input, inputs)
    if undescribed := sorted(inputs.keys() - {value.name for value in described.input}):
        raise ModelError(f"{path}: its description does not have the input '{undescribed[0]}'; export it again")
    _check_described(path, "output", described.output, computed)
    return Package(
        path=path,
        version=spec.specificationVersion,
        inputs=inputs,
        outputs=outputs,
        operations=operations,
        labels=_labels(operations),
        described={value.name: _described(value.type.multiArrayType) for value in described.input},
        predicted=(described.predictedFeatureName, described.predictedProbabilitiesName),
    )


def _described(array: Any) -> InputFact:
    """The type and the lengths, the last dimension, that a multi-array input accepts."""
    name = array.ArrayDataType.Name(array.dataType).lower()
    flexible = array.WhichOneof("ShapeFlexibility")
    if flexible == "enumeratedShapes":
        return InputFact(name, tuple(sorted({shape.shape[-1] for shape in array.enumeratedShapes.shapes})))
    if flexible == "shapeRange":
        last = array.shapeRange.sizeRanges[-1]
        return InputFact(name, range(last.lowerBound, last.upperBound + 1))
    return InputFact(name, tuple(array.shape[-1:]))


def _check_system(path: Path, version: int, opset: str) -> None:
    """Raises ModelError where the specification is of a version whose systems do not know the operations.

    Operation set 'CoreML8' came with version 9, and so on: coremltools 9.0, `converters/mil/_deployment_compatibility`.
    """
    if version not in SYSTEMS:
        raise ModelError(
            f"{path}: its specification is of version {version}, expected one of {min(SYSTEMS)} to {max(SYSTEMS)}; "
            "export it again"
        )
    needed = int(opset.removeprefix("CoreML")) + 1
    if needed > version:
        raise ModelError(
            f"{path}: its operations are of '{opset}' ({SYSTEMS.get(needed, 'a later system')}), its specification of "
            f"version {version} ({SYSTEMS[version]}), whose systems do not know them; export it again"
        )


def _check_described(path: Path, side: str, described: Any, types: Mapping[str, Type]) -> None:
    """Raises ModelError where the description promises an app another type, rank or size than the program has."""
    for value in described:
        if value.type.WhichOneof("Type") != "multiArrayType":  # the label and its probabilities
            continue
        array, declared = value.type.multiArrayType, types.get(value.name)
        dtype = array.ArrayDataType.Name(array.dataType).lower().replace("float", "fp").replace("double", "fp64")
        shapes = _shapes(array)
        if (
            declared is None
            or dtype != declared.dtype
            or any(
                len(shape) != len(declared.shape)
                or any(size not in (None, found) for found, size in zip(shape, declared.shape, strict=True))
                for shape in shapes
            )
        ):
            found = f"{dtype}{list(shapes[0]) if shapes else ''}"
            raise ModelError(
                f"{path}: its description has the {side} '{value.name}' as {found}, the program as "
                f"{declared or 'nothing'}; export it again"
            )


def _shapes(array: Any) -> list[tuple[int, ...]]:
    """Shapes that a multi-array accepts: the usual one, those that are listed, and both ends of a range."""
    shapes = [tuple(array.shape)] if array.shape else []
    shapes += [tuple(shape.shape) for shape in array.enumeratedShapes.shapes]
    ranges = array.shapeRange.sizeRanges
    if ranges:
        shapes += [tuple(one.lowerBound for one in ranges), tuple(one.upperBound for one in ranges)]
    return shapes


def _read_manifest(path: Path) -> tuple[Path, ...]:
    """The items of the package, files and folders that are there: what is not listed does not come to a phone."""
    manifest = json.loads(_content(path, "Manifest.json", MAX_MANIFEST_BYTES))
    entries = manifest["itemInfoEntries"]
    root = entries[manifest["rootModelIdentifier"]]["path"]
    if root != SPECIFICATION.removeprefix("Data/"):
        raise ModelError(f"{path}: its manifest names the model '{root}', expected '{SPECIFICATION}'; export it again")
    data = (path / "Data").resolve()
    items = []
    for entry in entries.values():
        item = (data / entry["path"]).resolve()
        if not item.is_relative_to(data) or item == data or not item.exists():
            raise ModelError(
                f"{path}: its manifest lists '{entry['path']}', which is nothing inside the package; export it again"
            )
        items.append(item)
    return tuple(items)


def _read_specification(path: Path) -> Any:
    from google.protobuf.message import DecodeError

    from pipeline.mil.quiet import import_specification

    spec = import_specification().Model_pb2.Model()
    try:
        spec.ParseFromString(_content(path, SPECIFICATION, MAX_SPECIFICATION_BYTES))
    except DecodeError as error:
        raise ModelError(
            f"{path}: {SPECIFICATION} cannot be read as a Core ML specification: {error}; export it again"
        ) from error
    return spec


def _content(path: Path, name: str, most_bytes: int) -> bytes:
    """A regular file inside the package, up to a size."""
    file = path / name
    if not file.is_file() or not file.resolve().is_relative_to(path.resolve()):
        raise ModelError(f"{path}: no Core ML package: '{name}' is no file inside it; export it again")
    with file.open("rb") as opened:
        content = opened.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ModelError(f"{file}: beyond {most_bytes:,} bytes; export it again")
    return content


def _labels(operations: Sequence[Operation]) -> tuple[str, ...] | None:
    """The class labels, in the order of the probabilities, when the program ends in a classifier."""
    for op in operations:
        if op.kind == "classify":
            (classes,) = op.inputs["classes"]
            if isinstance(classes, Constant):
                return tuple(str(label) for label in classes.value)
    return None


class _Reader:
    """Turns the messages of one program into operations."""

    def __init__(self, path: Path, items: tuple[Path, ...]) -> None:
        from pipeline.mil.quiet import import_specification

        self._path = path
        self._items = items  # of the manifest
        self._enum = import_specification().MIL_pb2.DataType
        self._files: dict[str, WeightFile] = {}
        self._bytes = 0  # of all constants: a blob may be named any number of times

    def close(self) -> None:
        """Lets go of the weight files; what was read stays."""
        for file in self._files.values():
            file.close()

    def operation(self, message: Any) -> Operation:
        """One operation with its constants read."""
        if message.blocks:
            raise ModelError(
                f"{self._path}: operation {message.type} has blocks of its own (control flow), which is not executed "
                "here; an encoder has none"
            )
        attributes = {
            name: self.constant(value, f"{message.type}.{name}") for name, value in message.attributes.items()
        }
        named = attributes.pop("name", None)
        outputs = tuple((value.name, self.type(value.type)) for value in message.outputs)
        inputs = {
            name: tuple(
                binding.name
                if binding.WhichOneof("binding") == "name"
                else self.constant(binding.value, f"{message.type}.{name}")
                for binding in argument.arguments
            )
            for name, argument in message.inputs.items()
        }
        name = named.value if named is not None else outputs[0][0] if outputs else "?"
        return Operation(message.type, str(name), inputs, outputs, attributes)

    def type(self, message: Any) -> Type:
        """A declared type; a list or dictionary is its own dtype."""
        kind = message.WhichOneof("type")
        if kind != "tensorType":
            return Type((kind or "unknown").removesuffix("Type"))
        tensor = message.tensorType
        name = self._enum.Name(tensor.dataType).lower()
        sizes = tuple(d.constant.size if d.WhichOneof("dimension") == "constant" else None for d in tensor.dimensions)
        return Type(name.replace("float", "fp"), sizes)

    def constant(self, message: Any, place: str) -> Constant:
        """A value that stands in the specification or in a weight file."""
        declared = self.type(message.type)
        if message.WhichOneof("value") == "blobFileValue":
            stored = message.blobFileValue
            return Constant(declared, self._from_file(stored.fileName, stored.offset, declared, place))
        immediate = message.immediateValue
        kind = immediate.WhichOneof("value")
        if kind == "list":
            return Constant(declared, [self.constant(value, place).value for value in immediate.list.values])
        if kind == "dictionary":
            pairs = [
                (self.constant(item.key, place).value, self.constant(item.value, place).value)
                for item in immediate.dictionary.values
            ]
            return Constant(declared, dict(pairs))
        if kind != "tensor":
            raise ModelError(
                f"{self._path}: {place} holds a value of kind '{kind}', which is not known; export it again"
            )
        return Constant(declared, self._immediate(immediate.tensor, declared, place))

    def _immediate(self, tensor: Any, declared: Type, place: str) -> Any:
        shape = tuple(size or 0 for size in declared.shape)
        count = math.prod(shape)
        kind = tensor.WhichOneof("value")
        values: Any = getattr(tensor, kind).values if kind is not None else ()
        if declared.dtype == "string":
            return str(values[0]) if not shape else [str(value) for value in values]
        if kind == "bytes":
            array = unpack(values, declared.dtype, count, f"{self._path}: {place}")
        else:
            array = np.asarray(values).astype(DTYPES[declared.dtype])
        if array.size != count:
            raise ModelError(f"{self._path}: {place} has {array.size} values, declared {declared}; export it again")
        return array.reshape(shape)

    def _from_file(self, name: str, offset: int, declared: Type, place: str) -> np.ndarray:
        prefix = "@model_path/"
        file = (self._path / SPECIFICATION).parent / name.removeprefix(prefix)
        inside = file.resolve().is_relative_to(self._path.resolve())
        if not name.startswith(prefix) or not inside:
            raise ModelError(f"{self._path}: {place} lies in '{name}', expected a file inside the package")
        if not any(file.resolve().is_relative_to(item) for item in self._items):
            raise ModelError(
                f"{self._path}: {place} lies in '{name}', which its manifest does not list; export it again"
            )
        if name not in self._files:
            self._files[name] = WeightFile(file, MAX_WEIGHTS_BYTES)
        if declared.dtype not in BITS:
            raise ModelError(f"{self._path}: {place} is {declared}, which no weight file holds; export it again")
        shape = tuple(size or 0 for size in declared.shape)
        self._bytes += math.prod(shape) * max(8, BITS[declared.dtype]) // 8
        if self._bytes > MAX_WEIGHTS_BYTES:
            raise ModelError(f"{self._path}: its constants are beyond {MAX_WEIGHTS_BYTES:,} bytes; export it again")
        return self._files[name].read(offset, declared.dtype, math.prod(shape), place).reshape(shape)
