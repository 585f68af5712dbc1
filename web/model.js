// Loading a model that ddlm-export wrote, and asking it. Nothing is fetched before `loadModel` is called.

import {DiscreteDiffusionConfig} from './config.js';
import {UserError} from './errors.js';
import {logSoftmax} from './loss.js';
import {Network} from './runtime.js';

/** @typedef {{load(where: object, onProgress: import('./runtime.js').OnProgress): Promise<void>, logits: Network['logits'], close(): void}} Engine */

/** The network in a worker, which computes beside the page. @implements {Engine} */
class WorkerEngine {
  constructor() {
    this.worker = new Worker(new URL('./worker.js', import.meta.url), {type: 'module'});
    /** @type {Map<number, {resolve: (value: any) => void, reject: (error: Error) => void}>} */
    this.waiting = new Map();
    this.count = 0;
    /** @type {import('./runtime.js').OnProgress} */
    this.onProgress = () => {};
    this.worker.onmessage = ({data}) => {
      if (data.progress) return this.onProgress(data.progress);
      const {resolve, reject} = /** @type {any} */ (this.waiting.get(data.id));
      this.waiting.delete(data.id);
      if (!data.error) return resolve(data.result);
      const {name, message} = data.error;
      reject(name === 'UserError' ? new UserError(message) : new Error(message));
    };
    this.worker.onerror = (event) => {
      const error = new Error(event.message || 'the worker could not start');
      for (const {reject} of this.waiting.values()) reject(error);
      this.waiting.clear();
    };
  }

  /** @param {string} call @param {any[]} args @returns {Promise<any>} */
  ask(call, ...args) {
    return new Promise((resolve, reject) => {
      this.waiting.set(++this.count, {resolve, reject});
      this.worker.postMessage({id: this.count, call, args});
    });
  }

  /** @param {object} where @param {import('./runtime.js').OnProgress} onProgress */
  load(where, onProgress) {
    this.onProgress = onProgress;
    return this.ask('load', where);
  }

  /** @type {Network['logits']} */
  logits(...args) {
    return this.ask('logits', ...args);
  }

  close() {
    this.worker.terminate();
    for (const {reject} of this.waiting.values()) reject(new UserError('the model was closed'));
    this.waiting.clear();
  }
}

/** The network in this thread, where there are no workers. @implements {Engine} */
class LocalEngine {
  /** @param {any} where @param {import('./runtime.js').OnProgress} onProgress */
  async load(where, onProgress) {
    this.network = await Network.load(where, onProgress);
  }

  /** @type {Network['logits']} */
  logits(...args) {
    return /** @type {Network} */ (this.network).logits(...args);
  }

  close() {
    this.network?.close();
  }
}

/** A model: its configuration, and answers for one text at a time. Texts are tokens, Int32Array (L). */
export class Model {
  /** @param {DiscreteDiffusionConfig} config @param {Engine} engine */
  constructor(config, engine) {
    this.config = config;
    this.engine = engine;
  }

  /**
   * Output of the network, not yet log q or log s: Float32Array (L, V), row after row.
   * @param {Int32Array} tokens (L)
   * @param {number} sigmaBar total noise
   * @param {Uint8Array} [conditionMask] (L), 1 at given tokens
   */
  async logits(tokens, sigmaBar, conditionMask = new Uint8Array(tokens.length)) {
    const {blockSize} = this.config;
    if (!(tokens.length >= 1 && tokens.length <= blockSize)) {
      throw new UserError(`a text has 1 to ${blockSize} tokens here, got ${tokens.length}`);
    }
    if (conditionMask.length !== tokens.length) {
      throw new UserError(`conditionMask must have ${tokens.length} entries, got ${conditionMask.length}`);
    }
    return this.engine.logits(tokens, sigmaBar, conditionMask, this.reading(tokens));
  }

  /**
   * What the network reads besides the noisy text: nothing, if it is none of blocks.
   * @param {Int32Array} _tokens
   * @returns {import('./runtime.js').Reading | undefined}
   */
  reading(_tokens) {
    return undefined;
  }

  /**
   * log q of each clean token given all letters but its own: (L, V).
   * @param {Int32Array} tokens
   * @param {number} sigmaBar
   * @param {Uint8Array} [conditionMask]
   */
  async denoise(tokens, sigmaBar, conditionMask) {
    if (this.config.parametrization === 'score') throw new TypeError('this network has no denoiser');
    return logSoftmax(await this.logits(tokens, sigmaBar, conditionMask), this.config.vocabSize);
  }

