// Chapter 4 (ddlm_core.forward): corrupting text. Tables (L, V) lie row after row in a Float64Array.

import {resampleProbability} from './noise.js';

/** @import {Generator} from './random.js' */
/** @typedef {(length: number, vocabSize: number, generator: Generator) => Int32Array} Prior */

/**
 * Kernel rows p(y | x_t) = exp(-deltaSigma) [y = x_t] + (1 - exp(-deltaSigma)) / V.
 * @param {Int32Array} xT tokens (L)
 * @param {number} deltaSigma noise yet to come
 * @param {number} vocabSize V
 * @returns {Float64Array} (L, V)
 */
export function transition(xT, deltaSigma, vocabSize) {
  const leak = resampleProbability(deltaSigma) / vocabSize;
  const rows = new Float64Array(xT.length * vocabSize).fill(leak);
  const stay = Math.exp(-deltaSigma);
  xT.forEach((token, i) => (rows[i * vocabSize + token] += stay));
  return rows;
}

/** Pure noise: tokens drawn uniformly from all V. @type {Prior} */
export function samplePrior(length, vocabSize, generator) {
  return generator.randint(vocabSize, length);
}

/**
 * Draw x_t given x_0: each token is resampled with probability 1 - exp(-sigmaBar).
 *
 * All random numbers of the batch are drawn, first those that say where, then those that say what. The
 * same generator state at several noise levels therefore gives the same text, more and more corrupted.
 * @param {Int32Array[]} x0 B texts of one length L
 * @param {number | ArrayLike<number>} sigmaBar noise of all, or of each
 * @param {number} vocabSize V
 * @param {Generator} generator
 * @param {{mask?: Uint8Array[], prior?: Prior}} [options] mask: 1 where a token is kept
 * @returns {Int32Array[]}
 */
export function perturbBatch(x0, sigmaBar, vocabSize, generator, {mask, prior = samplePrior} = {}) {
  const length = x0[0].length;
  const u = generator.rand(x0.length * length);
  const drawn = prior(x0.length * length, vocabSize, generator);
  return x0.map((text, b) => {
    const noise = Math.fround(typeof sigmaBar === 'number' ? sigmaBar : sigmaBar[b]);
    const chance = Math.fround(resampleProbability(noise)); // float32 as in Python
    return text.map((token, i) => {
      const at = b * length + i;
      return u[at] < chance && !mask?.[b][i] ? drawn[at] : token;
    });
  });
}
