// Chapter 7 (ddlm_core.sampler): time grids, and the one loop that writes text.

import {checkChoice, checkRange, UserError} from './errors.js';
import {GeometricNoise} from './noise.js';
import {Generator, seedState} from './random.js';
import {checkStep, churnedProbs} from './reverse.js';

/** @import {NoiseSchedule} from './noise.js' */

export const SCHEDULES = ['linear', 'cosine', 'fraction'];

/**
 * The time grid of a run, from 1 (noise) down to 0 (text): numSteps + 1 times.
 * @param {number} numSteps
 * @param {string} [schedule] equal steps of t ("linear"), of the resample probability ("fraction"), or "cosine"
 * @param {NoiseSchedule} [noise]
 * @returns {Float64Array}
 */
export function createTimestepSchedule(numSteps, schedule = 'linear', noise = new GeometricNoise()) {
  checkRange(1, Infinity, {numSteps});
  checkChoice(SCHEDULES, {schedule});
  const [first, last] = [1, 0].map((t) => Math.exp(-noise.sigmaBar(t)));
  return Float64Array.from({length: numSteps + 1}, (_, i) => {
    const share = i / numSteps;
    if (schedule === 'linear' || i === 0 || i === numSteps) return 1 - share;
    const kept = schedule === 'cosine' ? Math.sin((share * Math.PI) / 2) : share;
    return noise.time(-Math.log(first + kept * (last - first)));
  });
}

/**
 * Total noise at the times of createTimestepSchedule: numSteps + 1 levels; the last is 0, so that the last
 * step leads to clean text, or without denoiseLast that of time 0.
 * @param {NoiseSchedule} noise
 * @param {number} numSteps
 * @param {string} [schedule]
 * @param {boolean} [denoiseLast]
 */
export function noiseLevels(noise, numSteps, schedule = 'linear', denoiseLast = true) {
  const levels = createTimestepSchedule(numSteps, schedule, noise).map((t) => noise.sigmaBar(t));
  if (denoiseLast) levels[numSteps] = 0;
  return levels;
}

const float = new Float32Array(1), bits = new Int32Array(float.buffer);

/** @param {number} value above 0 @returns the float32 next to it, towards 0 */
function below(value) {
  float[0] = value;
  bits[0] -= 1;
  return float[0];
}

/**
 * In each row, the first index whose cumulative probability exceeds a uniform number. It rounds to float32
 * where Python does, so that the same numbers give the same tokens.
 * @param {Float64Array} probs (L, V), rows need not be normalized
 * @param {Float64Array} uniform (L)
 */
export function sampleCategorical(probs, uniform) {
  const vocabSize = probs.length / uniform.length, cdf = new Float32Array(vocabSize);
  return Int32Array.from(uniform, (number, i) => {
    let sum = 0;
    for (let y = 0; y < vocabSize; y++) {
      sum += Math.fround(probs[i * vocabSize + y]);
      cdf[y] = sum;
    }
    const total = cdf[vocabSize - 1];
    const u = Math.min(Math.fround(Math.fround(number) * total), below(total));
    let y = 0;
    while (cdf[y] <= u) y++;
    return y;
  });
}

/**
 * One generator for each text: that of text i depends on `seed` and `first + i` alone.
 * @param {number | bigint} seed
 * @param {number} batchSize
 * @param {number | bigint} [first]
 */
export function sampleGenerators(seed, batchSize, first = 0) {
  checkRange(0, Infinity, {seed, batchSize, first});
  const base = BigInt(seedState(seed)) + BigInt(first);
  return Array.from({length: batchSize}, (_, i) => new Generator(Number((base + BigInt(i)) % 2n ** 32n)));
}

/**
 * What the sampler holds after a step.
 * @typedef {object} DenoisingStep
 * @property {number} index 0 for the random start, numSteps for the finished text
 * @property {number} numSteps
 * @property {number} sigmaBar total noise after this step
 * @property {Int32Array} tokens (L)
 * @property {Uint8Array} changed (L), 1 where this step changed a token
 * @property {Float64Array | null} probs (L, V), what the tokens were drawn from (only here, not in Python)
 * @property {{start: number, index: number, numSteps: number}} [block] of a text that is written block after block:
 *     where its block starts, and the step within the block; `probs` are those of the block
 */
