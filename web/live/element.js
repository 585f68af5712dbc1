// <ddlm-live mode="sample" model="pocket-stories">: a model that runs in the page, when the reader asks.
// Until then it costs a page this file and style.css. What stands in the element, such as a stored player,
// is shown until the model has an answer, and stays if it cannot run.

import {button, make} from './parts.js';

/**
 * What a mode does; see sample.js and its like.
 * @typedef {object} Mode
 * @property {(isCurrent: () => boolean) => Promise<string>} run compute and show; returns what to say at the end
 * @property {(name: string) => void} [changed] an option has another value
 * @property {() => void} [stopped]
 * @property {boolean} [instant] it takes a moment, and follows every change
 * @property {Record<string, string> | null} [last] options of what it shows, if they may have changed since
 */
/** Puts controls above and below the button. @typedef {new (live: DdlmLive, view: HTMLElement, more: HTMLElement) => Mode} ModeClass */

/**
 * Each mode: what to call it, its options and their values, its model, whether it needs the network of it, and
 * its class.
 * @type {Record<string, {label: string, options: Record<string, string>, model: string, network: boolean,
 *     load(): Promise<ModeClass>}>}
 */
const MODES = {
  sample: {
    label: 'The model writes',
    options: {template: '', levels: '16', length: '', steps: '', grid: 'cosine', churn: '', temperature: '1', seed: '0'},
    model: 'pocket-stories',
    network: true,
    load: async () => (await import('./sample.js')).Sample,
  },
  corrupt: {
    label: 'Your sentence under noise',
    options: {text: 'Tom has a red ball.', sigma: '0.5', seed: '0'},
    model: 'pocket-stories',
    network: false,
    load: async () => (await import('./corrupt.js')).Corrupt,
  },
  denoise: {
    label: 'What the network believes',
    options: {text: 'Tom lo%t his red bGll.', sigma: '0.2', place: '7', seed: '0'},
    model: 'tinystories-cpu',
    network: true,
    load: async () => (await import('./denoise.js')).Denoise,
  },
  bound: {
    label: 'How surprising is your sentence?',
    options: {text: 'Tom had a red ball.', seed: '0'},
    model: 'tinystories-cpu',
    network: true,
    load: async () => (await import('./bound.js')).Bound,
  },
};
const NAMES = [...new Set(Object.values(MODES).flatMap(({options}) => Object.keys(options)))];
const RUN = 'Run in this page', STOP = 'Stop';
export const DOWNLOAD_MB = 18; // the runtime and a network; half of it or less if the server compresses

/**
 * Models of this page, by address: all elements share one.
 * @type {Map<string, {model: Promise<import('../model.js').Model>, watchers: Set<import('../runtime.js').OnProgress>}>}
 */
const models = new Map();

/**
 * @param {string} url
 * @param {import('../runtime.js').OnProgress} onProgress
 */
function sharedModel(url, onProgress) {
  const known = models.get(url);
  if (known) {
    known.watchers.add(onProgress);
    return known.model;
  }
  const watchers = new Set([onProgress]);
  const model = import('../model.js').then(({loadModel}) => {
    return loadModel(url, {onProgress: (progress) => watchers.forEach((watch) => watch(progress))});
  });
  models.set(url, {model, watchers});
  model.catch(() => models.delete(url)); // so that it can be tried again
  return model;
}

/** @param {unknown} error @returns a sentence that says why nothing runs */
function sentence(error) {
  const {name, message} = error instanceof Error ? error : {name: '', message: String(error)};
  if (name === 'UserError') return `${message[0].toUpperCase()}${message.slice(1)}.`.replace(/\.\.$/, '.');
  if (name === 'RangeError' || /memory|allocat/i.test(message)) {
    return 'There is too little memory here to run the model. Close other pages, and try again.';
  }
  return `The model does not run here: ${message}`;
}

/** The element. Its attribute data-state is idle, loading, ready, running, done or error. */
export class DdlmLive extends HTMLElement {
  static observedAttributes = NAMES;

  /** The run that counts: a new one, and a stop, put another in its place. */
  #current = {};
  /** @type {Mode | null} */
  #mode = null;
  #built = false;
  /** @type {Promise<void>} */
  #running = Promise.resolve();
  #waiting = false;
  /** How each control shows its attribute. @type {Map<string, () => void>} */
  showing = new Map();

