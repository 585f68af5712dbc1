// Chapters 10 and 11 (ddlm_core.sampling_options, ddlm_core.pipeline, ddlm_core.block_pipeline): from a model to texts.

import {denoisingBlocks} from './blocks.js';
import {checkChoice, checkRange, UserError} from './errors.js';
import {sideBySide, sweep} from './evaluation.js';
import {compareLengths, expandLengths, LEVELS} from './lengths.js';
import {BlockModel} from './model.js';
import {deriveSeed, Generator} from './random.js';
import {denoisingSteps, sampleGenerators, SCHEDULES} from './sampler.js';
import {cutAtEnd, PAD_ID} from './tokenizer.js';

/** @typedef {import('./config.js').DiscreteDiffusionConfig} Config */
/** @import {Model} from './model.js' */
/** @import {Estimate} from './evaluation.js' */
/** How the end of a text is written where more text follows. */
export const END_OF_TEXT = '<|endoftext|>';
const END = /\n?<\|endoftext\|>\n?/; // with the line of its own that it stands on

/** @param {string} text @returns the same text with \n at the end of each line, and one spelling of each letter */
export function normalized(text) {
  return text.replace(/\r\n?/g, '\n').normalize('NFC');
}

/**
 * The text of tokens; a <PAD> before more text is <|endoftext|> on its own line. Of a text that was `stopped`
 * at its end, a <PAD> in front says nothing.
 * @param {Int32Array} tokens
 * @param {import('./tokenizer.js').CharacterLevelTokenizer} tokenizer
 * @param {boolean} [stopped]
 */
export function textOf(tokens, tokenizer, stopped = false) {
  const last = tokens.findLastIndex((token) => token !== PAD_ID);
  const text = Array.from(tokens.subarray(0, last + 1), (token, i) => {
    if (token !== PAD_ID) return tokenizer.shown[token];
    return i > 0 && tokens[i - 1] === PAD_ID ? '' : `${i > 0 ? '\n' : ''}${END_OF_TEXT}\n`;
  }).join('');
  return stopped && text.startsWith(`${END_OF_TEXT}\n`) ? text.slice(END_OF_TEXT.length + 1) : text;
}

/**
 * How a text is written; what is left out has the default of Python.
 * @typedef {object} SamplingOptions
 * @property {number | null} [seqLen] characters; else as many as the model takes at once. A model of blocks goes
 *     on for any number, unless its texts are padded
 * @property {number} [numSteps] see defaultSteps; of a model of blocks, those of each block
 * @property {string} [schedule] "cosine"
 * @property {number} [temperature] 1
 * @property {number | null} [churn] share of fresh noise; see defaultChurn
 * @property {string | null} [template] see encodeTemplate; `_{2-9}` is a blank of 2 to 9 characters
 * @property {boolean} [stopAtEnd] nothing after the first <PAD> that follows some text
 */

/**
 * The characters of a template: null for a blank, '' for the end of a text.
 * @param {string} template
 */
export function templateCharacters(template) {
  const long = normalized(template).replace(/(?<!\\)_\{(\d+)\}/gu, (_, n) => '_'.repeat(Math.min(Number(n), 9999)));
  const pieces = long.match(new RegExp(`${END.source}|\\\\_|.`, 'gsu')) ?? [];
  return pieces.map((piece) => {
    if (END.test(piece)) return '';
    return piece === '_' ? null : piece === '\\_' ? '_' : piece;
  });
}

/**
 * Tokens of a template, and a mask, 1 where a token is given. A `_` is a blank, `_{12}` is twelve, `\_` is
 * an underscore, `<|endoftext|>` a <PAD>. Without `seqLen` the template is the whole text, with it the beginning of one.
 * @param {string} template
 * @param {number | null} seqLen
 * @param {Config} config
 * @returns {{tokens: Int32Array, mask: Uint8Array}}
 */
export function encodeTemplate(template, seqLen, config) {
  const characters = templateCharacters(template);
  const room = seqLen ?? config.blockSize, count = characters.length;
  if (!(count >= 1 && count <= room)) {
    throw new UserError(`the template has ${count} characters, there is room for 1 to ${room}`);
  }
  const unknown = config.tokenizer.unknownCharacters(characters.join(''));
  if (unknown.length) {
    throw new UserError(`the model does not know ${unknown.map((c) => `'${c}'`).join(', ')} of the template: leave them out, or train with vocabulary=auto`);
  }
  const length = seqLen === null && !config.padded ? count : room;
  const tokens = new Int32Array(length).fill(PAD_ID);
  const mask = new Uint8Array(length).fill(seqLen === null ? 1 : 0); // after it: <PAD> is given, or all free
  characters.forEach((character, i) => {
    mask[i] = character === null ? 0 : 1;
    if (character) [tokens[i]] = config.tokenizer.encode(character);
  });
  if (mask.every(Boolean)) {
    throw new UserError('the template has no blank: write _ for each character to fill in');
  }
  return {tokens, mask};
}

