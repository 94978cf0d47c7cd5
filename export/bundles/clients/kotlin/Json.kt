package com.example.decant

/** Reads JSON into maps, lists, texts, numbers, booleans and null: Android's own reader is not on a computer's JVM. */
class Json private constructor(private val text: String) {
    private var at = 0

    private fun value(depth: Int): Any? {
        require(depth < DEEPEST) { "nested more than $DEEPEST deep" }
        skip()
        return when (val c = peek()) {
            '{' -> map(depth)
            '[' -> list(depth)
            '"' -> string()
            't' -> word("true", true)
            'f' -> word("false", false)
            'n' -> word("null", null)
            else -> if (c == '-' || c in '0'..'9') number() else fail("found '$c'")
        }
    }

    private fun map(depth: Int): Map<String, Any?> {
        val found = LinkedHashMap<String, Any?>()
        expect('{')
        skip()
        if (peek() == '}') return found.also { at += 1 }
        while (true) {
            skip()
            val name = string()
            skip()
            expect(':')
            found[name] = value(depth + 1)
            skip()
            if (peek() == '}') return found.also { at += 1 }
            expect(',')
        }
    }

    private fun list(depth: Int): List<Any?> {
        val found = ArrayList<Any?>()
        expect('[')
        skip()
        if (peek() == ']') return found.also { at += 1 }
        while (true) {
            found.add(value(depth + 1))
            skip()
            if (peek() == ']') return found.also { at += 1 }
            expect(',')
        }
    }

    private fun string(): String {
        expect('"')
        val out = StringBuilder()
        while (true) {
            when (val c = next()) {
                '"' -> return out.toString()
                '\\' -> out.append(escaped())
                else -> out.append(c)
            }
        }
    }

    private fun escaped(): Char = when (val c = next()) {
        'b' -> '\b'
        'f' -> '\u000C'
        'n' -> '\n'
        'r' -> '\r'
        't' -> '\t'
        'u' -> {
            if (at + 4 > text.length) fail("cut short")
            text.substring(at, at + 4).toInt(16).toChar().also { at += 4 }
        }
        '"', '\\', '/' -> c
        else -> fail("found '\\$c'")
    }

    private fun number(): Number {
        val start = at
        while (at < text.length && (text[at] in '0'..'9' || text[at] in "+-.eE")) at += 1
        val digits = text.substring(start, at)
        return digits.toLongOrNull() ?: digits.toDoubleOrNull() ?: fail("found '$digits'")
    }

    private fun word(name: String, value: Any?): Any? {
        if (!text.startsWith(name, at)) fail("found '${peek()}'")
        at += name.length
        return value
    }

    private fun skip() {
        while (at < text.length && text[at] in " \n\r\t") at += 1
    }

    private fun peek(): Char = if (at < text.length) text[at] else fail("cut short")

    private fun next(): Char = peek().also { at += 1 }

    private fun expect(c: Char) {
        if (next() != c) fail("expected '$c'")
    }

    private fun fail(what: String): Nothing = throw IllegalArgumentException("not JSON at character $at: $what")

    companion object {
        private const val DEEPEST = 100

        /** What a text holds, and nothing behind it. */
        fun read(text: String): Any? {
            val json = Json(text)
            return json.value(0).also {
                json.skip()
                if (json.at < text.length) json.fail("found more")
            }
        }

        @Suppress("UNCHECKED_CAST")
        fun readMap(bytes: ByteArray): Map<String, Any?> = read(String(bytes, Charsets.UTF_8)) as? Map<String, Any?>
            ?: throw IllegalArgumentException("not a JSON object")
    }
}
