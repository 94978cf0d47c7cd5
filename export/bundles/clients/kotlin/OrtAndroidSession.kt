package com.example.decant

import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import android.content.res.AssetManager
import java.io.File
import java.nio.IntBuffer
import java.nio.LongBuffer

/** The model in ONNX Runtime. */
class OrtAndroidSession private constructor(bytes: ByteArray, model: Map<String, Any?>) : Session {
    private val environment = OrtEnvironment.getEnvironment()
    private val output = model["output"] as String
    private val types = (model["inputs"] as List<*>).map { it as Map<*, *> }.associate { it["name"] as String to it["dtype"] }
    private val session = environment.createSession(
        bytes,
        OrtSession.SessionOptions().apply {
            setIntraOpNumThreads(1)
            // a thread that spins costs battery
            addConfigEntry("session.intra_op.allow_spinning", "0")
        },
    )

    override fun run(ids: IntArray, mask: IntArray): FloatArray {
        val inputs = mapOf("input_ids" to ids, "attention_mask" to mask).filterKeys(types::containsKey)
            .mapValues { (name, values) -> tensor(values, types[name] == "int64") }
        try {
            session.run(inputs, setOf(output)).use { found ->
                val rows = found[0].value as Array<*>
                return rows[0] as FloatArray
            }
        } finally {
            inputs.values.forEach(OnnxTensor::close)
        }
    }

    private fun tensor(values: IntArray, isLong: Boolean): OnnxTensor {
        val shape = longArrayOf(1, values.size.toLong())
        return if (isLong) {
            OnnxTensor.createTensor(environment, LongBuffer.wrap(LongArray(values.size) { values[it].toLong() }), shape)
        } else {
            OnnxTensor.createTensor(environment, IntBuffer.wrap(values), shape)
        }
    }

    override fun close() = session.close()

    companion object {
        /** The model among an app's assets, which is where a pack that is installed with the app lies as well. */
        fun open(assets: AssetManager, folder: String, model: Map<String, Any?>) =
            OrtAndroidSession(assets.open("$folder/${model["file"]}").use { it.readBytes() }, model)

        /** The model of a folder, such as one that was downloaded. */
        fun open(folder: File, model: Map<String, Any?>) =
            OrtAndroidSession(File(folder, model["file"] as String).readBytes(), model)
    }
}
