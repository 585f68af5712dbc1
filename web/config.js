// Chapter 6 (ddlm_core.config): what a model says of itself, read from model.json of ddlm-export.

import {ABSORBING} from './absorbing.js';
import {UserError} from './errors.js';
import {UNIFORM} from './graph.js';
import {CharacterLevelTokenizer} from './tokenizer.js';

/** @type {Record<string, import('./graph.js').Graph>} */
export const GRAPHS = {uniform: UNIFORM, absorbing: ABSORBING};

/**
 * What model.json holds.
 * @typedef {object} Description
 * @property {number} format
 * @property {string} name
 * @property {string[]} vocab
 * @property {string} graph
 * @property {{name: string, sigma_min: number, sigma_max: number | null}} noise
 * @property {'denoiser' | 'score'} parametrization
 * @property {number} block_size
 * @property {number | null} [block_length] of a model that denoises block after block
 * @property {boolean} padded
 * @property {string} weights
 * @property {{file: string, bytes: number, sha256: string}} network
 * @property {string | null} card
 */

/** A model's sizes, alphabet, forward process and noise. */
export class DiscreteDiffusionConfig {
  /** @param {Description} description */
  constructor(description) {
    if (description.format !== 1 || !(description.graph in GRAPHS)) {
      throw new UserError('this is no model.json that ddlm-export wrote for this library');
    }
    this.description = description;
    this.name = description.name;
    this.blockSize = description.block_size;
    /** How many tokens are denoised in parallel; null for the whole window. */
    this.blockLength = description.block_length ?? null;
    this.padded = description.padded;
    this.parametrization = description.parametrization;
    this.process = GRAPHS[description.graph];
    const {sigma_min, sigma_max} = description.noise;
    this.noise = this.process.schedule(sigma_min, sigma_max ?? Infinity);
    this.tokenizer = new CharacterLevelTokenizer(description.vocab);
    this.vocabSize = description.vocab.length;
  }
}
