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
    this.ranks = new Map(rules.merges.map((pair, rank) => [pair, rank]));
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
      else for (const word of this.words(part)) ids.push(...this.pieces(word));
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
    const codes = Array.from(text, (character) => character.codePointAt(0));
    if (this.rules.blank_first && codes[0] !== BLANK) codes.unshift(BLANK);
    const kinds = codes.map((code) => this.kind(code));
    const textOf = (start, end) => String.fromCodePoint(...codes.slice(start, end));
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

  /** Ids of a word: its bytes, merged in pairs, the pair of the lowest rank first. */
  pieces(word) {
    const parts = Array.from(this.encoder.encode(word), (byte) => this.rules.bytes[byte]);
    while (parts.length > 1) {
      let best = Infinity;
      let place = -1;
      for (let at = 0; at + 1 < parts.length; at += 1) {
        const rank = this.ranks.get(`${parts[at]} ${parts[at + 1]}`);
        if (rank < best) [best, place] = [rank, at];
      }
      if (place < 0) break;
      parts.splice(place, 2, parts[place] + parts[place + 1]);
    }
    return parts.map((part) => this.ids.get(part));
  }
}