/** @param {Config} config @returns 1, or 0 for a model whose sampler can draw no fresh noise */
export function defaultChurn(config) {
  return config.process.supportsChurn && config.parametrization === 'denoiser' ? 1 : 0;
}

/** @param {Config} config @returns steps of a run: 128 for a whole window, 16 for a block, 1 for a block of one token */
export function defaultSteps({blockLength}) {
  return blockLength === null ? 128 : blockLength > 1 ? 16 : 1;
}

/**
 * The configuration with room for the text that is asked for, if the model goes on block after block.
 * @param {Config} config
 * @param {SamplingOptions} options
 * @returns {Config}
 */
function withRoom(config, {template, seqLen}) {
  if (config.blockLength === null || config.padded) return config;
  const needed = typeof template === 'string' ? templateCharacters(template).length : 1;
  return {...config, blockSize: Math.max(config.blockSize, needed, seqLen ?? 1)};
}

/**
 * Arguments of denoisingSteps; a UserError if no model, or not this one, can do that.
 * @param {SamplingOptions} options
 * @param {Config} ofModel
 * @returns {{seqLen: number, run: import('./sampler.js').RunOptions}}
 */
export function samplingArguments(options, ofModel) {
  const config = withRoom(ofModel, options);
  const {numSteps = defaultSteps(config), schedule = 'cosine', temperature = 1, template = null, stopAtEnd = false} = options;
  const churn = options.churn ?? defaultChurn(config);
  let seqLen = options.seqLen ?? config.blockSize;
  checkRange(1, 100_000, {numSteps});
  checkRange(0.001, 1000, {temperature}, false);
  checkRange(0, 1, {churn}, false);
  checkChoice(SCHEDULES, {schedule});
  if (typeof stopAtEnd !== 'boolean') throw new UserError(`stopAtEnd must be true or false, got ${stopAtEnd}`);
  checkRange(1, config.blockSize, {seqLen});
  const found = {numSteps, schedule, temperature, churn};
  if (template === null) return {seqLen, run: found};
  const {tokens, mask} = encodeTemplate(template, options.seqLen ?? null, config);
  return {seqLen: mask.length, run: {...found, template: tokens, conditionMask: mask}};
}

/** A seed, drawn: 32 random bits. */
export function drawSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}

/**
 * Which text it is, and how carefully lengths are compared, if its template has ranges.
 * @typedef {object} TextOptions
 * @property {number | bigint} [seed] drawn, if it is left out
 * @property {number | bigint} [first] numbers the text
 * @property {number} [levels] noise levels of each bound; other ones may choose another length
 */

/**
 * Choose between the templates that one with ranges stands for: an iterator over how far the comparison has come, as
 * compareLengths. The last item has the `template` for this text, with which generateStreaming writes what it writes
 * for the ranges: a page can show what goes on, and stop it.
 * @param {Model} model
 * @param {SamplingOptions & TextOptions} options
 * @returns {AsyncGenerator<import('./lengths.js').Comparison & {template: string | null}, void, void>}
 */
export function chooseTemplate(model, {seed = drawSeed(), first = 0, levels = LEVELS, ...options}) {
  checkRange(0, 2 ** 63, {seed, first});
  const templates = expandLengths(options.template ?? ''), {config} = model;
  const encoded = templates.map((template) => {
    const {template: tokens, conditionMask: mask} = samplingArguments({...options, template}, config).run;
    return {tokens: /** @type {Int32Array} */ (tokens), mask: /** @type {Uint8Array} */ (mask)};
  });
  const comparisons = compareLengths(model, config.noise, encoded, {seed, levels});
  return (async function* () {
    for await (const item of comparisons) {
      const draw = () => new Generator(deriveSeed(seed, 'length', first)); // each text has a length of its own
      yield {...item, template: item.choice && templates[draw().multinomial(item.choice.probabilities)]};
    }
  })();
}

/**
 * The random start and each step of one text. The same seed gives the same text, as in Python. With ranges in its
 * template, the lengths are compared before the first step: see chooseTemplate.
 * @param {Model} model
 * @param {SamplingOptions & TextOptions} [options]
 * @returns {AsyncGenerator<import('./sampler.js').DenoisingStep & {text: string}, void, void>}
 */
