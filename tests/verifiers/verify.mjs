// node verify.mjs <file or address>...
//
// Checks credentials with a Data Integrity proof: the proof by @digitalbazaar/vc, the status by
// @digitalbazaar/vc-bitstring-status-list, the form by ajv with the JSON Schema of 1EdTech. Prints one line of JSON for each:
// {"proof": {"verified", "error"?}, "status": null or {"verified", "revoked"?, "error"?}, "schema": {"valid", "errors"?}}

import * as vc from '@digitalbazaar/vc';
import { checkStatus } from '@digitalbazaar/vc-bitstring-status-list';
import { DataIntegrityProof } from '@digitalbazaar/data-integrity';
import { cryptosuite } from '@digitalbazaar/eddsa-rdfc-2022-cryptosuite';
import { checkSchema, newDocumentLoader, text } from './loader.mjs';

// The library wraps errors in lists and in one another; the innermost one says what was wrong.
const reason = (error) => {
  const inner = error?.errors ?? error?.cause ?? (Array.isArray(error) ? error : null);
  const message = error?.message ?? (Array.isArray(error) ? '' : String(error));
  return [message, ...[inner ?? []].flat().map(reason)].filter(Boolean).join(': ');
};

const check = async (credential) => {
  const documentLoader = newDocumentLoader();
  // Each with a suite of its own: a suite keeps the hash of the document that it saw last.
  const suite = () => new DataIntegrityProof({ cryptosuite });
  // The library would stop at a proof that does not hold; here the status is told of beside it.
  const later = async () => ({ verified: true });
  const result = await vc.verifyCredential({ credential, suite: suite(), documentLoader, checkStatus: later });
  const proof = result.verified ? { verified: true } : { verified: false, error: reason(result.error) };
  let status = null;
  if (credential.credentialStatus) {
    const { verified, results, error } = await checkStatus({ credential, suite: suite(), documentLoader });
    // What the library calls verified is that the list can be trusted; the bit stands beside it.
    status = verified ? { verified, revoked: results.some((one) => one.status) } : { verified, error: reason(error) };
  }
  return { proof, status, schema: checkSchema(credential) };
};

for (const place of process.argv.slice(2)) {
  console.log(JSON.stringify(await check(JSON.parse(await text(place, 'application/vc')))));
}
