// Mode "sample": the model writes, freely or into the blanks of a template (chapters 7, 10, 11 and B).

import {expandLengths, LEVELS} from '../lengths.js';
import {defaultChurn, defaultSteps, drawSeed, generateStreaming, samplingArguments} from '../pipeline.js';
import {SCHEDULES} from '../sampler.js';
import {choose} from './lengths.js';
import {button, field, LetterTable, make, Strip, uncertainty} from './parts.js';

/** @import {DdlmLive, Mode} from './element.js' */
/** @import {Look} from './parts.js' */
/**
 * What is kept of a step. `probs` are those of the places from `start` on.
 * @typedef {Look & {text: string, sigmaBar: number, probs: Float32Array | null, start: number, end: number,
 *     within: {index: number, numSteps: number}, count: number}} Moment
 */

const MOST_STEPS = 512; // each is kept, to go back to
const MOST_OF_ALL_BLOCKS = 4096;
const MOST_CHARACTERS = 2000;
const MOST_LEVELS = 512;
const STEPS_OF_A_WINDOW = 64;
const FRAME = 80; // milliseconds of a picture when a finished run is played again

/** @implements {Mode} */
export class Sample {
  /** What the run shown was asked for. @type {Record<string, string> | null} */
  last = null;
  /** @type {Moment[]} */
  moments = [];
  numSteps = 0;
  at = 0;
  computing = false;
  paused = false;
  /** Lets a paused run go on. */
  resume = () => {};
  /** @type {ReturnType<typeof setInterval> | undefined} */
  timer;

  /** @param {DdlmLive} live @param {HTMLElement} view @param {HTMLElement} below */
  constructor(live, view, below) {
    this.live = live;
    this.model = /** @type {import('../model.js').Model} */ (live.model);
    const {config} = this.model;
    this.strip = new Strip(view, 'The text', (place) => (this.place.value = String(place), this.letters()));
    this.strip.pre.dataset.ddlmOutput = '';
    const bar = make('div', view, {className: 'ddlm-bar'});
    this.play = button(bar, 'Play', () => (this.playing ? this.pause() : this.goOn()));
    this.step = button(bar, 'Step', () => this.oneStep());
    this.range = make('input', bar, {type: 'range', min: 0, ariaLabel: 'Step', value: 0});
    this.range.addEventListener('input', () => {
      this.pause();
      this.show(Number(this.range.value));
    });
    this.caption = make('p', view, {className: 'ddlm-caption'});
    field(live, 'template', view, 'Template', 'textarea', {
      rows: 2, placeholder: 'Empty: it writes freely. Blanks: _ or _{4}, of unknown length _{2-9}', spellcheck: false,
    });
    this.lengths = make('p', view, {className: 'ddlm-caption', 'data-ddlm-lengths': ''});
    const sure = make('details', below), place = make('label', sure, {className: 'ddlm-field ddlm-range'});
    sure.prepend(make('summary', null, {textContent: 'How sure is it?'}));
    make('span', place, {textContent: 'Place'});
    this.place = make('input', place, {type: 'range', min: 0, max: config.blockSize - 1, value: 0});
    this.place.addEventListener('input', () => this.letters());
    this.table = new LetterTable(sure, ['drawn with']);
    sure.addEventListener('toggle', () => this.show(this.at));
    this.sure = sure;
    const more = make('details', below, {className: 'ddlm-options'});
    make('summary', more, {textContent: 'How it writes'});
    const {blockLength, blockSize} = config;
    if (!config.padded) { // the text goes on
      const length = {type: 'number', min: 1, max: blockLength ? MOST_CHARACTERS : blockSize, placeholder: blockSize};
      field(live, 'length', more, 'Length', 'input', length, `characters, ${blockSize} if it is empty; then a template is the whole text, else its beginning`);
    }
    const steps = {type: 'number', min: 1, max: MOST_STEPS};
    const seen = blockLength ? `each block of ${blockLength}` : 'the whole text';
    field(live, 'steps', more, 'Steps', 'input', steps, `how often the network sees ${seen}`);
    if (!live.option('steps')) live.setAttribute('steps', String(blockLength ? defaultSteps(config) : STEPS_OF_A_WINDOW));
    const grid = field(live, 'grid', more, 'Grid', 'select', {}, 'the noise levels at which it does');
    SCHEDULES.forEach((name) => make('option', grid, {textContent: name, value: name}));
    const share = {type: 'range', min: 0, max: 1, step: 0.05};
    const churn = field(live, 'churn', more, 'Churn', 'input', share, 'fresh noise in each step, so that it writes anew what it got wrong');
    churn.disabled = !defaultChurn(config);
    if (!live.option('churn')) live.setAttribute('churn', String(defaultChurn(config)));
    const heat = {type: 'range', min: 0.1, max: 2, step: 0.05};
    field(live, 'temperature', more, 'Temperature', 'input', heat, 'below 1 the likely letters are likelier');
    const levels = {type: 'number', min: 1, max: MOST_LEVELS};
    field(live, 'levels', more, 'Levels', 'input', levels, `noise levels at which each length of a blank such as _{2-9} is judged; Python takes ${LEVELS}, which takes longer`);
    const seed = {type: 'number', min: 0, max: 2 ** 32 - 1};
    field(live, 'seed', more, 'Seed', 'input', seed, 'the same seed writes the same text');
    button(/** @type {Element} */ (live.bar), 'Another seed', () => {
      live.setAttribute('seed', String(drawSeed()));
      live.run();
    });
  }

