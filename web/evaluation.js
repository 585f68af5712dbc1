// Chapters 8 and 9 (ddlm_core.objective, bound, evaluation): the bound on -log p, with its interval.

import {UserError} from './errors.js';
import {perturbBatch} from './forward.js';
import {resampleProbability} from './noise.js';
import {Generator} from './random.js';
import {hasDenoiser, reverseProbs} from './reverse.js';

/** @import {NoiseSchedule} from './noise.js' */
/** @import {Model} from './model.js' */
/**
 * A mean and the ends of its 95 % confidence interval.
 * @typedef {{mean: number, low: number, high: number}} Estimate
 */

/** The factor of Student's t for a 95 % interval, to 0.002. @param {number} freedom */
function student(freedom) {
  if (freedom < 6) return [12.706, 4.303, 3.182, 2.776, 2.571][freedom - 1];
  return 1.96 + 2.372 / freedom + 2.823 / freedom ** 2 + 2.56 / freedom ** 3;
}

/**
 * The mean of independent measurements and its 95 % interval, which is infinite for one.
 * @param {number[]} values
 * @returns {Estimate}
 */
export function meanOf(values) {
  const n = values.length, mean = values.reduce((a, b) => a + b, 0) / n;
  if (n < 2) return {mean, low: -Infinity, high: Infinity};
  const variance = values.reduce((a, b) => a + (b - mean) ** 2, 0) / (n - 1);
  const reach = student(n - 1) * Math.sqrt(variance / n);
  return {mean, low: mean - reach, high: mean + reach};
}

/**
 * Times, float32 (count): each uniform in [0, 1), together evenly spread (VDM).
 * @param {number} count
 * @param {Generator} generator
 */
export function lowDiscrepancyTimes(count, generator) {
  const [offset] = generator.rand(1);
  return Float32Array.from({length: count}, (_, i) => Math.fround(offset + Math.fround(i / count)) % 1);
}

/**
 * Stratified times, a quarter uniform in t, the rest in f + f², with weights dt/dU; f is the corruption probability.
 * @param {number} count
 * @param {NoiseSchedule} noise
 * @param {Generator} generator
 * @returns {{t: Float32Array, weight: Float32Array}}
 */
export function spreadTimes(count, noise, generator) {
  const cells = 1024, times = Float64Array.from({length: cells + 1}, (_, i) => i / cells);
  const fraction = times.map((t) => resampleProbability(noise.sigmaBar(t))), g = fraction.map((f) => f + f ** 2);
  const share = times.map((t, i) => t / 4 + ((3 / 4) * (g[i] - g[0])) / (g[cells] - g[0])); // U(t)
  const t = new Float32Array(count), weight = new Float32Array(count);
  lowDiscrepancyTimes(count, generator).forEach((u, i) => {
    const k = share.findIndex((entry) => entry > u);
    const slope = (times[k] - times[k - 1]) / (share[k] - share[k - 1]);
    t[i] = times[k - 1] + slope * (u - share[k - 1]);
    weight[i] = slope;
  });
  return {t, weight};
}

/**
 * The order in which to take n things, so that those taken so far are always spread evenly.
 * @param {number} n
 */
function spreadOrder(n) {
  /** @param {number} i @returns its binary digits, mirrored at the point */
  const mirrored = (i) => {
    let found = 0;
    for (let half = 0.5; i > 0; i >>>= 1, half /= 2) if (i & 1) found += half;
    return found;
  };
  const keys = Array.from({length: n}, (_, i) => mirrored(i));
  const ranks = keys.map((_, i) => i).sort((a, b) => keys[a] - keys[b]);
  const order = new Array(n);
  ranks.forEach((taken, place) => (order[taken] = place));
  return order;
}

/**
 * -log p(x_0 | x_t) of each position at the noise of t = 0, its own noise averaged over if the network gives log q.
 * @param {Model} model
 * @param {Int32Array} xT
 * @param {Int32Array} x0
 * @param {number} sigmaBar
 */
async function reconstruction(model, xT, x0, sigmaBar) {
  const {process: graph, vocabSize} = model.config;
  if (hasDenoiser(model)) return graph.expectedReconstruction(await model.denoise(xT, sigmaBar), sigmaBar, x0);
  const probs = await reverseProbs(model, xT, sigmaBar, 0);
  return Float64Array.from(x0, (token, i) => -Math.log(probs[i * vocabSize + token]));
}

/**
 * Score entropy of each position at a noise; if the network gives log q, its own noise averaged over.
 * @param {Model} model
 * @param {Int32Array} xT
 * @param {Int32Array} x0
 * @param {number} sigmaBar
 */
async function diffusion(model, xT, x0, sigmaBar) {
  const {process: graph} = model.config;
  if (hasDenoiser(model)) return graph.expectedLoss(await model.denoise(xT, sigmaBar), sigmaBar, x0);
  return graph.loss(await model.forward(xT, sigmaBar), sigmaBar, xT, x0);
}

