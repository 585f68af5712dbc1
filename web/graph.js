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
 * @property {(logQ: Float64Array, sigmaBar: number, x0: Int32Array) => Float64Array} expectedLoss the mean of
 *     `loss` over the own noise of each letter, given the others'
 * @property {(logQ: Float64Array, sigmaBar: number, x0: Int32Array) => Float64Array} expectedReconstruction the
 *     mean of -log p(x_0 | x_t) over the own noise of each letter
 * @property {(logQ: Float64Array, xT: Int32Array, sigmaBar: number) => Float64Array} marginal
 * @property {(xT: Int32Array, deltaSigma: number, vocabSize: number) => Float64Array} likelihood
 */

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
    const {divergence, ratio} = against(logQ, sigmaBar, x0), vocabSize = logQ.length / x0.length;
    return divergence.map((nats, i) => {
      let sum = 0;
      for (let at = i * vocabSize; at < (i + 1) * vocabSize; at++) sum += ratio[at] - 1 - Math.log(ratio[at]);
      return nats + sum / vocabSize;
    });
  },
  expectedReconstruction(logQ, sigmaBar, x0) {
    const {divergence} = against(logQ, sigmaBar, x0), vocabSize = logQ.length / x0.length;
    return divergence.map((nats, i) => -logQ[i * vocabSize + x0[i]] - nats); // Bayes: p(x_0 | x_t) = q_{x_0} p / r
  },
  marginal(logQ, xT, sigmaBar) {
    const stay = Math.exp(-sigmaBar), leak = Math.expm1(-sigmaBar) / (logQ.length / xT.length);
    return logQ.map((value) => stay * Math.exp(value) - leak);
  },
  likelihood: transition, // the kernel is symmetric
};

/**
 * p over r, (L, V), and KL(p || r), (L): p of the noisy letter given the clean one, and r, which q expects.
 * @param {Float64Array} logQ (L, V)
 * @param {number} sigmaBar
 * @param {Int32Array} x0
 */
function against(logQ, sigmaBar, x0) {
  const vocabSize = logQ.length / x0.length, p = transition(x0, sigmaBar, vocabSize);
  const ratio = UNIFORM.marginal(logQ, x0, sigmaBar).map((r, at) => p[at] / r);
  const divergence = Float64Array.from(x0, (_, i) => {
    let sum = 0;
    for (let at = i * vocabSize; at < (i + 1) * vocabSize; at++) sum += p[at] * Math.log(ratio[at]);
    return sum;
  });
  return {ratio, divergence};
}
