// What both tokenizers do to a text before its words.

/** The ranges [first, last, first, last, ...] of a table, asked by binary search. */
export class Ranges {
  constructor(ends) {
    this.ends = ends;
  }

  has(code) {
    let low = 0;
    let high = this.ends.length / 2 - 1;
    while (low <= high) {
      const middle = (low + high) >> 1;
      if (code < this.ends[2 * middle]) high = middle - 1;
      else if (code > this.ends[2 * middle + 1]) low = middle + 1;
      else return true;
    }
    return false;
  }
}

/**
 * What lies between special tokens, as text, and those as ids.
 * @param special token -> id
 */
export function* split(text, special) {
  // the longest first: one may begin as another does
  const tokens = Object.keys(special).sort((a, b) => b.length - a.length);
  let start = 0;
  for (let at = 0; at < text.length; ) {
    const found = tokens.find((token) => text.startsWith(token, at));
    if (found === undefined) {
      at += 1;
      continue;
    }
    if (at > start) yield text.slice(start, at);
    yield special[found];
    at += found.length;
    start = at;
  }
  if (start < text.length) yield text.slice(start);
}

/** A text without NUL; half of a surrogate pair becomes a question mark, as in training. */
export function tidy(text) {
  return text.replaceAll("\0", "").replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, "?");
}