  get playing() {
    return this.timer !== undefined || (this.computing && !this.paused);
  }

  /** @type {Mode['run']} */
  async run(isCurrent) {
    this.stopped();
    const {live, model} = this, names = ['template', 'levels', 'length', 'steps', 'grid', 'churn', 'temperature', 'seed'];
    const asked = Object.fromEntries(names.map((name) => [name, live.option(name)]));
    const [numSteps, churn, temperature, seed] = ['steps', 'churn', 'temperature', 'seed'].map((n) => Number(asked[n]));
    const options = {
      template: asked.template || null, numSteps, schedule: asked.grid, churn, temperature, seed,
      seqLen: asked.length && !model.config.padded ? Number(asked.length) : null,
    };
    const levels = Number(asked.levels), templates = expandLengths(asked.template);
    await this.check(templates, options, levels);
    this.last = asked;
    Object.assign(this, {moments: [], numSteps, at: 0, computing: true, paused: false});
    this.lengths.textContent = '';
    if (templates.length > 1) {
      this.clear();
      const choice = await choose(live, model, {...options, template: asked.template, levels}, isCurrent);
      if (!choice) return '';
      this.lengths.textContent = choice.said;
      options.template = choice.template;
    }
    const steps = generateStreaming(model, options), still = matchMedia('(prefers-reduced-motion: reduce)').matches, start = performance.now();
    let waited = 0;
    this.buttons();
    for await (const step of steps) {
      if (!isCurrent()) return '';
      this.numSteps = step.numSteps;
      this.range.max = String(this.numSteps);
      this.moments.push(this.moment(step));
      if (this.moments.length === 1) this.strip.layOut(step.tokens.length);
      const last = this.moments.length - 1;
      if (!still || this.paused || last === 0) this.show(last);
      if (this.paused && last < this.numSteps) {
        live.state = 'ready';
        this.buttons();
        const from = performance.now();
        await new Promise((resolve) => (this.resume = () => resolve(null)));
        waited += performance.now() - from;
        if (!isCurrent()) return '';
        live.state = 'running';
      }
    }
    const took = performance.now() - start - waited, {marks} = this.moments[this.numSteps];
    this.computing = this.paused = false;
    this.strip.layOut(marks.length, marks);
    this.show(this.numSteps);
    const evaluations = this.moments.filter(({probs}) => probs).length, blocks = evaluations / numSteps;
    const what = model.config.blockLength ? `${blocks} block${blocks === 1 ? '' : 's'} of ${numSteps} steps` : `${numSteps} steps`;
    return `Done: ${what} in ${(took / 1000).toFixed(1)} s, ${Math.round(took / evaluations)} ms each.`;
  }

  /**
   * Refuse more than a page can keep.
   * @param {string[]} templates what a template with ranges stands for
   * @param {import('../pipeline.js').SamplingOptions & {numSteps: number}} options
   * @param {number} levels
   */
  async check(templates, options, levels) {
    const {checkRange, UserError} = await import('../errors.js'), {config} = this.model, {numSteps} = options;
    if (numSteps > MOST_STEPS) throw new UserError(`here are at most ${MOST_STEPS} steps, got ${numSteps}`);
    checkRange(1, MOST_LEVELS, {levels});
    const lengths = templates.map((template) => samplingArguments({...options, template: template || null}, config).seqLen);
    if (!config.blockLength) return;
    const seqLen = Math.max(...lengths), blocks = Math.ceil(seqLen / config.blockLength);
    if (seqLen > MOST_CHARACTERS) throw new UserError(`here are at most ${MOST_CHARACTERS} characters, got ${seqLen}`);
    if (blocks * (numSteps + 1) > MOST_OF_ALL_BLOCKS) {
      throw new UserError(`${blocks} blocks of ${numSteps} steps are too many here: take fewer steps, or a shorter text`);
    }
  }

