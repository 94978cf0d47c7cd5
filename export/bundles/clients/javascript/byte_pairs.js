// A byte-level BPE tokenizer that follows the table byte_pairs.json: which characters are letters is asked of no library,
// since each has another version of Unicode.

import { Ranges, split, tidy } from "./texts.js";

const BLANK = 0x20;
const CONTRACTION = /^'(?:s|t|re|ve|m|ll|d)/;
const SPACES = "spaces";

export class BytePairs {
  /** @param rules what byte_pairs.json holds */
  constructor(rules) {
    if (rules.kind !== "byte pairs 1") throw new Error(`found rules of kind '${rules.kind}', expected 'byte pairs 1'`);
    this.rules = rules;
    this.ids = new Map(rules.vocabulary.map((piece, id) => [piece, id]));
    this.bytes = rules.bytes.map((character) => this.ids.get(character));
    // two ids as one number -> rank of their merge; and what they become
    this.ranks = new Map();
    this.merged = rules.merges.map((pair, rank) => {
      const [left, right] = pair.split(" ");
      this.ranks.set(this.pairOf(this.ids.get(left), this.ids.get(right)), rank);
      return this.ids.get(left + right);
    });
    this.classes = ["letters", "numbers", "others"].map((name) => [name, new Ranges(rules[name])]);
    this.encoder = new TextEncoder();
  }

  /** Token ids of a text, special tokens included, cut to the length that the model takes. */
  encode(text) {
    const { before, after, max_length: longest } = this.rules;
    const room = longest - before.length - after.length;
    const ids = [];
    for (const part of this.parts(tidy(text))) {
      if (typeof part === "number") ids.push(part);
      else for (const word of this.words(part)) for (const id of this.pieces(word)) ids.push(id);
      if (ids.length >= room) break;
    }
    return [...before, ...ids.slice(0, room), ...after];
  }

  /** What lies between special tokens, as text, and those as ids; some take the spaces beside them. */
  *parts(text) {
    const parts = [...split(text, this.rules.special)];
    for (const [place, part] of parts.entries()) {
      if (typeof part !== "string") {
        yield part.id;
        continue;
      }
      let [start, end] = [0, part.length];
      const characters = Array.from(part);
      if (parts[place - 1]?.takes_right) while (this.isSpace(characters[0])) start += characters.shift().length;
      if (parts[place + 1]?.takes_left) while (this.isSpace(characters.at(-1))) end -= characters.pop().length;
      if (end > start) yield part.slice(start, end);
    }
  }

  isSpace(character) {
    return character !== undefined && this.kind(character.codePointAt(0)) === SPACES;
  }

  kind(code) {
    return this.classes.find(([, ranges]) => ranges.has(code))?.[0] ?? SPACES;
  }

  /** Words of a text, a blank before one belongs to it. */
  *words(text) {
    const characters = Array.from(text);
    if (this.rules.blank_first && characters[0] !== " ") characters.unshift(" ");
    const codes = characters.map((character) => character.codePointAt(0));
    const kinds = codes.map((code) => this.kind(code));
    const textOf = (start, end) => characters.slice(start, end).join("");
    for (let at = 0; at < codes.length; ) {
      const contraction = codes[at] === 0x27 ? CONTRACTION.exec(textOf(at, at + 3)) : null;
      let end;
      if (contraction !== null) {
        end = at + contraction[0].length;
      } else {
        const first = codes[at] === BLANK && at + 1 < codes.length && kinds[at + 1] !== SPACES ? at + 1 : at;
        end = first + 1;
        while (end < codes.length && kinds[end] === kinds[first]) end += 1;
        // of spaces, the last may be the blank of a word
        if (kinds[first] === SPACES && end < codes.length && end - at > 1) end -= 1;
      }
      yield textOf(at, end);
      at = end;
    }
  }

  /** Ids of a word: its bytes, merged in pairs, all pairs of the lowest rank first. */
  pieces(word) {
    let ids = Array.from(this.encoder.encode(word), (byte) => this.bytes[byte]);
    const rankOf = (left, right) => this.ranks.get(this.pairOf(left, right)) ?? Infinity;
    for (;;) {
      let best = Infinity;
      for (let at = 0; at + 1 < ids.length; at += 1) best = Math.min(best, rankOf(ids[at], ids[at + 1]));
      if (best === Infinity) return ids;
      const shorter = [];
      for (let at = 0; at < ids.length; at += 1) {
        const isPair = at + 1 < ids.length && rankOf(ids[at], ids[at + 1]) === best;
        shorter.push(isPair ? this.merged[best] : ids[at]);
        if (isPair) at += 1;
      }
      ids = shorter;
    }
  }

  pairOf(left, right) {
    return left * this.rules.vocabulary.length + right;
  }
}
