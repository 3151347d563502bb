// node verify-jwt.mjs <base address of the issuer> <file or address>...
//
// Checks credentials that are a JWT by jose, with the key that the header names: from /.well-known/jwks.json, and again from the
// DID document. Prints one line of JSON for each: {"jwks": {"verified", "error"?}, "did": {…}, "schema": {"valid", "errors"?}}

import { createRemoteJWKSet, decodeJwt, importJWK, jwtVerify } from 'jose';
import { checkSchema, newDocumentLoader, text } from './loader.mjs';

const [base, ...places] = process.argv.slice(2);
const issuer = `did:web:${encodeURIComponent(new URL(base).host)}`;
const options = { algorithms: ['ES256'], typ: 'vc+jwt', issuer, requiredClaims: ['iss', 'jti', 'nbf'] };

const fromKeySet = createRemoteJWKSet(new URL('/.well-known/jwks.json', base));
const documentLoader = newDocumentLoader();
const fromDid = async ({ kid }) => {
  const { document } = await documentLoader(kid);
  const { document: controller } = await documentLoader(issuer);
  if (!controller.assertionMethod.includes(kid)) throw new Error(`${kid} is not there to assert anything`);
  return importJWK(document.publicKeyJwk, 'ES256');
};

const check = async (token) => {
  const verify = async (key) => {
    try {
      await jwtVerify(token, key, options);
      return { verified: true };
    } catch (error) {
      return { verified: false, error: error.message };
    }
  };
  const result = { jwks: await verify(fromKeySet), did: await verify(fromDid) };
  return result.jwks.verified ? { ...result, schema: checkSchema(decodeJwt(token)) } : result;
};

for (const place of places) console.log(JSON.stringify(await check((await text(place, 'application/vc+jwt')).trim())));
