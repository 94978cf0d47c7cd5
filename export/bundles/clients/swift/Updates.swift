// Brings a newer release of a bundle to an app: downloads, verifies, tests, and only then switches to it.
//
//     let updates = try Updates(folder: support, key: "MFkwEwYH…", source: URL(string: "https://example.com/releases/")!)
//     try await updates.update(installed: "1.0.0")
//     let classifier = try await Classifier(folder: updates.current)
//
// A release is a folder with a manifest that lists every file by SHA-256, signed as OpenSSF Model Signing v1.0 has it
// (ECDSA P-256). `key` is the public key that the app was built with, base64 of its SubjectPublicKeyInfo. Nothing that is
// downloaded is used before all of it was verified and has answered its golden vectors; the version before is kept.

import CryptoKit
import Foundation

public final class Updates {
    private struct Index: Decodable {
        struct Release: Decodable {
            let version: String
            let platform: String
            let path: String
        }

        let releases: [Release]
    }

    private struct Manifest: Decodable {
        struct File: Decodable {
            let bytes: Int
            let sha256: String
        }

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

    private let folder: URL
    private let key: P256.Signing.PublicKey
    private let source: URL
    private var pointer: URL { folder.appendingPathComponent("versions.json") }

    public init(folder: URL, key: String, source: URL) throws {
        guard let bytes = Data(base64Encoded: key) else { throw BundleError("the key is not base64") }
        self.folder = folder
        self.key = try P256.Signing.PublicKey(derRepresentation: bytes)
        self.source = source
    }

    /// The folder of the version in use; nil: none was downloaded yet, and the app uses the one it came with.
    public var current: URL? {
        held().first.map(folder.appendingPathComponent)
    }

    /// Version of the release that is now in use, or nil where none is newer.
    @discardableResult
    public func update(installed: String) async throws -> String? {
        let versions = held()
        let index = try JSONDecoder().decode(Index.self, from: await get("index.json", limit: Self.small))
        let newer = index.releases.filter {
            $0.platform == "ios" && Self.isNewer($0.version, than: versions.first ?? installed)
        }
        guard let entry = newer.max(by: { Self.isNewer($1.version, than: $0.version) }) else { return nil }
        let signed = try verified(await get("\(entry.path)/model.sig", limit: Self.small))
        let manifestBytes = try await get("\(entry.path)/manifest.json", limit: Self.small)
        try expect(manifestBytes, of: "manifest.json", digest: signed["manifest.json"])
        let manifest = try JSONDecoder().decode(Manifest.self, from: manifestBytes)
        guard manifest.version == entry.version, manifest.platform == "ios" else {
            throw BundleError("found \(manifest.version) for \(manifest.platform), expected \(entry.version) for ios")
        }
        let partial = folder.appendingPathComponent("\(manifest.version).partial")
        try? FileManager.default.removeItem(at: partial)
        defer { try? FileManager.default.removeItem(at: partial) }
        // what the code reads at run time; the code itself comes with the app
        for (name, file) in manifest.files where name.hasPrefix(manifest.home + "/") {
            let place = partial.appendingPathComponent(String(name.dropFirst(manifest.home.count + 1))).standardizedFileURL
            guard place.path.hasPrefix(partial.standardizedFileURL.path + "/") else {
                throw BundleError("the name '\(name)' leads out of the bundle")
            }
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
        let place = folder.appendingPathComponent(manifest.version)
        try? FileManager.default.removeItem(at: place)
        try FileManager.default.moveItem(at: partial, to: place)
        try point(to: [manifest.version] + versions.prefix(1))
        return manifest.version
    }

    /// Goes back to the version before, and gives its name; nil: to the one that the app came with.
    @discardableResult
    public func rollBack() throws -> String? {
        let versions = held()
        try point(to: Array(versions.dropFirst()))
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
        let (bytes, response) = try await URLSession.shared.data(from: source.appendingPathComponent(path))
        guard (response as? HTTPURLResponse)?.statusCode == 200 else { throw BundleError("\(path): not found") }
        guard bytes.count <= limit else { throw BundleError("\(path): longer than the \(limit) bytes that were expected") }
        return bytes
    }

    private func expect(_ bytes: Data, of name: String, digest: String?) throws {
        let found = SHA256.hash(data: bytes).map { String(format: "%02x", $0) }.joined()
        guard found == digest else {
            throw BundleError("\(name): found SHA-256 \(found.prefix(16))…, expected \(digest?.prefix(16) ?? "none")…")
        }
    }

    /// Versions that are held, the one in use first.
    private func held() -> [String] {
        (try? JSONDecoder().decode([String].self, from: Data(contentsOf: pointer))) ?? []
    }

    /// Switches, then removes what is neither in use nor the one before.
    private func point(to versions: [String]) throws {
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        try JSONEncoder().encode(versions).write(to: pointer, options: .atomic)
        for place in try FileManager.default.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)
        where place.lastPathComponent != "versions.json" && !versions.contains(place.lastPathComponent) {
            try FileManager.default.removeItem(at: place)
        }
    }

    private static func isNewer(_ one: String, than other: String) -> Bool {
        let parts = [one, other].map { $0.split(separator: ".").compactMap { Int($0) } }
        return parts[1].lexicographicallyPrecedes(parts[0])
    }
}
