package com.example.decant

import androidx.test.ext.junit.runners.AndroidJUnit4
import androidx.test.platform.app.InstrumentationRegistry
import org.junit.Assert.assertEquals
import org.junit.Test
import org.junit.runner.RunWith

/** On a device or an emulator: `gradle :classifier:connectedAndroidTest`. */
@RunWith(AndroidJUnit4::class)
class SelfTestOnDevice {
    @Test
    fun goldenVectorsAreAnsweredAsTheyShouldBe() {
        val context = InstrumentationRegistry.getInstrumentation().targetContext
        assertEquals(emptyList<String>(), OnAndroid.bundled(context).selfTest())
    }
}
