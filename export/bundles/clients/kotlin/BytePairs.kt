package com.example.decant

/**
 * A byte-level BPE tokenizer that follows the table byte_pairs.json: which characters are letters is asked of no
 * library, since each has another version of Unicode. Needs nothing of Android.
 */
internal class BytePairs(rules: Map<String, Any?>) : Tokenizer {
    private enum class Kind { LETTERS, NUMBERS, OTHERS, SPACES }

    private val ids = HashMap<String, Int>()
    // two ids as one number -> rank of their merge; and what they become
    private val ranks = HashMap<Long, Int>()
    private val merged: IntArray
    private val bytes: IntArray
    private val special = (rules["special"] as Map<*, *>).entries.associate { (text, value) ->
        val fact = value as Map<*, *>
        text as String to Special((fact["id"] as Number).toInt(), fact["takes_left"] as Boolean, fact["takes_right"] as Boolean)
    }
    private val before = rules.ints("before")
    private val after = rules.ints("after")
    private val longest = rules.int("max_length")
    private val blankFirst = rules["blank_first"] as Boolean
    private val letters = Ranges(rules.ints("letters"))
    private val numbers = Ranges(rules.ints("numbers"))
    private val others = Ranges(rules.ints("others"))

    init {
        require(rules["kind"] == "byte pairs 1") { "found rules of kind '${rules["kind"]}', expected 'byte pairs 1'" }
        (rules["vocabulary"] as List<*>).forEachIndexed { id, piece -> ids[piece as String] = id }
        bytes = (rules["bytes"] as List<*>).map { ids.getValue(it as String) }.toIntArray()
        merged = (rules["merges"] as List<*>).mapIndexed { rank, pair ->
            val (left, right) = (pair as String).split(' ')
            ranks[pairOf(ids.getValue(left), ids.getValue(right))] = rank
            ids.getValue(left + right)
        }.toIntArray()
    }

    override fun encode(text: String): IntArray {
        val room = longest - before.size - after.size
        val found = ArrayList<Int>()
        val parts = split(tidy(text), special)
        for ((place, part) in parts.withIndex()) {
            if (part is Special) {
                found.add(part.id)
            } else {
                val left = (parts.getOrNull(place - 1) as? Special)?.takesRight ?: false
                val right = (parts.getOrNull(place + 1) as? Special)?.takesLeft ?: false
                addWords(trimmed(codePoints(part as String), left, right), found)
            }
            if (found.size >= room) break
        }
        return before + found.take(room).toIntArray() + after
    }

    private fun trimmed(codes: IntArray, left: Boolean, right: Boolean): IntArray {
        var start = 0
        var end = codes.size
        while (left && start < end && kind(codes[start]) == Kind.SPACES) start += 1
        while (right && end > start && kind(codes[end - 1]) == Kind.SPACES) end -= 1
        return codes.copyOfRange(start, end)
    }

    private fun kind(code: Int): Kind = when {
        letters.has(code) -> Kind.LETTERS
        numbers.has(code) -> Kind.NUMBERS
        others.has(code) -> Kind.OTHERS
        else -> Kind.SPACES
    }

    /** Adds the ids of a text's words; a blank before one belongs to it. */
    private fun addWords(text: IntArray, found: MutableList<Int>) {
        val codes = if (blankFirst && text.isNotEmpty() && text[0] != BLANK) intArrayOf(BLANK) + text else text
        val kinds = codes.map(::kind)
        var at = 0
        while (at < codes.size) {
            val end = at + (contraction(codes, at) ?: wordLength(codes, kinds, at))
            addPieces(String(codes, at, end - at), found)
            at = end
        }
    }

    private fun contraction(codes: IntArray, at: Int): Int? {
        if (codes[at] != '\''.code) return null
        val text = String(codes, at, minOf(3, codes.size - at))
        return CONTRACTIONS.firstOrNull(text::startsWith)?.length
    }

    private fun wordLength(codes: IntArray, kinds: List<Kind>, at: Int): Int {
        val isBlankOfWord = codes[at] == BLANK && at + 1 < codes.size && kinds[at + 1] != Kind.SPACES
        val first = if (isBlankOfWord) at + 1 else at
        var end = first + 1
        while (end < codes.size && kinds[end] == kinds[first]) end += 1
        // of spaces, the last may be the blank of a word
        if (kinds[first] == Kind.SPACES && end < codes.size && end - at > 1) end -= 1
        return end - at
    }

    /** Adds the ids of a word: its bytes, merged in pairs, all pairs of the lowest rank first. */
    private fun addPieces(word: String, found: MutableList<Int>) {
        var parts = word.toByteArray().map { bytes[it.toInt() and 0xFF] }.toIntArray()
        while (true) {
            var best = NONE
            for (at in 0 until parts.size - 1) best = minOf(best, rankOf(parts, at))
            if (best == NONE) break
            val shorter = IntArray(parts.size)
            var size = 0
            var at = 0
            while (at < parts.size) {
                val isPair = rankOf(parts, at) == best
                shorter[size++] = if (isPair) merged[best] else parts[at]
                at += if (isPair) 2 else 1
            }
            parts = shorter.copyOf(size)
        }
        parts.forEach(found::add)
    }

    private fun rankOf(parts: IntArray, at: Int): Int =
        if (at + 1 < parts.size) ranks[pairOf(parts[at], parts[at + 1])] ?: NONE else NONE

    private fun pairOf(left: Int, right: Int): Long = left.toLong() shl 32 or right.toLong()

    private companion object {
        const val BLANK = 0x20
        const val NONE = Int.MAX_VALUE
        val CONTRACTIONS = listOf("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
    }
}
