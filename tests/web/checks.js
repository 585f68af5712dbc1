// Compares the library of web/ with what Python recorded (record.py). Runs in Node and in a browser.

const TOLERANCE = 1e-4; // of probabilities that a network was asked for
const EXACT = 2e-6; // of what follows from the same logits: Python computes in float32

function fail(what, i, found, wanted) {
  throw new Error(`${what}: entry ${i} is ${found}, in Python ${wanted}`);
}

function same(what, found, wanted) {
  if (found.length !== wanted.length) fail(what, 'length', found.length, wanted.length);
  for (let i = 0; i < wanted.length; i++) if (found[i] !== wanted[i]) fail(what, i, found[i], wanted[i]);
}

function close(what, found, wanted, absolute = 1e-9, relative = 1e-9) {
  if (found.length !== wanted.length) fail(what, 'length', found.length, wanted.length);
  for (let i = 0; i < wanted.length; i++) {
    const value = Number(wanted[i]), room = absolute + relative * Math.abs(value);
    if (!(found[i] === value || Math.abs(found[i] - value) <= room)) fail(what, i, found[i], wanted[i]);
  }
}

const camel = (name) => name.replace(/_(.)/g, (_, letter) => letter.toUpperCase());

/** Options with the names of Python, and arrays for what has entries. */
function translated(options) {
  const found = {};
  for (const [name, value] of Object.entries(options)) {
    if (name === 'template' && Array.isArray(value)) found.template = Int32Array.from(value);
    else if (name === 'condition_mask') found.conditionMask = Uint8Array.from(value, Number);
    else found[camel(name)] = value;
  }
  for (const name of ['seed', 'first']) if (name in found) found[name] = BigInt(found[name]);
  return found;
}

/** A model that says what the network of Python said, if it is asked the same. */
function parrot(ddlm, config, steps) {
  let next = 0;
  const questions = steps.filter((step) => step.xT);
  const logits = async (tokens, sigmaBar, mask, reading) => {
    const step = questions[next++];
    same('tokens the network is asked about', tokens, step.xT);
    close('noise the network is asked about', [sigmaBar], [step.before], 0, 3e-7);
    same('given tokens', mask, step.mask ?? new Uint8Array(tokens.length)); // nothing is given
    if (step.clean) {
      same('clean text it has read', reading.clean.slice(0, -1), step.clean);
      same('places it is asked about', reading.places, Array.from(tokens, (_, i) => step.clean.length + i));
    } else same('clean text', [reading], [undefined]);
    return Float32Array.from(step.logits);
  };
  const kind = config.blockLength ? ddlm.BlockModel : ddlm.Model;
  return new kind(config, {logits, close() {}});
}

async function compareSteps(what, steps, wanted, tolerance) {
  let index = 0;
  for await (const step of steps) {
    const truth = wanted[index], here = `${what}, step ${index}`;
    same(`${here}: number`, [step.index, step.numSteps], [index, truth.numSteps ?? wanted.length - 1]);
    close(`${here}: noise`, [step.sigmaBar], [truth.sigmaBar], 1e-12, 1e-9);
    same(`${here}: drawn`, [Boolean(step.probs)], [Boolean(truth.probs)]);
    if (truth.probs) close(`${here}: probabilities`, step.probs, truth.probs, tolerance, 0);
    same(`${here}: tokens`, step.tokens, truth.tokens);
    same(`${here}: changed`, step.changed, truth.changed);
    index += 1;
  }
  same(`${what}: steps`, [index], [wanted.length]);
}

async function last(items) {
  let found;
  for await (const item of items) found = item;
  return found;
}

