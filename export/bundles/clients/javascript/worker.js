// Keeps the files that the manifest lists, so that the page opens without a network. A new manifest is another cache:
// the old one serves until all files of the new are there.

const base = new URL("./", self.location.href);

async function cacheName() {
  const manifest = await (await fetch(new URL("manifest.json", base), { cache: "no-store" })).arrayBuffer();
  const digest = await crypto.subtle.digest("SHA-256", manifest);
  const hex = Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
  return { name: `decant-${hex.slice(0, 16)}`, files: Object.keys(JSON.parse(new TextDecoder().decode(manifest)).files) };
}

self.addEventListener("install", (event) => {
  event.waitUntil(
    (async () => {
      const { name, files } = await cacheName();
      const cache = await caches.open(name);
      await cache.addAll(["./", "manifest.json", ...files].map((file) => new Request(new URL(file, base), { cache: "reload" })));
      await self.skipWaiting();
    })(),
  );
});

self.addEventListener("activate", (event) => {
  event.waitUntil(
    (async () => {
      const { name } = await cacheName().catch(() => ({ name: null }));
      for (const other of await caches.keys()) if (name && other.startsWith("decant-") && other !== name) await caches.delete(other);
      await self.clients.claim();
    })(),
  );
});

self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET" || !event.request.url.startsWith(base.href)) return;
  event.respondWith(caches.match(event.request, { ignoreSearch: true }).then((held) => held ?? fetch(event.request)));
});
