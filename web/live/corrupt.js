// Mode "corrupt": the reader's sentence at any noise level (chapters 3 and 4). No network is needed.

import {UserError} from '../errors.js';
import {perturbBatch} from '../forward.js';
import {Generator} from '../random.js';
import {field, make, noiseSlider, percent, Strip} from './parts.js';

/** @import {DdlmLive, Mode} from './element.js' */

const LEVELS = [0.05, 0.1, 0.2, 0.5, 1, 2, 5];

/** @implements {Mode} */
export class Corrupt {
  instant = true;

  /** @param {DdlmLive} live @param {HTMLElement} view @param {HTMLElement} below */
  constructor(live, view, below) {
    this.live = live;
    const config = /** @type {import('../config.js').DiscreteDiffusionConfig} */ (live.config);
    this.config = config;
    field(live, 'text', view, 'Your sentence', 'textarea', {rows: 2, spellcheck: false});
    noiseSlider(live, view, 'Noise', config.noise);
    this.strip = new Strip(view, 'With noise');
    this.strip.pre.dataset.ddlmOutput = '';
    const table = make('table', below, {className: 'ddlm-levels'});
    make('caption', table, {textContent: 'The same random numbers at other noise levels: what has changed stays changed.'});
    const head = make('tr', make('thead', table));
    for (const textContent of ['σ̄', 'drawn again', 'text']) make('th', head, {textContent, scope: 'col'});
    const body = make('tbody', table);
    this.levels = LEVELS.map((sigmaBar) => {
      const row = make('tr', body);
      make('th', row, {textContent: String(sigmaBar), scope: 'row'});
      make('td', row, {textContent: percent(-Math.expm1(-sigmaBar))});
      return {sigmaBar, strip: new Strip(make('td', row), `At ${sigmaBar}`)};
    });
    field(live, 'seed', below, 'Seed', 'input', {type: 'number', min: 0, max: 2 ** 32 - 1});
  }

  changed() {
    this.live.refresh();
  }

  async run() {
    const {tokenizer, process: graph, vocabSize} = this.config, {live} = this;
    const clean = tokenizer.encode(live.option('text')), seed = Number(live.option('seed'));
    if (!clean.length) throw new UserError('write a sentence first');
    const unknown = tokenizer.unknownCharacters(live.option('text'));
    const sigmaBar = Number(live.option('sigma'));
    if (!(sigmaBar >= 0)) throw new UserError(`sigma must be a number from 0, got ${live.option('sigma')}`);
    const own = {sigmaBar, strip: this.strip};
    const marks = Array.from(clean, (id) => tokenizer.shown[id]);
    let changes = 0;
    for (const {sigmaBar, strip} of [own, ...this.levels]) {
      const [tokens] = perturbBatch([clean], sigmaBar, vocabSize, new Generator(seed), {prior: graph.samplePrior});
      const changed = tokens.map((token, i) => Number(token !== clean[i]));
      strip.layOut(clean.length, marks);
      strip.draw({marks: Array.from(tokens, (id) => tokenizer.shown[id]), changed});
      strip.name();
      if (strip === this.strip) changes = changed.reduce((a, b) => a + b, 0);
    }
    const said = `${changes} of ${clean.length} characters changed.`;
    return unknown.length ? `${said} The model does not know ${unknown.join(' ')}: each is �.` : said;
  }
}
