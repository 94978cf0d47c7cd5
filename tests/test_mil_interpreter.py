"""Reading a package and executing its program: types, rounding, batches, and what may be wrong with a file."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.mlpackage import quiet_conversion
from pipeline.base.errors import ModelError
from pipeline.mil import package
from pipeline.mil.blobs import BITS, WeightFile, unpack
from pipeline.mil.counts import count
from pipeline.mil.interpreter import Interpreter
from pipeline.mil.package import SPECIFICATION, WEIGHTS, read_package
from pipeline.mil.quiet import import_coremltools


def save(
    path: Path, build: Callable[[Any, Any], Any], inputs: dict[str, tuple[int, ...]], precision: str = "fp32"
) -> Path:
    """A package with one function, written by coremltools; `build` gets its builder and the inputs."""
    ct = import_coremltools()
    from coremltools.converters.mil import Builder

    specs = [Builder.TensorSpec(shape) for shape in inputs.values()]
    names = list(inputs)
    scope: dict[str, Any] = {"Builder": Builder, "build": build, "specs": specs, "target": ct.target.iOS18}
    arguments = ", ".join(names)
    exec(  # the builder takes the names of inputs from the function's signature
        f"@Builder.program(input_specs=specs, opset_version=target)\ndef made({arguments}):\n"
        f"    return build(Builder, {arguments})",
        scope,
    )
    with quiet_conversion():
        model = ct.convert(
            scope["made"],
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT32 if precision == "fp32" else ct.precision.FLOAT16,
            pass_pipeline=ct.PassPipeline.EMPTY if precision == "fp32" else ct.PassPipeline.DEFAULT,
            skip_model_load=True,
        )
        model.save(str(path))
    return path


def run(path: Path, **inputs: np.ndarray) -> np.ndarray:
    """The only output, for a batch."""
    given = {name: torch.tensor(value) for name, value in inputs.items()}
    (found,) = Interpreter(read_package(path)).run(given).values()
    return found.numpy()


WEIGHT = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x W^T in fp32, its weight in the weight file."""
    path = tmp_path_factory.mktemp("product") / "model.mlpackage"
    return save(path, lambda mb, x: mb.linear(x=x, weight=WEIGHT, name="only"), {"x": (1, 48)})


# --- what is computed --------------------------------------------------------------------------------------------


def test_a_batch_is_answered_as_its_texts_one_by_one(product: Path) -> None:
    """vmap changes nothing but the time."""
    x = np.random.default_rng(1).normal(size=(5, 1, 48)).astype(np.float32)
    together = run(product, x=x)
    assert together.shape == (5, 1, 64)
    np.testing.assert_allclose(together, x @ WEIGHT.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        together, np.concatenate([run(product, x=x[i : i + 1]) for i in range(5)]), rtol=1e-5, atol=1e-5
    )


def test_fp16_is_rounded_after_each_operation_and_exact_is_not(tmp_path: Path) -> None:
    """2048 + 1 is 2048 in fp16, twice; exactly it is 2050."""
    path = save(
        tmp_path / "m.mlpackage",
        lambda mb, x: mb.add(x=mb.add(x=x, y=np.float32(1)), y=np.float32(1)),
        {"x": (1,)},
        "fp16",
    )
    given = {"x": torch.tensor([[2048.0]])}
    stored, exact = (Interpreter(read_package(path), exact=exact) for exact in (False, True))
    assert next(iter(stored.run(given).values())).item() == 2048
    assert next(iter(exact.run(given).values())).item() == 2050


