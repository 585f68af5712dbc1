// Chapters 8 and 9 (ddlm_core.objective, bound, evaluation): the bound on -log p, with its interval.

import {UserError} from './errors.js';
import {perturbBatch} from './forward.js';
import {resampleProbability} from './noise.js';
import {Generator} from './random.js';
import {reverseProbs} from './reverse.js';

/** @import {NoiseSchedule} from './noise.js' */
/** @import {Model} from './model.js' */
/**
 * A mean and the ends of its 95 % confidence interval.
 * @typedef {{mean: number, low: number, high: number}} Estimate
 */

/** @param {number} mean @param {number} error one standard error @returns {Estimate} */
export function meanOf(mean, error) {
  return {mean, low: mean - 1.96 * error, high: mean + 1.96 * error};
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
 * Stratified times, half uniform in t, half in the corruption probability, with weights dt/dU.
 * @param {number} count
 * @param {NoiseSchedule} noise
 * @param {Generator} generator
 * @returns {{t: Float32Array, weight: Float32Array}}
 */
export function spreadTimes(count, noise, generator) {
  const cells = 1024, times = Float64Array.from({length: cells + 1}, (_, i) => i / cells);
  const fraction = times.map((t) => resampleProbability(noise.sigmaBar(t)));
  const width = fraction[cells] - fraction[0];
  const share = times.map((t, i) => (t + (fraction[i] - fraction[0]) / width) / 2); // U(t)
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
 * One-sample estimates of the whole bound, one for each row, in an order that spreads them over the noise
 * levels. Random numbers are drawn as in Python: each row has the same, in whatever order it comes.
 * @param {Model} model
 * @param {Int32Array[]} rows texts of one length L
 * @param {Generator} generator
 * @returns {AsyncGenerator<{row: number, nats: number, perPosition: Float64Array}, void, void>} nats of the
 *     window, and of each position, (L)
 */
export async function* windowNats(model, rows, generator) {
  const {noise, process: graph, vocabSize} = model.config;
  const {t, weight} = spreadTimes(rows.length, noise, generator);
  const sigmaBar = Float32Array.from(t, (time) => noise.sigmaBar(time));
  const xT = perturbBatch(rows, sigmaBar, vocabSize, generator, {prior: graph.samplePrior});
  const first = Math.fround(noise.sigmaBar(0));
  const x1 = perturbBatch(rows, first, vocabSize, generator, {prior: graph.samplePrior});
  const prior = graph.priorKl(noise.sigmaMax, vocabSize);
  /** @type {Map<string, Promise<Float64Array>>} */
  const known = new Map(); // almost all come through unchanged
  for (const row of spreadOrder(rows.length)) {
    const logScore = await model.forward(xT[row], sigmaBar[row]);
    const losses = graph.loss(logScore, sigmaBar[row], xT[row], rows[row]);
    const key = x1[row].join();
    if (!known.has(key)) known.set(key, reverseProbs(model, x1[row], first, 0));
    const probs = /** @type {Float64Array} */ (await known.get(key));
    const scale = weight[row] * noise.sigma(t[row]);
    const perPosition = losses.map((loss, i) => {
      return scale * loss - Math.log(probs[i * vocabSize + rows[row][i]]) + prior;
    });
    yield {row, nats: perPosition.reduce((a, b) => a + b, 0), perPosition};
  }
}

/**
 * What is known of the bound so far, in nats per window.
 * @typedef {object} BoundSoFar
 * @property {Estimate} estimate after the first, its interval is infinite
 * @property {number} done evaluations
 * @property {number} total
 * @property {Float64Array[]} perPosition mean nats of each position of each window, (L); NaN before its first
 */

/**
 * The bound on -log p in nats per window, padding included: it gets better with each item. The last one is
 * that of estimate_bound in Python for the same seed.
 * @param {Model} model
 * @param {Int32Array[]} tokens windows of one length L
 * @param {{repeats?: number, seed?: number}} [options]
 * @returns {AsyncGenerator<BoundSoFar, void, void>}
 */
export async function* estimateBound(model, tokens, {repeats = 8, seed = 0} = {}) {
  if (!tokens.length || !tokens[0].length || repeats < 2) {
    throw new UserError(`need tokens and 2 repeats, got ${tokens.length} windows, ${repeats}`);
  }
  const generator = new Generator(seed), total = tokens.length * repeats;
  const sums = tokens.map((window) => new Float64Array(window.length));
  /** @type {Map<number, number>[]} nats of each window by repeat */
  const nats = tokens.map(() => new Map());
  const size = Math.max(1, Math.floor(64 / repeats));
  for (let from = 0, done = 0; from < tokens.length; from += size) {
    const part = tokens.slice(from, from + size);
    const rows = Array.from({length: repeats}, () => part).flat();
    for await (const found of windowNats(model, rows, generator)) {
      const window = from + (found.row % part.length);
      nats[window].set(Math.floor(found.row / part.length), found.nats);
      found.perPosition.forEach((value, i) => (sums[window][i] += value));
      done += 1;
      const perPosition = sums.map((sum, w) => sum.map((value) => value / nats[w].size));
      yield {estimate: summary(nats), done, total, perPosition};
    }
  }
}

/**
 * Mean and interval: the larger of the error by the noise drawn and by the choice of windows.
 * @param {Map<number, number>[]} nats
 */
function summary(nats) {
  let sum = 0, count = 0, squares = 0, pairs = 0;
  const means = [];
  for (const window of nats) {
    const values = [...window.keys()].sort((a, b) => a - b).map((key) => Number(window.get(key)));
    if (!values.length) continue;
    values.forEach((value, i) => {
      sum += value;
      if (i === 0) return;
      squares += (value - values[i - 1]) ** 2; // neighbors in noise level differ by their noise alone
      pairs += 1;
    });
    count += values.length;
    means.push(values.reduce((a, b) => a + b, 0) / values.length);
  }
  const ofNoise = pairs ? squares / pairs / 2 / count : Infinity;
  const mean = means.reduce((a, b) => a + b, 0) / means.length;
  const spread = means.reduce((a, b) => a + (b - mean) ** 2, 0) / (means.length - 1);
  const ofWindows = means.length > 1 ? spread / means.length : ofNoise;
  return meanOf(sum / count, Math.sqrt(Math.max(ofNoise, ofWindows)));
}
