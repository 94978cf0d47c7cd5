package com.example.decant

/** Token ids of a text, special tokens included, cut to the length that the model takes. */
interface Tokenizer {
    fun encode(text: String): IntArray

    companion object {
        /** The tokenizer that a table is of: what word_pieces.json or byte_pairs.json holds. */
        fun of(rules: Map<String, Any?>): Tokenizer =
            if ((rules["kind"] as String).startsWith("byte pairs")) BytePairs(rules) else WordPieces(rules)
    }
}

/** A token that stands in a text as it is, and whether it takes the spaces before it and behind it. */
internal class Special(val id: Int, val takesLeft: Boolean = false, val takesRight: Boolean = false)

/** Ranges [first, last, first, last, ...], asked by binary search. */
internal class Ranges(private val ends: IntArray) {
    fun has(code: Int): Boolean {
        var low = 0
        var high = ends.size / 2 - 1
        while (low <= high) {
            val middle = (low + high) / 2
            when {
                code < ends[2 * middle] -> high = middle - 1
                code > ends[2 * middle + 1] -> low = middle + 1
                else -> return true
            }
        }
        return false
    }
}

/** What lies between special tokens, as text, and those themselves. */
internal fun split(text: String, special: Map<String, Special>): List<Any> {
    // the longest first: one may begin as another does
    val tokens = special.keys.sortedByDescending(String::length)
    val found = ArrayList<Any>()
    var start = 0
    var at = 0
    while (at < text.length) {
        val token = tokens.firstOrNull { text.startsWith(it, at) }
        if (token == null) {
            at += 1
            continue
        }
        if (at > start) found.add(text.substring(start, at))
        found.add(special.getValue(token))
        at += token.length
        start = at
    }
    if (start < text.length) found.add(text.substring(start))
    return found
}

/** A text without NUL; half of a surrogate pair becomes a question mark, as in training. */
internal fun tidy(text: String): String {
    val out = StringBuilder(text.length)
    var at = 0
    while (at < text.length) {
        val code = text.codePointAt(at)
        if (code in 0xD800..0xDFFF) out.append('?') else if (code != 0) out.appendCodePoint(code)
        at += Character.charCount(code)
    }
    return out.toString()
}

internal fun codePoints(text: String): IntArray {
    val found = IntArray(text.codePointCount(0, text.length))
    var at = 0
    for (place in found.indices) {
        found[place] = text.codePointAt(at)
        at += Character.charCount(found[place])
    }
    return found
}

internal fun Map<String, Any?>.int(name: String): Int = (this[name] as Number).toInt()

internal fun Map<String, Any?>.ints(name: String): IntArray =
    (this[name] as List<*>).map { (it as Number).toInt() }.toIntArray()
