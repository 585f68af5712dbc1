// The random numbers of PyTorch on a CPU, so that a seed means the same here and there.

const N = 624, M = 397;

/** `torch.Generator` on the CPU: the Mersenne Twister MT19937 (Matsumoto & Nishimura 1998). */
export class Generator {
  /** @param {number | bigint} seed whole; its lowest 32 bits count, as in `manual_seed` */
  constructor(seed) {
    this.state = new Uint32Array(N);
    this.next = N;
    let word = Number(BigInt.asUintN(32, BigInt(seed)));
    for (let i = 0; i < N; i++) {
      if (i > 0) word = (Math.imul(1812433253, word ^ (word >>> 30)) + i) >>> 0;
      this.state[i] = word;
    }
  }

  /** The next 32 random bits, as a whole number. */
  random() {
    const s = this.state;
    if (this.next === N) {
      for (let i = 0; i < N; i++) {
        const y = (s[i] & 0x80000000) | (s[(i + 1) % N] & 0x7fffffff);
        s[i] = s[(i + M) % N] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      this.next = 0;
    }
    let y = s[this.next++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    y ^= y >>> 18;
    return y >>> 0;
  }

  /**
   * `torch.rand(count)`: float32 in [0, 1), of 24 random bits each.
   * @param {number} count
   */
  rand(count) {
    return Float32Array.from({length: count}, () => (this.random() & 0xffffff) * 2 ** -24);
  }

  /**
   * `torch.rand(count, dtype=torch.float64)`: in [0, 1), of 53 random bits each.
   * @param {number} count
   */
  randDouble(count) {
    return Float64Array.from({length: count}, () => {
      const high = this.random() & 0x1fffff; // of the first 32 bits, 21 are used
      return (high * 2 ** 32 + this.random()) * 2 ** -53;
    });
  }

  /**
   * `torch.randint(high, (count,))`: whole numbers from 0 to high - 1, for a high below 2^28.
   * @param {number} high
   * @param {number} count
   */
  randint(high, count) {
    return Int32Array.from({length: count}, () => this.random() % high);
  }

  /**
   * `probs.multinomial(1)`, for probabilities in float64: the number of one of them.
   * @param {ArrayLike<number>} probs
   */
  multinomial(probs) {
    const waits = this.randDouble(probs.length).map((u) => -Math.log1p(-u)); // the first of several to happen
    const rates = Array.from(probs, (p, i) => p / waits[i]);
    return rates.reduce((best, rate, i) => (rate > rates[best] ? i : best), 0);
  }

  /**
   * `torch.randperm(n)`: the numbers below n, shuffled.
   * @param {number} n
   */
  randperm(n) {
    const found = Int32Array.from({length: n}, (_, i) => i);
    for (let i = 0; i < n - 1; i++) {
      const other = i + (this.random() % (n - i));
      [found[i], found[other]] = [found[other], found[i]];
    }
    return found;
  }
}

/** @param {number | bigint} value at least 0 @returns {number[]} its words of 32 bits, the lowest first */
function wordsOf(value) {
  const words = [];
  for (let rest = BigInt(value); rest > 0n; rest >>= 32n) words.push(Number(rest & 0xffffffffn));
  return words.length ? words : [0];
}

/**
 * `numpy.random.SeedSequence(entropy).generate_state(count)`.
 * @param {number[]} words of the entropy, 32 bits each
 * @param {number} count
 * @returns {number[]} 32 bits each
 */
function generateState(words, count) {
  let constant = 0x43b0d7e5;
  /** @param {number} value */
  const hash = (value) => {
    value ^= constant;
    constant = Math.imul(constant, 0x931e8875);
    value = Math.imul(value, constant);
    return value ^ (value >>> 16);
  };
  /** @param {number} x @param {number} y */
  const mix = (x, y) => {
    const mixed = Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y);
    return mixed ^ (mixed >>> 16);
  };
  const pool = [0, 1, 2, 3].map((i) => hash(words[i] ?? 0));
  for (let from = 0; from < 4; from++) {
    for (let to = 0; to < 4; to++) if (from !== to) pool[to] = mix(pool[to], hash(pool[from]));
  }
  for (const word of words.slice(4)) {
    for (let to = 0; to < 4; to++) pool[to] = mix(pool[to], hash(word));
  }
  constant = 0x8b51f9dd;
  return Array.from({length: count}, (_, i) => {
    let found = pool[i % 4] ^ constant;
    constant = Math.imul(constant, 0x58f38ded);
    found = Math.imul(found, constant);
    return (found ^ (found >>> 16)) >>> 0;
  });
}

/**
 * `numpy.random.SeedSequence(seed).generate_state(1)[0]`: 32 bits that even seeds side by side do not share.
 * @param {number | bigint} seed at least 0
 */
export function seedState(seed) {
  return generateState(wordsOf(seed), 1)[0];
}

/**
 * A seed for one purpose of a run, from 0 to 2^63 - 1 (ddlm_core.support.seeds): no two share random numbers.
 * @param {number | bigint} seed at least 0
 * @param {string} purpose
 * @param {...(number | bigint)} numbers
 */
export function deriveSeed(seed, purpose, ...numbers) {
  const bytes = new TextEncoder().encode(purpose);
  const name = bytes.reduce((sum, byte) => (sum << 8n) | BigInt(byte), 0n);
  const [low, high] = generateState([seed, name, ...numbers].flatMap(wordsOf), 2);
  return ((BigInt(high) << 32n) | BigInt(low)) >> 1n;
}
