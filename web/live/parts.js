// What the modes of <ddlm-live> are put together from: native controls, and a text as a strip of cells.

/** @import {DdlmLive} from './element.js' */

const END_OF_TEXT = '<|endoftext|>'; // as in pipeline.js, which is not loaded until a reader asks

/**
 * A new element. What is no property of it becomes an attribute.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Element | null} parent
 * @param {Record<string, unknown>} [properties]
 * @returns {HTMLElementTagNameMap[K]}
 */
export function make(tag, parent, properties = {}) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) Object.assign(element, {[name]: value});
    else element.setAttribute(name, String(value));
  }
  parent?.append(element);
  return element;
}

/**
 * A control that shows an attribute of the element and writes it. `hint` says below it what it does.
 * @template {'input' | 'select' | 'textarea'} K
 * @param {DdlmLive} live
 * @param {string} name of the attribute
 * @param {Element} parent
 * @param {string} label
 * @param {K} tag
 * @param {Record<string, unknown>} [properties]
 * @param {string} [hint]
 * @returns {HTMLElementTagNameMap[K]}
 */
export function field(live, name, parent, label, tag, properties = {}, hint = '') {
  const {type} = properties;
  const box = make('label', parent, {className: `ddlm-field ddlm-${type ?? tag}`});
  make('span', box, {textContent: label});
  const control = make(tag, box, {...properties, 'data-ddlm-option': name});
  if (hint) {
    const {id} = make('p', parent, {className: 'ddlm-hint', textContent: hint, id: `${live.id}-${name}-hint`});
    control.setAttribute('aria-describedby', id);
  }
  const value = type === 'range' ? make('span', box, {className: 'ddlm-value', ariaHidden: 'true'}) : null;
  const show = () => {
    if (control.value !== live.option(name)) control.value = live.option(name);
    if (value) value.textContent = control.value;
  };
  live.showing.set(name, show);
  control.addEventListener('input', () => live.setAttribute(name, control.value));
  return control;
}

/** @param {Element} parent @param {string} textContent @param {() => void} onclick */
export function button(parent, textContent, onclick) {
  return make('button', parent, {type: 'button', textContent, onclick});
}

/**
 * A slider of total noise, even in time. It shows and writes the attribute `sigma`.
 * @param {DdlmLive} live
 * @param {Element} parent
 * @param {string} label
 * @param {import('../noise.js').NoiseSchedule} noise
 */
export function noiseSlider(live, parent, label, noise) {
  const box = make('label', parent, {className: 'ddlm-field ddlm-range'});
  make('span', box, {textContent: label});
  const range = make('input', box, {type: 'range', min: 0, max: 1, step: 0.01, 'data-ddlm-option': 'sigma'});
  const value = make('span', box, {className: 'ddlm-value', ariaHidden: 'true'});
  live.showing.set('sigma', () => {
    const sigmaBar = Number(live.option('sigma'));
    const percent = (100 * -Math.expm1(-sigmaBar)).toPrecision(2);
    range.value = String(noise.time(sigmaBar));
    value.textContent = `σ̄ = ${sigmaBar}: ${Number(percent)} % drawn again`;
    range.ariaValueText = value.textContent;
  });
  range.addEventListener('input', () => {
    live.setAttribute('sigma', String(Number(noise.sigmaBar(Number(range.value)).toPrecision(3))));
  });
  return range;
}

/**
 * How one moment of a text looks: a mark for each token, '' for padding.
 * @typedef {object} Look
 * @property {string[]} marks
 * @property {ArrayLike<number>} [changed] 1 where the mark is new
 * @property {ArrayLike<number>} [heat] 0 to 1, the color behind each mark
 */

/** A text, a cell for each token. Its textContent is the text. */
export class Strip {
  /**
   * @param {Element} parent
   * @param {string} label
   * @param {(place: number) => void} [onPick] called with the place of a cell that is pointed to
   */
  constructor(parent, label, onPick) {
    this.label = label;
    this.pre = make('pre', parent, {className: 'ddlm-strip', role: 'img'});
    /** @type {HTMLElement[]} */
    this.cells = [];
    if (!onPick) return;
    this.pre.classList.add('ddlm-pick');
    this.pre.addEventListener('click', ({target}) => {
      const place = this.cells.indexOf(/** @type {HTMLElement} */ (target));
      if (place >= 0) onPick(place);
    });
  }

