// Classifies texts with a bundle's model in Core ML, and tests itself with the answers that the bundle brings.
//
//     let classifier = try await Classifier()
//     let answer = try classifier.classify("wake me at six")

import CoreML
import Foundation

/// A label, how sure the model is of it, and how often answers as sure as this one were right on texts of the data.
public struct Answer {
    public let index: Int
    public let label: String
    public let confidence: Double
    public let right: Double
}

public final class Classifier {
    private struct Model: Decodable {
        struct Threshold: Decodable {
            let right: Double
            let confidence: Double
        }

        let kind: String
        let digest: String
        let file: String
        let rules: String
        let labels: [String]
        let output: String
        let lengths: [Int]?
        let padId: Int
        let thresholds: [Threshold]

        enum CodingKeys: String, CodingKey {
            case kind, digest, file, rules, labels, output, lengths, thresholds
            case padId = "pad_id"
        }
    }

    private struct Golden: Decodable {
        struct Tie: Decodable {
            let outputs: [Float]
            let answer: Int
        }

        struct Row: Decodable {
            let text: String
            let ids: [Int]
            let outputs: [Float]
            let label: String
            let sure: Bool
        }

        let tolerance: Double
        let ties: [Tie]
        let rows: [Row]
    }

    private let model: Model
    private let golden: Golden
    private let tokenizer: Tokenizer
    private let network: MLModel

    /// The model of a bundle's folder; left out: the one that this package has as a resource.
    ///
    /// An .mlpackage is compiled on the device, once: the compiled model is kept among the app's caches by its digest.
    public init(folder: URL? = nil, configuration: MLModelConfiguration = MLModelConfiguration()) async throws {
        let folder = try folder ?? Self.resources()
        model = try Self.read("model.json", in: folder)
        guard model.kind == "decant model 1" else {
            throw BundleError("found '\(model.kind)', expected 'decant model 1'")
        }
        golden = try Self.read("golden.json", in: folder)
        tokenizer = try makeTokenizer(rules: Data(contentsOf: folder.appendingPathComponent(model.rules)))
        let compiled = try await Self.compiled(folder.appendingPathComponent(model.file), digest: model.digest)
        network = try MLModel(contentsOf: compiled, configuration: configuration)
    }

    /// Where the model lies that this package came with.
    static func resources() throws -> URL {
        guard let folder = Bundle.module.url(forResource: "Bundle", withExtension: nil) else {
            throw BundleError("no folder 'Bundle' among this package's resources")
        }
        return folder
    }

    private static func compiled(_ package: URL, digest: String) async throws -> URL {
        let manager = FileManager.default
        let caches = try manager.url(for: .cachesDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
        let kept = caches.appendingPathComponent("decant-\(digest).mlmodelc")
        if manager.fileExists(atPath: kept.path) { return kept }
        let made = try await MLModel.compileModel(at: package)
        do {
            try manager.moveItem(at: made, to: kept)
        } catch where manager.fileExists(atPath: kept.path) {
            // another one was faster
            try? manager.removeItem(at: made)
        }
        return kept
    }

    /// The label of a text, and how sure the model is.
    public func classify(_ text: String) throws -> Answer {
        try answer(run(tokenizer.encode(text)))
    }

    /// Replays every golden vector; what differs, in words. Empty: the model answers here as it should.
    public func selfTest() throws -> [String] {
        var failures: [String] = []
        for tie in golden.ties where answer(tie.outputs).index != tie.answer {
            failures.append("of the level outputs \(tie.outputs) it takes another than \(tie.answer)")
        }
        for (number, row) in golden.rows.enumerated() {
            let ids = tokenizer.encode(row.text)
            guard ids == row.ids else {
                failures.append("row \(number): token ids \(ids), expected \(row.ids)")
                continue
            }
            let outputs = try run(ids)
            let worst = zip(row.outputs, outputs).map { Double(abs($0 - $1)) }.max() ?? .nan
            // written so that a NaN fails
            if !(outputs.allSatisfy(\.isFinite) && worst <= golden.tolerance) {
                failures.append("row \(number): outputs \(worst) away, at most \(golden.tolerance) allowed")
            } else if row.sure && answer(outputs).label != row.label {
                failures.append("row \(number): answers \(answer(outputs).label), expected \(row.label)")
            }
        }
        return failures
    }

    /// Logits for token ids, padded to the next length that the model takes.
    private func run(_ ids: [Int]) throws -> [Float] {
        let length = model.lengths?.filter { $0 >= ids.count }.min() ?? ids.count
        let inputs = try MLMultiArray(shape: [1, NSNumber(value: length)], dataType: .int32)
        let mask = try MLMultiArray(shape: [1, NSNumber(value: length)], dataType: .int32)
        for place in 0..<length {
            inputs[place] = NSNumber(value: place < ids.count ? ids[place] : model.padId)
            mask[place] = NSNumber(value: place < ids.count ? 1 : 0)
        }
        let features = try MLDictionaryFeatureProvider(dictionary: ["input_ids": inputs, "attention_mask": mask])
        let found = try network.prediction(from: features)
        guard let logits = found.featureValue(for: model.output)?.multiArrayValue else {
            throw BundleError("the model has no output '\(model.output)'")
        }
        return (0..<logits.count).map { logits[$0].floatValue }
    }

    /// What logits say: the largest, of two that are level the first.
    private func answer(_ logits: [Float]) -> Answer {
        var index = 0
        for place in logits.indices where logits[place] > logits[index] { index = place }
        let confidence = 1 / logits.reduce(0.0) { $0 + exp(Double($1 - logits[index])) }
        let right = model.thresholds.filter { confidence >= $0.confidence }.map(\.right).max() ?? 0
        return Answer(index: index, label: model.labels[index], confidence: confidence, right: right)
    }

    private static func read<Value: Decodable>(_ name: String, in folder: URL) throws -> Value {
        try JSONDecoder().decode(Value.self, from: Data(contentsOf: folder.appendingPathComponent(name)))
    }
}
