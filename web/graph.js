// Appendix A (ddlm_core.graph): a forward process, as sampler and bound ask for it.

import {samplePrior, transition} from './forward.js';
import {denoiserLogScore, priorKl, scoreEntropyLoss} from './loss.js';
import {GeometricNoise} from './noise.js';

/**
 * A forward process, which SEDD calls the graph. One text at a time: tables (L, V), tokens (L).
 * @typedef {object} Graph
 * @property {string} name as in model.json
 * @property {boolean} supportsChurn may fresh noise be added between steps?
 * @property {boolean} supportsScores do log-scores alone lead back?
 * @property {(sigmaMin: number, sigmaMax: number) => import('./noise.js').NoiseSchedule} schedule
 * @property {import('./forward.js').Prior} samplePrior pure noise
 * @property {(sigmaBar1: number, vocabSize: number) => number} priorKl nats per position
 * @property {(logQ: Float64Array, sigmaBar: number, xT: Int32Array) => Float64Array} logScore
 * @property {(logScore: Float64Array, sigmaBar: number, xT: Int32Array, x0: Int32Array) => Float64Array} loss
 * @property {(logQ: Float64Array, sigmaBar: number, x0: Int32Array) => Float64Array} expectedLoss mean of loss over
 *     the own noise of each letter
 * @property {(logQ: Float64Array, sigmaBar: number, x0: Int32Array) => Float64Array} expectedReconstruction mean of
 *     -log p(x_0 | x_t) over the same
 * @property {(logQ: Float64Array, xT: Int32Array, sigmaBar: number) => Float64Array} marginal
 * @property {(xT: Int32Array, deltaSigma: number, vocabSize: number) => Float64Array} likelihood
 */

/**
 * What an expectation over the own noise of letter x_0 = i takes: p of each noisy letter, and p over what q expects.
 * @param {Float64Array} logQ
 * @param {number} sigmaBar
 * @param {Int32Array} x0
 * @param {(clean: number, logRatios: Float64Array, p: Float64Array) => number} value of a position
 */
function overOwnNoise(logQ, sigmaBar, x0, value) {
  const vocabSize = logQ.length / x0.length, p = transition(x0, sigmaBar, vocabSize);
  const expected = UNIFORM.marginal(logQ, x0, sigmaBar), logRatios = p.map((share, at) => Math.log(share / expected[at]));
  return Float64Array.from(x0, (token, i) => {
    const from = i * vocabSize, to = from + vocabSize;
    return value(logQ[from + token], logRatios.subarray(from, to), p.subarray(from, to));
  });
}

/** The uniform graph of SEDD: noise puts any token in place of any other. @type {Graph} */
export const UNIFORM = {
  name: 'uniform',
  supportsChurn: true,
  supportsScores: true,
  schedule: (sigmaMin, sigmaMax) => new GeometricNoise(sigmaMin, sigmaMax),
  samplePrior,
  priorKl,
  logScore: denoiserLogScore,
  loss: scoreEntropyLoss,
  expectedLoss(logQ, sigmaBar, x0) {
    return overOwnNoise(logQ, sigmaBar, x0, (_, logRatios, p) => logRatios.reduce((sum, d, y) => {
      return sum + p[y] * d + (Math.expm1(d) - d) / p.length;
    }, 0));
  },
  expectedReconstruction(logQ, sigmaBar, x0) {
    return overOwnNoise(logQ, sigmaBar, x0, (clean, logRatios, p) => {
      return logRatios.reduce((sum, d, y) => sum - p[y] * d, -clean);
    });
  },
  marginal(logQ, xT, sigmaBar) {
    const stay = Math.exp(-sigmaBar), leak = Math.expm1(-sigmaBar) / (logQ.length / xT.length);
    return logQ.map((value) => stay * Math.exp(value) - leak);
  },
  likelihood: transition, // the kernel is symmetric
};