def test_an_overflow_stays_and_is_counted_where_it_is_born(tmp_path: Path) -> None:
    """60,000 x 2 is infinite in fp16, and 0 x infinity NaN: one birth, at the first; fp32 has none."""

    def build(mb: Any, x: Any) -> Any:
        large = mb.mul(x=x, y=np.float32(2), name="doubled")
        return mb.mul(x=large, y=np.float32(0), name="cleared")

    half, full = (save(tmp_path / f"{p}.mlpackage", build, {"x": (1, 3)}, p) for p in ("fp16", "fp32"))
    x = torch.tensor([[[60000.0, 1.0, -60000.0]], [[1.0, 2.0, 3.0]]])
    interpreter = Interpreter(read_package(half))
    (found,) = interpreter.overflows({"x": x})
    assert "'doubled" in found.place and (found.elements, found.texts) == (2, 1)
    (answer,) = interpreter.run({"x": x}).values()
    assert answer[0].isnan().tolist() == [[True, False, True]] and answer[1].isfinite().all()
    assert Interpreter(read_package(full)).overflows({"x": x}) == []


def test_each_of_several_results_is_looked_at(tmp_path: Path) -> None:
    """The second part of a split overflows; the first does not."""

    def build(mb: Any, x: Any) -> Any:
        doubled = mb.mul(x=x, y=np.float32(2))
        first, second = mb.split(x=doubled, num_splits=2, axis=1, name="parts")
        return mb.sub(x=first, y=mb.square(x=second))

    path = save(tmp_path / "m.mlpackage", build, {"x": (1, 2)}, "fp16")
    interpreter = Interpreter(read_package(path))
    ranges = interpreter.ranges({"x": torch.tensor([[[1.0, 400.0]]])})
    assert sorted(found.high for name, found in ranges.items() if "parts" in name) == [2, 800]
    (found,) = interpreter.overflows({"x": torch.tensor([[[1.0, 400.0]]])})
    assert found.place.startswith("square")
    assert set(interpreter.shapes({"x": torch.ones(1, 1, 2)}).values()) == {(1, 2), (1, 1)}


def test_what_a_program_does_is_counted(tmp_path: Path) -> None:
    """A linear layer, two matrix products with one operand turned, a convolution and an einsum, by hand."""
    rng = np.random.default_rng(5)

    def build(mb: Any, input_ids: Any, attention_mask: Any) -> Any:
        x = mb.mul(x=input_ids, y=attention_mask)  # (1, 4)
        wide = mb.linear(x=x, weight=rng.normal(size=(6, 4)).astype(np.float32))  # 24
        turned = mb.matmul(x=wide, y=wide, transpose_x=True)  # (6, 6) over 1: 36
        product = mb.matmul(x=turned, y=turned)  # (6, 6) over 6: 216
        image = mb.reshape(x=product, shape=[1, 6, 1, 6])
        kernel = rng.normal(size=(3, 6, 1, 1)).astype(np.float32)
        drawn = mb.conv(x=image, weight=kernel)  # (1, 3, 1, 6) over 6: 108
        other = mb.transpose(x=drawn, perm=[0, 3, 2, 1])  # (1, 6, 1, 3)
        return mb.einsum(values=(drawn, other), equation="nchw,nwhu->nchu")  # (1, 3, 1, 3) over 6: 54

    path = save(tmp_path / "m.mlpackage", build, {"input_ids": (1, 4), "attention_mask": (1, 4)})
    interpreter = Interpreter(read_package(path))
    counts = count(interpreter, 4)
    assert counts.multiply_accumulates == 24 + 36 + 216 + 108 + 54
    assert counts.operations == len(interpreter.operations) == 8
    # inputs are not results; each result is written once and read as often as it is asked for
    written = 4 + 6 + 36 + 36 + 36 + 18 + 18 + 9
    read = 4 + 2 * 6 + 2 * 36 + 36 + 36 + 18 + 2 * 18
    assert counts.activation_bytes == 4 * (written + read)
    assert counts.weight_bytes >= 4 * (24 + 18)


def test_ranges_are_over_all_texts(product: Path) -> None:
    """Not those of the last one, as coremltools' own calibration has it."""
    x = np.random.default_rng(2).normal(size=(4, 1, 48)).astype(np.float32)
    x[0] *= 100
    (found,) = Interpreter(read_package(product)).ranges({"x": torch.tensor(x)}).values()
    assert found.high == pytest.approx((x @ WEIGHT.T).max(), rel=1e-5)
    assert found.low == pytest.approx((x @ WEIGHT.T).min(), rel=1e-5)


