// A WordPiece tokenizer that follows the table word_pieces.json: what it says is asked of no library, since each has
// another version of Unicode. Works on scalars alone: a Swift Character may hold several.

import Foundation

public struct WordPieces {
    /// What word_pieces.json holds; numbers are code points and token ids.
    public struct Rules: Decodable {
        let kind: String
        let vocabulary: [String]
        let unknown: Int
        let prefix: String
        let longestWord: Int
        let special: [String: Int]
        let before: [Int]
        let after: [Int]
        let maxLength: Int
        let padId: Int
        let nothing: [UInt32]
        let space: [UInt32]
        let word: [UInt32]
        let other: [String: String]
        let hangul: Bool
        let marks: [String: Int]
        let walls: [UInt32]

        enum CodingKeys: String, CodingKey {
            case kind, vocabulary, unknown, prefix, special, before, after, nothing, space, word, other, hangul, marks
            case walls
            case longestWord = "longest_word"
            case maxLength = "max_length"
            case padId = "pad_id"
        }
    }

    private static let space: UInt32 = 0x20
    private static let syllables: ClosedRange<UInt32> = 0xAC00...0xD7A3

    private let rules: Rules
    // Scalars as keys, since two texts of other scalars may be equal as Swift compares texts.
    private let ids: [[UInt32]: Int]
    private let prefix: [UInt32]
    private let special: [(scalars: [UInt32], id: Int)]
    private let other: [UInt32: [UInt32]]
    private let marks: [UInt32: Int]

    public init(rules: Rules) throws {
        guard rules.kind == "word pieces 1" else {
            throw BundleError("found rules of kind '\(rules.kind)', expected 'word pieces 1'")
        }
        self.rules = rules
        prefix = Self.scalars(rules.prefix)
        var ids: [[UInt32]: Int] = [:]
        for (id, piece) in rules.vocabulary.enumerated() { ids[Self.scalars(piece)] = id }
        self.ids = ids
        // the longest first: one may begin as another does
        let tokens = rules.special.map { (scalars: Self.scalars($0.key), id: $0.value) }
        special = tokens.sorted { $0.scalars.count > $1.scalars.count }
        var other: [UInt32: [UInt32]] = [:]
        for (code, effect) in rules.other { other[UInt32(code)!] = Self.scalars(effect) }
        self.other = other
        var marks: [UInt32: Int] = [:]
        for (code, mark) in rules.marks { marks[UInt32(code)!] = mark }
        self.marks = marks
    }

    /// Token ids of a text, special tokens included, cut to the length that the model takes.
    public func encode(_ text: String) -> [Int] {
        let room = rules.maxLength - rules.before.count - rules.after.count
        let tidy = Self.scalars(text).filter { $0 != 0 }
        var found: [Int] = []
        var start = 0
        var at = 0
        while at < tidy.count && found.count < room {
            guard let token = special.first(where: { tidy[at...].starts(with: $0.scalars) }) else {
                at += 1
                continue
            }
            addWords(tidy[start..<at], to: &found)
            found.append(token.id)
            at += token.scalars.count
            start = at
        }
        if found.count < room { addWords(tidy[start...], to: &found) }
        return rules.before + found.prefix(room) + rules.after
    }

    private func addWords(_ text: ArraySlice<UInt32>, to found: inout [Int]) {
        for word in spread(text).split(separator: Self.space) { addPieces(of: Array(word), to: &found) }
    }

    /// What the scalars of a text become; a space is where a word ends.
    private func spread(_ text: ArraySlice<UInt32>) -> [UInt32] {
        var out: [UInt32] = []
        var wall = 0
        for code in text {
            if Self.has(rules.walls, code) { wall = out.count }
            for one in effect(of: code) {
                let mark = marks[one] ?? 0
                var place = out.count
                // a mark goes before those of a higher class, and stays behind its equals
                while mark > 0 && place > wall && (marks[out[place - 1]] ?? 0) > mark { place -= 1 }
                out.insert(one, at: place)
            }
        }
        return out
    }

    private func effect(of code: UInt32) -> [UInt32] {
        if let effect = other[code] { return effect }
        if Self.has(rules.nothing, code) { return [] }
        if Self.has(rules.space, code) { return [Self.space] }
        if Self.has(rules.word, code) { return [Self.space, code, Self.space] }
        if rules.hangul && Self.syllables.contains(code) {
            let place = code - Self.syllables.lowerBound
            let letters = [0x1100 + place / 588, 0x1161 + place % 588 / 28]
            return place % 28 > 0 ? letters + [0x11A7 + place % 28] : letters
        }
        return [code]
    }

    /// Adds the ids of a word's pieces, the longest first; of one that has none, the id of unknown words.
    private func addPieces(of word: [UInt32], to found: inout [Int]) {
        guard word.count <= rules.longestWord else {
            found.append(rules.unknown)
            return
        }
        var pieces: [Int] = []
        var start = 0
        while start < word.count {
            var end = word.count
            var longest: Int?
            while end > start {
                longest = ids[(start > 0 ? prefix : []) + word[start..<end]]
                if longest != nil { break }
                end -= 1
            }
            guard let piece = longest else {
                found.append(rules.unknown)
                return
            }
            pieces.append(piece)
            start = end
        }
        found += pieces
    }

    private static func scalars(_ text: String) -> [UInt32] {
        text.unicodeScalars.map(\.value)
    }

    /// Whether a code point lies in ranges [first, last, first, last, ...], by binary search.
    private static func has(_ ends: [UInt32], _ code: UInt32) -> Bool {
        var low = 0
        var high = ends.count / 2 - 1
        while low <= high {
            let middle = (low + high) / 2
            if code < ends[2 * middle] {
                high = middle - 1
            } else if code > ends[2 * middle + 1] {
                low = middle + 1
            } else {
                return true
            }
        }
        return false
    }
}

/// What is wrong with a bundle, in words.
public struct BundleError: Error, CustomStringConvertible {
    public let description: String

    public init(_ description: String) {
        self.description = description
    }
}
