//! Bearer tokens: JWT signed by a key of a JWKS file, with an algorithm of an allow-list, and with
//! `exp`, `nbf`, `iss`, `aud` and `sub` all there and right.

use std::path::Path;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;

use super::file::Watched;
use super::{AuthError, Caller, Scope};

/// Accepted when the settings name no algorithm: signatures by a private key, never shared secrets.
const DEFAULT_ALGORITHMS: [Algorithm; 4] = [Algorithm::RS256, Algorithm::PS256, Algorithm::ES256, Algorithm::EdDSA];
const SUBJECT_BYTES_MAX: usize = 128;
/// Difference of clocks that is put up with.
const LEEWAY_SECONDS: u64 = 30;

/// What of a token is looked at.
#[derive(Debug, Deserialize)]
struct Claims {
    sub: String,
    /// OAuth 2: separated by spaces.
    #[serde(default)]
    scope: String,
}

/// The keys of one JWKS file and what their tokens must claim.
#[derive(Debug)]
pub(super) struct Tokens {
    keys: Watched<JwkSet>,
    validation: Validation,
}

impl Tokens {
    pub(super) fn open(path: &Path, settings: &super::AuthSettings) -> Result<Self, AuthError> {
        let error = |setting, reason: String| AuthError { setting, path: path.display().to_string(), reason };
        if settings.jwt_issuer.is_empty() || settings.jwt_audience.is_empty() {
            let reason = "tokens are accepted only with http.auth.jwt_issuer and http.auth.jwt_audience set".to_owned();
            return Err(error("http.auth.jwks_file", reason));
        }
        let mut algorithms = Vec::new();
        for name in &settings.jwt_algorithms {
            let unknown = |_| error("http.auth.jwt_algorithms", format!("{name} is no signature algorithm known here"));
            algorithms.push(Algorithm::from_str(name).map_err(unknown)?);
        }
        if algorithms.is_empty() {
            algorithms = DEFAULT_ALGORITHMS.to_vec();
        }
        let mut validation = Validation::new(algorithms[0]);
        validation.algorithms = algorithms;
        validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud", "sub"]);
        validation.set_issuer(&[&settings.jwt_issuer]);
        validation.set_audience(&[&settings.jwt_audience]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY_SECONDS;
        let parse = |text: &str| serde_json::from_str::<JwkSet>(text).map_err(|error| error.to_string());
        Ok(Self { keys: Watched::open("http.auth.jwks_file", path, parse)?, validation })
    }

    /// Whose token it is; none when it is not accepted.
    pub(super) fn check(&self, token: &str) -> Option<Caller> {
        match self.verify(token) {
            Ok(caller) => Some(caller),
            Err(reason) => {
                tracing::info!(reason, "a bearer token was not accepted");
                None
            }
        }
    }

    fn verify(&self, token: &str) -> Result<Caller, String> {
        let header = decode_header(token).map_err(|error| error.to_string())?;
        understood(token)?;
        if !self.validation.algorithms.contains(&header.alg) {
            return Err(format!("algorithm {:?} is not on the list", header.alg));
        }
        let keys = self.keys.current();
        let key = match &header.kid {
            Some(kid) => keys.find(kid).ok_or_else(|| "no key of that id".to_owned())?,
            None if keys.keys.len() == 1 => &keys.keys[0],
            None => return Err("the token names no key, and there are several".into()),
        };
        // A key that says what it is for is used for nothing else.
        if let Some(stated) = key.common.key_algorithm
            && Algorithm::from_str(&stated.to_string()).ok() != Some(header.alg)
        {
            return Err("the key is for another algorithm".into());
        }
        let decoding = DecodingKey::from_jwk(key).map_err(|error| error.to_string())?;
        let mut validation = self.validation.clone();
        validation.algorithms = vec![header.alg];
        let claims = decode::<Claims>(token, &decoding, &validation).map_err(|error| error.to_string())?.claims;
        let fits = !claims.sub.is_empty()
            && claims.sub.len() <= SUBJECT_BYTES_MAX
            && claims.sub.bytes().all(|byte| byte.is_ascii_graphic());
        if !fits {
            return Err(format!("sub must be 1 to {SUBJECT_BYTES_MAX} visible ASCII characters"));
        }
        let scopes = claims.scope.split_whitespace().filter_map(Scope::from_name).collect();
        Ok(Caller::known(format!("jwt:{}", claims.sub), scopes))
    }
}

/// RFC 7515, 4.1.11: a token that names extensions which must be understood is refused, for none is here.
/// So is one whose payload is not encoded (`b64`, RFC 7797). Keys that a token brings along or points to
/// (`jwk`, `jku`, `x5c`, `x5u`) are never looked at: ours are in the file.
fn understood(token: &str) -> Result<(), String> {
    let head = token.split('.').next().unwrap_or_default();
    let head = URL_SAFE_NO_PAD.decode(head).map_err(|error| error.to_string())?;
    let head: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&head).map_err(|error| error.to_string())?;
    match ["crit", "b64"].iter().find(|name| head.contains_key(**name)) {
        Some(name) => Err(format!("the header has `{name}`, and no extension is understood here")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::{Value, json};

    use super::super::file::tests::TestFile;
    use super::*;
    use crate::settings::AuthSettings;

    /// An Ed25519 key made for these tests (RFC 8037, appendix A).
    const PRIVATE_PKCS8: [u8; 48] = [
        0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20, 0x9d, 0x61,
        0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44, 0x49, 0xc5, 0x69,
        0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
    ];
    const PUBLIC_X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

    fn tokens(algorithms: &[&str]) -> Result<(Tokens, TestFile), AuthError> {
        let jwks = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "one", "x": PUBLIC_X}]});
        let file = TestFile::new(&jwks.to_string());
        let settings = AuthSettings {
            jwt_issuer: "https://issuer".into(),
            jwt_audience: "throughline".into(),
            jwt_algorithms: algorithms.iter().map(|name| (*name).to_owned()).collect(),
            ..AuthSettings::default()
        };
        Tokens::open(&file.0, &settings).map(|tokens| (tokens, file))
    }

    fn claims() -> Value {
        let now = jsonwebtoken::get_current_timestamp();
        json!({"sub": "alice", "iss": "https://issuer", "aud": "throughline", "exp": now + 600, "nbf": now - 600,
               "scope": "read commands:write other"})
    }

    fn signed(claims: &Value) -> String {
        let header = Header { kid: Some("one".into()), ..Header::new(Algorithm::EdDSA) };
        encode(&header, claims, &EncodingKey::from_ed_der(&PRIVATE_PKCS8)).unwrap()
    }

    #[test]
    fn a_right_token_tells_who_and_what_they_may() {
        let (tokens, _file) = tokens(&[]).unwrap();
        let caller = tokens.verify(&signed(&claims())).unwrap();
        assert_eq!(caller.principal.as_deref(), Some("jwt:alice"));
        assert!(caller.may(Scope::Read) && caller.may(Scope::CommandsWrite) && !caller.may(Scope::Admin));
    }

    #[test]
    fn every_claim_is_required_and_checked() {
        let (tokens, _file) = tokens(&["EdDSA"]).unwrap();
        let now = jsonwebtoken::get_current_timestamp();
        for claim in ["sub", "iss", "aud", "exp", "nbf"] {
            let mut claims = claims();
            claims.as_object_mut().unwrap().remove(claim);
            assert!(tokens.check(&signed(&claims)).is_none(), "without {claim}");
        }
        let wrong = [
            ("aud", json!("another")),
            ("aud", json!(7)),
            ("iss", json!("https://issuer.evil")),
            ("exp", json!(now - 600)),
            ("exp", json!("soon")),
            ("nbf", json!(now + 600)),
            ("nbf", json!("x")),
            ("sub", json!("")),
            ("sub", json!("a\nb")),
            ("sub", json!("x".repeat(129))),
        ];
        for (claim, value) in wrong {
            let mut claims = claims();
            claims[claim] = value.clone();
            assert!(tokens.check(&signed(&claims)).is_none(), "{claim} = {value}");
        }
    }

    #[test]
    fn what_must_be_understood_and_is_not_is_refused_and_other_oddities_change_nothing() {
        let (tokens, _file) = tokens(&["EdDSA"]).unwrap();
        // Signed over a header of any shape.
        let with = |header: &str| {
            let message = [header, &claims().to_string()].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
            let key = EncodingKey::from_ed_der(&PRIVATE_PKCS8);
            format!("{message}.{}", jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::EdDSA).unwrap())
        };
        let header = |more: &str| with(&format!(r#"{{"alg":"EdDSA","kid":"one"{more}}}"#));
        for refused in [
            r#","crit":["exp"]"#,
            r#","crit":["urn:example:unknown"],"urn:example:unknown":true"#,
            r#","crit":[]"#,
            r#","crit":"exp""#,
            r#","crit":null"#,
            r#","crit":["b64"],"b64":false"#,
            r#","b64":false"#,
            r#","b64":true"#,
        ] {
            assert!(tokens.check(&header(refused)).is_none(), "{refused}");
        }
        for ignored in [
            "",
            r#","typ":"at+jwt""#,
            r#","jku":"https://evil.example/keys","x5u":"https://evil.example/chain""#,
            r#","zip":"DEF""#,
            r#","unknown":{"crit":["x"]}"#,
        ] {
            assert!(tokens.check(&header(ignored)).is_some(), "{ignored}");
        }
        // A key that the token brings along does not become one of ours.
        let jwk = format!(r#","jwk":{{"kty":"OKP","crv":"Ed25519","x":"{PUBLIC_X}"}}"#);
        let own = with(&format!(r#"{{"alg":"EdDSA","kid":"two"{jwk}}}"#));
        assert!(tokens.check(&own).is_none());
    }

    #[test]
    fn signatures_and_algorithms_are_not_the_tokens_choice() {
        let (tokens, _file) = tokens(&["EdDSA"]).unwrap();
        let good = signed(&claims());
        let (message, signature) = good.rsplit_once('.').unwrap();
        let payload = message.split_once('.').unwrap().1;
        // {"alg":"none","typ":"JWT","kid":"one"}
        let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIiwia2lkIjoib25lIn0";
        for unsigned in
            [format!("{none}.{payload}."), format!("{none}.{payload}"), format!("{message}."), message.into()]
        {
            assert!(tokens.check(&unsigned).is_none(), "{unsigned}");
        }
        // The public key used as a shared secret.
        let header = Header { kid: Some("one".into()), ..Header::new(Algorithm::HS256) };
        let confused = encode(&header, &claims(), &EncodingKey::from_secret(PUBLIC_X.as_bytes())).unwrap();
        assert!(tokens.check(&confused).is_none());
        let (allowing, _file) = super::tests::tokens(&["HS256", "EdDSA"]).unwrap();
        assert!(allowing.check(&confused).is_none(), "a key is of one kind, whatever the list says");
        // Another payload under a good signature, and another key's id.
        let mut other = claims();
        other["sub"] = json!("mallory");
        let forged = signed(&other).rsplit_once('.').unwrap().0.to_owned() + "." + signature;
        assert!(tokens.check(&forged).is_none());
        let header = Header { kid: Some("two".into()), ..Header::new(Algorithm::EdDSA) };
        let unknown = encode(&header, &claims(), &EncodingKey::from_ed_der(&PRIVATE_PKCS8)).unwrap();
        assert!(tokens.check(&unknown).is_none());
        assert!(tokens.check("").is_none() && tokens.check("a.b.c").is_none());
    }

    #[test]
    fn an_algorithm_that_is_none_is_refused_at_start() {
        assert!(tokens(&["none"]).is_err());
        let file = TestFile::new(r#"{"keys":[]}"#);
        assert!(Tokens::open(&file.0, &AuthSettings::default()).is_err(), "issuer and audience are needed");
    }
}
