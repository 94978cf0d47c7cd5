// Brings a newer release of a bundle to an app: downloads, verifies, tests, and only then switches to it.
//
//     let updates = try Updates(parent: support, key: "MFkwEwYH…", source: URL(string: "https://example.com/releases/")!)
//     try await updates.update()
//     let classifier = try await updates.newest()
//
// A release is a folder with a manifest that lists every file by SHA-256, signed as OpenSSF Model Signing v1.0 has it
// (ECDSA P-256). `key` is the public key that the app was built with, base64 of its SubjectPublicKeyInfo. Nothing that is
// downloaded is used before all of it was verified and has answered its golden vectors; the version before is kept.
// Neither a model of another name, nor a version that is not above all that this app has seen, is ever taken.

import CryptoKit
import Foundation

public final class Updates {
    private struct Index: Decodable {
        struct Release: Decodable {
            let version: String
            let platform: String
            let name: String
            let path: String
        }

        let releases: [Release]
    }

    /// Of model.json, what tells one model from another.
    private struct Came: Decodable {
        let name: String
        let version: String
        let platform: String
    }

    private struct State: Codable {
        var versions: [String] = []
        var highest: String?
    }

    private struct Manifest: Decodable {
        struct File: Decodable {
            let bytes: Int
            let sha256: String
        }

        let name: String
        let version: String
        let platform: String
        let home: String
        let files: [String: File]
    }

    private struct Signature: Decodable {
        struct Envelope: Decodable {
            struct One: Decodable {
                let sig: String
            }

            let payload: String
            let payloadType: String
            let signatures: [One]
        }

        let dsseEnvelope: Envelope
    }

    private struct Statement: Decodable {
        struct Predicate: Decodable {
            struct Resource: Decodable {
                let name: String
                let digest: String
            }

            let resources: [Resource]
        }

        let predicateType: String
        let predicate: Predicate
    }

    private static let small = 8 << 20
    private static let lock = NSLock()

    private let folder: URL
    private let key: P256.Signing.PublicKey
    private let source: URL
    private let came: Came
    private var pointer: URL { folder.appendingPathComponent("versions.json") }

    /// Versions are kept in a folder 'decant' of their own below `parent`.
    public init(parent: URL, key: String, source: URL) throws {
        guard let bytes = Data(base64Encoded: key) else { throw BundleError("the key is not base64") }
        folder = parent.appendingPathComponent("decant")
        self.key = try P256.Signing.PublicKey(derRepresentation: bytes)
        self.source = source
        let model = try Classifier.resources().appendingPathComponent("model.json")
        came = try JSONDecoder().decode(Came.self, from: Data(contentsOf: model))
    }

    /// The folder of the version in use; nil: none that is newer than what the app came with.
    public var current: URL? {
        held().first.map { folder.appendingPathComponent($0) }
    }

    /// The newest model at hand: the last that was downloaded and passed its test, or the one that came with the app, which
    /// also stands in for one that can no longer be opened.
    public func newest() async throws -> Classifier {
        if let current, let classifier = try? await Classifier(folder: current) { return classifier }
        return try await Classifier()
    }

    /// Version of the release that is now in use, or nil where none is newer. An error leaves in use what was.
    @discardableResult
    public func update() async throws -> String? {
        let floor = highest()
        let index = try JSONDecoder().decode(Index.self, from: await get("index.json", limit: Self.small))
        let newer = index.releases.filter {
            $0.platform == came.platform && $0.name == came.name && Self.isNewer($0.version, than: floor)
        }
        guard let entry = newer.max(by: { Self.isNewer($1.version, than: $0.version) }) else { return nil }
        let signed = try verified(await get("\(entry.path)/model.sig", limit: Self.small))
        let manifestBytes = try await get("\(entry.path)/manifest.json", limit: Self.small)
        try expect(manifestBytes, of: "manifest.json", digest: signed["manifest.json"])
        let manifest = try JSONDecoder().decode(Manifest.self, from: manifestBytes)
        let found = "\(manifest.name) \(manifest.version) for \(manifest.platform)"
        let expected = "\(came.name) \(entry.version) for \(came.platform)"
        guard found == expected else { throw BundleError("found \(found), expected \(expected)") }
        let partial = folder.appendingPathComponent("\(UUID().uuidString).partial")
        defer { try? FileManager.default.removeItem(at: partial) }
        // what the code reads at run time; the code itself comes with the app
        for (name, file) in manifest.files where name.hasPrefix(manifest.home + "/") {
            let place = partial.appendingPathComponent(String(name.dropFirst(manifest.home.count + 1)))
            guard !name.split(separator: "/", omittingEmptySubsequences: false).contains(where: { $0 == ".." || $0 == "" })
            else { throw BundleError("the name '\(name)' leads out of the bundle") }
            guard file.sha256 == signed[name] else {
                throw BundleError("\(name): the manifest has another hash than the signature")
            }
            let bytes = try await get("\(entry.path)/\(name)", limit: file.bytes)
            guard bytes.count == file.bytes else {
                throw BundleError("\(name): found \(bytes.count) bytes, expected \(file.bytes)")
            }
            try expect(bytes, of: name, digest: file.sha256)
            try FileManager.default.createDirectory(
                at: place.deletingLastPathComponent(), withIntermediateDirectories: true)
            try bytes.write(to: place)
        }
        if let failure = try await Classifier(folder: partial).selfTest().first {
            throw BundleError("the new version fails its self-test: \(failure)")
        }
        try use(manifest.version, from: partial)
        return manifest.version
    }

