//! API keys: `tk_ID_SECRET`, kept as the SHA-256 of the secret, one a line: `ID HEX SCOPE,SCOPE`.
//!
//! Make one with `openssl rand -hex 32`, and its line's hash with `printf %s SECRET | sha256sum`.

use std::collections::HashMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::file::Watched;
use super::{AuthError, Caller, Scope};

/// Every key starts with it, so that leaked ones are found by scanners.
pub(super) const PREFIX: &str = "tk_";
const ID_BYTES_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    secret_sha256: [u8; 32],
    scopes: Vec<Scope>,
}

/// The keys of one file.
#[derive(Debug)]
pub(super) struct ApiKeys {
    keys: Watched<HashMap<String, Key>>,
}

impl ApiKeys {
    pub(super) fn open(path: &Path) -> Result<Self, AuthError> {
        Ok(Self { keys: Watched::open("http.auth.api_keys_file", path, parse)? })
    }

    /// Whose key it is; none when it is nobody's.
    pub(super) fn check(&self, credential: &str) -> Option<Caller> {
        let (id, secret) = credential.strip_prefix(PREFIX)?.split_once('_')?;
        let given: [u8; 32] = Sha256::digest(secret.as_bytes()).into();
        let keys = self.keys.current();
        let key = keys.get(id);
        // An unknown id is compared, too: the time taken tells nothing.
        let expected = key.map_or([0; 32], |key| key.secret_sha256);
        let equal = equal_in_constant_time(&given, &expected);
        key.filter(|_| equal).map(|key| Caller::known(format!("key:{id}"), key.scopes.clone()))
    }
}

/// The key in `base64(user:password)`, as stock clients of a registry send it: user = the key's id and
/// password = its secret, or the whole key as password of any user.
pub(super) fn of_basic(credential: &str) -> Option<String> {
    let decoded = STANDARD.decode(credential).ok()?;
    let (user, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some(if password.starts_with(PREFIX) { password.to_owned() } else { format!("{PREFIX}{user}_{password}") })
}

fn equal_in_constant_time(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let difference = a.iter().zip(b).fold(0u8, |seen, (a, b)| seen | (a ^ b));
    std::hint::black_box(difference) == 0
}

fn parse(text: &str) -> Result<HashMap<String, Key>, String> {
    let mut keys = HashMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // Never echoes the line: it may hold a secret by mistake.
        let (id, key) = parse_line(line).map_err(|reason| format!("line {}: {reason}", number + 1))?;
        if keys.insert(id.to_owned(), key).is_some() {
            return Err(format!("line {}: the id {id} is there twice", number + 1));
        }
    }
    Ok(keys)
}

fn parse_line(line: &str) -> Result<(&str, Key), String> {
    let mut fields = line.split_whitespace();
    let (Some(id), Some(hex), Some(scopes), None) = (fields.next(), fields.next(), fields.next(), fields.next()) else {
        return Err("must be `id sha256-hex scope,scope`".into());
    };
    if id.len() > ID_BYTES_MAX || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err(format!("an id is 1 to {ID_BYTES_MAX} letters, digits and hyphens"));
    }
    let mut secret_sha256 = [0u8; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return Err("the second field must be a SHA-256 in 64 hex digits".into());
    }
    for (byte, pair) in secret_sha256.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).map_err(|error| error.to_string())?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| "the second field must be hex digits".to_owned())?;
    }
    let scopes =
        scopes.split(',').map(|name| Scope::from_name(name).ok_or("the scopes are commands:write, read, admin"));
    Ok((id, Key { secret_sha256, scopes: scopes.collect::<Result<_, _>>()? }))
}

#[cfg(test)]
mod tests {
    use super::super::file::tests::TestFile;
    use super::*;

    fn line(id: &str, secret: &str, scopes: &str) -> String {
        let hex: String = Sha256::digest(secret.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{id} {hex} {scopes}\n")
    }

    #[test]
    fn a_key_is_its_owners_and_nobody_elses() {
        let file = TestFile::new(
            &(line("shop", "s_1", "commands:write,read") + "# comment\n\n" + &line("ops", "s2", "admin")),
        );
        let keys = ApiKeys::open(&file.0).unwrap();
        let shop = keys.check("tk_shop_s_1").unwrap();
        assert_eq!(shop.principal.as_deref(), Some("key:shop"));
        assert!(shop.may(Scope::CommandsWrite) && !shop.may(Scope::Admin));
        for wrong in ["tk_shop_s2", "tk_ops_s_1", "tk_nobody_s_1", "tk_shop_", "tk_shop", "shop_s_1", "tk__", ""] {
            assert!(keys.check(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_key_comes_as_user_and_password_in_two_ways() {
        let of = |text: &str| of_basic(&STANDARD.encode(text));
        assert_eq!(of("shop:s_1:x").as_deref(), Some("tk_shop_s_1:x"));
        assert_eq!(of("anybody:tk_shop_s_1").as_deref(), Some("tk_shop_s_1"));
        assert_eq!(of(":tk_shop_s_1").as_deref(), Some("tk_shop_s_1"));
        assert_eq!(of("no colon"), None);
        assert_eq!(of_basic(&STANDARD.encode(b"a:\xff")), None);
        assert_eq!(of_basic("!"), None);
        let file = TestFile::new(&line("shop", "s_1", "read"));
        let keys = ApiKeys::open(&file.0).unwrap();
        let may = |text: &str| of(text).is_some_and(|key| keys.check(&key).is_some());
        assert!(may("shop:s_1") && may("x:tk_shop_s_1"));
        assert!(!may("shop:s") && !may(":s_1") && !may("shop:") && !may("shop:tk_shop_s"));
    }

    #[test]
    fn a_key_is_rotated_by_editing_the_file() {
        let file = TestFile::new(&line("shop", "old", "read"));
        let keys = ApiKeys::open(&file.0).unwrap();
        assert!(keys.check("tk_shop_old").is_some());
        file.replace(&line("shop", "new", "read"));
        keys.keys.current_within(std::time::Duration::ZERO);
        assert!(keys.check("tk_shop_old").is_none());
        assert!(keys.check("tk_shop_new").is_some());
    }

    #[test]
    fn a_bad_line_is_named_and_never_echoed() {
        for bad in [
            "shop secretsecret read",
            "shop",
            &line("a b", "x", "read"),
            &line("a", "x", "write"),
            &line("a_b", "x", "read"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.starts_with("line 1:") && !error.contains("secretsecret"), "{error}");
        }
        assert!(parse(&(line("a", "x", "read") + &line("a", "y", "read"))).is_err());
    }
}
