// swift-tools-version:5.9

import PackageDescription

let package = Package(
    name: "Classifier",
    platforms: [.iOS("IOS_VERSION"), .macOS("MACOS_VERSION")],
    products: [.library(name: "Classifier", targets: ["Classifier"])],
    targets: [
        .target(name: "Classifier", resources: [.copy("Bundle")]),
        .testTarget(name: "ClassifierTests", dependencies: ["Classifier"]),
    ]
)
