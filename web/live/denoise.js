// Mode "denoise": what the network believes of a noisy sentence, letter by letter (chapter 6).

import {UserError} from '../errors.js';
import {perturbBatch} from '../forward.js';
import {textOf, textTokens} from '../pipeline.js';
import {Generator} from '../random.js';
import {analyticProbs} from '../reverse.js';
import {PAD_ID, UNK_ID} from '../tokenizer.js';
import {button, field, LetterTable, make, nameOf, noiseSlider, Strip, uncertainty} from './parts.js';

/** @import {DdlmLive, Mode} from './element.js' */

/** @implements {Mode} */
export class Denoise {
  instant = true;
  /** What the network said of the sentence. @type {{tokens: Int32Array, alone: Float64Array, all: Float64Array}} */
  found = {tokens: new Int32Array(0), alone: new Float64Array(0), all: new Float64Array(0)};

  /** @param {DdlmLive} live @param {HTMLElement} view */
  constructor(live, view) {
    this.live = live;
    this.model = /** @type {import('../model.js').Model} */ (live.model);
    const {config} = this.model;
    field(live, 'text', view, 'A noisy sentence', 'textarea', {rows: 2, spellcheck: false, maxLength: config.blockSize});
    noiseSlider(live, view, 'Noise that the network is told', config.noise);
    button(make('div', view, {className: 'ddlm-bar'}), 'Add that much noise', () => this.addNoise());
    make('p', view, {className: 'ddlm-caption', textContent: 'The sentence: the bluer, the less sure is the network. Point to a letter.'});
    const pick = (/** @type {number} */ place) => live.setAttribute('place', String(place + 1));
    this.strip = new Strip(view, 'The sentence', pick);
    this.strip.pre.classList.add('ddlm-heat');
    make('p', view, {className: 'ddlm-caption', textContent: 'What it takes for the likeliest letters:'});
    this.guess = new Strip(view, 'The likeliest letters', pick);
    this.guess.pre.dataset.ddlmOutput = '';
    this.place = field(live, 'place', view, 'Place', 'input', {type: 'range', min: 1, max: config.blockSize});
    this.table = new LetterTable(view, ['from all other letters', 'with its own, too']);
  }

  /** @param {string} name */
  changed(name) {
    if (name === 'place') this.letters();
    else if (name !== 'seed') this.live.refresh();
  }

  /** Tokens of the sentence, and with the padding behind it. */
  encode() {
    const {tokenizer} = this.model.config, text = this.live.option('text').normalize('NFC');
    if (!text) throw new UserError('write a sentence first');
    const whole = textTokens(text, this.model.config);
    if (whole.includes(UNK_ID)) {
      throw new UserError(`the model does not know ${tokenizer.unknownCharacters(text).join(' ')}`);
    }
    return {tokens: whole.subarray(0, whole.findLastIndex((token) => token !== PAD_ID) + 1), whole};
  }

  /** @type {Mode['run']} */
  async run(isCurrent) {
    const {noise, process: graph, vocabSize, tokenizer} = this.model.config;
    const {tokens, whole} = this.encode(), {length} = tokens;
    const sigmaBar = Math.max(Number(this.live.option('sigma')), noise.sigmaMin);
    if (!(sigmaBar <= noise.sigmaMax)) {
      throw new UserError(`sigma must be a number from ${noise.sigmaMin} to ${noise.sigmaMax}, got ${sigmaBar}`);
    }
    const given = whole.map((_, i) => Number(i >= length)); // the padding is: the sentence ends here
    const logQ = await this.model.denoise(whole, sigmaBar, Uint8Array.from(given));
    if (!isCurrent()) return '';
    const own = logQ.subarray(0, length * vocabSize);
    const all = analyticProbs(own, tokens, Math.fround(sigmaBar), 0, graph);
    this.found = {tokens, alone: own.map(Math.exp), all};
    const marks = Array.from(tokens, (id) => tokenizer.shown[id]);
    const best = tokens.map((_, i) => {
      const row = all.subarray(i * vocabSize, (i + 1) * vocabSize);
      return row.indexOf(row.reduce((a, b) => Math.max(a, b), 0));
    });
    this.strip.layOut(length, marks);
    this.strip.draw({marks, heat: uncertainty(all, vocabSize).map(Math.sqrt)});
    this.guess.layOut(length, marks);
    const changed = best.map((token, i) => Number(token !== tokens[i]));
    this.guess.draw({marks: Array.from(best, (id) => tokenizer.shown[id]), changed});
    this.strip.name();
    this.guess.name();
    this.place.max = String(length);
    this.letters();
    const count = changed.reduce((a, b) => a + b, 0);
    return `Told a noise of ${sigmaBar}, the network would change ${count} of ${length} characters.`;
  }

  /** The distribution at the place pointed to. */
  letters() {
    const {tokens, alone, all} = this.found, {tokenizer, vocabSize} = this.model.config;
    if (!tokens.length) return;
    const i = Math.min(Math.max(Number(this.live.option('place')) || 1, 1), tokens.length) - 1;
    const own = nameOf(tokenizer.shown[tokens[i]]);
    this.place.ariaValueText = `${i + 1}, ${own}`;
    this.strip.point(i);
    this.guess.point(i);
    const columns = [alone, all].map((table) => table.subarray(i * vocabSize, (i + 1) * vocabSize));
    this.table.draw(`Place ${i + 1}, where “${own}” stands`, tokenizer.shown, columns, 6);
  }

  /** Put noise into the sentence: letters in place of others, as strong as the slider says. */
  addNoise() {
    const {live} = this, {tokenizer, vocabSize} = this.model.config, seed = Number(live.option('seed'));
    const [noisy] = perturbBatch([this.encode().tokens], Number(live.option('sigma')), vocabSize,
      new Generator(seed), {prior: (length, V, generator) => generator.randint(V - 2, length).map((id) => id + 2)});
    live.setAttribute('seed', String(seed + 1));
    live.setAttribute('text', textOf(noisy, tokenizer));
  }
}
