// Chapter 11 (ddlm_core.unknown_lengths): which of several templates fits what is given best.

import {denoisingBlocks} from './blocks.js';
import {checkRange, UserError} from './errors.js';
import {inContext, spreadTimes} from './evaluation.js';
import {perturbBatch} from './forward.js';
import {logSoftmax} from './loss.js';
import {BlockModel} from './model.js';
import {deriveSeed, Generator} from './random.js';
import {hasDenoiser} from './reverse.js';
import {denoisingSteps} from './sampler.js';

/** @import {Model} from './model.js' */
/** @import {NoiseSchedule} from './noise.js' */
/** @import {RunOptions} from './sampler.js' */
/** Tokens (L), and 1 where one is given, (L): what encodeTemplate makes. @typedef {{tokens: Int32Array, mask: Uint8Array}} Template */

/** Templates that one with ranges may stand for. */
export const MOST_LENGTHS = 64;
/** Noise levels of each bound, if nothing else is asked for. */
export const LEVELS = 64;
const RANGE = /(?<!\\)_\{((?:[0-9 -]*-[0-9 -]*)?)\}/u;

/** @param {string} inside of a range such as 2-9 @returns its ends */
function rangeOf(inside) {
  const ends = inside.replaceAll(' ', '').match(/^([0-9]+)-([0-9]+)$/);
  const [low, high] = ends ? ends.slice(1).map((end) => Math.min(Number(end), 9999)) : [0, 0];
  if (!(1 <= low && low <= high)) {
    const hint = 'write _{2-9} for 2 to 9 characters, or _{9} for nine';
    throw new UserError(`_{${inside.slice(0, 20)}} is no range of lengths: ${hint}`);
  }
  return {low, high};
}

/**
 * The lengths that the ranges of a template allow, a list with one of each range for each of expandLengths: those
 * of the first range change slowest. A UserError if a range is empty, reversed or begins at 0, or there are too many.
 * @param {string} template
 */
export function lengthsOf(template) {
  const ranges = template.split(RANGE).filter((_, i) => i % 2 === 1).map(rangeOf);
  const count = ranges.reduce((product, {low, high}) => product * BigInt(high - low + 1), 1n);
  if (count > MOST_LENGTHS) {
    const hint = `at most ${MOST_LENGTHS} can be compared: narrow a range, or fix one, such as _{5}`;
    throw new UserError(`the ranges of the template allow ${count} lengths: ${hint}`);
  }
  /** @type {number[][]} */
  let found = [[]];
  for (const {low, high} of ranges) {
    const lengths = Array.from({length: high - low + 1}, (_, i) => low + i);
    found = found.flatMap((before) => lengths.map((length) => [...before, length]));
  }
  return found;
}

/**
 * The plain templates that one with ranges stands for: `_{2-3}` for `_{2}` and `_{3}`. A `\_` is an underscore;
 * without a range the template stands for itself alone. Errors as lengthsOf.
 * @param {string} template
 */
export function expandLengths(template) {
  const texts = template.split(RANGE).filter((_, i) => i % 2 === 0);
  return lengthsOf(template).map((lengths) => {
    return texts.map((text, i) => (i < lengths.length ? `${text}_{${lengths[i]}}` : text)).join('');
  });
}

/**
 * Columns of a common table, (L_n), for each place of templates with masks (L_n): the i-th given place has the same
 * column in all of them, and so has the j-th blank behind it.
 * @param {Uint8Array[]} masks
 */
export function alignedColumns(masks) {
  const keys = masks.map((mask) => {
    let before = 0, behind = 0; // given places up to here, and blanks since the last of them
    return Array.from(mask, (given) => {
      before += given ? 1 : 0;
      behind = given ? 0 : behind + 1;
      return before * 65536 + behind;
    });
  });
  const sorted = [...new Set(keys.flat())].sort((a, b) => a - b);
  const columns = new Map(sorted.map((key, column) => [key, column]));
  return keys.map((ofMask) => Int32Array.from(ofMask, (key) => Number(columns.get(key))));
}

/**
 * How the blanks of a template are filled: the number of steps, and of evaluations, and the run itself up to the
 * last blank (of a model of blocks; what follows is given).
 * @param {Model} model
 * @param {NoiseSchedule} noise
 * @param {Template} template
 * @param {bigint} seed
 * @param {RunOptions} options
 */
