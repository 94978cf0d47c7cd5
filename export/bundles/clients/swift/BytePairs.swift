// A byte-level BPE tokenizer that follows the table byte_pairs.json: which characters are letters is asked of no library,
// since each has another version of Unicode.

import Foundation

struct BytePairs: Tokenizer {
    /// What byte_pairs.json holds; numbers are code points and token ids.
    struct Rules: Decodable {
        struct Token: Decodable {
            let id: Int
            let takesLeft: Bool
            let takesRight: Bool

            enum CodingKeys: String, CodingKey {
                case id
                case takesLeft = "takes_left"
                case takesRight = "takes_right"
            }
        }

        let kind: String
        let vocabulary: [String]
        let bytes: [String]
        let merges: [String]
        let special: [String: Token]
        let before: [Int]
        let after: [Int]
        let maxLength: Int
        let padId: Int
        let blankFirst: Bool
        let letters: [UInt32]
        let numbers: [UInt32]
        let others: [UInt32]

        enum CodingKeys: String, CodingKey {
            case kind, vocabulary, bytes, merges, special, before, after, letters, numbers, others
            case maxLength = "max_length"
            case padId = "pad_id"
            case blankFirst = "blank_first"
        }
    }

    private enum Kind {
        case letters, numbers, others, spaces
    }

    private static let blank: UInt32 = 0x20
    private static let contractions = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"].map { scalars(of: $0) }

    private let rules: Rules
    // two ids as one number -> rank of their merge; and what they become
    private let ranks: [Int: Int]
    private let merged: [Int]
    private let bytes: [Int]
    private let special: [Special]
    private let letters: Ranges
    private let numbers: Ranges
    private let others: Ranges

    init(rules: Rules) throws {
        guard rules.kind == "byte pairs 1" else {
            throw BundleError("found rules of kind '\(rules.kind)', expected 'byte pairs 1'")
        }
        self.rules = rules
        // scalars as keys, since two texts of other scalars may be equal as Swift compares texts
        var ids: [[UInt32]: Int] = [:]
        for (id, piece) in rules.vocabulary.enumerated() { ids[scalars(of: piece)] = id }
        var ranks: [Int: Int] = [:]
        var merged: [Int] = []
        for (rank, pair) in rules.merges.enumerated() {
            let parts = scalars(of: pair).split(separator: Self.blank).map { Array($0) }
            guard parts.count == 2, let left = ids[parts[0]], let right = ids[parts[1]],
                let both = ids[parts[0] + parts[1]]
            else { throw BundleError("a merge of no tokens: '\(pair)'") }
            ranks[left << 32 | right] = rank
            merged.append(both)
        }
        self.ranks = ranks
        self.merged = merged
        bytes = try rules.bytes.map { character in
            guard let id = ids[scalars(of: character)] else { throw BundleError("no token for '\(character)'") }
            return id
        }
        special = rules.special.map { name, token in
            Special(scalars: scalars(of: name), id: token.id, takesLeft: token.takesLeft, takesRight: token.takesRight)
        }
        letters = Ranges(ends: rules.letters)
        numbers = Ranges(ends: rules.numbers)
        others = Ranges(ends: rules.others)
    }

    func encode(_ text: String) -> [Int] {
        let room = rules.maxLength - rules.before.count - rules.after.count
        var found: [Int] = []
        let parts = split(tidy(text), at: special)
        for (place, part) in parts.enumerated() where found.count < room {
            switch part {
            case .special(let token):
                found.append(token.id)
            case .text(var scalars):
                if place > 0, case .special(let token) = parts[place - 1], token.takesRight {
                    scalars = scalars.drop(while: { kind(of: $0) == .spaces })
                }
                if place + 1 < parts.count, case .special(let token) = parts[place + 1], token.takesLeft {
                    while let last = scalars.last, kind(of: last) == .spaces { scalars.removeLast() }
                }
                addWords(Array(scalars), to: &found)
            }
        }
        return rules.before + found.prefix(room) + rules.after
    }

    private func kind(of code: UInt32) -> Kind {
        if letters.has(code) { return .letters }
        if numbers.has(code) { return .numbers }
        return others.has(code) ? .others : .spaces
    }

    /// Adds the ids of a text's words; a blank before one belongs to it.
    private func addWords(_ text: [UInt32], to found: inout [Int]) {
        let needsBlank = rules.blankFirst && !text.isEmpty && text[0] != Self.blank
        let codes = needsBlank ? [Self.blank] + text : text
        let kinds = codes.map { kind(of: $0) }
        var at = 0
        while at < codes.count {
            let contraction = Self.contractions.first { codes[at...].starts(with: $0) }
            let end = at + (contraction?.count ?? wordLength(codes, kinds, at))
            addPieces(of: codes[at..<end], to: &found)
            at = end
        }
    }

    private func wordLength(_ codes: [UInt32], _ kinds: [Kind], _ at: Int) -> Int {
        let isBlankOfWord = codes[at] == Self.blank && at + 1 < codes.count && kinds[at + 1] != .spaces
        let first = isBlankOfWord ? at + 1 : at
        var end = first + 1
        while end < codes.count && kinds[end] == kinds[first] { end += 1 }
        // of spaces, the last may be the blank of a word
        if kinds[first] == .spaces && end < codes.count && end - at > 1 { end -= 1 }
        return end - at
    }

    /// Adds the ids of a word: its bytes, merged in pairs, all pairs of the lowest rank first.
    private func addPieces(of word: ArraySlice<UInt32>, to found: inout [Int]) {
        var text = String.UnicodeScalarView()
        for code in word { if let scalar = Unicode.Scalar(code) { text.append(scalar) } }
        var parts = Array(String(text).utf8).map { bytes[Int($0)] }
        while let best = parts.indices.compactMap({ rank(parts, $0) }).min() {
            var shorter: [Int] = []
            var at = 0
            while at < parts.count {
                let isPair = rank(parts, at) == best
                shorter.append(isPair ? merged[best] : parts[at])
                at += isPair ? 2 : 1
            }
            parts = shorter
        }
        found += parts
    }

    /// Rank of the pair that begins at a place; nil: there is none, or it is never merged.
    private func rank(_ parts: [Int], _ at: Int) -> Int? {
        at + 1 < parts.count ? ranks[parts[at] << 32 | parts[at + 1]] : nil
    }
}
