// What both tokenizers do to a text before its words. All of it works on scalars: a Swift Character may hold several.

import Foundation

/// Token ids of a text, special tokens included, cut to the length that the model takes.
protocol Tokenizer {
    func encode(_ text: String) -> [Int]
}

/// The tokenizer that a table is of: what word_pieces.json or byte_pairs.json holds.
func makeTokenizer(rules: Data) throws -> Tokenizer {
    struct Named: Decodable {
        let kind: String
    }

    let decoder = JSONDecoder()
    if try decoder.decode(Named.self, from: rules).kind.hasPrefix("byte pairs") {
        return try BytePairs(rules: decoder.decode(BytePairs.Rules.self, from: rules))
    }
    return try WordPieces(rules: decoder.decode(WordPieces.Rules.self, from: rules))
}

/// A token that stands in a text as it is, and whether it takes the spaces before it and behind it.
struct Special {
    let scalars: [UInt32]
    let id: Int
    var takesLeft = false
    var takesRight = false
}

/// A part of a text: what lies between special tokens, and those themselves.
enum Part {
    case text(ArraySlice<UInt32>)
    case special(Special)
}

/// A text in parts.
func split(_ text: [UInt32], at special: [Special]) -> [Part] {
    // the longest first: one may begin as another does
    let tokens = special.sorted { $0.scalars.count > $1.scalars.count }
    var found: [Part] = []
    var start = 0
    var at = 0
    while at < text.count {
        guard let token = tokens.first(where: { text[at...].starts(with: $0.scalars) }) else {
            at += 1
            continue
        }
        if at > start { found.append(.text(text[start..<at])) }
        found.append(.special(token))
        at += token.scalars.count
        start = at
    }
    if start < text.count { found.append(.text(text[start...])) }
    return found
}

/// The scalars of a text without NUL; Swift has no halves of surrogate pairs.
func tidy(_ text: String) -> [UInt32] {
    scalars(of: text).filter { $0 != 0 }
}

func scalars(of text: String) -> [UInt32] {
    text.unicodeScalars.map { $0.value }
}

/// Ranges [first, last, first, last, ...], asked by binary search.
struct Ranges {
    let ends: [UInt32]

    func has(_ code: UInt32) -> Bool {
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