  /**
   * Log-scores (L, V), 0 at the current token.
   * @param {Int32Array} tokens
   * @param {number} sigmaBar
   * @param {Uint8Array} [conditionMask]
   */
  async forward(tokens, sigmaBar, conditionMask) {
    const {parametrization, process, vocabSize} = this.config;
    if (parametrization !== 'score') {
      return process.logScore(await this.denoise(tokens, sigmaBar, conditionMask), sigmaBar, tokens);
    }
    const logS = Float64Array.from(await this.logits(tokens, sigmaBar, conditionMask));
    return logS.map((value, at) => {
      const i = Math.floor(at / vocabSize);
      return value - logS[i * vocabSize + tokens[i]];
    });
  }

  /** Stop all work and give the memory back. Calls that wait fail with a UserError. */
  close() {
    this.engine.close();
  }
}

/** A model of blocks that has read: it answers for the places that follow. @extends {Model} */
export class BlockView extends Model {
  /** @param {BlockModel} model @param {import('./runtime.js').Reading} read */
  constructor(model, read) {
    super(model.config, model.engine);
    this.read = read;
  }

  /** @override @param {Int32Array} tokens */
  reading({length}) {
    const {clean, places} = this.read;
    if (length > places.length) {
      throw new UserError(`there is room for ${places.length} tokens here, got ${length}`);
    }
    return {clean, places: places.slice(0, length)};
  }
}

/** A model that denoises block after block (chapter 11): it has to be told what it reads. */
export class BlockModel extends Model {
  /** The model on the block that follows a clean text: whole blocks, or none. @param {Int32Array} tokens (S) */
  after(tokens) {
    const start = tokens.length, end = Math.min(start + Number(this.config.blockLength), this.config.blockSize);
    return this.#view(tokens, start, end);
  }

  /** The model on all blocks of a window at once, each after the clean ones before it. @param {Int32Array} x0 (L) */
  given(x0) {
    const length = Number(this.config.blockLength), last = Math.floor((x0.length - 1) / length) * length;
    return this.#view(x0.subarray(0, last), 0, x0.length);
  }

  /** @param {Int32Array} tokens @param {number} start @param {number} end */
  #view(tokens, start, end) {
    const clean = new Int32Array(tokens.length + 1); // one more, which is not read: no input may be empty
    clean.set(tokens);
    return new BlockView(this, {clean, places: Int32Array.from({length: end - start}, (_, i) => start + i)});
  }

  /** Nothing: the first block. @override @param {Int32Array} tokens */
  reading(tokens) {
    if (tokens.length > Number(this.config.blockLength)) {
      throw new UserError('a block reads the text before it: use given(x0) or after(tokens)');
    }
    return this.after(tokens.subarray(0, 0)).reading(tokens);
  }
}

/**
 * Load a model: its model.json, the runtime and the network, of which a browser keeps copies.
 * @param {string | URL} url the folder that ddlm-export wrote, with a / at its end
 * @param {object} [options]
 * @param {import('./runtime.js').OnProgress} [options.onProgress] told of each piece that arrives
 * @param {string | URL} [options.runtime] folder of ONNX Runtime Web; by default ../onnxruntime/ beside this one
 * @param {boolean} [options.worker] compute beside the page: by default if the browser can
 * @returns {Promise<Model>}
 */
export async function loadModel(url, {onProgress = () => {}, runtime, worker} = {}) {
  const base = globalThis.document?.baseURI ?? import.meta.url, folder = new URL(url, base);
  const from = new URL(runtime ?? '../onnxruntime/', runtime ? base : import.meta.url);
  const response = await fetch(new URL('model.json', folder));
  if (!response.ok) throw new UserError(`there is no model at ${folder.href} (${response.status})`);
  const config = new DiscreteDiffusionConfig(await response.json());
  const {file, bytes, sha256} = config.description.network;
  const network = new URL(file, folder);
  network.search = sha256.slice(0, 16); // a new network has a new address, so no cache can mix them up
  const engine = worker ?? typeof Worker !== 'undefined' ? new WorkerEngine() : new LocalEngine();
  try {
    await engine.load({network: network.href, bytes, runtime: from.href}, onProgress);
  } catch (error) {
    engine.close();
    throw error;
  }
  return config.blockLength ? new BlockModel(config, engine) : new Model(config, engine);
}