@pytest.mark.parametrize("axes", [(-1,), (1,), (1, 2)])
def test_sums_of_squares_of_a_layer_norm_are_what_was_seen(tmp_path: Path, axes: tuple[int, ...]) -> None:
    """Over its own axes, of all texts; of other operations none. The width times the largest x^2 is far more."""
    x = np.random.default_rng(3).normal(size=(4, 1, 96, 3)).astype(np.float32)
    x[2, 0, 7, 1] = 40.0
    path = save(
        tmp_path / "m.mlpackage",
        lambda mb, x: mb.mul(x=mb.layer_norm(x=x, axes=list(axes), name="normed"), y=np.float32(2)),
        {"x": (1, 96, 3)},
    )
    ranges = Interpreter(read_package(path)).ranges({"x": torch.tensor(x)})
    over = tuple(axis + 1 if axis > 0 else axis for axis in axes)
    expected = ((x - x.mean(over, keepdims=True)) ** 2).sum(over).max()
    found = [one.squares for one in ranges.values()]
    assert found == [pytest.approx(float(expected), rel=1e-5), 0.0]
    assert axes != (1,) or expected < 96 * 40.0**2 / 50


@pytest.mark.parametrize(
    ("dtype", "given", "kept"),
    [("int16", 40_000, -25_536), ("uint16", 65_537, 1), ("uint8", -1, 255), ("int8", 200, -56)],
)
def test_narrow_integers_wrap(tmp_path: Path, dtype: str, given: int, kept: int) -> None:
    """An id that does not fit becomes another one, as in two's complement."""

    def build(mb: Any, x: Any) -> Any:
        return mb.cast(x=mb.cast(x=x, dtype=dtype), dtype="fp32")

    assert run(save(tmp_path / "m.mlpackage", build, {"x": (1,)}), x=np.array([[given]], np.float32)).item() == kept


# --- what may be wrong with a file -------------------------------------------------------------------------------


@pytest.fixture
def copy(product: Path, tmp_path: Path) -> Path:
    """A package to break."""
    return Path(shutil.copytree(product, tmp_path / "broken.mlpackage"))


def edit(package: Path, change: Callable[[Any], None]) -> Path:
    """Changes the specification of a saved package."""
    ct = import_coremltools()
    spec = ct.utils.load_spec(str(package))
    change(spec)
    (package / SPECIFICATION).write_bytes(spec.SerializeToString())
    return package


def block_of(spec: Any) -> Any:
    function = spec.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


def test_an_unknown_operation_says_which_where_and_what_is_near(copy: Path) -> None:
    """Nothing is guessed."""

    def rename(spec: Any) -> None:
        next(op for op in block_of(spec).operations if op.type == "linear").type = "liner"

    with pytest.raises(
        ModelError, match=r"operation liner 'only' is not known.*did you mean 'linear'\? known: abs, add"
    ):
        Interpreter(read_package(edit(copy, rename)))


def test_control_flow_is_refused(copy: Path) -> None:
    """No encoder has any."""
    with pytest.raises(ModelError, match="blocks of its own"):
        read_package(edit(copy, lambda spec: block_of(spec).operations[0].blocks.add()))


def test_a_weight_of_another_shape_is_refused(copy: Path) -> None:
    """48 x 64 where 64 x 48 was: what the linear layer gives is not what is declared."""

    def turn(spec: Any) -> None:
        for op in block_of(spec).operations:
            for value in [*op.attributes.values(), *(b.value for a in op.inputs.values() for b in a.arguments)]:
                sizes = [d.constant.size for d in value.type.tensorType.dimensions]
                if sizes == [64, 48]:
                    for dimension, size in zip(value.type.tensorType.dimensions, (48, 64), strict=True):
                        dimension.constant.size = size

    with pytest.raises(ModelError, match=r"linear 'only' cannot be executed.*export it again"):
        run(edit(copy, turn), x=np.ones((1, 1, 48), np.float32))