/**
 * One-sample estimates of the whole bound, one for each row, in an order that spreads them over the noise
 * levels. Random numbers are drawn as in Python: each row has the same, in whatever order it comes.
 * @param {Model} model
 * @param {Int32Array[]} rows texts of one length L
 * @param {Generator} generator
 * @returns {AsyncGenerator<{row: number, nats: number, perPosition: Float64Array}, void, void>} nats of the
 *     window, and of each position, (L)
 */
export async function* windowNats(model, rows, generator) {
  const {noise, process: graph, vocabSize} = model.config, options = {prior: graph.samplePrior};
  const {t, weight} = spreadTimes(rows.length, noise, generator);
  const sigmaBar = Float32Array.from(t, (time) => noise.sigmaBar(time)), first = Math.fround(noise.sigmaBar(0));
  const prior = graph.priorKl(noise.sigmaMax, vocabSize);
  for (let from = 0; from < rows.length; from += 64) {
    const part = rows.slice(from, from + 64);
    const xT = perturbBatch(part, sigmaBar.subarray(from), vocabSize, generator, options);
    const few = generator.randperm(part.length).slice(0, Math.ceil(part.length / 8)).map((i) => part[i]);
    const last = new Float64Array(part[0].length); // the mean over an eighth of the windows
    /** @type {Map<string, Promise<Float64Array>>} */
    const known = new Map(); // copies of a window mostly stay equal
    for (const [i, x1] of perturbBatch(few, first, vocabSize, generator, options).entries()) {
      const key = `${x1} ${few[i]}`;
      if (!known.has(key)) known.set(key, reconstruction(model, x1, few[i], first));
      const found = /** @type {Float64Array} */ (await known.get(key));
      found.forEach((value, at) => (last[at] += value / few.length));
    }
    for (const row of spreadOrder(part.length)) {
      const losses = await diffusion(model, xT[row], part[row], sigmaBar[from + row]);
      const scale = weight[from + row] * noise.sigma(t[from + row]);
      const perPosition = losses.map((loss, i) => scale * loss + last[i] + prior);
      yield {row: from + row, nats: perPosition.reduce((a, b) => a + b, 0), perPosition};
    }
  }
}

/**
 * One unbiased estimate of the bound on windows, in nats per window, while it comes together.
 * @param {Model} model
 * @param {Int32Array[]} x0 N windows of one length L
 * @param {number} levels noise levels for each window
 * @param {Generator} generator
 * @returns {AsyncGenerator<{window: number, mean: number, perPosition: Float64Array}, void, void>} after each row: its
 *     window, the mean of all rows so far, and the nats of its positions
 */
export async function* sweep(model, x0, levels, generator) {
  const order = generator.randperm(x0.length), rows = Array.from({length: levels}, () => order.map((i) => x0[i])).flat();
  let sum = 0, count = 0;
  for await (const {row, nats, perPosition} of windowNats(model, rows, generator)) {
    sum += nats;
    count += 1;
    yield {window: order[row % x0.length], mean: sum / count, perPosition};
  }
}

/**
 * What is known of the bound so far, in nats per window.
 * @typedef {object} BoundSoFar
 * @property {Estimate} estimate infinite until two sweeps are done
 * @property {number} done evaluations
 * @property {number} total
 * @property {Float64Array[]} perPosition mean nats of each position of each window, (L); NaN before its first
 */

/**
 * Sweeps over windows, one after the other: what they say gets better with each item.
 * @param {Model} model
 * @param {Int32Array[]} tokens
 * @param {number} sweeps
 * @param {number} levels
 * @param {Generator} generator
 * @returns {AsyncGenerator<BoundSoFar & {means: number[]}, void, void>} means: of the sweeps, the last one unfinished
 */
export async function* sweepsOver(model, tokens, sweeps, levels, generator) {
  const sums = tokens.map((window) => new Float64Array(window.length)), counts = tokens.map(() => 0);
  /** @type {number[]} */
  const means = [];
  const each = tokens.length * levels, total = sweeps * each;
  for (let k = 0, done = 0; k < sweeps; k++) {
    for await (const {window, mean, perPosition} of sweep(model, tokens, levels, generator)) {
      perPosition.forEach((value, i) => (sums[window][i] += value));
      counts[window] += 1;
      means[k] = mean;
      done += 1;
      const whole = done % each && k ? means.slice(0, k) : means;
      const found = sums.map((sum, w) => sum.map((value) => value / counts[w]));
      yield {estimate: meanOf(whole), done, total, perPosition: found, means};
    }
  }
}

/**
 * The bound on -log p of a text in nats per window, padding included: it gets better with each item. The last
 * one is that of estimate_bound in Python for the same seed.
 * @param {Model} model
 * @param {Int32Array[]} tokens windows of one length L
 * @param {{repeats?: number, seed?: number}} [options] repeats: above 16 rounded up to a multiple of 16
 * @returns {AsyncGenerator<BoundSoFar, void, void>}
 */
export async function* estimateBound(model, tokens, {repeats = 8, seed = 0} = {}) {
  if (!tokens.length || !tokens[0].length || repeats < 2) {
    throw new UserError(`need tokens and 2 repeats, got ${tokens.length} windows, ${repeats}`);
  }
  const sweeps = Math.min(repeats, 16);
  yield* sweepsOver(model, tokens, sweeps, Math.ceil(repeats / sweeps), new Generator(seed));
}
