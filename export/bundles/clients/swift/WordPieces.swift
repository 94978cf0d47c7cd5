// A WordPiece tokenizer that follows the table word_pieces.json: what it says is asked of no library, since each has
// another version of Unicode. Works on scalars alone: a Swift Character may hold several.

import Foundation

struct WordPieces: Tokenizer {
    /// What word_pieces.json holds; numbers are code points and token ids.
    struct Rules: Decodable {
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

    private static let blank: UInt32 = 0x20
    private static let syllables: ClosedRange<UInt32> = 0xAC00...0xD7A3

    private let rules: Rules
    private let nothing: Ranges
    private let space: Ranges
    private let word: Ranges
    private let walls: Ranges
    // Scalars as keys, since two texts of other scalars may be equal as Swift compares texts.
    private let ids: [[UInt32]: Int]
    private let prefix: [UInt32]
    private let special: [Special]
    private let other: [UInt32: [UInt32]]
    private let marks: [UInt32: Int]

    init(rules: Rules) throws {
        guard rules.kind == "word pieces 1" else {
            throw BundleError("found rules of kind '\(rules.kind)', expected 'word pieces 1'")
        }
        self.rules = rules
        nothing = Ranges(ends: rules.nothing)
        space = Ranges(ends: rules.space)
        word = Ranges(ends: rules.word)
        walls = Ranges(ends: rules.walls)
        prefix = scalars(of: rules.prefix)
        var ids: [[UInt32]: Int] = [:]
        for (id, piece) in rules.vocabulary.enumerated() { ids[scalars(of: piece)] = id }
        self.ids = ids
        special = rules.special.map { Special(scalars: scalars(of: $0.key), id: $0.value) }
        var other: [UInt32: [UInt32]] = [:]
        for (code, effect) in rules.other { other[UInt32(code)!] = scalars(of: effect) }
        self.other = other
        var marks: [UInt32: Int] = [:]
        for (code, mark) in rules.marks { marks[UInt32(code)!] = mark }
        self.marks = marks
    }

    func encode(_ text: String) -> [Int] {
        let room = rules.maxLength - rules.before.count - rules.after.count
        var found: [Int] = []
        for part in split(tidy(text), at: special) where found.count < room {
            switch part {
            case .special(let token): found.append(token.id)
            case .text(let scalars): addWords(scalars, to: &found)
            }
        }
        return rules.before + found.prefix(room) + rules.after
    }

    private func addWords(_ text: ArraySlice<UInt32>, to found: inout [Int]) {
        for word in spread(text).split(separator: Self.blank) { addPieces(of: Array(word), to: &found) }
    }

    /// What the scalars of a text become; a space is where a word ends.
    private func spread(_ text: ArraySlice<UInt32>) -> [UInt32] {
        var out: [UInt32] = []
        var wall = 0
        for code in text {
            if walls.has(code) { wall = out.count }
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
        if nothing.has(code) { return [] }
        if space.has(code) { return [Self.blank] }
        if word.has(code) { return [Self.blank, code, Self.blank] }
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
}