  /**
   * @param {import('../sampler.js').DenoisingStep & {text: string}} step
   * @returns {Moment}
   */
  moment({index, numSteps, tokens, changed, probs, sigmaBar, text, block}) {
    const {tokenizer, vocabSize, blockLength} = this.model.config, start = block?.start ?? 0;
    const end = block ? Math.min(start + Number(blockLength), tokens.length) : tokens.length;
    const heat = Float32Array.from(this.moments.at(-1)?.heat ?? new Float32Array(tokens.length)); // of other blocks
    heat.set(probs ? uncertainty(probs, vocabSize) : new Float32Array(end - start).fill(1), start);
    return {
      marks: Array.from(tokens, (id) => tokenizer.shown[id]),
      changed,
      heat,
      probs: probs && Float32Array.from(probs),
      start,
      end,
      within: block ?? {index, numSteps},
      count: changed.reduce((a, b) => a + b, 0),
      sigmaBar,
      text,
    };
  }

  /** @param {number} at the step to show */
  show(at) {
    const moment = this.moments[at];
    if (!moment) {
      this.range.value = String(this.at); // not yet computed
      return;
    }
    this.at = at;
    this.strip.draw(this.sure.open ? moment : {...moment, heat: undefined});
    this.strip.pre.classList.toggle('ddlm-heat', this.sure.open);
    this.range.value = String(at);
    const {sigmaBar, count, within} = moment, characters = `${count} character${count === 1 ? '' : 's'} changed`;
    this.caption.textContent = `${this.block(moment)}step ${within.index} of ${within.numSteps} · noise σ̄ = ${Number(sigmaBar.toPrecision(3))} · ${characters}`;
    this.range.ariaValueText = this.caption.textContent;
    if (!this.playing || at === this.numSteps) this.strip.name(moment.text);
    this.letters();
    this.buttons();
  }

  /** Which block is being written, in words, if the model writes in blocks. @param {Moment} moment */
  block({start, marks}) {
    const {blockLength} = this.model.config;
    if (!blockLength) return '';
    return `block ${start / blockLength + 1} of ${Math.ceil(marks.length / blockLength)}, `;
  }

  /** Nothing is there: what was is of another template, or seed. */
  clear() {
    this.strip.layOut(0);
    this.strip.name();
    this.caption.textContent = '';
    this.table.draw('', [], []);
    this.buttons();
  }

  /** What the letter at the place pointed to was drawn with. */
  letters() {
    const moment = this.moments[this.at];
    if (!moment) return;
    const {tokenizer, vocabSize} = this.model.config, last = moment.marks.length - 1;
    const place = Math.min(Number(this.place.value), last);
    this.place.max = String(last);
    this.strip.point(this.sure.open ? place : -1);
    let drawn = this.at; // the last step that has drawn a letter of its block
    while (drawn > 0 && this.moments[drawn].start > place) drawn -= 1;
    const {start, end, within} = this.moments[drawn], from = (place - start) * vocabSize;
    const caption = `Place ${place + 1}, ${this.block(this.moments[drawn])}step ${within.index}`;
    const probs = this.moments[drawn].probs?.subarray(from, from + vocabSize);
    this.place.ariaValueText = `${place + 1}`;
    if (!this.sure.open) return;
    if (place >= end) this.table.draw(`Place ${place + 1}: not yet written`, [], []);
    else if (probs) this.table.draw(caption, tokenizer.shown, [probs]);
    else this.table.draw(`${caption}: noise, all letters alike`, [], []);
  }

  buttons() {
    this.play.textContent = this.playing ? 'Pause' : 'Play';
    this.play.disabled = this.step.disabled = this.range.disabled = !this.moments.length;
  }

  pause() {
    clearInterval(this.timer);
    this.timer = undefined;
    if (this.computing) this.paused = true;
    this.strip.name(this.moments[this.at]?.text);
    this.buttons();
  }

  /** Go on with the run, or show one that is finished again. */
  goOn() {
    if (this.paused) {
      this.paused = false;
      this.resume();
    } else if (this.moments.length) {
      if (this.at === this.moments.length - 1) this.show(0);
      this.timer = setInterval(() => {
        this.show(this.at + 1);
        if (this.at === this.moments.length - 1 || !this.live.isConnected) this.pause();
      }, FRAME);
    }
    this.buttons();
  }

  oneStep() {
    const head = this.moments.length - 1;
    if (this.playing) return this.pause();
    if (this.at < head) this.show(this.at + 1);
    else if (this.paused) this.resume(); // computes one, and is still paused
  }

  /** A run that is paused ends, too. */
  stopped() {
    clearInterval(this.timer);
    this.timer = undefined;
    this.computing = this.paused = false;
    this.resume();
    this.resume = () => {};
    this.buttons();
  }
}