function filling(model, noise, {tokens, mask}, seed, options) {
  if (mask.every(Boolean)) return {evaluations: 0, run: async function* () {}};
  const blocks = model instanceof BlockModel, end = blocks ? mask.lastIndexOf(0) + 1 : tokens.length;
  const {numSteps = blocks ? 16 : 24} = options, churn = Number(model.config.process.supportsChurn);
  const given = {template: tokens.subarray(0, end), conditionMask: mask.subarray(0, end)};
  const how = {schedule: 'cosine', churn, ...options, ...given, numSteps}, generator = new Generator(seed);
  return {
    evaluations: numSteps * (blocks ? Math.ceil(end / Number(model.config.blockLength)) : 1),
    run: () => (blocks ? denoisingBlocks(model, end, generator, how) : denoisingSteps(model, noise, end, generator, how)),
  };
}

/**
 * A template with its blanks filled by the sampler of the model: (L).
 * @param {Model} model
 * @param {NoiseSchedule} noise
 * @param {Int32Array} tokens (L)
 * @param {Uint8Array} given (L), 1 where a token is given
 * @param {bigint} seed
 * @param {RunOptions} [options]
 */
export async function filled(model, noise, tokens, given, seed, options = {}) {
  const found = tokens.slice();
  for await (const step of filling(model, noise, {tokens, mask: given}, seed, options).run()) found.set(step.tokens);
  return found;
}

/**
 * What each evaluation adds to freeNats, whose arguments these are.
 * @param {Model} model
 * @param {NoiseSchedule} noise
 * @param {Int32Array} x0
 * @param {Uint8Array} given
 * @param {Int32Array} column
 * @param {number} levels
 * @param {bigint} seed
 * @returns {AsyncGenerator<number, void, void>}
 */
async function* natsOfLevels(model, noise, x0, given, column, levels, seed) {
  const {process: graph, vocabSize} = model.config, asked = inContext(model, x0);
  const {t, weight} = spreadTimes(levels, noise, new Generator(seed));
  const sigmaBar = Float32Array.from([...t, 0], (time) => noise.sigmaBar(time)); // the last one: reconstruction
  const xT = Array.from(sigmaBar, () => x0.slice());
  x0.forEach((_, i) => {
    if (given[i]) return;
    const letter = xT.map((text) => text.slice(i, i + 1)), generator = new Generator(deriveSeed(seed, 'column', column[i]));
    const drawn = perturbBatch(letter, sigmaBar, vocabSize, generator, {prior: graph.samplePrior});
    drawn.forEach(([token], level) => (xT[level][i] = token));
  });
  for (const [level, noisy] of xT.entries()) {
    const logQ = await asked.denoise(noisy, sigmaBar[level], given), last = level === levels;
    const nats = last ? graph.expectedReconstruction(logQ, sigmaBar[level], x0) : graph.expectedLoss(logQ, sigmaBar[level], x0);
    const scale = last ? 1 : (weight[level] * noise.sigma(t[level])) / levels;
    yield scale * nats.reduce((sum, value, i) => (given[i] ? sum : sum + value), 0);
  }
}

/**
 * The bound on -log p of what is not given in x0, (L), if the rest is: nats. Places with the same `column`, (L),
 * see the same noise at the same `seed`.
 * @param {Model} model
 * @param {NoiseSchedule} noise
 * @param {Int32Array} x0
 * @param {Uint8Array} given 1 where a token is given
 * @param {Int32Array} column
 * @param {number} levels
 * @param {bigint} seed
 */
export async function freeNats(model, noise, x0, given, column, levels, seed) {
  let sum = 0;
  for await (const nats of natsOfLevels(model, noise, x0, given, column, levels, seed)) sum += nats;
  return sum;
}

/**
 * One of N templates, chosen in proportion to the probability of what they give.
 * @typedef {object} LengthChoice
 * @property {Float64Array} logWeights (N), nats
 * @property {Float64Array} probabilities (N)
 * @property {number} chosen index of a template
 * @property {number} evaluations of the network, those that fill blanks not included
 */
/**
 * How far a comparison has come.
 * @typedef {object} Comparison
 * @property {number} compared templates
 * @property {number} count templates in all
 * @property {number} done evaluations
 * @property {number} total evaluations in all, those that fill blanks included
 * @property {LengthChoice | null} choice once all are compared
 */
