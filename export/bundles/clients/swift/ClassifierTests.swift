// On a device or a simulator: the golden vectors that the bundle brings. `xcodebuild test -scheme Classifier`.

import XCTest

@testable import Classifier

final class ClassifierTests: XCTestCase {
    func testGoldenVectorsAreAnsweredAsTheyShouldBe() async throws {
        let classifier = try await Classifier()
        XCTAssertEqual(try classifier.selfTest(), [])
    }
}
