import com.example.decant.Answer
import com.example.decant.Classifier
import com.example.decant.Json
import com.example.decant.Session
import com.example.decant.Updates
import com.example.decant.WordPieces
import java.io.File

/**
 * What of the code for Android runs on a computer, asked from outside:
 *
 *     ids RULES                                    token ids of the texts of standard input
 *     test FOLDER                                  the self-test and answers, from recorded outputs: [[ids, outputs], ...]
 *     update FOLDER KEY ADDRESS INSTALLED OUTPUTS  updates a folder, then says which version it holds
 *
 * Texts come as a JSON list, answers go as one.
 */
fun main(words: Array<String>) {
    val out = when (words[0]) {
        "ids" -> ids(File(words[1]))
        "test" -> test(File(words[1]))
        "update" -> update(File(words[1]), words[2], words[3], words[4], File(words[5]))
        else -> error("no command '${words[0]}'")
    }
    System.out.write(out.toByteArray())
    System.out.flush()
}

private fun ids(rules: File): String {
    val tokenizer = WordPieces(Json.readMap(rules.readBytes()))
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

private fun update(folder: File, key: String, address: String, installed: String, outputs: File): String {
    val session = recorded(Json.read(outputs.readText()))
    val updates = Updates(folder, "android", key, Updates.over(address)) { _, _ -> session }
    val said = try {
        updates.update(installed) ?: "none is newer"
    } catch (error: Exception) {
        "refused: ${error.message}"
    }
    return "{\"said\":${quoted(said)},\"holds\":${quoted(updates.current()?.name ?: installed)}}"
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
