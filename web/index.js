// The chapters' tokenizer, corruption, sampler and bound once more, for web pages. See README.md.

export * from './absorbing.js';
export * from './blocks.js';
export * from './config.js';
export * from './errors.js';
export * from './evaluation.js';
export * from './forward.js';
export * from './graph.js';
export * from './lengths.js';
export * from './loss.js';
export * from './model.js';
export * from './noise.js';
export * from './pipeline.js';
export * from './random.js';
export * from './reverse.js';
export * from './sampler.js';
export * from './tokenizer.js';