/** Name to check: (library, record, function that loads the exported model of a name). */
export const checks = {
  random(ddlm, record) {
    for (const {seed, draws} of record.random) {
      const generator = new ddlm.Generator(seed);
      for (const [kind, wanted] of draws) {
        const count = wanted.length, found = kind === 'randint' ? generator.randint(106, count) : generator[kind](count);
        same(`seed ${seed}, ${kind}`, found, wanted);
      }
    }
  },

  seeds(ddlm, record) {
    for (const {seed, first, draws} of record.seeds) {
      const generators = ddlm.sampleGenerators(BigInt(seed), 2, BigInt(first));
      same(`seed ${seed}, text ${first}`, generators.map((g) => g.randint(1e6, 1)[0]), draws);
    }
    for (const {probs, cases} of record.lengths.derived) {
      for (const {seed, purpose, numbers, derived, drawn} of cases) {
        const found = ddlm.deriveSeed(BigInt(seed), purpose, ...numbers.map(BigInt)), generator = new ddlm.Generator(found);
        same(`${purpose} of ${seed}`, [String(found)], [derived]);
        same(`${purpose} of ${seed}, drawn`, drawn.map(() => generator.multinomial(probs)), drawn);
      }
    }
  },

  tokenizer(ddlm, record) {
    const tokenizer = new ddlm.CharacterLevelTokenizer(record.vocab);
    for (const {text, ids, decoded, padded, unknown} of record.texts) {
      same(text, tokenizer.encode(text), ids);
      same(text, tokenizer.pad(text, 30), padded);
      same(text, [tokenizer.decode(ids)], [decoded]);
      same(text, tokenizer.unknownCharacters(text), unknown);
    }
  },

  noise(ddlm, record) {
    for (const truth of record.noises) {
      const noise = new ddlm[truth.name](1e-3, 15);
      close('sigmaBar', truth.times.map((t) => noise.sigmaBar(t)), truth.sigmaBar);
      close('sigma', truth.times.map((t) => noise.sigma(t)), truth.sigma);
      close('time', truth.sigmaBar.map((s) => noise.time(Number(s))), truth.back);
      for (const {steps, schedule, last, levels} of truth.grids) {
        close(`${schedule} ${steps}`, ddlm.noiseLevels(noise, steps, schedule, last), levels, 1e-12, 1e-9);
      }
      const spread = ddlm.spreadTimes(50, noise, new ddlm.Generator(3));
      close('spread times', spread.t, truth.spread.t, 1e-7);
      close('weights', spread.weight, truth.spread.weight, 0, 1e-6);
    }
  },

  corruption(ddlm, record) {
    for (const {graph, sigmaBar, x0, xT, mask} of record.corruptions) {
      const {samplePrior: prior} = ddlm.GRAPHS[graph], rows = x0.map((row) => Int32Array.from(row));
      const options = {prior, mask: mask?.map((row) => Uint8Array.from(row))};
      const found = ddlm.perturbBatch(rows, sigmaBar, 9, new ddlm.Generator(8), options);
      found.forEach((row, b) => same(`${graph}, text ${b}`, row, xT[b]));
    }
  },

  tables(ddlm, record) {
    for (const truth of record.tables) {
      const graph = ddlm.GRAPHS[truth.graph], {now, after} = truth;
      const logQ = Float64Array.from(truth.logQ, Number);
      const xT = Int32Array.from(truth.xT), x0 = Int32Array.from(truth.x0);
      const compare = (what, found) => close(`${what} of ${truth.graph}`, found, truth[what], 1e-7, 2e-6);
      const logScore = graph.logScore(logQ, now, xT), score = logScore.map(Math.exp);
      compare('logScore', logScore);
      compare('loss', graph.loss(logScore, now, xT, x0));
      compare('expectedLoss', graph.expectedLoss(logQ, now, x0));
      compare('expectedReconstruction', graph.expectedReconstruction(logQ, now, x0));
      compare('marginal', graph.marginal(logQ, xT, after));
      compare('likelihood', graph.likelihood(xT, now - after, 9));
      compare('analytic', ddlm.analyticProbs(logQ, xT, now, after, graph));
      close('priorKl', [0, now].map((sigmaBar) => graph.priorKl(sigmaBar, 9)), truth.priorKl);
      if (!truth.euler) continue;
      compare('posterior', ddlm.logPosterior(logQ, now, xT));
      compare('euler', ddlm.eulerProbs(score, xT, now - after));
      compare('staggered', ddlm.staggeredScore(score, now - after, 9));
    }
  },

  async sampler(ddlm, record) {
    for (const {seed, length, options, description, steps} of record.runs) {
      const config = new ddlm.DiscreteDiffusionConfig({...description, name: 'tiny'});
      const model = parrot(ddlm, config, steps), generator = new ddlm.Generator(seed);
      const run = ddlm.denoisingSteps(model, config.noise, length, generator, translated(options));
      await compareSteps(`run ${seed}`, run, steps, EXACT);
    }
  },

  async blocks(ddlm, record) {
    for (const [written, length, size, start] of record.starts) {
      same(`after ${written} of ${length}`, [ddlm.contextStart(written, length, size)], [start]);
    }
    for (const {seed, length, options, description, steps} of record.blockRuns) {
      const config = new ddlm.DiscreteDiffusionConfig({...description, name: 'tiny'});
      const model = parrot(ddlm, config, steps), generator = new ddlm.Generator(seed);
      const run = ddlm.denoisingBlocks(model, length, generator, translated(options));
      await compareSteps(`blocks of ${config.blockLength}`, run, steps, EXACT);
    }
    const early = ({steps}) => steps.at(-1).numSteps < steps[0].numSteps;
    const may = ({options}) => Boolean(options.stop_at_end && !options.template); // what is given comes late
    same('texts that end early', record.blockRuns.map(early), record.blockRuns.map(may));
  },

  templates(ddlm, record) {
    for (const {description, cases} of record.templates) {
      for (const {template, seqLen, padded, tokens, mask, error} of cases) {
        const config = new ddlm.DiscreteDiffusionConfig({...description, padded});
        let said;
        try {
          const found = ddlm.encodeTemplate(template, seqLen, config);
          same(template, found.tokens, tokens);
          same(template, found.mask, mask);
        } catch (problem) {
          if (!(problem instanceof ddlm.UserError)) throw problem;
          said = problem.message;
        }
        same(template, [said], [error]);
      }
    }
  },

  async refusals(ddlm, record, load) {
    const model = await load(record.live[0].folder), {UserError} = ddlm;
    const refused = async (what, attempt) => {
      try {
        await attempt();
      } catch (error) {
        if (error instanceof UserError && !error.message.includes('\n')) return;
        throw error;
      }
      throw new Error(`${what} was not refused`);
    };
    for (const options of record.refused) {
      await refused(JSON.stringify(options), () => ddlm.generateStreaming(model, translated(options)));
    }
    await refused('a text that is too long', () => model.logits(new Int32Array(41), 1));
    await refused('another mask', () => model.logits(new Int32Array(4), 1, new Uint8Array(3)));
    const blocks = await load('blocks');
    await refused('two blocks at once', () => blocks.logits(new Int32Array(5), 1));
    await refused('a block that is too long', () => blocks.after(new Int32Array(4)).logits(new Int32Array(5), 1));
    const ranges = {template: 'A_{2-3}'}, long = {template: 'A_{30-45}'}; // a bound has no more than a window
    for (const options of [{template: 'A_{3-2}'}, {template: 'A_{1-65}'}, {template: 'ÿ_{2-3}'}, {...ranges, levels: 0}, {...ranges, numSteps: 0}, long]) {
      for (const one of [model, blocks]) await refused(JSON.stringify(options), () => ddlm.generateStreaming(one, options));
    }
    const scores = await load('scores');
    await refused('lengths without a denoiser', () => ddlm.generateStreaming(scores, ranges));
    await refused('no template', () => ddlm.compareLengths(model, model.config.noise, []));
    await refused('a temperature below 0', () => ddlm.compareLengths(model, model.config.noise, [], {temperature: -1}));
    await refused('no text', () => last(ddlm.bitsPerCharacter(model, '')));
    await refused('no windows', () => last(ddlm.estimateBound(model, [])));
    await refused('one repeat', () => last(ddlm.estimateBound(model, [new Int32Array(4)], {repeats: 1})));
    await refused('a source of one window', () => last(ddlm.estimateBound(model, [new Int32Array(4)], {of: 'source'})));
    await refused('a model that is not there', () => load('elsewhere'));
    await refused('half a network', () => load('broken'));
  },

  async order(ddlm, record, load) {
    // Questions that do not wait for each other get their own answers.
    const model = await load(record.live[0].folder), texts = [3, 9, 40].map((n) => new Int32Array(n).fill(n));
    const alone = [];
    for (const text of texts) alone.push(await model.logits(text, 0.5));
    const together = await Promise.all(texts.map((text) => model.logits(text, 0.5)));
    together.forEach((found, i) => same('an answer', found, alone[i]));
  },

  async live(ddlm, record, load) {
    for (const {folder, runs} of record.live) {
      const model = await load(folder);
      for (const {options, steps, text} of runs) {
        const what = `${folder} ${JSON.stringify(options)}`;
        await compareSteps(what, ddlm.generateStreaming(model, translated(options)), steps, TOLERANCE);
        same(what, [await ddlm.generate(model, translated(options))], [text]);
      }
    }
  },

  async bound(ddlm, record, load) {
    for (const {folder, bounds, windows} of record.live) {
      const model = await load(folder), [rows, x0] = [windows.rows, windows.x0].map((all) => all.map((row) => Int32Array.from(row)));
      const nats = new Array(rows.length);
      for await (const found of ddlm.windowNats(model, rows, new ddlm.Generator(windows.seed))) nats[found.row] = found.nats;
      close(`${folder}: nats`, nats, windows.nats, 1e-3, 1e-4);
      for (const {nats, ...options} of windows.estimates) {
        const {estimate, perPosition} = await last(ddlm.estimateBound(model, x0, options));
        const what = `${folder}: ${JSON.stringify(options)}`;
        close(what, [estimate.mean, estimate.low, estimate.high], [nats.mean, nats.low, nats.high], 1e-3, 1e-4);
        const sum = perPosition.reduce((all, one) => one.reduce((a, b) => a + b, all), 0);
        close(`${what}: letters and their sum`, [sum / x0.length], [estimate.mean], 1e-9, 1e-9);
      }
      for (const {text, bits} of bounds) {
        const widths = [];
        let found;
        for await (found of ddlm.bitsPerCharacter(model, text)) widths.push(found.estimate.high - found.estimate.low);
        const {mean, low, high} = found.estimate;
        same('an interval at first', [widths[0] === Infinity, widths[30] < Infinity], [true, true]);
        if (!(widths.at(-1) < 0.7 * widths[30])) fail('the interval', 'width', widths.at(-1), widths[30]);
        close(`${folder}: bits of ${text}`, [mean, low, high], [bits.mean, bits.low, bits.high], 1e-4, 1e-4);
        same('all done', [found.done], [found.total]);
        const sum = found.perPosition.reduce((a, b) => a + b, 0);
        const tokens = ddlm.textTokens(text, model.config).filter((token) => token !== ddlm.PAD_ID);
        close('letters and their sum', [sum / tokens.length], [mean], 1e-9, 1e-9);
      }
    }
  },

  ranges(ddlm, record) {
    for (const {template, plain, error} of record.lengths.ranges) {
      let found, said;
      try {
        found = ddlm.expandLengths(template);
      } catch (problem) {
        if (!(problem instanceof ddlm.UserError)) throw problem;
        said = problem.message;
      }
      same(template, [said], [error]);
      if (plain) same(template, found, plain);
    }
    same('lengths', ddlm.lengthsOf('a _{2-3} _{4} _{8-9}').map(String), ['2,8', '2,9', '3,8', '3,9']);
  },

  columns(ddlm, record) {
    for (const {masks, columns} of record.lengths.columns) {
      const found = ddlm.alignedColumns(masks.map((mask) => Uint8Array.from(mask)));
      same('columns', [found.length], [columns.length]);
      found.forEach((column, n) => same(`columns of ${masks[n]}`, column, columns[n]));
    }
  },

  async nats(ddlm, record, load) {
    for (const [folder, {bounds}] of Object.entries(record.lengths.models)) {
      const model = await load(folder), {noise} = model.config;
      for (const {tokens, given, x0, mask, column, nats} of bounds) {
        const template = [Int32Array.from(tokens), Uint8Array.from(given)];
        const text = await ddlm.filled(model, noise, ...template, 7n, {numSteps: 3});
        same(`${folder}: filled`, text, x0);
        const places = [Uint8Array.from(mask), Int32Array.from(column)];
        const found = await ddlm.freeNats(model, noise, text, ...places, 5, 2n ** 62n + 1n);
        close(`${folder}: nats`, [found], [nats], 1e-3, 0);
      }
    }
  },

  async choices(ddlm, record, load) {
    for (const [folder, {choices}] of Object.entries(record.lengths.models)) {
      const model = await load(folder);
      for (const {templates, options, choice} of choices) {
        const given = templates.map(({tokens, mask}) => ({tokens: Int32Array.from(tokens), mask: Uint8Array.from(mask)}));
        const asked = [model, model.config.noise, given, {...options, seed: BigInt(options.seed)}];
        const found = await ddlm.chooseLength(...asked), what = `${folder}, seed ${options.seed}`;
        close(`${what}: weights`, found.logWeights, choice.log_weights, 1e-3, 0);
        close(`${what}: probabilities`, found.probabilities, choice.probabilities, 1e-3, 0);
        same(`${what}: choice`, [found.chosen, found.evaluations], [choice.chosen, choice.evaluations]);
        const items = [];
        for await (const item of ddlm.compareLengths(...asked)) items.push(item);
        const {total, count} = items[0];
        const counted = total ? Array.from({length: total + 1}, (_, i) => i).concat(total) : [0, 0];
        same(`${what}: evaluations`, items.map(({done}) => done), counted);
        same(`${what}: compared`, [...new Set(items.map(({compared}) => compared))], total ? [...given.keys(), count] : [0, 1]);
        same(`${what}: known`, items.map(({choice}) => Boolean(choice)), items.map((_, i) => i === items.length - 1));
      }
    }
  },

  async lengths(ddlm, record, load) {
    const seen = new Set();
    for (const [folder, {written}] of Object.entries(record.lengths.models)) {
      const model = await load(folder);
      for (const {options, steps, text} of written) {
        const asked = translated(options), what = `${folder} ${JSON.stringify(options)}`, found = [];
        for await (const step of ddlm.generateStreaming(model, asked)) found.push(step);
        same(`${what}: steps`, [found.length, found.at(-1).text], [steps.length, text]);
        found.forEach(({tokens}, i) => same(`${what}, step ${i}`, tokens, steps[i]));
        const {template, choice} = await last(ddlm.chooseTemplate(model, asked));
        same(what, [await ddlm.generate(model, {...asked, template})], [text]);
        seen.add(ddlm.expandLengths(asked.template).indexOf(template));
        same(`${what}: lengths`, [choice.probabilities.length], [ddlm.expandLengths(asked.template).length]);
      }
    }
    if (seen.size < 2) throw new Error('all texts have the first length');
    const model = await load('plain');
    same('one length', [await ddlm.generate(model, {template: 'A_{3-3}', numSteps: 2, seed: 0})],
      [await ddlm.generate(model, {template: 'A_{3}', numSteps: 2, seed: 0})]);
  },
};
