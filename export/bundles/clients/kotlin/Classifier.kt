package com.example.decant

import kotlin.math.abs
import kotlin.math.exp

/** A label, how sure the model is of it, and how often answers as sure as this one were right on texts of the data. */
data class Answer(val index: Int, val label: String, val confidence: Double, val right: Double)

/** What executes the model: logits for token ids and their mask, both of a length that the model takes. */
fun interface Session : AutoCloseable {
    fun run(ids: IntArray, mask: IntArray): FloatArray

    override fun close() {}
}

/** Reads a file of a bundle by its name. */
fun interface Files {
    fun read(name: String): ByteArray
}

/**
 * Classifies texts with a bundle's model, and tests itself with the answers that the bundle brings. Needs nothing of
 * Android: `open` makes the session from what model.json says.
 */
class Classifier(files: Files, open: (Map<String, Any?>) -> Session) : AutoCloseable {
    private val model = Json.readMap(files.read("model.json"))
    private val golden = Json.readMap(files.read("golden.json"))
    private val tokenizer = Tokenizer.of(Json.readMap(files.read(model["rules"] as String)))
    private val labels = (model["labels"] as List<*>).map { it as String }
    private val lengths = (model["lengths"] as List<*>?)?.map { (it as Number).toInt() }
    private val padId = (model["pad_id"] as Number).toInt()
    private val thresholds = (model["thresholds"] as List<*>).map { it as Map<*, *> }
    private val session: Session

    init {
        require(model["kind"] == "decant model 1") { "found '${model["kind"]}', expected 'decant model 1'" }
        session = open(model)
    }

    /** The label of a text, and how sure the model is. */
    fun classify(text: String): Answer = answer(run(encode(text)))

    /** Token ids of a text. */
    fun encode(text: String): IntArray = tokenizer.encode(text)

    /** Logits for token ids, padded to the next length that the model takes. */
    fun run(ids: IntArray): FloatArray {
        val length = lengths?.filter { it >= ids.size }?.minOrNull() ?: ids.size
        val padded = IntArray(length) { if (it < ids.size) ids[it] else padId }
        return session.run(padded, IntArray(length) { if (it < ids.size) 1 else 0 })
    }

    /** What logits say: the largest, of two that are level the first. */
    fun answer(logits: FloatArray): Answer {
        var index = 0
        for (place in logits.indices) if (logits[place] > logits[index]) index = place
        val confidence = 1 / logits.sumOf { exp((it - logits[index]).toDouble()) }
        val right = thresholds.filter { confidence >= (it["confidence"] as Number).toDouble() }
            .maxOfOrNull { (it["right"] as Number).toDouble() } ?: 0.0
        return Answer(index, labels[index], confidence, right)
    }

    /** Replays every golden vector; what differs, in words. Empty: the model answers here as it should. */
    fun selfTest(): List<String> {
        val failures = ArrayList<String>()
        for (tie in (golden["ties"] as List<*>).map { it as Map<*, *> }) {
            val found = answer(floats(tie["outputs"])).index
            if (found != (tie["answer"] as Number).toInt()) failures.add("of level outputs it takes number $found")
        }
        val tolerance = (golden["tolerance"] as Number).toDouble()
        (golden["rows"] as List<*>).map { it as Map<*, *> }.forEachIndexed { number, row ->
            val ids = encode(row["text"] as String)
            val expected = (row["ids"] as List<*>).map { (it as Number).toInt() }
            if (ids.toList() != expected) {
                failures.add("row $number: token ids ${ids.toList()}, expected $expected")
                return@forEachIndexed
            }
            val outputs = run(ids)
            val worst = floats(row["outputs"]).indices.maxOf { abs(floats(row["outputs"])[it] - outputs[it]).toDouble() }
            val answered = answer(outputs)
            // written so that a NaN fails
            if (!(worst <= tolerance)) {
                failures.add("row $number: outputs $worst away, at most $tolerance allowed")
            } else if (row["sure"] as Boolean && answered.label != row["label"]) {
                failures.add("row $number: answers ${answered.label}, expected ${row["label"]}")
            }
        }
        return failures
    }

    override fun close() = session.close()

    private fun floats(values: Any?): FloatArray = (values as List<*>).map { (it as Number).toFloat() }.toFloatArray()
}
