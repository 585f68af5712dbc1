// Mode "bound": bits per character of the reader's sentence, better and better (chapter 9).

import {bitsPerCharacter, textTokens} from '../pipeline.js';
import {PAD_ID} from '../tokenizer.js';
import {field, make, nameOf, Strip} from './parts.js';

/** @import {DdlmLive, Mode} from './element.js' */

const FEW = 8; // estimates that make no interval

/** @implements {Mode} */
export class Bound {
  /** What the numbers shown belong to. @type {Record<string, string> | null} */
  last = null;
  /** @type {string[]} */
  marks = [];
  bits = new Float64Array(0);

  /** @param {DdlmLive} live @param {HTMLElement} view @param {HTMLElement} below */
  constructor(live, view, below) {
    this.live = live;
    this.model = /** @type {import('../model.js').Model} */ (live.model);
    field(live, 'text', view, 'Your sentence', 'textarea', {rows: 2, spellcheck: false});
    field(live, 'seed', below, 'Seed', 'input', {type: 'number', min: 0, max: 2 ** 32 - 1});
    this.output = make('p', view, {className: 'ddlm-result', 'data-ddlm-output': ''});
    this.most = Math.log2(this.model.config.vocabSize);
    this.scale = make('div', view, {className: 'ddlm-scale', ariaHidden: 'true'});
    make('span', this.scale, {className: 'ddlm-interval'});
    make('span', this.scale, {className: 'ddlm-mean'});
    make('span', this.scale, {className: 'ddlm-guess'});
    const ends = make('p', view, {className: 'ddlm-ends'});
    make('span', ends, {textContent: '0: known for sure'});
    make('span', ends, {textContent: `dotted, ${this.most.toFixed(2)}: all letters alike`});
    this.end = make('span', ends);
    this.done = make('p', view, {className: 'ddlm-caption'});
    this.strip = new Strip(view, 'The sentence', (place) => (this.place.value = String(place + 1), this.letter()));
    this.strip.pre.classList.add('ddlm-heat');
    const place = make('label', view, {className: 'ddlm-field ddlm-range'});
    make('span', place, {textContent: 'Place'});
    this.place = make('input', place, {type: 'range', min: 1, value: 1});
    this.here = make('span', place, {className: 'ddlm-value'});
    this.place.addEventListener('input', () => this.letter());
  }

  /** @type {Mode['run']} */
  async run(isCurrent) {
    const {config} = this.model, asked = {text: this.live.option('text'), seed: this.live.option('seed')};
    const estimates = bitsPerCharacter(this.model, asked.text, {seed: Number(asked.seed)});
    this.last = asked;
    this.output.textContent = this.done.textContent = ''; // what is there is of another sentence, or seed
    this.scale.removeAttribute('style');
    const tokens = textTokens(asked.text, config), end = tokens.findLastIndex((token) => token !== PAD_ID) + 1;
    this.marks = Array.from(tokens.subarray(0, end), (id) => config.tokenizer.shown[id]);
    this.bits = new Float64Array(this.marks.length).fill(NaN); // not known yet
    this.place.max = String(this.marks.length);
    this.strip.layOut(this.marks.length, this.marks);
    this.draw();
    this.strip.name();
    let said = '';
    for await (const {estimate, done, total, perPosition} of estimates) {
      if (!isCurrent()) return '';
      const {mean, low, high} = estimate;
      const told = done === total || (done >= FEW && high - low < 2); // the first ones are absurd
      const ends = told ? ` (${low.toFixed(2)} to ${high.toFixed(2)})` : '';
      said = `${mean.toFixed(2)} bits per character${ends}`;
      this.output.textContent = said;
      this.output.dataset.mean = String(mean);
      this.done.textContent = `${done} of ${total} estimates`;
      if (told) this.done.textContent += '; the interval holds the mean of ever more of them with 95\u00a0%';
      const end = Math.max(8, Math.ceil(mean * 1.2));
      this.end.textContent = String(end);
      const [from, to] = told ? [low, high] : [mean, mean];
      for (const [name, bits] of Object.entries({low: from, high: to, mean, guess: this.most})) {
        this.scale.style.setProperty(`--${name}`, `${(100 * Math.min(Math.max(bits, 0), end)) / end}%`);
      }
      this.bits = perPosition.slice(0, this.marks.length);
      this.draw();
    }
    return `Done: ${said}.`;
  }

  draw() {
    const heat = this.bits.map((bits) => Math.sqrt(Math.min(Math.max(bits || 0, 0), this.most) / this.most));
    this.strip.draw({marks: this.marks, heat});
    this.letter();
  }

  /** The bits of the letter pointed to. */
  letter() {
    const i = Math.min(Number(this.place.value), this.marks.length) - 1, bits = this.bits[i];
    this.strip.point(i);
    const known = Number.isFinite(bits) ? `: ${bits.toFixed(1)} bits` : '';
    this.here.textContent = i < 0 ? '' : `${i + 1}, ${nameOf(this.marks[i])}${known}`;
    this.place.ariaValueText = this.here.textContent;
  }
}
