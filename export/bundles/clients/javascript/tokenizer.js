// The tokenizer that a table is of.

import { BytePairs } from "./byte_pairs.js";
import { WordPieces } from "./word_pieces.js";

/** @param rules what word_pieces.json or byte_pairs.json holds */
export function makeTokenizer(rules) {
  return rules.kind.startsWith("byte pairs") ? new BytePairs(rules) : new WordPieces(rules);
}
