// Chapter 11 (ddlm_core.block_sampler): block after block, texts of any length.

import {checkRange} from './errors.js';
import {denoisingSteps} from './sampler.js';
import {cutAtEnd, PAD_ID} from './tokenizer.js';

/** @import {BlockModel} from './model.js' */
/** @import {DenoisingStep, RunOptions} from './sampler.js' */
/** @import {Generator} from './random.js' */
/** @typedef {AsyncGenerator<DenoisingStep, void, void>} Steps */

/**
 * The first token that the block after `written` tokens, all whole blocks, is given. What has been read grows
 * until it fills the window with that block; then half of it is forgotten.
 * @param {number} written
 * @param {number} blockLength
 * @param {number} blockSize
 */
export function contextStart(written, blockLength, blockSize) {
  const most = Math.max(Math.floor(blockSize / blockLength) - 1, 0); // whole blocks that may be read
  const forget = Math.max(1, Math.floor((most + 1) / 2)); // at once
  return Math.ceil(Math.max(0, Math.floor(written / blockLength) - most) / forget) * forget * blockLength;
}

/**
 * The same steps, counted; `expected`, the number of the last one, is mended where a run ends early.
 * @param {Steps} steps
 * @param {number} expected
 * @returns {Steps}
 */
export async function* numbered(steps, expected) {
  /** @type {DenoisingStep | null} */
  let before = null;
  let index = -1;
  for await (const step of steps) {
    index += 1;
    if (before) yield {...before, index: index - 1, numSteps: expected};
    before = step;
  }
  if (before) yield {...before, index, numSteps: index};
}

/**
 * Whether a text has ended before `start`, and no character is given from there on.
 * @param {Int32Array} tokens
 * @param {number} start
 * @param {RunOptions} given
 */
function isOver(tokens, start, {template, conditionMask}) {
  const rest = conditionMask?.some((given, i) => given && i >= start && template?.[i] !== PAD_ID);
  return !rest && cutAtEnd(tokens.subarray(0, start))[start - 1] === PAD_ID;
}

/**
 * Write a text of L tokens: an asynchronous iterator over the random start and all steps of each block.
 *
 * Each block is a run of denoisingSteps with these options after the text before it; tokens of later blocks are
 * <PAD>. With `stopAtEnd` no block begins once the text has ended. `template`, (L), stays where `conditionMask`
 * is 1: what is given is known in its block and later. What cannot work raises a UserError at the call.
 * @param {BlockModel} model
 * @param {number} seqLen L
 * @param {Generator} generator
 * @param {RunOptions & {stopAtEnd?: boolean}} [options]
 * @returns {Steps}
 */
export function denoisingBlocks(model, seqLen, generator, {stopAtEnd = false, ...options} = {}) {
  checkRange(1, Infinity, {seqLen});
  const {config} = model, length = Number(config.blockLength), {template, conditionMask, numSteps = 128} = options;
  /** @param {Int32Array} tokens @param {number} start */
  const begin = (tokens, start) => {
    const end = Math.min(start + length, seqLen);
    const context = tokens.slice(contextStart(start, length, config.blockSize), start);
    const given = {template: template?.subarray(start, end), conditionMask: conditionMask?.slice(start, end)};
    return denoisingSteps(model.after(context), config.noise, end - start, generator, {...options, ...given});
  };
  const blank = new Int32Array(seqLen).fill(PAD_ID), first = begin(blank, 0); // so that it is checked now
  const run = (async function* () {
    let tokens = blank;
    for (let start = 0; start < seqLen; start += length) {
      if (start && stopAtEnd && isOver(tokens, start, options)) return;
      for await (const step of start ? begin(tokens, start) : first) {
        const changed = new Uint8Array(seqLen);
        changed.set(step.changed, start);
        tokens = tokens.slice();
        tokens.set(step.tokens, start);
        yield {...step, tokens, changed, block: {start, index: step.index, numSteps: step.numSteps}};
      }
    }
  })();
  return numbered(run, Math.ceil(seqLen / length) * (numSteps + 1) - 1);
}
