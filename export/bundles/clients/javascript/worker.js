// Keeps the files that the manifest lists, so that the page opens without a network. A new manifest is another cache: the
// old one serves until all files of the new are there, and the next time that the page is opened has the new.

const base = new URL("./", self.location.href);
const manifestUrl = new URL("manifest.json", base).href;
// of this folder alone: another bundle may lie on the same origin
const prefix = `decant page ${base.pathname} `;
const pointer = `decant page ${base.pathname}`;

/** Brings every file of the manifest that the server has now, into a cache that is named after it. */
async function fill() {
  const response = await fetch(manifestUrl, { cache: "no-store" });
  if (!response.ok) throw new Error(`${manifestUrl}: status ${response.status}`);
  const manifest = await response.clone().arrayBuffer();
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", manifest));
  const name = prefix + Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (await isWhole(name)) return name;
  const files = ["./", ...Object.keys(JSON.parse(new TextDecoder().decode(manifest)).files)];
  try {
    const cache = await caches.open(name);
    await cache.addAll(files.map((file) => new Request(new URL(file, base), { cache: "reload" })));
    await cache.put(manifestUrl, response);
  } catch (error) {
    await caches.delete(name);
    throw error;
  }
  return name;
}

/** Whether everything is in a cache: the manifest is put there last. */
async function isWhole(name) {
  return (await caches.has(name)) && (await (await caches.open(name)).match(manifestUrl)) !== undefined;
}

/** Which cache serves; written when the page is opened, so that one page never has files of two. */
async function current() {
  const held = await (await caches.open(pointer)).match(manifestUrl);
  return held?.text();
}

async function point(name) {
  await (await caches.open(pointer)).put(manifestUrl, new Response(name));
  for (const other of await caches.keys()) if (other.startsWith(prefix) && other !== name) await caches.delete(other);
}

async function serve(request) {
  if (request.mode === "navigate") {
    const names = (await caches.keys()).filter((name) => name.startsWith(prefix)).reverse();
    for (const name of names) {
      if (!(await isWhole(name))) continue;
      if (name !== (await current())) await point(name);
      break;
    }
  }
  const name = await current();
  const held = name === undefined ? undefined : await caches.match(request, { cacheName: name, ignoreSearch: true });
  return held ?? fetch(request);
}

self.addEventListener("install", (event) => event.waitUntil(fill().then(point).then(() => self.skipWaiting())));
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  if (method !== "GET" || !url.startsWith(base.href)) return;
  // asked for each time that the page is opened: without a network the old files do
  if (url === manifestUrl) event.waitUntil(fill().catch(() => undefined));
  event.respondWith(serve(event.request));
});
