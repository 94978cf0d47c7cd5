// Keeps the files that the manifest lists, so that the page opens without a network. A new manifest is another cache: the
// old one serves until all files of the new are there, and the next time that the page is opened, alone, has the new.

const base = new URL("./", self.location.href);
const manifestUrl = new URL("manifest.json", base).href;
// of this folder alone: another bundle may lie on the same origin
const prefix = `decant page ${base.pathname} `;
const pointer = `decant page ${base.pathname}`;

/** Brings every file of the manifest that the server has now, into a cache that is named after it; says which. */
async function fill() {
  const response = await fetch(manifestUrl, { cache: "no-store" });
  if (!response.ok) throw new Error(`${manifestUrl}: status ${response.status}`);
  const manifest = await response.clone().arrayBuffer();
  const name = prefix + (await digestOf(manifest));
  if (!(await isWhole(name))) {
    const { files } = JSON.parse(new TextDecoder().decode(manifest));
    try {
      const cache = await caches.open(name);
      await Promise.all(Object.entries(files).map(([file, { sha256 }]) => keep(cache, new URL(file, base), sha256)));
      await keep(cache, base, files["index.html"].sha256);
      await cache.put(manifestUrl, response);
    } catch (error) {
      await caches.delete(name);
      throw error;
    }
  }
  await remember("latest", name);
  return name;
}

/** Keeps a file that is what the manifest says: a server may have some files of the new version and some of the old. */
async function keep(cache, url, sha256) {
  const response = await fetch(url, { cache: "reload" });
  const bytes = await response.arrayBuffer();
  if (!response.ok || (await digestOf(bytes)) !== sha256) throw new Error(`${url}: not as the manifest says`);
  // made anew, since what was redirected cannot answer the opening of a page
  await cache.put(url, new Response(bytes, { headers: { "Content-Type": response.headers.get("Content-Type") ?? "" } }));
}

async function digestOf(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Whether everything is in a cache: the manifest is put there last. */
async function isWhole(name) {
  return (await caches.has(name)) && (await (await caches.open(name)).match(manifestUrl)) !== undefined;
}

/** Names of caches, kept beyond the life of this worker: "current" serves, "latest" is what the server had last. */
async function recall(what) {
  return (await (await caches.open(pointer)).match(new URL(what, base)))?.text();
}

async function remember(what, name) {
  await (await caches.open(pointer)).put(new URL(what, base), new Response(name));
}

async function switchTo(name) {
  await remember("current", name);
  for (const other of await caches.keys()) if (other.startsWith(prefix) && other !== name) await caches.delete(other);
}

async function serve(request) {
  if (request.mode === "navigate") {
    const latest = await recall("latest");
    // not under a page that is open: it would have files of two versions
    const others = (await self.clients.matchAll({ type: "window" })).length - (request.isReloadNavigation ? 1 : 0);
    const isAlone = others <= 0;
    if (isAlone && latest !== undefined && latest !== (await recall("current")) && (await isWhole(latest))) await switchTo(latest);
  }
  const name = await recall("current");
  const held = name === undefined ? undefined : await caches.match(request, { cacheName: name, ignoreSearch: true });
  return held ?? fetch(request);
}

async function install() {
  const name = await fill();
  if ((await recall("current")) === undefined) await switchTo(name);
  await self.skipWaiting();
}

self.addEventListener("install", (event) => event.waitUntil(install()));
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  if (method !== "GET" || !url.startsWith(base.href)) return;
  // asked for each time that the page is opened: without a network the old files do
  if (url === manifestUrl) event.waitUntil(fill().catch(() => undefined));
  event.respondWith(serve(event.request));
});
