// Chapter 1 (ddlm_core.tokenizer): text as characters.

import {UserError} from './errors.js';

export const UNK_ID = 0, PAD_ID = 1;
export const SPECIAL_TOKENS = ['<UNK>', '<PAD>'];

/** Text to token ids, one id per character (code point), and back. */
export class CharacterLevelTokenizer {
  /** @param {readonly string[]} vocab starts with SPECIAL_TOKENS, then come distinct characters */
  constructor(vocab) {
    const odd = vocab.slice(2).some((token) => [...token].length !== 1);
    if (SPECIAL_TOKENS.some((token, i) => vocab[i] !== token) || odd) {
      throw new UserError(`a vocabulary starts with ${SPECIAL_TOKENS}, then come single characters`);
    }
    if (vocab.length > 256) throw new UserError(`at most 256 tokens, got ${vocab.length}`);
    if (new Set(vocab).size < vocab.length) throw new UserError('every token occurs once');
    this.vocab = vocab;
    this.vocabSize = vocab.length;
    this.shown = ['\ufffd', '', ...vocab.slice(2)];
    this.ids = new Map(vocab.slice(2).map((token, i) => [token, i + 2]));
  }

  /** @param {string} text @returns ids; unknown characters are `<UNK>` */
  encode(text) {
    return Int32Array.from([...text], (character) => this.ids.get(character) ?? UNK_ID);
  }

  /** @param {string} text @param {number} length @returns ids, filled up with `<PAD>` */
  pad(text, length) {
    const ids = this.encode(text);
    if (ids.length > length) {
      throw new UserError(`a text of ${ids.length} characters does not fit in ${length} tokens`);
    }
    const padded = new Int32Array(length).fill(PAD_ID);
    padded.set(ids);
    return padded;
  }

  /** @param {ArrayLike<number>} ids @returns the text; `<UNK>` gives U+FFFD, `<PAD>` nothing */
  decode(ids) {
    return Array.from(ids, (id) => {
      if (!(id in this.shown)) throw new RangeError(`token ids lie in 0..${this.vocabSize - 1}, got ${id}`);
      return this.shown[id];
    }).join('');
  }

  /** @param {ArrayLike<number>[]} rows @returns {string[]} */
  decodeBatch(rows) {
    return rows.map((row) => this.decode(row));
  }

  /** @param {string} text @returns what `encode` turns into `<UNK>`, each once, in code-point order */
  unknownCharacters(text) {
    const unknown = [...new Set(text)].filter((character) => !this.vocab.includes(character));
    return unknown.sort((a, b) => Number(a.codePointAt(0)) - Number(b.codePointAt(0)));
  }
}

/**
 * Tokens, all of them <PAD> from the first <PAD> after some text on.
 * @param {Int32Array} tokens
 */
export function cutAtEnd(tokens) {
  const begin = tokens.findIndex((token) => token !== PAD_ID);
  const end = tokens.findIndex((token, i) => i > begin && token === PAD_ID);
  return begin < 0 || end < 0 ? tokens : tokens.slice().fill(PAD_ID, end);
}
