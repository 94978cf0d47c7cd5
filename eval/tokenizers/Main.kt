import com.example.decant.Answer
import com.example.decant.Classifier
import com.example.decant.Json
import com.example.decant.Session
import com.example.decant.Tokenizer
import com.example.decant.Updates
import java.io.File
import java.io.IOException

/**
 * What of the code for Android runs on a computer, asked from outside:
 *
 *     ids RULES                                    token ids of the texts of standard input
 *     test FOLDER                                  the self-test and answers, from recorded outputs: [[ids, outputs], ...]
 *     update FOLDER KEY ADDRESS MODEL OUTPUTS      updates a folder, as an app does that came with a model.json
 *     back FOLDER KEY ADDRESS MODEL OUTPUTS        goes back
 *
 * Texts come as a JSON list, answers go as one.
 */
fun main(words: Array<String>) {
    val out = when (words[0]) {
        "ids" -> ids(File(words[1]))
        "test" -> test(File(words[1]))
        "update", "back" -> update(words)
        else -> error("no command '${words[0]}'")
    }
    System.out.write(out.toByteArray())
    System.out.flush()
}

private fun ids(rules: File): String {
    val tokenizer = Tokenizer.of(Json.readMap(rules.readBytes()))
    return (Json.read(input()) as List<*>).joinToString(",", "[", "]") { text ->
        tokenizer.encode(text as String).joinToString(",", "[", "]")
    }
}

private fun test(folder: File): String {
    val given = Json.readMap(input().toByteArray())
    val classifier = Classifier({ File(folder, it).readBytes() }, { recorded(given["outputs"]) })
    val failures = classifier.selfTest().joinToString(",", "[", "]", transform = ::quoted)
    val answers = (given["texts"] as List<*>).map { classifier.classify(it as String) }
    return "{\"failures\":$failures,\"answers\":${answers.map(Answer::index)}}"
}

private fun update(words: Array<String>): String {
    val session = recorded(Json.read(File(words[5]).readText()))
    val came = Json.readMap(File(words[4]).readBytes())
    val updates = Updates(File(words[1]), came, words[2], Updates.over(words[3])) { _, _ -> session }
    val said = try {
        if (words[0] == "back") updates.rollBack() ?: "to what it came with" else updates.update() ?: "none is newer"
    } catch (error: IOException) {
        "refused: ${error.message}"
    }
    return "{\"said\":${quoted(said)},\"holds\":${updates.current()?.name?.let(::quoted)}}"
}

/** A session that knows what the model answered to each row of ids. */
private fun recorded(rows: Any?): Session {
    val known = (rows as List<*>).map { it as List<*> }.associate { (ids, outputs) ->
        (ids as List<*>).map { (it as Number).toInt() } to (outputs as List<*>).map { (it as Number).toFloat() }.toFloatArray()
    }
    return Session { ids, mask -> known[ids.take(mask.sum())] ?: error("no outputs were recorded for ${ids.toList()}") }
}

private fun input(): String = String(System.`in`.readBytes(), Charsets.UTF_8)

private fun quoted(text: String): String = buildString {
    append('"')
    for (c in text) if (c == '"' || c == '\\' || c < ' ') append("\\u%04x".format(c.code)) else append(c)
    append('"')
}
