// Brings a newer release of a bundle to an app: downloads, verifies, tests, and only then switches to it.
//
//     const came = await Classifier.load(base);                  // what the page came with
//     const store = new CacheStore(came.model);
//     await update("https://example.com/releases/", { store, key, build });
//     const classifier = await store.newest(build) ?? came;
//
// where `build` is (read) => Classifier.load(undefined, read). A release is a folder with a manifest that lists every file
// by SHA-256, signed as OpenSSF Model Signing v1.0 has it (ECDSA P-256). `key` is the public key that the app was built
// with, base64 of its SubjectPublicKeyInfo. Nothing that is downloaded is used before all of it was verified and has
// answered its golden vectors; the version before is kept. Neither a model of another name, nor a version that is not
// above all that this browser has seen, is ever taken.

const SMALL = 8 * 2 ** 20;

/**
 * @param source URL of the releases, with a slash at its end
 * @param build makes a classifier from a function that reads a file: (name) => bytes
 * @returns {{version: string, changed: boolean}} the version in use
 * @throws Error the release could not be brought, or must not be used; what was in use stays
 */
export function update(source, { store, key, build, get = download }) {
  // one tab at a time: two would each switch by what they read before the other did
  return navigator.locks.request(store.name, () => bringNewest(source, store, key, build, get));
}

async function bringNewest(source, store, key, build, get) {
  const { name, platform } = store.came;
  const index = parse(await get(new URL("index.json", source), SMALL), "index.json");
  const entry = newest(index, store.came, await store.highest());
  if (entry === undefined) return { version: (await store.current()) ?? store.came.version, changed: false };
  const folder = new URL(`${entry.path}/`, source);
  const signature = parse(await get(new URL("model.sig", folder), SMALL), "model.sig");
  const signed = await verifySignature(signature, key);
  const manifestBytes = await get(new URL("manifest.json", folder), SMALL);
  await expectDigest("manifest.json", manifestBytes, signed.get("manifest.json"));
  const manifest = parse(manifestBytes, "manifest.json");
  const found = `${manifest.name} ${manifest.version} for ${manifest.platform}`;
  const expected = `${name} ${entry.version} for ${platform}`;
  if (found !== expected) throw new Error(`found ${found}, expected ${expected}`);
  const files = new Map();
  const bring = async (file) => {
    const fact = manifest.files[file];
    if (fact === undefined) throw new Error(`${file}: not in the manifest`);
    if (fact.sha256 !== signed.get(file)) throw new Error(`${file}: the manifest has another hash than the signature`);
    const bytes = await get(new URL(file, folder), fact.bytes);
    if (bytes.length !== fact.bytes) throw new Error(`${file}: found ${bytes.length} bytes, expected ${fact.bytes}`);
    await expectDigest(file, bytes, fact.sha256);
    files.set(file, bytes);
    return bytes;
  };
  // what the code reads at run time; the code itself comes with the app
  const classifier = await build(bring);
  try {
    const { failures } = await classifier.selfTest();
    if (failures.length > 0) throw new Error(`the new version fails its self-test: ${failures[0]}`);
  } finally {
    await classifier.close();
  }
  await store.put(manifest.version, files);
  return { version: manifest.version, changed: true };
}

/** The newest release of a model for its platform that is above a version. */
function newest({ releases }, { name, platform }, floor) {
  const newer = releases.filter((one) => one.platform === platform && one.name === name && compare(one.version, floor) > 0);
  return newer.sort((a, b) => compare(a.version, b.version)).at(-1);
}

/** Above 0 when the first version is the newer; what is no version is older than any. */
function compare(one, other) {
  const [a, b] = [one, other].map((version) => (VERSION.test(version) ? version.split(".").map(Number) : [-1, -1, -1]));
  return a[0] - b[0] || a[1] - b[1] || a[2] - b[2];
}

const VERSION = /^[0-9]{1,6}\.[0-9]{1,6}\.[0-9]{1,6}$/;

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
  /** @param came model.json of the model that the app came with */
  constructor(came, storage = caches) {
    Object.assign(this, { came, storage, name: `decant ${came.name} for ${came.platform}` });
  }

  /** The version in use; undefined: none that is newer than what the app came with. */
  async current() {
    return (await this.state()).versions[0];
  }

  /** The highest version that this browser has had: one that it went back from is not brought again. */
  async highest() {
    const { highest } = await this.state();
    return compare(highest, this.came.version) > 0 ? highest : this.came.version;
  }

  /** A classifier of the version in use; undefined where that is what the app came with, or cannot be read. */
  async newest(build) {
    const version = await this.current();
    if (version === undefined) return undefined;
    try {
      const cache = await this.storage.open(this.cacheOf(version));
      return await build(async (name) => new Uint8Array(await (await cache.match(addressOf(name))).arrayBuffer()));
    } catch {
      return undefined; // a browser may drop what it keeps
    }
  }

  /** Keeps a verified version and switches to it; what is older than the one before goes. */
  async put(version, files) {
    await this.storage.delete(this.cacheOf(version));
    const cache = await this.storage.open(this.cacheOf(version));
    for (const [name, bytes] of files) await cache.put(addressOf(name), new Response(bytes));
    const before = await this.current();
    await this.point(before === undefined ? [version] : [version, before], version);
  }

  /** Switches back to the version before, and gives it; undefined: to the one that the app came with. */
  async rollBack() {
    const { versions } = await this.state();
    await this.point(versions.slice(1), await this.highest());
    return versions[1];
  }

  cacheOf(version) {
    return `${this.name} ${version}`;
  }

  /** What was written last; nothing where that cannot be read, since the app has a model all the same. */
  async state() {
    try {
      const held = await (await (await this.storage.open(this.name)).match(addressOf("versions.json"))).json();
      return { ...held, versions: held.versions.filter((version) => compare(version, this.came.version) > 0) };
    } catch {
      return { versions: [] };
    }
  }

  async point(versions, highest) {
    const state = new Response(JSON.stringify({ versions, highest }));
    await (await this.storage.open(this.name)).put(addressOf("versions.json"), state);
    for (const name of await this.storage.keys()) {
      const version = name.startsWith(`${this.name} `) ? name.slice(this.name.length + 1) : undefined;
      if (VERSION.test(version) && !versions.includes(version)) await this.storage.delete(name);
    }
  }
}

const addressOf = (name) => `https://bundle.invalid/${name}`;

async function download(url, limit) {
  const response = await fetch(url, { cache: "no-store" });
  if (!response.ok) throw new Error(`${url}: status ${response.status}`);
  const parts = [];
  let length = 0;
  // not `for await`, which Safari's streams do not know
  const reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    length += part.value.length;
    if (length > limit) {
      await reader.cancel();
      throw new Error(`${url}: longer than the ${limit} bytes that were expected`);
    }
    parts.push(part.value);
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
