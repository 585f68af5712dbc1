// node run.mjs LIBRARY RUNTIME FOLDER [CHECK…]: prints {check: 'ok' or what is wrong} as JSON. FOLDER holds
// record.json and exported models.

import {createReadStream, existsSync, readFileSync} from 'node:fs';
import {Readable} from 'node:stream';
import {pathToFileURL} from 'node:url';

const [library, runtime, folder, ...names] = process.argv.slice(2).map((path, i) => (i < 3 ? pathToFileURL(path) : path));

// What a server does for a page. Node's own fetch reads no files.
globalThis.fetch = async (url) => {
  const path = new URL(url);
  path.search = '';
  if (!existsSync(path)) return new Response(null, {status: 404});
  return new Response(Readable.toWeb(createReadStream(path)));
};

const {checks} = await import('./checks.js');
const ddlm = await import(new URL('index.js', library).href);
const record = JSON.parse(readFileSync(new URL('record.json', folder)));
const models = {};
const fresh = (name) => ddlm.loadModel(new URL(`${name}/`, folder), {runtime: new URL(runtime), worker: false});
const load = (name, again = false) => (again ? fresh(name) : (models[name] ??= fresh(name)));
const said = {};
for (const name of names.length ? names : Object.keys(checks)) {
  try {
    await checks[name](ddlm, record, load);
    said[name] = 'ok';
  } catch (error) {
    said[name] = error.stack;
  }
}
console.log(JSON.stringify(said));
