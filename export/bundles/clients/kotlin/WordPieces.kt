package com.example.decant

/**
 * A WordPiece tokenizer that follows the table word_pieces.json: what it says is asked of no library, since each has
 * another version of Unicode. Needs nothing of Android.
 */
internal class WordPieces(rules: Map<String, Any?>) : Tokenizer {
    private val ids = HashMap<String, Int>()
    private val unknown = rules.int("unknown")
    private val prefix = rules["prefix"] as String
    private val longestWord = rules.int("longest_word")
    private val special = (rules["special"] as Map<*, *>).entries
        .associate { (text, id) -> text as String to Special((id as Number).toInt()) }
    private val before = rules.ints("before")
    private val after = rules.ints("after")
    private val longest = rules.int("max_length")
    private val nothing = Ranges(rules.ints("nothing"))
    private val space = Ranges(rules.ints("space"))
    private val word = Ranges(rules.ints("word"))
    private val walls = Ranges(rules.ints("walls"))
    private val other = (rules["other"] as Map<*, *>).entries
        .associate { (code, effect) -> (code as String).toInt() to codePoints(effect as String) }
    private val hangul = rules["hangul"] as Boolean
    private val marks = (rules["marks"] as Map<*, *>).entries
        .associate { (code, mark) -> (code as String).toInt() to (mark as Number).toInt() }

    init {
        require(rules["kind"] == "word pieces 1") { "found rules of kind '${rules["kind"]}', expected 'word pieces 1'" }
        (rules["vocabulary"] as List<*>).forEachIndexed { id, piece -> ids[piece as String] = id }
    }

    override fun encode(text: String): IntArray {
        val room = longest - before.size - after.size
        val found = ArrayList<Int>()
        for (part in split(tidy(text), special)) {
            if (part is Special) found.add(part.id) else addWords(part as String, found)
            if (found.size >= room) break
        }
        return before + found.take(room).toIntArray() + after
    }

    private fun addWords(text: String, found: MutableList<Int>) {
        val out = spread(text)
        var start = 0
        for (place in 0..out.size) {
            if (place < out.size && out[place] != SPACE) continue
            if (place > start) addPieces(out.subList(start, place), found)
            start = place + 1
        }
    }

    /** What the code points of a text become; a space is where a word ends. */
    private fun spread(text: String): List<Int> {
        val out = ArrayList<Int>(text.length)
        var wall = 0
        for (code in codePoints(text)) {
            if (walls.has(code)) wall = out.size
            for (one in effect(code)) {
                val mark = marks[one] ?: 0
                var place = out.size
                // a mark goes before those of a higher class, and stays behind its equals
                while (mark > 0 && place > wall && (marks[out[place - 1]] ?: 0) > mark) place -= 1
                out.add(place, one)
            }
        }
        return out
    }

    private fun effect(code: Int): IntArray {
        other[code]?.let { return it }
        return when {
            nothing.has(code) -> IntArray(0)
            space.has(code) -> intArrayOf(SPACE)
            word.has(code) -> intArrayOf(SPACE, code, SPACE)
            hangul && code in FIRST_SYLLABLE..LAST_SYLLABLE -> letters(code - FIRST_SYLLABLE)
            else -> intArrayOf(code)
        }
    }

    private fun letters(place: Int): IntArray {
        val first = 0x1100 + place / 588
        val middle = 0x1161 + place % 588 / 28
        return if (place % 28 > 0) intArrayOf(first, middle, 0x11A7 + place % 28) else intArrayOf(first, middle)
    }

    /** Adds the ids of a word's pieces, the longest first; of one that has none, the id of unknown words. */
    private fun addPieces(word: List<Int>, found: MutableList<Int>) {
        val size = found.size
        var start = if (word.size > longestWord) -1 else 0
        while (start in 0 until word.size) {
            var end = word.size
            while (end > start) {
                val id = ids[piece(word, start, end)]
                if (id != null) {
                    found.add(id)
                    break
                }
                end -= 1
            }
            start = if (end > start) end else -1
        }
        if (start < 0) {
            while (found.size > size) found.removeAt(found.size - 1)
            found.add(unknown)
        }
    }

    private fun piece(word: List<Int>, start: Int, end: Int): String {
        val text = StringBuilder(if (start > 0) prefix else "")
        for (place in start until end) text.appendCodePoint(word[place])
        return text.toString()
    }

    companion object {
        private const val SPACE = 0x20
        private const val FIRST_SYLLABLE = 0xAC00
        private const val LAST_SYLLABLE = 0xD7A3
    }
}