/**
 * How templates are compared.
 * @typedef {object} ChoiceOptions
 * @property {number} [temperature] 1; T chooses in proportion to the power 1/T of the probabilities, 0 the best
 * @property {number | bigint} [seed] of all that is random; the same seed gives the same choice
 * @property {number} [levels] noise levels of each bound
 * @property {RunOptions} [sampler] what fills blanks (default: churned cosine steps, 24, or 16 a block)
 */

/**
 * Choose between templates that give the same letters, with blanks of different lengths between them: an iterator
 * over how far that has come, with an item for each evaluation. What cannot work raises a UserError at the call.
 * @param {Model} model
 * @param {NoiseSchedule} noise
 * @param {Template[]} templates L may differ
 * @param {ChoiceOptions} [options]
 * @returns {AsyncGenerator<Comparison, void, void>}
 */
export function compareLengths(model, noise, templates, {temperature = 1, seed = 0, levels = LEVELS, sampler = {}} = {}) {
  checkRange(0, 1000, {temperature}, false);
  checkRange(1, 100_000, {levels});
  checkRange(1, 1000, {templates: templates.length});
  if (!hasDenoiser(model)) throw new UserError('lengths are compared by a denoiser: this model has scores alone');
  const {blockSize} = model.config, longest = Math.max(...templates.map(({tokens}) => tokens.length));
  if (templates.length > 1 && longest > blockSize) { // a bound sees the whole text at once
    throw new UserError(`a text has 1 to ${blockSize} tokens here, got ${longest}`);
  }
  return comparisons(model, noise, templates, temperature, BigInt(seed), levels, sampler);
}

/**
 * @param {Model} model
 * @param {NoiseSchedule} noise
 * @param {Template[]} templates
 * @param {number} temperature
 * @param {bigint} seed
 * @param {number} levels
 * @param {RunOptions} sampler
 * @returns {AsyncGenerator<Comparison, void, void>}
 */
async function* comparisons(model, noise, templates, temperature, seed, levels, sampler) {
  const several = templates.length > 1 ? templates : [], columns = alignedColumns(several.map(({mask}) => mask));
  const fillings = several.map((template) => filling(model, noise, template, deriveSeed(seed, 'fill'), sampler));
  const ofBounds = 2 * (levels + 1) * several.length, count = templates.length;
  const total = fillings.reduce((sum, {evaluations}) => sum + evaluations, ofBounds);
  /** @type {number[]} */
  const logWeights = [];
  let done = 0;
  yield {compared: 0, count, done, total, choice: null};
  for (const [n, {tokens, mask}] of several.entries()) {
    const x0 = tokens.slice();
    for await (const step of fillings[n].run()) {
      x0.set(step.tokens);
      if (step.probs) yield {compared: n, count, done: ++done, total, choice: null};
    }
    let logWeight = 0;
    for (const [sign, given] of /** @type {[number, Uint8Array][]} */ ([[-1, new Uint8Array(mask.length)], [1, mask]])) {
      for await (const nats of natsOfLevels(model, noise, x0, given, columns[n], levels, deriveSeed(seed, 'bound'))) {
        logWeight += sign * nats;
        yield {compared: n, count, done: ++done, total, choice: null};
      }
    }
    logWeights.push(logWeight);
  }
  const choice = chosenOf(several.length ? logWeights : [0], temperature, seed);
  yield {compared: count, count, done, total, choice: {...choice, evaluations: ofBounds}};
}

/** @param {number[]} logWeights @param {number} temperature @param {bigint} seed */
function chosenOf(logWeights, temperature, seed) {
  const most = Math.max(...logWeights), best = Float64Array.from(logWeights, (_, i) => Number(i === logWeights.indexOf(most)));
  const scaled = logWeights.map((weight) => Math.max(weight, -1e30) / temperature);
  const probabilities = temperature ? logSoftmax(scaled, scaled.length).map(Math.exp) : best;
  const chosen = new Generator(deriveSeed(seed, 'length')).multinomial(probabilities);
  return {logWeights: Float64Array.from(logWeights), probabilities, chosen};
}

/**
 * The choice itself; arguments and errors as compareLengths.
 * @param {Parameters<typeof compareLengths>} given
 * @returns {Promise<LengthChoice>}
 */
export async function chooseLength(...given) {
  for await (const {choice} of compareLengths(...given)) if (choice) return choice;
  throw new Error('a comparison ended too early');
}
