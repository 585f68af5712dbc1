// Appendix A (ddlm_core.absorbing): masked diffusion. The mask is the last token.

import {logSoftmax} from './loss.js';
import {resampleProbability} from './noise.js';

/** @import {NoiseSchedule} from './noise.js' */

export const MASK = '░';

/** The log-linear schedule of SEDD: at time t, a share t is masked. @implements {NoiseSchedule} */
export class LogLinearNoise {
  sigmaMin = 0;
  sigmaMax = Infinity;

  /** @param {number} t */
  sigmaBar(t) {
    return -Math.log1p(-t);
  }

  /** @param {number} t */
  sigma(t) {
    return 1 / (1 - t);
  }

  /** @param {number} sigmaBar */
  time(sigmaBar) {
    return resampleProbability(sigmaBar);
  }
}

/** Pure noise: nothing but masks. @type {import('./forward.js').Prior} */
export function allMasked(length, vocabSize) {
  return new Int32Array(length).fill(vocabSize - 1);
}

/**
 * log p(x_0 = y | x_t): q at a mask, itself no letter; elsewhere x_t, surely.
 * @param {Float64Array} logQ (L, V)
 * @param {Int32Array} xT
 */
export function maskPosterior(logQ, xT) {
  const vocabSize = logQ.length / xT.length, last = vocabSize - 1, letters = logQ.slice();
  for (let i = last; i < letters.length; i += vocabSize) letters[i] = -Infinity;
  const found = logSoftmax(letters, vocabSize);
  xT.forEach((token, i) => {
    if (token === last) return;
    found.fill(-Infinity, i * vocabSize, (i + 1) * vocabSize);
    found[i * vocabSize + token] = 0;
  });
  return found;
}

/**
 * From q to log-scores: q_y / (exp(sigmaBar) - 1) at a mask, 1 at y = x_t, and else 0 at a letter.
 * @param {Float64Array} logQ (L, V)
 * @param {number} sigmaBar
 * @param {Int32Array} xT
 */
export function maskLogScore(logQ, sigmaBar, xT) {
  const vocabSize = logQ.length / xT.length, found = maskPosterior(logQ, xT);
  const logOdds = Math.log(Math.expm1(sigmaBar));
  xT.forEach((token, i) => {
    if (token === vocabSize - 1) {
      for (let y = 0; y < vocabSize; y++) found[i * vocabSize + y] -= logOdds;
    }
    found[i * vocabSize + token] = 0;
  });
  return found;
}

/**
 * Denoising score entropy of each position, not yet times sigma(t); 0 at a letter.
 * @param {Float64Array} logScore (L, V)
 * @param {number} sigmaBar
 * @param {Int32Array} xT
 * @param {Int32Array} x0
 */
export function maskLoss(logScore, sigmaBar, xT, x0) {
  const vocabSize = logScore.length / xT.length, a = 1 / Math.expm1(sigmaBar);
  return Float64Array.from(xT, (now, i) => {
    if (now !== vocabSize - 1) return 0;
    let others = 0;
    for (let y = 0; y < vocabSize; y++) {
      if (y !== now && y !== x0[i]) others += Math.exp(logScore[i * vocabSize + y]);
    }
    const d = logScore[i * vocabSize + x0[i]] - Math.log(a);
    return others + a * (Math.expm1(d) - d);
  });
}

/**
 * p(x_s = y) at this noise, if the clean token is drawn from the posterior.
 * @param {Float64Array} logQ (L, V)
 * @param {Int32Array} xT
 * @param {number} sigmaBar
 */
export function maskMarginal(logQ, xT, sigmaBar) {
  const vocabSize = logQ.length / xT.length, stay = Math.exp(-sigmaBar);
  const found = maskPosterior(logQ, xT).map((value) => stay * Math.exp(value));
  for (let i = vocabSize - 1; i < found.length; i += vocabSize) found[i] += resampleProbability(sigmaBar);
  return found;
}

/**
 * p(x_t | x_s = y) after more noise, up to a factor for each position.
 * @param {Int32Array} xT
 * @param {number} deltaSigma
 * @param {number} vocabSize V
 */
export function maskLikelihood(xT, deltaSigma, vocabSize) {
  const found = new Float64Array(xT.length * vocabSize), last = vocabSize - 1;
  xT.forEach((token, i) => {
    if (token === last) found.fill(resampleProbability(deltaSigma), i * vocabSize, (i + 1) * vocabSize);
    found[i * vocabSize + token] = 1;
  });
  return found;
}

/** The absorbing graph (D3PM, SEDD): noise turns a token into the mask, for good. @type {import('./graph.js').Graph} */
export const ABSORBING = {
  name: 'absorbing',
  supportsChurn: false,
  supportsScores: false,
  schedule: () => new LogLinearNoise(),
  samplePrior: allMasked,
  priorKl: (sigmaBar1) => (sigmaBar1 < Infinity ? Infinity : 0),
  logScore: maskLogScore,
  loss: maskLoss,
  expectedLoss: (logQ, sigmaBar, x0) => surprise(logQ, x0).map((nats) => Math.exp(-sigmaBar) * nats),
  expectedReconstruction: (logQ, sigmaBar, x0) => surprise(logQ, x0).map((nats) => resampleProbability(sigmaBar) * nats),
  marginal: maskMarginal,
  likelihood: maskLikelihood,
};

/**
 * Of the clean letter at a mask, in nats: (L).
 * @param {Float64Array} logQ (L, V)
 * @param {Int32Array} x0
 */
function surprise(logQ, x0) {
  const vocabSize = logQ.length / x0.length;
  const logP = maskPosterior(logQ, new Int32Array(x0.length).fill(vocabSize - 1));
  return Float64Array.from(x0, (token, i) => -logP[i * vocabSize + token]);
}
