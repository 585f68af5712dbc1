// The network itself, in ONNX Runtime Web: what worker.js runs beside the page.

import {UserError} from './errors.js';

export const RUNTIME = 'ort.wasm.bundle.min.mjs', WASM = 'ort-wasm-simd-threaded.wasm';
/** Bytes of the WebAssembly file: a server that compresses it does not tell. */
export const WASM_BYTES = 14_239_897;

/**
 * How far a file has come.
 * @typedef {{what: 'runtime' | 'network', loaded: number, total: number}} Progress
 * @typedef {(progress: Progress) => void} OnProgress
 */

/**
 * Read a file, and tell how far it has come.
 * @param {URL} url
 * @param {Progress['what']} what
 * @param {number} total its bytes
 * @param {OnProgress} onProgress
 * @returns {Promise<Uint8Array<ArrayBuffer>>}
 */
async function read(url, what, total, onProgress) {
  const response = await fetch(url);
  if (!response.ok || !response.body) throw new UserError(`cannot load ${url.href} (${response.status})`);
  const bytes = new Uint8Array(total), reader = response.body.getReader();
  for (let loaded = 0; ; ) {
    onProgress({what, loaded, total});
    const {done, value} = await reader.read();
    if (done && loaded === total) return bytes;
    if (done || loaded + value.length > total) throw new UserError(`${url.href} is not of ${total} bytes`);
    bytes.set(value, loaded);
    loaded += value.length;
  }
}

/**
 * What a network of blocks reads besides the noisy text: clean tokens, (S + 1), of which the last one is not read,
 * and where in the window each of the noisy ones is, (L).
 * @typedef {{clean: Int32Array, places: Int32Array}} Reading
 */

/** A network that computes logits. */
export class Network {
  /**
   * @param {any} ort the module of ONNX Runtime Web
   * @param {any} session
   */
  constructor(ort, session) {
    this.ort = ort;
    this.session = session;
    /** @type {Promise<unknown>} */
    this.last = Promise.resolve();
  }

  /**
   * Fetch the runtime and the network, and start them, on one thread: that works on any server.
   * @param {{network: string, bytes: number, runtime: string}} where addresses, and bytes of the network
   * @param {OnProgress} onProgress
   */
  static async load({network, bytes, runtime}, onProgress) {
    if (typeof WebAssembly === 'undefined') throw new UserError('this browser has no WebAssembly');
    const [ort, wasm, onnx] = await Promise.all([
      import(new URL(RUNTIME, runtime).href),
      read(new URL(WASM, runtime), 'runtime', WASM_BYTES, onProgress),
      read(new URL(network), 'network', bytes, onProgress),
    ]);
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmBinary = wasm.buffer;
    const session = await ort.InferenceSession.create(onnx, {executionProviders: ['wasm']});
    return new Network(ort, session);
  }

  /**
   * Logits (L, V) of one text; calls wait for each other.
   * @param {Int32Array} tokens (L)
   * @param {number} sigmaBar
   * @param {Uint8Array} conditionMask (L)
   * @param {Reading} [reading] if it is a network of blocks
   * @returns {Promise<Float32Array>}
   */
  logits(tokens, sigmaBar, conditionMask, reading) {
    const {Tensor} = this.ort, shape = [1, tokens.length];
    const answer = this.last.then(async () => {
      const inputs = {
        tokens: new Tensor('int32', tokens, shape),
        sigma_bar: new Tensor('float32', Float32Array.of(sigmaBar), [1]),
        condition_mask: new Tensor('bool', conditionMask, shape),
      };
      const {logits} = await this.session.run(reading ? {
        ...inputs,
        clean: new Tensor('int32', reading.clean, [1, reading.clean.length]),
        places: new Tensor('int32', reading.places, [reading.places.length]),
      } : inputs);
      return logits.data;
    });
    this.last = answer.catch(() => {});
    return answer;
  }

  /** Give the memory back. */
  async close() {
    await this.last;
    await this.session.release();
  }
}