def test_an_answer_of_another_shape_than_declared_is_refused(copy: Path) -> None:
    """A declaration is a promise to the app."""

    def lie(spec: Any) -> None:
        (op,) = (op for op in block_of(spec).operations if op.type == "linear")
        op.outputs[0].type.tensorType.dimensions[1].constant.size = 63
        spec.description.output[0].type.multiArrayType.shape[1] = 63

    with pytest.raises(ModelError, match=r"gives the shape \(1, 64\), declared fp32\[1, 63\]"):
        run(edit(copy, lie), x=np.ones((1, 1, 48), np.float32))


def weights(package: Path) -> Path:
    return package / WEIGHTS / "weight.bin"


FAULTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut short": (lambda data: data[:5000], "do not lie in the file|cut short"),
    "empty": (lambda data: b"", "0 bytes, expected"),
    "another version": (lambda data: data[:4] + struct.pack("<I", 3) + data[8:], "version 3, expected 2"),
    "no mark": (lambda data: data[:64] + b"\0\0\0\0" + data[68:], "expected a blob's mark 0xDEADBEEF"),
    "another type": (lambda data: data[:68] + struct.pack("<I", 1) + data[72:], "found a blob of fp16"),
    "another size": (lambda data: data[:72] + struct.pack("<Q", 99) + data[80:], "in 99 bytes, declared 3,072 values"),
    "elsewhere": (lambda data: data[:80] + struct.pack("<Q", 1 << 40) + data[88:], "do not lie in the file"),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_damaged_weight_file_is_refused(copy: Path, fault: str) -> None:
    """By what is wrong with it, and at which byte."""
    damage, message = FAULTS[fault]
    weights(copy).write_bytes(damage(weights(copy).read_bytes()))
    with pytest.raises(ModelError, match=message):
        read_package(copy)


def _describe(spec: Any, **changes: Any) -> None:
    """Another promise of what the only input is."""
    array = spec.description.input[0].type.multiArrayType
    for field, value in changes.items():
        if field == "shape":
            array.shape[:] = value
        else:
            setattr(array, field, value)


PROMISES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "version 1": (lambda spec: setattr(spec, "specificationVersion", 1), "of version 1, expected one of 6 to 10"),
    "version 99": (lambda spec: setattr(spec, "specificationVersion", 99), "of version 99, expected one of 6 to 10"),
    "older": (lambda spec: setattr(spec, "specificationVersion", 6), r"'CoreML8' \(iOS18\), .* of version 6 \(iOS15\)"),
    "no result": (lambda spec: block_of(spec).ClearField("outputs"), "output 'only', which the program does not give"),
    "batch": (lambda spec: _describe(spec, shape=[2, 48]), r"input 'x' as fp32\[2, 48\], the program as fp32\[1, 48\]"),
    "length": (lambda spec: _describe(spec, shape=[1, 49]), r"as fp32\[1, 49\], the program as fp32\[1, 48\]"),
    "rank": (lambda spec: _describe(spec, shape=[48]), r"as fp32\[48\], the program"),
    "type": (lambda spec: _describe(spec, dataType=65552), r"input 'x' as fp16\[1, 48\], the program as fp32"),
    "name": (lambda spec: setattr(spec.description.input[0], "name", "y"), "input 'y' as .* the program as nothing"),
    "no input": (lambda spec: spec.description.ClearField("input"), "description does not have the input 'x'"),
}