/**
 * @typedef {import('./reverse.js').StepOptions & {
 *   numSteps?: number, schedule?: string, template?: Int32Array, denoiseLast?: boolean,
 * }} RunOptions
 */

/**
 * Write a text of L tokens: an asynchronous iterator over the random start and each of `numSteps` steps.
 *
 * `template`, (L), stays where `conditionMask` is 1. What cannot work raises a UserError at the call.
 * @param {import('./reverse.js').Denoiser} model
 * @param {NoiseSchedule} noise
 * @param {number} seqLen L
 * @param {Generator} generator
 * @param {RunOptions} [options]
 * @returns {AsyncGenerator<DenoisingStep, void, void>}
 */
export function denoisingSteps(model, noise, seqLen, generator, options = {}) {
  const {numSteps = 128, schedule = 'linear', denoiseLast = true, template, conditionMask} = options;
  const {method = 'analytic', temperature = 1, churn = 0} = options;
  checkRange(1, Infinity, {seqLen});
  checkStep(model, method, temperature, churn);
  const levels = noiseLevels(noise, numSteps, schedule, denoiseLast);
  const {process: graph, vocabSize} = model.config;
  const start = graph.samplePrior(seqLen, vocabSize, generator);
  if (Boolean(template) !== Boolean(conditionMask)) {
    throw new UserError('template and conditionMask go together');
  }
  if (template && conditionMask) {
    if (template.length !== seqLen || conditionMask.length !== seqLen) {
      throw new UserError(`template and conditionMask must have ${seqLen} entries`);
    }
    conditionMask.forEach((given, i) => {
      if (!given) return;
      if (!(template[i] >= 0 && template[i] < vocabSize)) {
        throw new UserError(`the template has tokens outside 0 to ${vocabSize - 1}`);
      }
      start[i] = template[i];
    });
  }
  return runReverse(model, start, levels, generator, {method, temperature, churn, conditionMask});
}

/**
 * @param {import('./reverse.js').Denoiser} model
 * @param {Int32Array} start
 * @param {Float64Array} levels
 * @param {Generator} generator
 * @param {import('./reverse.js').StepOptions} options
 * @returns {AsyncGenerator<DenoisingStep, void, void>}
 */
async function* runReverse(model, start, levels, generator, options) {
  const numSteps = levels.length - 1, sigmas = Float32Array.from(levels); // a network computes in float32
  /** @type {Int32Array} */
  let tokens = start;
  const unchanged = new Uint8Array(start.length);
  yield {index: 0, numSteps, sigmaBar: levels[0], tokens, changed: unchanged, probs: null};
  for (let index = 1; index <= numSteps; index++) {
    const probs = await churnedProbs(model, tokens, sigmas[index - 1], sigmas[index], options);
    const drawn = sampleCategorical(probs, generator.randDouble(tokens.length));
    const before = tokens;
    tokens = drawn.map((token, i) => (options.conditionMask?.[i] ? before[i] : token));
    const changed = Uint8Array.from(tokens, (token, i) => Number(token !== before[i]));
    yield {index, numSteps, sigmaBar: levels[index], tokens, changed, probs};
  }
}

/**
 * The finished text: the tokens of the last of denoisingSteps, whose arguments these are.
 * @param {import('./reverse.js').Denoiser} model
 * @param {NoiseSchedule} noise
 * @param {number} seqLen
 * @param {Generator} generator
 * @param {RunOptions} [options]
 */
export async function sampleDiffusion(model, noise, seqLen, generator, options = {}) {
  /** @type {Int32Array} */
  let tokens = new Int32Array(0);
  for await (const step of denoisingSteps(model, noise, seqLen, generator, options)) tokens = step.tokens;
  return tokens;
}
