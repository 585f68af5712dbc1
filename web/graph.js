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
  marginal(logQ, xT, sigmaBar) {
    const stay = Math.exp(-sigmaBar), leak = Math.expm1(-sigmaBar) / (logQ.length / xT.length);
    return logQ.map((value) => stay * Math.exp(value) - leak);
  },
  likelihood: transition, // the kernel is symmetric
};
