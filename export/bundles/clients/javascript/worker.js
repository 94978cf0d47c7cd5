// Keeps the files that the manifest lists, so that the page opens without a network. A new manifest is another cache: the
// old one serves until all files of the new are there, and the next load has the new.

const base = new URL("./", self.location.href);
const manifestUrl = new URL("manifest.json", base).href;

/** Brings every file of the manifest that the server has now, and lets go of older ones. */
async function fill() {
  const response = await fetch(manifestUrl, { cache: "no-store" });
  if (!response.ok) throw new Error(`${manifestUrl}: status ${response.status}`);
  const manifest = await response.clone().arrayBuffer();
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", manifest));
  const name = `decant-${Array.from(digest.slice(0, 8), (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
  if (!(await caches.has(name))) {
    const files = ["./", ...Object.keys(JSON.parse(new TextDecoder().decode(manifest)).files)];
    try {
      const cache = await caches.open(name);
      await cache.addAll(files.map((file) => new Request(new URL(file, base), { cache: "reload" })));
      await cache.put(manifestUrl, response);
    } catch (error) {
      await caches.delete(name);
      throw error;
    }
  }
  for (const other of await caches.keys()) if (/^decant-[0-9a-f]{16}$/.test(other) && other !== name) await caches.delete(other);
}

self.addEventListener("install", (event) => event.waitUntil(fill().then(() => self.skipWaiting())));
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  if (method !== "GET" || !url.startsWith(base.href)) return;
  // asked for at each load: without a network the old files do
  if (url === manifestUrl) event.waitUntil(fill().catch(() => undefined));
  event.respondWith(caches.match(event.request, { ignoreSearch: true }).then((held) => held ?? fetch(event.request)));
});
