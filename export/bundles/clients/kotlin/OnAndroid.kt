package com.example.decant

import android.content.Context
import java.io.File

// Call what is here away from the main thread.

/** The classifier as an app has it: from its assets, or from the last release that it downloaded. */
object OnAndroid {
    private const val ASSETS = "decant"

    /** The model that came with the app. */
    fun bundled(context: Context) = Classifier(
        { name -> context.assets.open("$ASSETS/$name").use { it.readBytes() } },
        { model -> SESSION.open(context.assets, ASSETS, model) },
    )

    /** Releases are kept in the app's own files. */
    fun updates(context: Context, key: String, address: String): Updates {
        val came = Json.readMap(context.assets.open("$ASSETS/model.json").use { it.readBytes() })
        return Updates(File(context.filesDir, ASSETS), came, key, Updates.over(address)) { folder, model ->
            SESSION.open(folder, model)
        }
    }

    /**
     * The newest model at hand: the last that was downloaded and passed its test, or the one that came with the app,
     * which also stands in for one that can no longer be opened.
     */
    fun newest(context: Context, updates: Updates): Classifier {
        val folder = updates.current() ?: return bundled(context)
        return try {
            Classifier({ File(folder, it).readBytes() }, { model -> SESSION.open(folder, model) })
        } catch (error: Exception) {
            bundled(context)
        }
    }
}