    /// Switches to a version that was verified and tested, unless another one was faster and newer.
    private func use(_ version: String, from partial: URL) throws {
        Self.lock.lock()
        defer { Self.lock.unlock() }
        guard Self.isNewer(version, than: highest()) else { throw BundleError("\(highest()) was brought meanwhile") }
        let place = folder.appendingPathComponent(version)
        try? FileManager.default.removeItem(at: place)
        try FileManager.default.moveItem(at: partial, to: place)
        try point(to: [version] + held().prefix(1), highest: version)
    }

    /// Goes back to the version before, and gives its name; nil: to the one that the app came with.
    @discardableResult
    public func rollBack() throws -> String? {
        Self.lock.lock()
        defer { Self.lock.unlock() }
        let versions = held()
        try point(to: Array(versions.dropFirst()), highest: highest())
        return versions.dropFirst().first
    }

    /// Name -> SHA-256 of every file that a signature covers, once it was verified.
    private func verified(_ bytes: Data) throws -> [String: String] {
        let envelope = try JSONDecoder().decode(Signature.self, from: bytes).dsseEnvelope
        guard let body = Data(base64Encoded: envelope.payload),
            let first = envelope.signatures.first,
            let raw = Data(base64Encoded: first.sig)
        else { throw BundleError("model.sig: not base64") }
        let head = "DSSEv1 \(envelope.payloadType.utf8.count) \(envelope.payloadType) \(body.count) "
        let signature = try P256.Signing.ECDSASignature(derRepresentation: raw)
        guard key.isValidSignature(signature, for: Data(head.utf8) + body) else {
            throw BundleError("model.sig: not signed with the key of this app")
        }
        let statement = try JSONDecoder().decode(Statement.self, from: body)
        guard statement.predicateType == "https://model_signing/signature/v1.0" else {
            throw BundleError("model.sig: found a statement of '\(statement.predicateType)'")
        }
        var found: [String: String] = [:]
        for one in statement.predicate.resources { found[one.name] = one.digest }
        return found
    }

    private func get(_ path: String, limit: Int) async throws -> Data {
        var request = URLRequest(url: source.appendingPathComponent(path))
        request.cachePolicy = .reloadIgnoringLocalCacheData
        let (bytes, response) = try await URLSession.shared.bytes(for: request)
        guard (response as? HTTPURLResponse)?.statusCode == 200 else { throw BundleError("\(path): not found") }
        var found = Data()
        found.reserveCapacity(min(limit, max(0, Int(response.expectedContentLength))))
        for try await byte in bytes {
            guard found.count < limit else {
                throw BundleError("\(path): longer than the \(limit) bytes that were expected")
            }
            found.append(byte)
        }
        return found
    }

    private func expect(_ bytes: Data, of name: String, digest: String?) throws {
        let found = SHA256.hash(data: bytes).map { String(format: "%02x", $0) }.joined()
        guard found == digest else {
            throw BundleError("\(name): found SHA-256 \(found.prefix(16))…, expected \(digest?.prefix(16) ?? "none")…")
        }
    }

    /// Versions that are held and newer than what the app came with, the one in use first.
    private func held() -> [String] {
        state().versions.filter { Self.isNewer($0, than: came.version) }
    }

    /// The highest version that this app has had: one that it went back from is not brought again.
    private func highest() -> String {
        let seen = state().highest ?? came.version
        return Self.isNewer(seen, than: came.version) ? seen : came.version
    }

    /// What was written last; nothing where that cannot be read, since the app has a model all the same.
    private func state() -> State {
        (try? JSONDecoder().decode(State.self, from: Data(contentsOf: pointer))) ?? State()
    }

    /// Switches, then removes versions that are neither in use nor the one before.
    private func point(to versions: [String], highest: String) throws {
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        try JSONEncoder().encode(State(versions: versions, highest: highest)).write(to: pointer, options: .atomic)
        for place in try FileManager.default.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil) {
            let name = place.lastPathComponent
            if Self.numbers(name) != nil && !versions.contains(name) { try FileManager.default.removeItem(at: place) }
        }
    }

    private static func isNewer(_ one: String, than other: String) -> Bool {
        guard let newer = numbers(one), let older = numbers(other) else { return false }
        return older.lexicographicallyPrecedes(newer)
    }

    /// The three numbers of a version; nil for any other text.
    private static func numbers(_ version: String) -> [Int]? {
        let parts = version.split(separator: ".", omittingEmptySubsequences: false)
        let numbers = parts.compactMap { part in part.allSatisfy { ("0"..."9").contains($0) } ? Int(part) : nil }
        return parts.count == 3 && numbers.count == 3 ? numbers : nil
    }
}
