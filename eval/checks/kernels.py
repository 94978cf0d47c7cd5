"""Does an 8-bit file answer alike on every processor: x86 without VNNI adds pairs of products in 16 bits, and clips.

Where the runtime has such kernels, the weights in the file prove that no pair can reach the limit. Where qemu-user is
present, rows answered on an emulated CPU without VNNI are compared with those answered here besides.
"""

from eval.checks import Subject, difference, failed, passed
from pipeline.base import emulation, plugins
from pipeline.base.records import Check, Status
from pipeline.quantization.pair_sums import PAIR_LIMIT, unsafe_pairs

TITLE = "kernels"
ROWS = 8
# Share of the spread. Sums are whole numbers and equal; what is between them is float, whose last digit may put a value
# on the other side of an 8-bit step: 7e-4 seen on 249 texts of a trained student. Saturation of random weights moved
# answers by 0.25 to 0.44.
MOST = 0.05


def applies(subject: Subject) -> bool:
    """Where 8 bits were asked for."""
    return subject.artefact.precision in {"int8", "w8a8"}


def check(subject: Subject) -> Check:
    """Proves what the file allows to prove, and samples where another CPU can be emulated."""
    runtime = plugins.load("runtime", subject.runtime)
    if runtime.STAND_IN is not None:
        if subject.artefact.precision == "int8":
            return passed(TITLE, "only weights are 8-bit: they are widened before they are multiplied")
        reason = "no device's integer kernels run here; see its own test run"
        return Check(title=TITLE, status=Status.NOT_MEASURED, reason=reason)
    found: list[str] = []
    facts: dict[str, object] = {}
    if hasattr(runtime, "pair_summed_weights"):
        products = runtime.pair_summed_weights(subject.folder, subject.artefact)
        unsafe = {name: int(unsafe_pairs(weights).sum()) for name, weights in products.items()}
        pairs = sum(weights.shape[0] * ((weights.shape[1] + 1) // 2) for weights in products.values())
        facts |= {"products": len(products), "pairs": pairs, "unsafe": sum(unsafe.values())}
        if not products:
            return failed(TITLE, "found no product with signed 8-bit weights, expected those of the plan", **facts)
        if any(unsafe.values()):
            worst = max(unsafe, key=lambda name: unsafe[name])
            return failed(
                TITLE,
                f"{sum(unsafe.values()):,} of {pairs:,} pairs of neighbouring weights exceed {PAIR_LIMIT}, "
                f"most in '{worst}': on x86 without VNNI their sum saturates and answers differ; the exporter's scheme "
                "must be pair-safe",
                **facts,
            )
        found.append(f"none of {pairs:,} pairs of weights can saturate a sum of 16 bits: proved from the file")
    unusable = emulation.why_unusable()
    if unusable is None and subject.runtime == "browser":
        unusable = "a browser is not emulated"
    if unusable is not None:
        found.append(f"not confirmed on an emulated CPU: {unusable}")
        status = Status.PASS if facts else Status.NOT_MEASURED
        return Check(title=TITLE, status=status, reason="; ".join(found), facts=facts)
    off = _difference_without_vnni(subject)
    facts |= {"emulator": emulation.version(), "rows": ROWS, "difference": off}
    if not off <= MOST:
        return failed(
            TITLE,
            f"{emulation.version()} answers {off:.2g} of the spread away from this machine on {ROWS} dev rows, "
            f"expected at most {MOST:g}: its kernels sum otherwise; see what the plan keeps safe",
            **facts,
        )
    found.append(f"{emulation.version()} agrees to {off:.1g} of the spread on {ROWS} rows")
    return passed(TITLE, "; ".join(found), **facts)


def _difference_without_vnni(subject: Subject) -> float:
    """The largest difference between this machine's answers and an emulated one's, as a share of their spread."""
    rows = list(subject.sequences[:: max(1, len(subject.sequences) // ROWS)][:ROWS])
    with subject.open() as here, subject.open(emulated=True) as there:
        return difference(subject.answers(there, rows), expected=subject.answers(here, rows))
