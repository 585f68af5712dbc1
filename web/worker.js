// Runs beside the page, so that it can scroll and answer while a network computes. See model.js.

import {Network} from './runtime.js';

/** @type {Network} */
let network;

addEventListener('message', async ({data: {id, call, args}}) => {
  try {
    if (call === 'load') {
      network = await Network.load(args[0], (progress) => postMessage({progress}));
      postMessage({id});
    } else {
      const result = await network.logits(args[0], args[1], args[2], args[3]);
      postMessage({id, result});
    }
  } catch (error) {
    const {name, message} = error instanceof Error ? error : {name: 'Error', message: String(error)};
    postMessage({id, error: {name, message}});
  }
});
