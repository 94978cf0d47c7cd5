"""For iOS and macOS: a Swift package with the model as a resource, compiled on the device.

The tokenizer is Decant's port. tokenizer.json and tokenizer_config.json beside it are what swift-transformers loads.
"""

import re
from pathlib import Path

from export.bundles import Contents, Shipped, ship_client, ship_model
from pipeline.base.errors import ExportError
from pipeline.settings.base import Settings

TITLE = "iOS and macOS"
FORMATS = ("coreml",)
TOKENIZERS = ("swift",)
HOME = "Sources/Classifier/Bundle"
LIMIT_BYTES = 4_000_000_000  # App Store: of an app, uncompressed
HOW = """In Xcode: File, Add Package Dependencies, Add Local, and pick this folder. Then:

    let classifier = try await Classifier()
    let answer = try classifier.classify("wake me at six")

`try classifier.selfTest()` replays the golden vectors; `xcodebuild test -scheme Classifier` does so on a device."""
SOURCES = (
    "clients/swift/BytePairs.swift",
    "clients/swift/Classifier.swift",
    "clients/swift/Texts.swift",
    "clients/swift/Updates.swift",
    "clients/swift/WordPieces.swift",
)
# Core ML's versions go by those of iOS; macOS is three behind until both have the year's number.
MACOS = {"16": "13.0", "17": "14.0", "18": "15.0"}


class Params(Settings):
    """`bundles.ios.options`: there is nothing to say."""


def write(folder: Path, contents: Contents, options: Params) -> Shipped:
    """The package, its test, and the model among its resources."""
    oldest = _oldest_system(contents)
    changes = {"IOS_VERSION": f"{oldest}.0", "MACOS_VERSION": MACOS[oldest]}
    ship_client(folder, "clients/swift/Package.swift", changes=changes)
    for name in SOURCES:
        ship_client(folder, name, f"Sources/Classifier/{Path(name).name}")
    ship_client(folder, "clients/swift/ClassifierTests.swift", "Tests/ClassifierTests/ClassifierTests.swift")
    return Shipped(ship_model(folder, contents, f"{HOME}/{contents.artefact.file}"), ())


def _oldest_system(contents: Contents) -> str:
    """As the exporter's notes have it."""
    found = next((match for note in contents.artefact.notes if (match := re.search(r"iOS ?(\d+)", note))), None)
    if found is None or found[1] not in MACOS:
        raise ExportError(f"{contents.artefact.file}: its card does not say from which iOS on it runs; export it again")
    return found[1]
