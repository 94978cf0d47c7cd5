import org.jetbrains.kotlin.gradle.dsl.JvmTarget

// Android's Gradle plugin 8.8 to 8.13 (9 and later have Kotlin of their own), Kotlin 2.0 or later.
plugins {
    id("com.android.library")
    id("org.jetbrains.kotlin.android")
}

android {
    namespace = "com.example.decant"
    compileSdk = 36

    defaultConfig {
        minSdk = 26 // java.util.Base64
        testInstrumentationRunner = "androidx.test.runner.AndroidJUnitRunner"
    }

    sourceSets["main"].assets.srcDir("../model/src/main/assets") // AS_ASSETS: take this line out where Play delivers the model
    androidResources.noCompress += listOf("tflite", "ort", "onnx") // or it cannot be mapped into memory
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
}

kotlin {
    compilerOptions { jvmTarget.set(JvmTarget.JVM_17) }
}

dependencies {
    implementation("RUNTIME")
    androidTestImplementation("androidx.test.ext:junit:1.3.0")
    androidTestImplementation("androidx.test:runner:1.7.0")
}
