// What ddlm_core.support.errors and ddlm_core.support.checks are to Python.

/** Raised on purpose, for a person to read: one line that says what was wrong and what to do. */
export class UserError extends Error {
  /** @param {string} message */
  constructor(message) {
    super(message);
    this.name = 'UserError';
  }
}

/**
 * Raise a UserError that names a value out of limits, or not whole if `whole` is true.
 * @param {number} least
 * @param {number} most
 * @param {Record<string, unknown>} values
 * @param {boolean} whole
 */
export function checkRange(least, most, values, whole = true) {
  for (const [name, value] of Object.entries(values)) {
    const number = typeof value === 'bigint' ? Number(value) : value;
    const fits = typeof number === 'number' && (!whole || Number.isInteger(number));
    if (fits && least <= number && number <= most) continue;
    const what = whole ? 'a whole number' : 'a number';
    throw new UserError(`${name} must be ${what} from ${least} to ${most}, got ${value}`);
  }
}

/**
 * Raise a UserError that names a value which is none of the choices.
 * @param {readonly string[]} choices
 * @param {Record<string, unknown>} values
 */
export function checkChoice(choices, values) {
  for (const [name, value] of Object.entries(values)) {
    if (typeof value === 'string' && choices.includes(value)) continue;
    throw new UserError(`${name} must be one of ${choices.join(', ')}, got ${value}`);
  }
}