  /**
   * Make the cells. Lines break where this text has its spaces, or, without one, anywhere.
   * @param {number} length
   * @param {string[]} [marks]
   */
  layOut(length, marks) {
    this.pre.textContent = '';
    /** @type {HTMLElement | null} */
    let word = null;
    this.cells = Array.from({length}, (_, i) => {
      word ??= make('span', this.pre);
      const cell = make('span', word), mark = marks?.[i] ?? '';
      if (mark === '\n') make('br', this.pre);
      if (!marks || mark === '' || ' \t\n'.includes(mark)) word = null;
      return cell;
    });
  }

  /** @param {Look} look */
  draw({marks, changed, heat}) {
    const end = marks.findLastIndex((mark) => mark !== '');
    this.cells.forEach((cell, i) => {
      const mark = marks[i], stop = mark === '' && i < end && (i === 0 || marks[i - 1] !== '');
      const kind = stop ? 'stop' : {'': i > end ? 'end' : 'pad', '\n': 'newline', '\t': 'tab'}[mark];
      const text = stop ? `${i ? '\n' : ''}${END_OF_TEXT}\n` : mark;
      if (cell.textContent !== text) cell.textContent = text;
      const name = (kind ? `ddlm-${kind}` : '') + (changed?.[i] ? ' ddlm-changed' : '');
      if (cell.className !== name) cell.className = name;
      cell.style.setProperty('--heat', heat ? heat[i].toFixed(2) : '0');
    });
  }

  /** @param {number} place of the one cell with a frame; -1 for none */
  point(place) {
    this.cells.forEach((cell, i) => cell.toggleAttribute('data-ddlm-here', i === place));
  }

  /** Say to a screen reader what stands here. @param {string} [text] */
  name(text = this.pre.textContent ?? '') {
    this.pre.ariaLabel = `${this.label}: ${text || 'nothing'}`;
  }
}

/** @param {string} mark @returns a name for it that can be read */
export function nameOf(mark) {
  return {'': 'padding', ' ': 'space', '\n': 'line break', '\t': 'tab', '\ufffd': 'unknown'}[mark] ?? mark;
}

/**
 * Uncertainty of each row of a table: its entropy, from 0 (sure) to 1 (all alike).
 * @param {ArrayLike<number>} probs (L, V)
 * @param {number} vocabSize V
 */
export function uncertainty(probs, vocabSize) {
  return Float32Array.from({length: probs.length / vocabSize}, (_, row) => {
    let sum = 0;
    for (let y = row * vocabSize; y < (row + 1) * vocabSize; y++) {
      if (probs[y] > 0) sum -= probs[y] * Math.log(probs[y]);
    }
    return Math.min(1, Math.max(0, sum / Math.log(vocabSize)));
  });
}

/** @param {number} share @returns {string} in percent */
export function percent(share) {
  const value = 100 * share;
  if (value > 99.9 && value < 100) return '> 99.9 %';
  if (value < 0.1) return '< 0.1 %';
  const fine = value < 10 || (value >= 99.5 && value < 100); // 99.8 is not 100
  return `${fine ? value.toFixed(1) : Math.round(value)} %`;
}

/** The likeliest letters at one place, in one column or several, as bars. */
export class LetterTable {
  /** @param {Element} parent @param {string[]} columns what each column says */
  constructor(parent, columns) {
    const table = make('table', parent, {className: 'ddlm-letters'});
    this.caption = make('caption', table);
    const head = make('tr', make('thead', table));
    for (const textContent of ['letter', ...columns]) make('th', head, {textContent, scope: 'col'});
    this.body = make('tbody', table);
  }

  /**
   * @param {string} caption
   * @param {string[]} shown of each token
   * @param {ArrayLike<number>[]} columns probabilities (V), one for each column; the last one ranks
   * @param {number} [most] rows
   */
  draw(caption, shown, columns, most = 5) {
    this.caption.textContent = caption;
    this.body.textContent = '';
    const best = shown.map((_, y) => y).sort((a, b) => {
      return Math.max(...columns.map((p) => p[b])) - Math.max(...columns.map((p) => p[a]));
    });
    for (const y of best.slice(0, most)) {
      const row = make('tr', this.body);
      make('th', row, {textContent: nameOf(shown[y]), scope: 'row'});
      for (const column of columns) {
        const cell = make('td', row, {textContent: percent(column[y])});
        cell.style.setProperty('--share', `${100 * column[y]}%`);
      }
    }
  }
}