@pytest.mark.parametrize("promise", sorted(PROMISES))
def test_a_description_that_the_program_does_not_keep_is_refused(copy: Path, promise: str) -> None:
    """A phone refuses the package, or the app's input: here it must not pass."""
    change, message = PROMISES[promise]
    with pytest.raises(ModelError, match=message):
        read_package(edit(copy, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda items: items[-1:], "which its manifest does not list"),
        (lambda items: [*items, {**items[0], "path": "../../outside"}], "'../../outside', which is nothing inside"),
        (lambda items: [*items, {**items[0], "path": "com.apple.CoreML/gone"}], "gone', which is nothing inside"),
    ],
)
def test_a_manifest_that_does_not_list_what_is_there_is_refused(
    copy: Path, change: Callable[[list], list], message: str
) -> None:
    """What it does not list does not come to a phone."""
    (copy.parent / "outside").write_bytes(b"x")
    file = copy / "Manifest.json"
    manifest = json.loads(file.read_text("utf-8"))
    root = manifest["rootModelIdentifier"]
    # the model last
    items = sorted(manifest["itemInfoEntries"].items(), key=lambda one: one[0] == root)
    changed = change([item for _, item in items])
    names = [root if item is items[-1][1] else f"item {place}" for place, item in enumerate(changed)]
    manifest["itemInfoEntries"] = dict(zip(names, changed, strict=True))
    file.write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(ModelError, match=message):
        read_package(copy)


def test_a_package_without_weights_or_manifest_is_refused(copy: Path) -> None:
    """Each by its name."""
    weights(copy).unlink()
    with pytest.raises(ModelError, match="weights cannot be read"):
        read_package(copy)
    (copy / "Manifest.json").unlink()
    with pytest.raises(ModelError, match="no Core ML package"):
        read_package(copy)


def test_weights_outside_the_package_are_refused(copy: Path) -> None:
    """A file from elsewhere must not lead the reader out of its folder."""

    def escape(spec: Any) -> None:
        for op in block_of(spec).operations:
            for value in [*op.attributes.values(), *(b.value for a in op.inputs.values() for b in a.arguments)]:
                if value.WhichOneof("value") == "blobFileValue":
                    value.blobFileValue.fileName = "@model_path/../../../../secret.bin"

    with pytest.raises(ModelError, match="expected a file inside the package"):
        read_package(edit(copy, escape))


@pytest.mark.parametrize("content", [b"\xff" * 50, b""])
def test_a_specification_that_is_none_is_refused(copy: Path, content: bytes) -> None:
    """Noise, or nothing."""
    (copy / SPECIFICATION).write_bytes(content)
    with pytest.raises(ModelError, match=r"cannot be read as a Core ML specification|expected an ML Program"):
        read_package(copy)


def const_of(spec: Any) -> Any:
    return next(op for op in block_of(spec).operations if op.type == "const")


BROKEN: dict[str, Callable[[Any], object]] = {
    "a constant without a value": lambda spec: const_of(spec).attributes.pop("val"),
    "a constant without a name": lambda spec: const_of(spec).ClearField("outputs"),
    "a type that is not known": lambda spec: setattr(const_of(spec).outputs[0].type.tensorType, "dataType", 99),
    "a type that no array has": lambda spec: setattr(const_of(spec).attributes["val"].type.tensorType, "dataType", 13),
    "an output that nothing computes": lambda spec: setattr(spec.description.output[0], "name", "gone"),
    "no function": lambda spec: spec.mlProgram.functions.clear(),
    "another opset": lambda spec: setattr(spec.mlProgram.functions["main"], "opset", "CoreML99"),
    "an argument that is not there": lambda spec: setattr(
        next(op for op in block_of(spec).operations if op.type == "linear").inputs["x"].arguments[0], "name", "gone"
    ),
    "no arguments": lambda spec: next(op for op in block_of(spec).operations if op.type == "linear").inputs.clear(),
    "another kind of model": lambda spec: spec.ClearField("mlProgram"),
}


@pytest.mark.parametrize("fault", sorted(BROKEN))
def test_a_broken_specification_is_refused_without_a_traceback(copy: Path, fault: str) -> None:
    """Whatever is missing or of another kind, it is the package's fault, and said so."""
    edit(copy, BROKEN[fault])
    with pytest.raises(ModelError):
        run(copy, x=np.ones((1, 1, 48), np.float32))