export function generateStreaming(model, {seed = drawSeed(), first = 0, levels = LEVELS, ...options} = {}) {
  checkRange(0, 2 ** 63, {seed, first});
  const {config} = model, stopAtEnd = options.stopAtEnd ?? false;
  if (typeof options.template === 'string') {
    const [template, ...others] = expandLengths(options.template);
    if (others.length) {
      const comparisons = chooseTemplate(model, {...options, seed, first, levels});
      return withLength(comparisons, (chosen) => generateStreaming(model, {...options, seed, first, template: chosen}));
    }
    options.template = template;
  }
  const {seqLen, run} = samplingArguments(options, config), [generator] = sampleGenerators(seed, 1, first);
  const steps = model instanceof BlockModel
    ? denoisingBlocks(model, seqLen, generator, {...run, stopAtEnd: stopAtEnd || config.padded}) // an end is followed by padding
    : denoisingSteps(model, config.noise, seqLen, generator, run);
  return withText(steps, config, stopAtEnd);
}

/**
 * @param {ReturnType<typeof chooseTemplate>} comparisons
 * @param {(template: string) => ReturnType<typeof generateStreaming>} write
 * @returns {ReturnType<typeof generateStreaming>}
 */
async function* withLength(comparisons, write) {
  for await (const {template} of comparisons) if (template !== null) yield* write(template);
}

/**
 * @param {AsyncGenerator<import('./sampler.js').DenoisingStep, void, void>} steps
 * @param {Config} config
 * @param {boolean} stopAtEnd cut the text of the last step where it first says so
 */
async function* withText(steps, {tokenizer}, stopAtEnd) {
  /** @type {Int32Array | null} */
  let before = null;
  for await (const step of steps) {
    if (stopAtEnd && step.index === step.numSteps) {
      const tokens = cutAtEnd(step.tokens), last = before; // of the step before it
      const changed = last ? Uint8Array.from(tokens, (token, i) => Number(token !== last[i])) : step.changed;
      yield {...step, tokens, changed, text: textOf(tokens, tokenizer, true)};
    } else {
      yield {...step, text: textOf(step.tokens, tokenizer)};
    }
    before = step.tokens;
  }
}

/**
 * A finished text; options and errors as generateStreaming.
 * @param {Model} model
 * @param {Parameters<typeof generateStreaming>[1]} [options]
 */
export async function generate(model, options) {
  let text = '';
  for await (const step of generateStreaming(model, options)) text = step.text;
  return text;
}

/**
 * What is known so far of the bound on a text.
 * @typedef {object} BitsSoFar
 * @property {Estimate} estimate bits per character; its interval is infinite at first
 * @property {number} done evaluations
 * @property {number} total
 * @property {Float64Array} perPosition bits of each token of the text, padding too; NaN where none is done yet
 */

/**
 * The tokens of a text, in whole windows if the model knows padding. Unknown characters are <UNK>.
 * @param {string} text
 * @param {Config} config
 */
export function textTokens(text, {blockSize, padded, tokenizer}) {
  const stories = normalized(text).split(END);
  if (!stories.some(Boolean)) throw new UserError('need a text of at least one character');
  const tokens = stories.flatMap((story, i) => [...(i ? [PAD_ID] : []), ...tokenizer.encode(story)]);
  while (padded && tokens.length % blockSize) tokens.push(PAD_ID);
  return Int32Array.from(tokens);
}

/**
 * A bound on the negative log-likelihood of a text, in bits per character: it gets better with each item.
 * The last one is that of `bits_per_character` in Python for the same seed. Unknown characters count as <UNK>.
 * @param {Model} model
 * @param {string} text
 * @param {{seed?: number}} [options]
 * @returns {AsyncGenerator<BitsSoFar, void, void>}
 */
export async function* bitsPerCharacter(model, text, {seed = 0} = {}) {
  checkRange(0, 2 ** 63, {seed});
  const tokens = textTokens(text, model.config), {blockSize} = model.config;
  const whole = Math.floor(tokens.length / blockSize), windows = [];
  for (let at = 0; at < tokens.length; at += blockSize) windows.push(tokens.slice(at, at + blockSize));
  const generator = new Generator(seed), known = new Map();
  const parts = [windows.slice(0, whole), windows.slice(whole)].filter((part) => part.length);
  const sweeps = parts.flatMap((part, i) => Array.from({length: 8}, (_, measurement) => {
    const levels = Math.max(1, Math.floor(32 / part.length)), total = levels * part.length;
    const evaluations = sweep(model, part, levels, generator, known);
    return {measurement, weight: part.length, from: i ? whole : 0, total, evaluations};
  }));
  sweeps.sort((a, b) => a.measurement - b.measurement); // so that the first is complete soon
  const unit = tokens.filter((token) => token !== PAD_ID).length * Math.LN2;
  for await (const {estimate, done, total, perPosition} of sideBySide(sweeps, windows)) {
    const {mean, low, high} = estimate, bits = new Float64Array(tokens.length);
    perPosition.forEach((nats, w) => bits.set(nats.map((value) => value / Math.LN2), w * blockSize));
    yield {estimate: {mean: mean / unit, low: low / unit, high: high / unit}, done, total, perPosition: bits};
  }
}
