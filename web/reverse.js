// Chapter 7 (ddlm_core.reverse): one step of reverse diffusion, for one text.
// Tables (L, V) lie row after row in a Float64Array.

import {checkChoice, checkRange, UserError} from './errors.js';
import {transition} from './forward.js';
import {UNIFORM} from './graph.js';
import {logSoftmax} from './loss.js';
import {resampleProbability} from './noise.js';

/**
 * What answers: a loaded model, or any other that has these.
 * @typedef {object} Denoiser
 * @property {{vocabSize: number, parametrization: string, process: import('./graph.js').Graph}} config
 * @property {(xT: Int32Array, sigmaBar: number, mask?: Uint8Array) => Promise<Float64Array>} denoise log q
 * @property {(xT: Int32Array, sigmaBar: number, mask?: Uint8Array) => Promise<Float64Array>} forward log-scores
 */
/**
 * @typedef {object} StepOptions
 * @property {'analytic' | 'euler'} [method]
 * @property {number} [temperature] draws clean tokens from q^(1/T), normalized
 * @property {number} [churn] 0 to 1: share of fresh noise
 * @property {Uint8Array} [conditionMask] (L), 1 where a token is given
 */

export const METHODS = ['analytic', 'euler'];

/** @param {Float64Array} table @param {number} vocabSize each row is divided by its sum, in place */
function normalize(table, vocabSize) {
  for (let row = 0; row < table.length; row += vocabSize) {
    let sum = 0;
    for (let y = row; y < row + vocabSize; y++) sum += table[y];
    for (let y = row; y < row + vocabSize; y++) table[y] /= sum;
  }
  return table;
}

/**
 * Euler step (tau-leaping): probabilities (L, V) of the tokens before a noise deltaSigma.
 * @param {Float64Array} score ratios, not their logs
 * @param {Int32Array} xT
 * @param {number} deltaSigma
 */
export function eulerProbs(score, xT, deltaSigma) {
  const vocabSize = score.length / xT.length;
  const jump = score.map((value) => (deltaSigma * value) / vocabSize);
  xT.forEach((token, i) => {
    const row = jump.subarray(i * vocabSize, (i + 1) * vocabSize);
    row[token] = 0;
    const sum = row.reduce((a, b) => a + b, 0);
    if (sum > 1) row.forEach((value, y) => (row[y] = value / sum));
    row[token] = Math.max(0, 1 - sum);
  });
  return jump;
}

/**
 * Reverse step from sigmaBarT to sigmaBarS: p(x_s = y | x_t) by Bayes' rule.
 * @param {Float64Array} logQ (L, V)
 * @param {Int32Array} xT
 * @param {number} sigmaBarT
 * @param {number} sigmaBarS
 * @param {import('./graph.js').Graph} [graph]
 */
export function analyticProbs(logQ, xT, sigmaBarT, sigmaBarS, graph = UNIFORM) {
  const vocabSize = logQ.length / xT.length;
  const prior = graph.marginal(logQ, xT, sigmaBarS); // p(x_s = y), before x_t counts here
  const likelihood = graph.likelihood(xT, Math.fround(sigmaBarT - sigmaBarS), vocabSize);
  return normalize(prior.map((value, y) => value * likelihood[y]), vocabSize);
}

/**
 * Ratios exp(-deltaSigma Q) s: the noise of a step undone at each position (SEDD: discrete Tweedie).
 * @param {Float64Array} score (L, V)
 * @param {number} deltaSigma
 * @param {number} vocabSize V
 */
export function staggeredScore(score, deltaSigma, vocabSize) {
  const growth = Math.expm1(deltaSigma), found = score.slice();
  for (let row = 0; row < found.length; row += vocabSize) {
    const values = found.subarray(row, row + vocabSize);
    const mean = values.reduce((a, b) => a + b, 0) / vocabSize;
    values.forEach((value, y) => (values[y] = value + growth * (value - mean)));
  }
  return found;
}

/** @param {Denoiser} model @returns whether the model gives log q, not log-scores alone */
export function hasDenoiser(model) {
  return model.config.parametrization !== 'score';
}