def test_a_package_is_read_by_its_manifest_and_from_inside_only(copy: Path, product: Path) -> None:
    """A manifest that names something else, and a specification that lies elsewhere."""
    manifest = copy / "Manifest.json"
    text = manifest.read_text("utf-8")
    manifest.write_text(text.replace("com.apple.CoreML/model.mlmodel", "com.apple.CoreML/other.mlmodel"), "utf-8")
    with pytest.raises(ModelError, match=r"manifest names the model 'com\.apple\.CoreML/other\.mlmodel'"):
        read_package(copy)
    manifest.write_text("{}", "utf-8")
    with pytest.raises(ModelError, match="not what an ML Program has: KeyError"):
        read_package(copy)
    manifest.write_text('{"itemInfoEntries": ' + "[" * 100_000, "utf-8")
    with pytest.raises(ModelError, match="not what an ML Program has: RecursionError"):
        read_package(copy)
    manifest.write_text(text, "utf-8")
    (copy / SPECIFICATION).unlink()
    (copy / SPECIFICATION).symlink_to((product / SPECIFICATION).resolve())
    with pytest.raises(ModelError, match="is nothing inside the package"):
        read_package(copy)


def test_more_constants_than_memory_are_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often one blob is named."""
    monkeypatch.setattr(package, "MAX_WEIGHTS_BYTES", 13_000)
    read_package(copy)  # 64 x 48 x 4 = 12,288, and the head of the file
    monkeypatch.setattr(package, "MAX_WEIGHTS_BYTES", 12_000)
    with pytest.raises(ModelError, match=r"beyond 12,000 bytes|expected 64 to 12,000"):
        read_package(copy)


# --- the weight file against coremltools' own reader -------------------------------------------------------------

WRITERS = {
    "fp16": np.float16,
    "fp32": np.float32,
    "int8": np.int8,
    "uint8": np.uint8,
    "int16": np.int16,
    "uint16": np.uint16,
    "int32": np.int32,
}


@pytest.mark.parametrize("dtype", sorted(WRITERS))
def test_blobs_are_read_as_coremltools_wrote_them(tmp_path: Path, dtype: str) -> None:
    """Every type that it can write, one after the other."""
    import_coremltools()
    from coremltools.libmilstoragepython import _BlobStorageWriter

    rng = np.random.default_rng(3)
    path = tmp_path / "weight.bin"
    parts = [rng.integers(0, 100, n).astype(WRITERS[dtype]) for n in (7, 300)]
    writer = _BlobStorageWriter(str(path))
    write = getattr(writer, f"write_{'float' if dtype == 'fp32' else dtype}_data")
    places = [write(part.view(np.uint16) if dtype == "fp16" else part) for part in parts]
    del writer
    file = WeightFile(path, 2**20)
    for place, part in zip(places, parts, strict=True):
        np.testing.assert_array_equal(file.read(place, dtype, len(part), "test"), part)
    file.close()


@pytest.mark.parametrize("dtype", [dtype for dtype, bits in BITS.items() if bits < 8])
def test_narrow_values_are_unpacked_as_coremltools_packs_them(dtype: str) -> None:
    """Of 1, 2, 3, 4 and 6 bits, over byte boundaries."""
    import_coremltools()
    from coremltools.optimize import _utils

    low, high = (-8, 8) if dtype == "int4" else (0, 2 ** BITS[dtype])
    values = np.random.default_rng(4).integers(low, high, 37).astype(np.int8 if dtype == "int4" else np.uint8)
    packed = _utils.pack_elements_into_bits(values, BITS[dtype])
    np.testing.assert_array_equal(unpack(packed.tobytes(), dtype, 37, "test"), values)
    with pytest.raises(ModelError, match="expected 37 values"):
        unpack(packed.tobytes() + b"\0", dtype, 37, "test")
