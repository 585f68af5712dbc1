// Chapter 3 (ddlm_core.noise): how much noise there is at which time.

import {UserError} from './errors.js';

/**
 * What a noise schedule offers.
 * @typedef {object} NoiseSchedule
 * @property {number} sigmaMin total noise at t = 0
 * @property {number} sigmaMax total noise at t = 1; may be infinite
 * @property {(t: number) => number} sigmaBar total noise at time t
 * @property {(t: number) => number} sigma its derivative, the noise rate
 * @property {(sigmaBar: number) => number} time the inverse of sigmaBar
 */

/** @param {number} sigmaBar @returns probability that a character was resampled: 1 - exp(-sigmaBar) */
export function resampleProbability(sigmaBar) {
  return -Math.expm1(-sigmaBar);
}

/** The geometric schedule of SEDD: equal factors in equal times. @implements {NoiseSchedule} */
export class GeometricNoise {
  constructor(sigmaMin = 1e-4, sigmaMax = 20) {
    if (!(0 < sigmaMin && sigmaMin < sigmaMax && sigmaMax < Infinity)) {
      throw new UserError(`noise limits must satisfy 0 < ${sigmaMin} < ${sigmaMax} < Infinity`);
    }
    this.sigmaMin = sigmaMin;
    this.sigmaMax = sigmaMax;
    this.logGrowth = Math.log(sigmaMax) - Math.log(sigmaMin);
  }

  /** @param {number} t */
  sigmaBar(t) {
    return this.sigmaMin ** (1 - t) * this.sigmaMax ** t;
  }

  /** @param {number} t */
  sigma(t) {
    return this.sigmaBar(t) * this.logGrowth;
  }

  /** @param {number} sigmaBar */
  time(sigmaBar) {
    return (Math.log(sigmaBar) - Math.log(this.sigmaMin)) / this.logGrowth;
  }
}
