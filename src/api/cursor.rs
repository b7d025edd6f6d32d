//! Opaque cursors: where a page ended, and of which list. Stable under inserts, unlike an offset.

use sha2::{Digest, Sha256};

use super::problem::{INVALID_REQUEST, Problem};

/// Longest cursor that is looked at, bytes.
const BYTES_MAX: usize = 1_024;
const CHECK_BYTES: usize = 4;

/// Writes `fields` as a cursor of `list`, a text that names the list with its filters and order.
pub fn encode(list: &str, fields: &[String]) -> String {
    let mut bytes = check(list, fields).to_vec();
    bytes.extend_from_slice(fields.join("\n").as_bytes());
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads a cursor of the same list back.
///
/// # Errors
/// A 400: it is none of ours, or belongs to a list with other filters or another order.
pub fn decode(list: &str, cursor: &str) -> Result<Vec<String>, Problem> {
    let invalid = || Problem::new(INVALID_REQUEST, "cursor: must be the nextCursor of a page of this very list");
    if cursor.len() > BYTES_MAX || !cursor.len().is_multiple_of(2) || !cursor.is_ascii() {
        return Err(invalid());
    }
    let byte = |at: usize| u8::from_str_radix(&cursor[at..at + 2], 16).ok();
    let bytes: Option<Vec<u8>> = (0..cursor.len()).step_by(2).map(byte).collect();
    let bytes = bytes.filter(|bytes| bytes.len() > CHECK_BYTES).ok_or_else(invalid)?;
    let text = std::str::from_utf8(&bytes[CHECK_BYTES..]).map_err(|_| invalid())?;
    let fields: Vec<String> = text.split('\n').map(str::to_owned).collect();
    // Whoever reads this can make the check up: what the fields hold is for the list to judge.
    if check(list, &fields) != bytes[..CHECK_BYTES] || encode(list, &fields) != cursor {
        return Err(invalid());
    }
    Ok(fields)
}

fn check(list: &str, fields: &[String]) -> [u8; CHECK_BYTES] {
    let digest = Sha256::digest(format!("{list}\n\n{}", fields.join("\n")));
    [digest[0], digest[1], digest[2], digest[3]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_back_by_its_own_list_only() {
        let fields = ["2026-01-01T00:00:00Z".to_owned(), "x".to_owned()];
        let cursor = encode("carts/paid", &fields);
        assert_eq!(decode("carts/paid", &cursor).unwrap(), fields);
        assert!(decode("carts/placed", &cursor).is_err());
    }

    #[test]
    fn nonsense_is_no_cursor() {
        let good = encode("l", &["a".into()]);
        let mut changed = good.clone();
        changed.replace_range(good.len() - 1.., if good.ends_with('0') { "1" } else { "0" });
        let signed = format!("+{}", &encode("l", &["\u{1}".into()])[1..]);
        let upper = encode("l", &["z".into()]).to_uppercase();
        for bad in ["", "zz", "0", "00000000", "é", &changed, &signed, &upper, &"00".repeat(600)] {
            assert_eq!(decode("l", bad).unwrap_err().status().as_u16(), 400, "{bad}");
        }
    }
}
