// Blanks of unknown length in the mode "sample": what a reader sees while their lengths are compared (chapter 11).

import {expandLengths, lengthsOf} from '../lengths.js';
import {chooseTemplate, templateCharacters} from '../pipeline.js';

/** @import {DdlmLive} from './element.js' */
/** @import {Model} from '../model.js' */
/** @import {SamplingOptions, TextOptions} from '../pipeline.js' */

/**
 * Compare the lengths that a template with ranges allows, and say how far that is.
 * @param {DdlmLive} live
 * @param {Model} model
 * @param {SamplingOptions & TextOptions & {template: string}} options
 * @param {() => boolean} isCurrent
 * @returns {Promise<{template: string, said: string} | null>} what to fill, and why; null if this was stopped
 */
export async function choose(live, model, options, isCurrent) {
  const templates = expandLengths(options.template), count = templates.length, start = performance.now();
  const sizes = templates.map((template) => templateCharacters(template).length);
  const what = `${count} lengths, ${Math.min(...sizes)} to ${Math.max(...sizes)} characters`;
  let told = -1;
  for await (const {compared, done, total, choice, template} of chooseTemplate(model, options)) {
    if (!isCurrent()) return null;
    if (choice && template !== null) {
      const names = lengthsOf(options.template).map((lengths) => lengths.join(' + '));
      return {template, said: likeliest(names, choice.probabilities, templates.indexOf(template))};
    }
    if (compared === told) continue; // a screen reader reads each of these
    told = compared;
    const rest = ((performance.now() - start) / done) * (total - done);
    const time = compared ? `about ${Math.ceil(rest / 1000)} s more` : `${total} evaluations of the network`;
    live.say(`Comparing ${what}: ${compared} of ${count}, ${time}…`);
  }
  return null;
}

/**
 * Which lengths were compared, the likeliest of them, and the one that was drawn.
 * @param {string[]} names of all lengths
 * @param {Float64Array} probabilities
 * @param {number} taken
 */
function likeliest(names, probabilities, taken) {
  const order = names.map((_, i) => i).sort((a, b) => probabilities[b] - probabilities[a]);
  const shown = order.slice(0, 3).filter((i, rank) => rank === 0 || probabilities[i] >= 0.005);
  const shares = shown.map((i) => `${names[i]} with ${probabilities[i].toFixed(2)}`).join(', ');
  return `Lengths ${names[0]} to ${names.at(-1)}: ${shares}. This text takes ${names[taken]}.`;
}