/**
 * Raise a UserError if the model cannot take such steps.
 * @param {Denoiser} model
 * @param {string} method
 * @param {number} temperature
 * @param {number} churn
 */
export function checkStep(model, method, temperature, churn = 0) {
  const graph = model.config.process;
  checkChoice(METHODS, {method});
  if (method === 'euler' && !graph.supportsScores) {
    throw new UserError(`the method euler does not work with the ${graph.name} graph: use analytic`);
  }
  if (temperature !== 1 && !(temperature > 0 && temperature < Infinity && hasDenoiser(model))) {
    const limits = '1, or above 0 and finite if the model has a denoiser';
    throw new UserError(`temperature must be ${limits}, got ${temperature}`);
  }
  checkRange(0, 1, {churn}, false);
  if (churn && !graph.supportsChurn) {
    throw new UserError(`churn must be 0 with the ${graph.name} graph, got ${churn}`);
  }
}

/**
 * A step from sigmaBarT to sigmaBarS, with one function evaluation: p(x_s = y | x_t), (L, V).
 * @param {Denoiser} model
 * @param {Int32Array} xT
 * @param {number} sigmaBarT
 * @param {number} sigmaBarS
 * @param {StepOptions} [options] without churn
 * @returns {Promise<Float64Array>}
 */
export async function reverseProbs(model, xT, sigmaBarT, sigmaBarS, options = {}) {
  const {method = 'analytic', temperature = 1, conditionMask} = options;
  checkStep(model, method, temperature);
  const {process: graph, vocabSize} = model.config;
  /** @type {Float64Array} */
  let score;
  if (hasDenoiser(model)) {
    let logQ = await model.denoise(xT, sigmaBarT, conditionMask);
    if (temperature !== 1) logQ = tempered(logQ, temperature, vocabSize);
    if (method === 'analytic') return analyticProbs(logQ, xT, sigmaBarT, sigmaBarS, graph);
    score = graph.logScore(logQ, sigmaBarT, xT).map(Math.exp);
  } else {
    score = (await model.forward(xT, sigmaBarT, conditionMask)).map(Math.exp);
  }
  const deltaSigma = Math.fround(sigmaBarT - sigmaBarS);
  if (method === 'euler') return eulerProbs(score, xT, deltaSigma);
  const kernel = transition(xT, deltaSigma, vocabSize);
  const weight = staggeredScore(score, deltaSigma, vocabSize);
  return normalize(weight.map((value, y) => Math.max(0, value * kernel[y])), vocabSize);
}

/** @param {Float64Array} logQ @param {number} temperature @param {number} vocabSize */
function tempered(logQ, temperature, vocabSize) {
  const sharper = logQ.slice();
  for (let row = 0; row < sharper.length; row += vocabSize) {
    const values = sharper.subarray(row, row + vocabSize);
    const most = values.reduce((a, b) => Math.max(a, b), -Infinity);
    values.forEach((value, y) => (values[y] = (value - most) / temperature));
  }
  return logSoftmax(sharper, vocabSize);
}

/**
 * A step down to the fraction (1 - churn) f_s, and noise back to f_s: (L, V).
 * @param {Denoiser} model
 * @param {Int32Array} xT
 * @param {number} sigmaBarT
 * @param {number} sigmaBarS
 * @param {StepOptions} [options]
 * @returns {Promise<Float64Array>}
 */
export async function churnedProbs(model, xT, sigmaBarT, sigmaBarS, options = {}) {
  const {churn = 0, method = 'analytic', temperature = 1} = options;
  checkStep(model, method, temperature, churn);
  if (churn === 0) return reverseProbs(model, xT, sigmaBarT, sigmaBarS, options);
  const sigmaTarget = Math.fround(-Math.log1p((churn - 1) * resampleProbability(sigmaBarS)));
  const probs = await reverseProbs(model, xT, sigmaBarT, sigmaTarget, options);
  const share = resampleProbability(Math.max(0, Math.fround(sigmaBarS - sigmaTarget)));
  return probs.map((value) => value + share * (1 / model.config.vocabSize - value));
}
