// Chapter 5 (ddlm_core.loss): score entropy. One text at a time: tables are (L, V), tokens (L).

/**
 * Each row of a table, minus the logarithm of the sum of its exponentials.
 * @param {ArrayLike<number>} table (L, V)
 * @param {number} vocabSize V
 * @returns {Float64Array}
 */
export function logSoftmax(table, vocabSize) {
  const found = Float64Array.from(table);
  for (let row = 0; row < found.length; row += vocabSize) {
    const values = found.subarray(row, row + vocabSize);
    let most = -Infinity, sum = 0;
    for (const value of values) most = Math.max(most, value);
    for (const value of values) sum += Math.exp(value - most);
    const norm = most + Math.log(sum);
    for (let y = 0; y < vocabSize; y++) values[y] -= norm;
  }
  return found;
}

/** @param {number} sigmaBar above 0 @param {number} vocabSize V @returns V / (exp(sigmaBar) - 1) */
export function kappa(sigmaBar, vocabSize) {
  return vocabSize / Math.expm1(sigmaBar);
}

/**
 * Denoising score entropy of each position, not yet times sigma(t).
 * @param {Float64Array} logScore (L, V)
 * @param {number} sigmaBar
 * @param {Int32Array} xT
 * @param {Int32Array} x0
 * @returns {Float64Array} (L), at least 0
 */
export function scoreEntropyLoss(logScore, sigmaBar, xT, x0) {
  const vocabSize = logScore.length / xT.length;
  const stay = 1 + kappa(sigmaBar, vocabSize);
  return Float64Array.from(xT, (now, i) => {
    const clean = x0[i], moved = now !== clean;
    const logA = moved ? 0 : -Math.log(stay); // the ratio of every y but x_0 and x_t
    let others = 0;
    for (let y = 0; y < vocabSize; y++) {
      if (y === now || y === clean) continue;
      const d = logScore[i * vocabSize + y] - logA;
      others += Math.expm1(d) - d;
    }
    const d = moved ? logScore[i * vocabSize + clean] - Math.log(stay) : 0;
    return (Math.exp(logA) * others + stay * (Math.expm1(d) - d)) / vocabSize;
  });
}

/**
 * From a distribution over the clean token to log-scores, exactly 0 at y = x_t.
 * @param {Float64Array} logQ (L, V)
 * @param {number} sigmaBar above 0
 * @param {Int32Array} xT
 * @returns {Float64Array} (L, V)
 */
export function denoiserLogScore(logQ, sigmaBar, xT) {
  const vocabSize = logQ.length / xT.length, scale = kappa(sigmaBar, vocabSize);
  const logS = logQ.map((value) => Math.log1p(scale * Math.exp(value)));
  xT.forEach((token, i) => {
    const own = logS[i * vocabSize + token];
    for (let y = 0; y < vocabSize; y++) logS[i * vocabSize + y] -= own;
  });
  return logS;
}

/**
 * log p(x_0 = y | x_t): q, times 1 + kappa at y = x_t, normalized (Bayes' rule).
 * @param {Float64Array} logQ (L, V)
 * @param {number} sigmaBar above 0
 * @param {Int32Array} xT
 * @returns {Float64Array} (L, V)
 */
export function logPosterior(logQ, sigmaBar, xT) {
  const vocabSize = logQ.length / xT.length, posterior = logQ.slice();
  const logStay = Math.log1p(kappa(sigmaBar, vocabSize));
  xT.forEach((token, i) => (posterior[i * vocabSize + token] += logStay));
  return logSoftmax(posterior, vocabSize);
}

/** @param {number} sigmaBar1 @param {number} vocabSize @returns KL(p(x_1 | x_0) || uniform), nats per character */
export function priorKl(sigmaBar1, vocabSize) {
  const kept = Math.exp(-sigmaBar1);
  /** @param {number} excess */
  const term = (excess) => (excess === -1 ? 0 : (1 + excess) * Math.log1p(excess)) / vocabSize;
  return Math.max(0, term((vocabSize - 1) * kept) + (vocabSize - 1) * term(-kept));
}
