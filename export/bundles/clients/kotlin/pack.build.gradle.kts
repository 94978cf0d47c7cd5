// The model as a Play AI pack: add `assetPacks += ":model"` to the app, and take AS_ASSETS out of classifier/build.gradle.kts.
plugins {
    id("com.android.ai-pack") // Android Gradle plugin 8.8 or later
}

aiPack {
    packName = "model"
    dynamicDelivery {
        deliveryType = "install-time"
    }
}
