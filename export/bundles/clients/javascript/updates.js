// Brings a newer release of a bundle to an app: downloads, verifies, tests, and only then switches to it.
//
//     const store = new CacheStore("phone-assistant-intents");
//     await update("https://example.com/releases/", { store, key, platform: "web", build });
//     const classifier = await build((name) => store.read(name));
//
// A release is a folder with a manifest that lists every file by SHA-256, signed as OpenSSF Model Signing v1.0 has it
// (ECDSA P-256). `key` is the public key that the app was built with, base64 of its SubjectPublicKeyInfo. Nothing that is
// downloaded is used before all of it was verified and has answered its golden vectors; the version before is kept.

/**
 * @param source URL of the releases, with a slash at its end
 * @param build makes a classifier from a function that reads a file: (name) => bytes
 * @returns {{version: string, changed: boolean}}
 */
export async function update(source, { store, key, platform, build, get = download }) {
  const held = await store.current();
  const index = parse(await get(new URL("index.json", source)), "index.json");
  const entry = newest(index, platform, held?.version);
  if (entry === undefined) return { version: held?.version, changed: false };
  const folder = new URL(`${entry.path}/`, source);
  const manifestBytes = await get(new URL("manifest.json", folder));
  const signature = parse(await get(new URL("model.sig", folder)), "model.sig");
  const signed = await verifySignature(signature, key);
  await expectDigest("manifest.json", manifestBytes, signed.get("manifest.json"));
  const manifest = parse(manifestBytes, "manifest.json");
  if (manifest.version !== entry.version || manifest.platform !== platform || (held && manifest.name !== held.name))
    throw new Error(`found ${manifest.name} ${manifest.version} for ${manifest.platform}, expected ${entry.version} for ${platform}`);
  const files = new Map([["manifest.json", manifestBytes]]);
  for (const [name, fact] of Object.entries(manifest.files)) {
    if (fact.sha256 !== signed.get(name)) throw new Error(`${name}: the manifest has another hash than the signature`);
    const bytes = await get(new URL(name, folder), fact.bytes);
    if (bytes.length !== fact.bytes) throw new Error(`${name}: found ${bytes.length} bytes, expected ${fact.bytes}`);
    await expectDigest(name, bytes, fact.sha256);
    files.set(name, bytes);
  }
  const classifier = await build(async (name) => {
    if (!files.has(name)) throw new Error(`${name}: not in the manifest`);
    return files.get(name);
  });
  const { failures } = await classifier.selfTest();
  await classifier.close();
  if (failures.length > 0) throw new Error(`the new version fails its self-test: ${failures[0]}`);
  await store.put(manifest, files);
  return { version: manifest.version, changed: true };
}

/** The newest release for a platform that is newer than the one held. */
function newest(index, platform, held) {
  const newer = index.releases
    .filter((one) => one.platform === platform && (held === undefined || compare(one.version, held) > 0))
    .sort((a, b) => compare(a.version, b.version));
  return newer.at(-1);
}

function compare(one, other) {
  const [a, b] = [one, other].map((version) => version.split(".").map(Number));
  return a[0] - b[0] || a[1] - b[1] || a[2] - b[2];
}

/** Name -> SHA-256 of every file that a signature covers, once it was verified. */
export async function verifySignature(bundle, key) {
  const { payload, payloadType, signatures } = bundle.dsseEnvelope;
  const body = fromBase64(payload);
  const head = new TextEncoder().encode(`DSSEv1 ${payloadType.length} ${payloadType} ${body.length} `);
  const message = new Uint8Array(head.length + body.length);
  message.set(head);
  message.set(body, head.length);
  const algorithm = { name: "ECDSA", namedCurve: "P-256" };
  const imported = await crypto.subtle.importKey("spki", fromBase64(key), algorithm, false, ["verify"]);
  const raw = rawSignature(fromBase64(signatures[0].sig));
  if (!(await crypto.subtle.verify({ name: "ECDSA", hash: "SHA-256" }, imported, raw, message)))
    throw new Error("model.sig: not signed with the key of this app");
  const statement = parse(body, "model.sig");
  if (statement.predicateType !== "https://model_signing/signature/v1.0")
    throw new Error(`model.sig: found a statement of '${statement.predicateType}'`);
  return new Map(statement.predicate.resources.map(({ name, digest }) => [name, digest]));
}

/** The two numbers of an ECDSA signature, 32 bytes each, from their DER form. */
function rawSignature(der) {
  const raw = new Uint8Array(64);
  let at = 2;
  for (const end of [32, 64]) {
    const length = der[at + 1];
    const number = der.slice(at + 2, at + 2 + length);
    const digits = number.slice(Math.max(0, number.length - 32));
    raw.set(digits, end - digits.length);
    at += 2 + length;
  }
  return raw;
}

async function expectDigest(name, bytes, expected) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (found !== expected) throw new Error(`${name}: found SHA-256 ${found.slice(0, 16)}…, expected ${String(expected).slice(0, 16)}…`);
}

/** Versions of a bundle in the browser's cache: the one in use, and the last good one before it. */
export class CacheStore {
  constructor(name, storage = caches) {
    Object.assign(this, { name, storage });
  }

  /** {name, version} of the version in use; undefined: none was downloaded yet. */
  async current() {
    return (await this.pointer()).at(0);
  }

  /** The bytes of a file of the version in use. */
  async read(name) {
    const current = await this.current();
    const held = await (await this.storage.open(this.cacheOf(current.version))).match(this.addressOf(name));
    if (held === undefined) throw new Error(`${name}: not in version ${current.version}`);
    return new Uint8Array(await held.arrayBuffer());
  }

  /** Keeps a verified version and switches to it; what is older than the one before goes. */
  async put(manifest, files) {
    const cache = await this.storage.open(this.cacheOf(manifest.version));
    for (const [name, bytes] of files) await cache.put(this.addressOf(name), new Response(bytes));
    const [before] = await this.pointer();
    const kept = [{ name: manifest.name, version: manifest.version }, ...(before ? [before] : [])];
    await this.point(kept);
    for (const name of await this.storage.keys()) {
      const version = name.startsWith(`${this.name}@`) ? name.slice(this.name.length + 1) : undefined;
      if (version !== undefined && !kept.some((one) => one.version === version)) await this.storage.delete(name);
    }
  }

  /** Switches back to the version before. */
  async rollBack() {
    const [current, before] = await this.pointer();
    if (before === undefined) throw new Error("no version before this one is held");
    await this.point([before]);
    await this.storage.delete(this.cacheOf(current.version));
    return before;
  }

  cacheOf(version) {
    return `${this.name}@${version}`;
  }

  addressOf(name) {
    return `https://bundle.invalid/${name}`;
  }

  async pointer() {
    const held = await (await this.storage.open(this.name)).match(this.addressOf("versions.json"));
    return held === undefined ? [] : held.json();
  }

  async point(versions) {
    await (await this.storage.open(this.name)).put(this.addressOf("versions.json"), new Response(JSON.stringify(versions)));
  }
}

async function download(url, limit = 8 * 2 ** 20) {
  const response = await fetch(url, { cache: "no-store" });
  if (!response.ok) throw new Error(`${url}: status ${response.status}`);
  const parts = [];
  let length = 0;
  for await (const part of response.body) {
    length += part.length;
    if (length > limit) throw new Error(`${url}: longer than the ${limit} bytes that were expected`);
    parts.push(part);
  }
  const bytes = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

function parse(bytes, name) {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw new Error(`${name}: not JSON`, { cause: error });
  }
}

const fromBase64 = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
