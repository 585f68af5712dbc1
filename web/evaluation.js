// Chapters 8 and 9 (ddlm_core.objective, bound, evaluation): the bound on -log p, with its interval.

import {UserError} from './errors.js';
import {perturbBatch} from './forward.js';
import {BlockModel} from './model.js';
import {resampleProbability} from './noise.js';
import {Generator} from './random.js';
import {hasDenoiser, reverseProbs} from './reverse.js';

/** @import {NoiseSchedule} from './noise.js' */
/** @import {Model} from './model.js' */
/**
 * A mean and the ends of its 95 % confidence interval.
 * @typedef {{mean: number, low: number, high: number}} Estimate
 */

const Z = 1.96; // a bell curve has 95 % of its area within so many standard deviations

/** @param {number} freedom @returns the same of Student's t, to 0.002 */
function student(freedom) {
  if (freedom < 6) return [Infinity, 12.706, 4.303, 3.182, 2.776, 2.571][freedom];
  return Z + 2.372 / freedom + 2.823 / freedom ** 2 + 2.56 / freedom ** 3;
}

/**
 * The mean of independent measurements, with its interval by Student's t; that of one is infinite.
 * @param {ArrayLike<number>} values
 * @returns {Estimate}
 */
export function meanOf(values) {
  const all = Array.from(values), n = all.length, mean = all.reduce((a, b) => a + b, 0) / n;
  const squares = all.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  const reach = n > 1 ? student(n - 1) * Math.sqrt(squares / (n - 1) / n) : Infinity;
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
 * Stratified times, a quarter uniform in t, the rest in f + f², f the corruption probability, with weights dt/dU.
 * @param {number} count
 * @param {NoiseSchedule} noise
 * @param {Generator} generator
 * @returns {{t: Float32Array, weight: Float32Array}}
 */
export function spreadTimes(count, noise, generator) {
  const cells = 1024, times = Float64Array.from({length: cells + 1}, (_, i) => i / cells);
  const fraction = times.map((t) => resampleProbability(noise.sigmaBar(t)));
  const g = fraction.map((f) => f + f ** 2), width = g[cells] - g[0];
  const share = times.map((t, i) => t / 4 + ((3 / 4) * (g[i] - g[0])) / width); // U(t)
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
 * What is known of a window at one noise level.
 * @typedef {object} Judged
 * @property {number} row which of the windows
 * @property {number} nats of the window
 * @property {Float64Array} perPosition nats of each position, (L). The reconstruction, which is measured on
 *     an eighth of the rows, counts where it was measured, so only all rows together have the sum of `nats`.
 */
/** Reconstructions that were computed, nats (L), by noisy and clean text. @typedef {Map<string, Promise<Float64Array>>} Known */

/**
 * The model on a window whose clean text is x0, if it reads that (that of chapter 11 does).
 * @param {Model} model
 * @param {Int32Array} x0
 */
export function inContext(model, x0) {
  return model instanceof BlockModel ? model.given(x0) : model;
}

/**
 * Score entropy of a text at some noise, of each position, (L); if the network gives log q, the mean over
 * the own noise of each letter.
 * @param {Model} model
 * @param {Int32Array} x0
 * @param {Int32Array} xT
 * @param {number} sigmaBar
 */
async function diffusion(model, x0, xT, sigmaBar) {
  const {process: graph} = model.config, asked = inContext(model, x0);
  if (hasDenoiser(model)) return graph.expectedLoss(await asked.denoise(xT, sigmaBar), sigmaBar, x0);
  return graph.loss(await model.forward(xT, sigmaBar), sigmaBar, xT, x0);
}

/**
 * -log p(x_0 | x_t) of each position, (L), at the noise of t = 0.
 * @param {Model} model
 * @param {Int32Array} x0
 * @param {Int32Array} xT
 * @param {number} sigmaBar
 */
async function reconstruction(model, x0, xT, sigmaBar) {
  const {process: graph, vocabSize} = model.config;
  if (hasDenoiser(model)) {
    return graph.expectedReconstruction(await inContext(model, x0).denoise(xT, sigmaBar), sigmaBar, x0);
  }
  const probs = await reverseProbs(model, xT, sigmaBar, 0);
  return Float64Array.from(x0, (token, i) => -Math.log(probs[i * vocabSize + token]));
}

/**
 * One-sample estimates of the whole bound, one for each row, in an order that spreads them over the noise
 * levels. Random numbers are drawn at the call, as in Python: each row has the same, in whatever order it comes.
 * @param {Model} model
 * @param {Int32Array[]} rows texts of one length L
 * @param {Generator} generator
 * @param {Known} [known]
 * @returns {AsyncGenerator<Judged, void, void>}
 */
export function windowNats(model, rows, generator, known = new Map()) {
  const {noise, process: graph, vocabSize} = model.config, options = {prior: graph.samplePrior};
  const {t, weight} = spreadTimes(rows.length, noise, generator);
  const sigmaBar = Float32Array.from(t, (time) => noise.sigmaBar(time)), first = Math.fround(noise.sigmaBar(0));
  /** @type {Int32Array[]} */
  const xT = [];
  /** @type {(() => Promise<{nats: number, of: Map<string, Float64Array>}>)[]} */
  const ends = []; // reconstruction, of each 64 rows
  for (let from = 0; from < rows.length; from += 64) {
    const part = rows.slice(from, from + 64);
    xT.push(...perturbBatch(part, sigmaBar.subarray(from), vocabSize, generator, options));
    const drawn = generator.randperm(part.length).subarray(0, Math.ceil(part.length / 8));
    const few = Array.from(drawn, (i) => part[i]), x1 = perturbBatch(few, first, vocabSize, generator, options);
    /** @type {ReturnType<typeof ends[0]> | undefined} */
    let found;
    ends.push(() => (found ??= reconstructions(model, part, few, x1, first, known)));
  }
  const prior = graph.priorKl(noise.sigmaMax, vocabSize);
  return (async function* () {
    for (const row of spreadOrder(rows.length)) {
      const losses = await diffusion(model, rows[row], xT[row], sigmaBar[row]);
      const end = await ends[Math.floor(row / 64)](), own = end.of.get(rows[row].join());
      const scale = weight[row] * noise.sigma(t[row]);
      const perPosition = losses.map((loss, i) => scale * loss + prior + (own?.[i] ?? 0));
      const nats = losses.reduce((sum, loss) => sum + scale * loss + prior, end.nats);
      yield {row, nats, perPosition};
    }
  })();
}

/**
 * The reconstruction of some rows, by a few of them: the mean nats of a window, and what of it each of the
 * windows gets that are among the few, (L) for each of its rows.
 * @param {Model} model
 * @param {Int32Array[]} rows
 * @param {Int32Array[]} few
 * @param {Int32Array[]} noisy the same few, at the noise of t = 0
 * @param {number} sigmaBar
 * @param {Known} known almost all come through unchanged
 */
async function reconstructions(model, rows, few, noisy, sigmaBar, known) {
  let nats = 0;
  /** @type {Map<string, Float64Array>} */
  const of = new Map();
  for (const [k, x0] of few.entries()) {
    const window = x0.join(), key = `${noisy[k].join()} ${window}`;
    if (!known.has(key)) known.set(key, reconstruction(model, x0, noisy[k], sigmaBar));
    const found = /** @type {Float64Array} */ (await known.get(key));
    const sums = of.get(window) ?? new Float64Array(x0.length);
    found.forEach((value, i) => ((sums[i] += value / few.length), (nats += value / few.length)));
    of.set(window, sums);
  }
  for (const [window, sums] of of) {
    const share = rows.length / rows.filter((row) => row.join() === window).length;
    of.set(window, sums.map((value) => value * share));
  }
  return {nats, of};
}

/**
 * One unbiased estimate of the bound on windows, as its evaluations: their mean is that of `sweep` in Python.
 * Random numbers are drawn at the call.
 * @param {Model} model
 * @param {Int32Array[]} windows of one length L
 * @param {number} levels noise levels for each window
 * @param {Generator} generator
 * @param {Known} [known]
 * @returns {AsyncGenerator<Judged, void, void>}
 */
export function sweep(model, windows, levels, generator, known) {
  const order = generator.randperm(windows.length);
  const which = Array.from({length: levels * order.length}, (_, i) => order[i % order.length]);
  const found = windowNats(model, which.map((window) => windows[window]), generator, known);
  return (async function* () {
    for await (const judged of found) yield {...judged, row: which[judged.row]};
  })();
}

/**
 * What is known of the bound so far, in nats per window.
 * @typedef {object} BoundSoFar
 * @property {Estimate} estimate its interval is infinite at first
 * @property {number} done evaluations
 * @property {number} total
 * @property {Float64Array[]} perPosition mean nats of each position of each window, (L); NaN before its first
 */
/**
 * Windows that one of the measurements is about, and a sweep of them.
 * @typedef {object} Sweep
 * @property {number} measurement its number; it is the sum over its sweeps, of weight times mean
 * @property {number} weight
 * @property {number} from number of the first window
 * @property {number} total evaluations
 * @property {AsyncGenerator<Judged, void, void>} evaluations
 */

/**
 * Measurements that are made side by side, one evaluation of each sweep in turn: those of every sweep are
 * spread over the noise levels, so their means are of use from the start, and differ less and less.
 * @param {Sweep[]} sweeps
 * @param {Int32Array[]} windows
 * @returns {AsyncGenerator<BoundSoFar, void, void>} from where there is a measurement
 */
export async function* sideBySide(sweeps, windows) {
  const total = sweeps.reduce((sum, {total}) => sum + total, 0);
  const states = sweeps.map((sweep) => ({...sweep, sum: 0, count: 0}));
  const sums = windows.map((window) => new Float64Array(window.length)), counts = windows.map(() => 0);
  const perPosition = sums.map((sum) => sum.map(() => NaN));
  for (let done = 0; done < total; ) {
    for (const state of states) {
      if (state.count === state.total) continue;
      const {value} = await state.evaluations.next();
      if (!value) throw new Error('a sweep ended too early');
      const window = state.from + value.row;
      state.sum += value.nats;
      state.count += 1;
      counts[window] += 1;
      value.perPosition.forEach((nats, i) => (sums[window][i] += nats));
      perPosition[window] = sums[window].map((sum) => sum / counts[window]);
      done += 1;
      const values = measurements(states);
      if (values.length) yield {estimate: meanOf(values), done, total, perPosition: [...perPosition]};
    }
  }
}

/** @param {(Sweep & {sum: number, count: number})[]} states @returns the measurements that have begun */
function measurements(states) {
  /** @type {Map<number, number>} */
  const found = new Map();
  const waiting = new Set(states.filter(({count}) => !count).map(({measurement}) => measurement));
  for (const {measurement, weight, sum, count} of states) {
    if (waiting.has(measurement)) continue;
    found.set(measurement, (found.get(measurement) ?? 0) + (weight * sum) / count);
  }
  return [...found.values()];
}

/**
 * The bound on -log p in nats per window, padding included: it gets better with each item. The last one is
 * that of estimate_bound in Python for the same seed.
 * @param {Model} model
 * @param {Int32Array[]} tokens windows of one length L
 * @param {object} [options]
 * @param {number} [options.repeats] noise levels for each window, above 16 rounded up to a multiple for a text
 * @param {number} [options.seed]
 * @param {string} [options.of] "text", these windows, or "source", what they were drawn from
 * @returns {AsyncGenerator<BoundSoFar, void, void>}
 */
export async function* estimateBound(model, tokens, {repeats = 8, seed = 0, of = 'text'} = {}) {
  const n = tokens.length, enough = (of === 'text' && repeats > 1) || (of === 'source' && repeats > 0 && n > 1);
  if (!tokens[0]?.length || !enough) {
    const got = `${n} windows, ${repeats} repeats, of '${of}'`;
    throw new UserError(`need tokens of a text, 2 repeats, or of a source, 2 windows; got ${got}`);
  }
  const count = Math.min(of === 'text' ? repeats : n, 16), generator = new Generator(seed);
  const levels = of === 'text' ? Math.ceil(repeats / count) : repeats, known = new Map();
  let next = 0;
  const sweeps = Array.from({length: count}, (_, measurement) => {
    const size = of === 'text' ? n : Math.floor(n / count) + (measurement < n % count ? 1 : 0); // as tensor_split
    const from = of === 'text' ? 0 : next;
    next += size;
    const evaluations = sweep(model, tokens.slice(from, from + size), levels, generator, known);
    return {measurement, weight: 1, from, total: levels * size, evaluations};
  });
  yield* sideBySide(sweeps, tokens);
}
