// A WordPiece tokenizer that follows the table word_pieces.json: what it says is asked of no library, since each has
// another version of Unicode. Needs nothing else.

import { Ranges, split, tidy } from "./texts.js";

const SYLLABLES = { first: 0xac00, last: 0xd7a3 };

export class WordPieces {
  /** @param rules what word_pieces.json holds */
  constructor(rules) {
    if (rules.kind !== "word pieces 1") throw new Error(`found rules of kind '${rules.kind}', expected 'word pieces 1'`);
    this.rules = rules;
    this.ids = new Map(rules.vocabulary.map((piece, id) => [piece, id]));
    for (const name of ["nothing", "space", "word", "walls"]) this[name] = new Ranges(rules[name]);
  }

  /** Token ids of a text, special tokens included, cut to the length that the model takes. */
  encode(text) {
    const { before, after, max_length: longest } = this.rules;
    const room = longest - before.length - after.length;
    const ids = [];
    for (const part of split(tidy(text), this.rules.special)) {
      if (typeof part === "number") ids.push(part);
      else for (const word of this.words(part)) ids.push(...this.pieces(word));
      if (ids.length >= room) break;
    }
    return [...before, ...ids.slice(0, room), ...after];
  }

  /** Words of a text, each an array of code points. */
  words(text) {
    const out = [];
    let wall = 0;
    for (const character of text) {
      const code = character.codePointAt(0);
      if (this.walls.has(code)) wall = out.length;
      for (const one of this.effect(code)) {
        const mark = this.rules.marks[one] ?? 0;
        let place = out.length;
        // a mark goes before those of a higher class, and stays behind its equals
        if (mark > 0) while (place > wall && (this.rules.marks[out[place - 1]] ?? 0) > mark) place -= 1;
        out.splice(place, 0, one);
      }
    }
    const words = [[]];
    for (const code of out) {
      if (code === 0x20) words.push([]);
      else words.at(-1).push(code);
    }
    return words.filter((word) => word.length > 0);
  }

  /** The code points that one becomes; a space is where a word ends. */
  effect(code) {
    const { other, hangul } = this.rules;
    if (other[code] !== undefined) return Array.from(other[code], (one) => one.codePointAt(0));
    if (this.nothing.has(code)) return [];
    if (this.space.has(code)) return [0x20];
    if (this.word.has(code)) return [0x20, code, 0x20];
    if (hangul && code >= SYLLABLES.first && code <= SYLLABLES.last) {
      const place = code - SYLLABLES.first;
      const last = place % 28;
      const letters = [0x1100 + Math.floor(place / 588), 0x1161 + Math.floor((place % 588) / 28)];
      return last > 0 ? [...letters, 0x11a7 + last] : letters;
    }
    return [code];
  }

  /** Ids of a word's pieces, the longest first; of one that has none, the id of unknown words. */
  pieces(word) {
    const { unknown, prefix, longest_word: longest } = this.rules;
    if (word.length > longest) return [unknown];
    const ids = [];
    for (let start = 0; start < word.length; ) {
      let end = word.length;
      let id;
      while (end > start) {
        id = this.ids.get((start > 0 ? prefix : "") + String.fromCodePoint(...word.slice(start, end)));
        if (id !== undefined) break;
        end -= 1;
      }
      if (id === undefined) return [unknown];
      ids.push(id);
      start = end;
    }
    return ids;
  }
}
