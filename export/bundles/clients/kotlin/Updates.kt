package com.example.decant

import java.io.ByteArrayOutputStream
import java.io.File
import java.io.IOException
import java.net.URL
import java.security.KeyFactory
import java.security.MessageDigest
import java.security.PublicKey
import java.security.Signature
import java.security.spec.X509EncodedKeySpec
import java.util.Base64

/** The bytes of a file of a release, which is at most `limit` bytes long. */
fun interface Download {
    fun get(path: String, limit: Long): ByteArray
}

/**
 * Brings a newer release of a bundle to an app: downloads, verifies, tests, and only then switches to it.
 *
 * A release is a folder with a manifest that lists every file by SHA-256, signed as OpenSSF Model Signing v1.0 has it
 * (ECDSA P-256). `key` is the public key that the app was built with, base64 of its SubjectPublicKeyInfo. Nothing that
 * is downloaded is used before all of it was verified and has answered its golden vectors; the version before is kept.
 * Neither a model of another name, nor a version that is not above all that this app has seen, is ever taken.
 *
 * @param folder of versions, and of nothing else
 * @param came model.json of the model that the app came with
 */
class Updates(
    private val folder: File,
    came: Map<String, Any?>,
    key: String,
    private val download: Download,
    private val open: (File, Map<String, Any?>) -> Session,
) {
    private val name = came["name"] as String
    private val platform = came["platform"] as String
    private val installed = came["version"] as String
    private val key: PublicKey =
        KeyFactory.getInstance("EC").generatePublic(X509EncodedKeySpec(Base64.getDecoder().decode(key)))
    private val pointer = File(folder, "versions.json")

    /** The folder of the version in use; null: none that is newer than what the app came with. */
    fun current(): File? = held().firstOrNull()?.let { File(folder, it) }

    /**
     * Version of the release that is now in use, or null where none is newer.
     *
     * @throws IOException the release could not be brought, or must not be used; what was in use stays
     */
    fun update(): String? = try {
        synchronized(LOCK) { bring() }
    } catch (error: IOException) {
        throw error
    } catch (error: Exception) { // of what cannot be read, verified, or opened by the runtime
        throw IOException("the release cannot be read: ${error.message}", error)
    }

    private fun bring(): String? {
        val versions = held()
        val entry = newest(seen()) ?: return null
        val path = entry["path"] as String
        val signed = verified(download.get("$path/model.sig", SMALL))
        val manifestBytes = download.get("$path/manifest.json", SMALL)
        expectDigest("manifest.json", manifestBytes, signed["manifest.json"])
        val manifest = Json.readMap(manifestBytes)
        val version = manifest["version"] as String
        val found = "${manifest["name"]} $version for ${manifest["platform"]}"
        val expected = "$name ${entry["version"]} for $platform"
        if (found != expected) throw IOException("found $found, expected $expected")
        val partial = File(folder, "$version.partial")
        partial.deleteRecursively()
        try {
            fetch(path, manifest, signed, partial)
            Classifier({ read(partial, it) }, { open(partial, it) }).use { classifier ->
                val failures = classifier.selfTest()
                if (failures.isNotEmpty()) throw IOException("the new version fails its self-test: ${failures[0]}")
            }
            val place = File(folder, version)
            place.deleteRecursively()
            if (!partial.renameTo(place)) throw IOException("$partial cannot be renamed")
            point(listOf(version) + versions.take(1), version)
        } finally {
            partial.deleteRecursively()
        }
        return version
    }

    /** Goes back to the version before, and gives its name; null: to the one that the app came with. */
    fun rollBack(): String? = synchronized(LOCK) {
        val versions = held()
        point(versions.drop(1), seen())
        versions.getOrNull(1)
    }

    /** Brings what the code reads at run time; the code itself comes with the app. */
    private fun fetch(path: String, manifest: Map<String, Any?>, signed: Map<String, String>, partial: File) {
        val home = if (manifest["home"] == "") "" else "${manifest["home"]}/"
        for ((name, value) in manifest["files"] as Map<*, *>) {
            val fact = value as Map<*, *>
            if (!(name as String).startsWith(home)) continue
            val place = File(partial, name.removePrefix(home))
            if (!place.canonicalPath.startsWith(partial.canonicalPath + File.separator)) {
                throw IOException("the name '$name' leads out of the bundle")
            }
            if (fact["sha256"] != signed[name]) throw IOException("$name: the manifest has another hash than the signature")
            val size = (fact["bytes"] as Number).toLong()
            val bytes = download.get("$path/$name", size)
            if (bytes.size.toLong() != size) throw IOException("$name: found ${bytes.size} bytes, expected $size")
            expectDigest(name, bytes, fact["sha256"] as String)
            place.parentFile?.mkdirs()
            place.writeBytes(bytes)
        }
    }

    /** The newest release of this platform that is newer than a version. */
    private fun newest(floor: String): Map<*, *>? =
        (Json.readMap(download.get("index.json", SMALL))["releases"] as List<*>).map { it as Map<*, *> }
            .filter { it["platform"] == platform && it["name"] == name && isVersion(it["version"] as String) }
            .filter { compare(it["version"] as String, floor) > 0 }
            .maxWithOrNull { one, other -> compare(one["version"] as String, other["version"] as String) }

    /** Name -> SHA-256 of every file that a signature covers, once it was verified. */
    private fun verified(bundle: ByteArray): Map<String, String> {
        val envelope = Json.readMap(bundle)["dsseEnvelope"] as Map<*, *>
        val type = envelope["payloadType"] as String
        val body = Base64.getDecoder().decode(envelope["payload"] as String)
        val signature = ((envelope["signatures"] as List<*>)[0] as Map<*, *>)["sig"] as String
        val check = Signature.getInstance("SHA256withECDSA")
        check.initVerify(key)
        check.update("DSSEv1 ${type.length} $type ${body.size} ".toByteArray())
        check.update(body)
        if (!check.verify(Base64.getDecoder().decode(signature))) {
            throw IOException("model.sig: not signed with the key of this app")
        }
        val statement = Json.readMap(body)
        if (statement["predicateType"] != "https://model_signing/signature/v1.0") {
            throw IOException("model.sig: found a statement of '${statement["predicateType"]}'")
        }
        val resources = (statement["predicate"] as Map<*, *>)["resources"] as List<*>
        return resources.map { it as Map<*, *> }.associate { it["name"] as String to it["digest"] as String }
    }

    /** Versions that are held and newer than what the app came with, the one in use first. */
    private fun held(): List<String> =
        (state()["versions"] as? List<*> ?: emptyList<Any?>()).filterIsInstance<String>()
            .filter { isVersion(it) && compare(it, installed) > 0 }

    /** The highest version that this app has had: one that it went back from is not brought again. */
    private fun seen(): String {
        val highest = state()["highest"] as? String ?: installed
        return if (isVersion(highest) && compare(highest, installed) > 0) highest else installed
    }

    /** What was written last; nothing where that cannot be read, since the app has a model all the same. */
    private fun state(): Map<String, Any?> = try {
        Json.readMap(pointer.readBytes())
    } catch (error: IOException) {
        emptyMap()
    } catch (error: RuntimeException) {
        emptyMap()
    }

    /** Switches, then removes versions that are neither in use nor the one before. */
    private fun point(versions: List<String>, highest: String) {
        folder.mkdirs()
        val partial = File(folder, "versions.json.partial")
        val list = versions.joinToString(",", "[", "]") { "\"$it\"" }
        partial.writeText("{\"versions\":$list,\"highest\":\"$highest\"}")
        if (!partial.renameTo(pointer)) throw IOException("$partial cannot be renamed")
        val old = folder.listFiles { file -> file.isDirectory && isVersion(file.name) && file.name !in versions }
        old?.forEach { it.deleteRecursively() }
    }

    companion object {
        private const val SMALL = 8L * 1024 * 1024
        private const val TIMEOUT_MS = 30_000

        // of all instances: two would each switch by what they read before the other did
        private val LOCK = Any()
        private val VERSION = Regex("[0-9]{1,6}\\.[0-9]{1,6}\\.[0-9]{1,6}")

        private fun isVersion(text: String) = VERSION.matches(text)

        /** Downloads over HTTP from a folder of releases, whose address ends with a slash. */
        fun over(address: String) = Download { path, limit ->
            val out = ByteArrayOutputStream()
            val connection = URL(address + path).openConnection()
            connection.connectTimeout = TIMEOUT_MS
            connection.readTimeout = TIMEOUT_MS
            connection.useCaches = false
            connection.getInputStream().use { source ->
                val block = ByteArray(65_536)
                while (true) {
                    val count = source.read(block)
                    if (count < 0) break
                    out.write(block, 0, count)
                    if (out.size() > limit) throw IOException("$path: longer than the $limit bytes that were expected")
                }
            }
            out.toByteArray()
        }

        private fun read(folder: File, name: String): ByteArray = File(folder, name).readBytes()

        private fun expectDigest(name: String, bytes: ByteArray, expected: String?) {
            val found = MessageDigest.getInstance("SHA-256").digest(bytes).joinToString("") { "%02x".format(it) }
            if (found != expected) {
                throw IOException("$name: found SHA-256 ${found.take(16)}…, expected ${expected?.take(16)}…")
            }
        }

        private fun compare(one: String, other: String): Int {
            val (a, b) = listOf(one, other).map { version -> version.split('.').map(String::toInt) }
            for (place in 0..2) if (a[place] != b[place]) return a[place].compareTo(b[place])
            return 0
        }
    }
}