  connectedCallback() {
    if (this.#built) return;
    if (document.readyState === 'loading') { // what stands in the element has not all arrived
      document.addEventListener('DOMContentLoaded', () => this.connectedCallback(), {once: true});
      return;
    }
    this.#built = true;
    const all = [...document.querySelectorAll('ddlm-live, div.ddlm-element')];
    this.id ||= `ddlm-live-${all.indexOf(this) + 1}`;
    const {label, network} = this.kind;
    this.setAttribute('role', 'group');
    this.ariaLabel ??= label;
    this.querySelectorAll('.ddlm-elsewhere').forEach((hint) => hint.remove());
    this.stored = [...this.children];
    const title = make('p', null, {className: 'ddlm-name', textContent: this.ariaLabel, ariaHidden: 'true'});
    if (network) title.append(' ', make('span', null, {textContent: this.modelName}));
    this.prepend(title); // the name of the group says the same to a screen reader
    this.view = make('div', this, {className: 'ddlm-view', hidden: true});
    const bar = make('div', this, {className: 'ddlm-bar'});
    this.button = button(bar, RUN, () => {});
    this.button.onclick = ({detail}) => {
      if (detail > 1) return; // the second half of a double click
      if (this.button?.textContent === STOP) this.stop();
      else this.run();
    };
    this.button.dataset.ddlmRun = '';
    this.bar = bar;
    this.progress = make('progress', this, {hidden: true, 'aria-label': 'Loading'});
    this.status = make('p', this, {className: 'ddlm-status', role: 'status'});
    this.more = make('div', this, {className: 'ddlm-view', hidden: true});
    if (network) this.say(`Loads up to ${DOWNLOAD_MB} MB, once. Nothing that you write leaves this page.`);
    this.#readLink();
    this.state = 'idle';
  }

  disconnectedCallback() {
    if (this.#built && this.button?.textContent === STOP) this.stop();
  }

  /** @param {string} name */
  attributeChangedCallback(name) {
    this.showing.get(name)?.();
    this.#mode?.changed?.(name);
  }

  get kind() {
    const mode = this.getAttribute('mode') ?? 'sample';
    if (!Object.hasOwn(MODES, mode)) throw new TypeError(`ddlm-live has no mode ${mode}`);
    return MODES[mode];
  }

  get modelName() {
    return this.getAttribute('model') ?? this.kind.model;
  }

  /** The folder of the model: a name is that of one beside this library. */
  get modelUrl() {
    const url = this.modelName.includes('/') ? new URL(this.modelName, document.baseURI)
      : new URL(`../../models/${this.modelName}/`, import.meta.url);
    return url.href.endsWith('/') ? url.href : `${url.href}/`;
  }

  /** @param {string} name @returns {string} the attribute, or what stands for it */
  option(name) {
    return this.getAttribute(name) ?? this.kind.options[name];
  }

  get state() {
    return this.dataset.state ?? 'idle';
  }

  set state(state) {
    this.dataset.state = state;
    if (!this.button || !this.progress) return;
    const long = state === 'loading' || (state === 'running' && !this.#mode?.instant);
    this.button.textContent = long ? STOP : RUN;
    this.progress.hidden = state !== 'loading';
    if (this.view) this.view.ariaBusy = String(state === 'running');
  }

  /** @param {string} text for the reader, and a screen reader */
  say(text) {
    if (this.status) this.status.textContent = text;
  }

  /** Load what is needed, once, and run. */
  run() {
    this.#running = this.#run();
    return this.#running;
  }

  /** Run again since an option has another value; what goes on is waited for. */
  async refresh() {
    if (!this.#mode || this.#waiting) return;
    this.#waiting = true;
    await this.#running;
    this.#waiting = false;
    await this.run();
  }

  async #run() {
    const run = (this.#current = {}), isCurrent = () => this.#current === run;
    try {
      if (!this.#mode) {
        this.state = 'loading';
        this.say('Loading…');
        const made = await this.#prepare();
        if (!isCurrent()) return;
        this.#show(made);
        this.state = 'ready';
        this.say('Computing…');
      }
      this.state = 'running';
      const mode = /** @type {Mode} */ (this.#mode);
      if (!mode.instant) this.say('Computing…');
      const said = await mode.run(isCurrent);
      if (!isCurrent()) return;
      this.state = 'done';
      this.say(said);
    } catch (error) {
      if (!isCurrent()) return;
      this.#mode?.stopped?.();
      this.state = 'error';
      this.say(sentence(error));
      if (!(error instanceof Error && error.name === 'UserError')) console.warn(error);
    }
  }

  /** Stop what goes on. What has been computed stays. */
  stop() {
    this.#current = {};
    this.#mode?.stopped?.();
    this.state = this.#mode ? 'ready' : 'idle';
    this.say('Stopped.');
  }

  async #prepare() {
    const {network, load} = this.kind, ofMode = load();
    if (!network) {
      const [{DiscreteDiffusionConfig}, response] = await Promise.all([
        import('../config.js'), fetch(new URL('model.json', this.modelUrl)),
      ]);
      if (!response.ok) throw new Error(`there is no model at ${this.modelUrl} (${response.status})`);
      this.config = new DiscreteDiffusionConfig(await response.json());
      return ofMode;
    }
    if (typeof WebAssembly === 'undefined') {
      const {UserError} = await import('../errors.js');
      throw new UserError('this browser cannot run the model: it has no WebAssembly');
    }
    /** @type {Map<string, import('../runtime.js').Progress>} */
    const parts = new Map();
    this.model = await sharedModel(this.modelUrl, (part) => {
      parts.set(part.what, part);
      const sum = (/** @type {'loaded' | 'total'} */ key) => [...parts.values()].reduce((s, p) => s + p[key], 0);
      if (this.progress) Object.assign(this.progress, {max: sum('total'), value: sum('loaded')});
    });
    this.config = this.model.config;
    return ofMode;
  }

  /** @param {ModeClass} ofMode */
  #show(ofMode) {
    const view = /** @type {HTMLElement} */ (this.view);
    const more = /** @type {HTMLElement} */ (this.more);
    this.#mode = new ofMode(this, view, more);
    this.showing.forEach((show) => show());
    this.stored?.forEach((child) => ((/** @type {HTMLElement} */ (child)).hidden = true));
    view.hidden = more.hidden = false;
    button(/** @type {Element} */ (this.bar), 'Copy link', () => this.copyLink());
  }

  /** The address of this page with this element's options, which reproduce what it shows. */
  get link() {
    const url = new URL(location.href), {options} = this.kind;
    url.search = url.hash = '';
    url.searchParams.set('live', this.id);
    for (const name of Object.keys(options)) {
      url.searchParams.set(name, this.#mode?.last?.[name] ?? this.option(name));
    }
    url.hash = this.id;
    return url.href;
  }

  async copyLink() {
    try {
      await navigator.clipboard.writeText(this.link);
      this.say('The link is copied.');
    } catch { // not allowed here: the reader copies it
      const box = this.querySelector('.ddlm-link') ?? make('input', this, {className: 'ddlm-link', readOnly: true});
      const input = /** @type {HTMLInputElement} */ (box);
      Object.assign(input, {ariaLabel: 'Link', value: this.link});
      input.select();
      this.say('Copy the link from the field.');
    }
  }

  /** Take the options of a link that leads to this element. */
  #readLink() {
    const given = new URLSearchParams(location.search);
    if (given.get('live') !== this.id) return;
    for (const name of Object.keys(this.kind.options)) {
      const value = given.get(name);
      if (value !== null) this.setAttribute(name, value);
    }
    this.say(`The link chose a run: press “${RUN}” to see it.`);
    this.scrollIntoView();
  }
}

/** Make the element of what a cell of a notebook holds: <div class="ddlm-element" data-mode="…" data-…="…">. */
function upgrade() {
  for (const div of document.querySelectorAll('div.ddlm-element')) {
    const live = document.createElement('ddlm-live');
    for (const [name, value] of Object.entries((/** @type {HTMLElement} */ (div)).dataset)) {
      live.setAttribute(name, value ?? '');
    }
    live.append(...div.childNodes);
    div.replaceWith(live);
  }
}

if (!customElements.get('ddlm-live')) {
  make('link', document.head, {rel: 'stylesheet', href: new URL('style.css', import.meta.url).href});
  if (document.readyState === 'loading') document.addEventListener('DOMContentLoaded', upgrade, {once: true});
  else upgrade();
  customElements.define('ddlm-live', DdlmLive);
}
