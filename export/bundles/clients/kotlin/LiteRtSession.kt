package com.example.decant

import android.content.res.AssetManager
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.TensorBuffer
import java.io.File

/** The model in LiteRT. The file has a signature for each length, named after it. */
class LiteRtSession private constructor(private val compiled: CompiledModel, private val output: String) : Session {
    private class Buffers(val inputs: Map<String, TensorBuffer>, val outputs: Map<String, TensorBuffer>)

    private val buffers = HashMap<Int, Buffers>()

    @Synchronized
    override fun run(ids: IntArray, mask: IntArray): FloatArray {
        val signature = "length_${ids.size}"
        val held = buffers.getOrPut(ids.size) {
            Buffers(
                listOf("input_ids", "attention_mask").associateWith { compiled.createInputBuffer(it, signature) },
                mapOf(output to compiled.createOutputBuffer(output, signature)),
            )
        }
        held.inputs.getValue("input_ids").writeInt(ids)
        held.inputs.getValue("attention_mask").writeInt(mask)
        compiled.run(held.inputs, held.outputs, signature)
        return held.outputs.getValue(output).readFloat()
    }

    override fun close() {
        for (held in buffers.values) (held.inputs.values + held.outputs.values).forEach(TensorBuffer::close)
        compiled.close()
    }

    companion object {
        // What Decant measured is the CPU; a GPU computes in another precision.
        private val OPTIONS = CompiledModel.Options(Accelerator.CPU)

        /** The model among an app's assets, which is where a pack that is installed with the app lies as well. */
        fun open(assets: AssetManager, folder: String, model: Map<String, Any?>) =
            LiteRtSession(CompiledModel.create(assets, "$folder/${model["file"]}", OPTIONS), model["output"] as String)

        /** The model of a folder, such as one that was downloaded. */
        fun open(folder: File, model: Map<String, Any?>) =
            LiteRtSession(CompiledModel.create(File(folder, model["file"] as String).path, OPTIONS), model["output"] as String)
    }
}
