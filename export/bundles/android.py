"""For Android: a Gradle library module in Kotlin, and the model in a folder that Play can deliver as a pack.

The tokenizer is Decant's port. An app that has DJL's Hugging Face tokenizers already reads tokenizer.json with those.
"""

from pathlib import Path

from pydantic import Field

from export.bundles import Contents, Part, Shipped, ship_client, ship_model
from pipeline.settings.base import Settings

TITLE = "Android"
FORMATS = ("litert", "ort", "onnx")
TOKENIZERS = ("kotlin",)
BESIDE = ("tokenizers",)
HOME = "model/src/main/assets/decant"
LIMIT_BYTES = 1_500_000_000  # Play: of an AI pack
HOW = """Copy `classifier/` and `model/` into your project, and add to `settings.gradle.kts`:

    include(":classifier", ":model")

and to the app's `build.gradle.kts`: `implementation(project(":classifier"))`. Then, away from the main thread:

    val classifier = OnAndroid.bundled(context)
    val answer = classifier.classify("wake me at six")

`classifier.selfTest()` replays the golden vectors; run it once after an install. With `model/` as a Play AI pack, see
`model/build.gradle.kts`; without it, leave `:model` out of `settings.gradle.kts`."""
CODE = "classifier/src/main/kotlin"
# format -> (the file of the class that opens it, what Gradle brings, its licence)
RUNTIMES = {
    "litert": ("clients/kotlin/LiteRtSession.kt", "com.google.ai.edge.litert:litert:2.2.0", "Apache-2.0"),
    "ort": ("clients/kotlin/OrtAndroidSession.kt", "com.microsoft.onnxruntime:onnxruntime-android:1.30.0", "MIT"),
    "onnx": ("clients/kotlin/OrtAndroidSession.kt", "com.microsoft.onnxruntime:onnxruntime-android:1.30.0", "MIT"),
}
CORE = (
    "clients/kotlin/BytePairs.kt",
    "clients/kotlin/Classifier.kt",
    "clients/kotlin/Json.kt",
    "clients/kotlin/OnAndroid.kt",
    "clients/kotlin/Texts.kt",
    "clients/kotlin/Updates.kt",
    "clients/kotlin/WordPieces.kt",
)
TEST = "clients/kotlin/SelfTestOnDevice.kt"


class Params(Settings):
    """`bundles.android.options`."""

    package: str = Field(
        default="com.example.decant",
        pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+$",
        description="The Kotlin package and Android namespace of the module.",
    )


def write(folder: Path, contents: Contents, options: Params) -> Shipped:
    """The module with its test, the pack, and the model as an asset of the pack."""
    session, library, license = RUNTIMES[contents.artefact.format]
    opener = f"{Path(session).stem}.open"
    changes = {"com.example.decant": options.package, "SESSION.open": opener, '"RUNTIME"': f'"{library}"'}
    place = options.package.replace(".", "/")
    for name in (*CORE, session):
        ship_client(folder, name, f"{CODE}/{place}/{Path(name).name}", changes)
    ship_client(folder, TEST, f"classifier/src/androidTest/kotlin/{place}/{Path(TEST).name}", changes)
    ship_client(folder, "clients/kotlin/build.gradle.kts", "classifier/build.gradle.kts", changes)
    ship_client(folder, "clients/kotlin/pack.build.gradle.kts", "model/build.gradle.kts")
    group, name, version = library.split(":")
    part = Part(f"{group}:{name}", version, license, f"pkg:maven/{group}/{name}@{version}")
    return Shipped(ship_model(folder, contents, f"{HOME}/{contents.artefact.file}"), (part,))
