//! Whose fault an error of PostgreSQL is: the one rule by which a record may be given up.
//!
//! Only an error that names the data may be blamed on a record. Everything else is the world's: it is waited
//! out, for ever, and nobody is asked to restart anything. The list of what names the data is therefore closed,
//! and whatever is not on it is the world's; a list of what heals would always lack something. Knows no loop.

use std::error::Error as _;

use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::types::WrongType;

/// What an error speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The values at hand: the same record will fail tomorrow, on another server too.
    Data,
    /// The world, in how much was asked of it or in what that touches: less at a time may get through, and
    /// what fails alone stands alone. Never a reason to give a record up.
    Extent,
    /// The world as a whole: nothing gets through until it has healed.
    World,
}

/// Judges an error of the driver or the server.
///
/// # What names the data
/// | SQLSTATE | why |
/// |---|---|
/// | 09, 20, 21 | a trigger's action, a missing branch, a row that one statement would change twice |
/// | 10, 22 | out of range, too long, not a number, not a text (NUL), not JSON, not XML |
/// | 23 | NOT NULL, CHECK, UNIQUE, foreign key, exclusion; but see below |
/// | 27, 44 | a trigger or a view's check option refuses the change |
/// | 54 | too large for an index row, too deeply nested |
/// | P0 | a trigger's own `raise`, `assert`, or row that must be there |
/// | any that is not the world's, from `raise` | a trigger's code of its author's choice |
/// | none, and the driver could not put a value into a message | it never left |
/// | none, and a query for one row found none or several | the handler asked for it by the record's values |
///
/// # What does not, though it may look like it
/// - 23514 without a constraint, of `throughline.outbox` or `.commands`: no time partition, maintenance is late.
/// - 23505 and 23503 within `throughline`: in conflict with what another wrote, or with what is not there yet.
/// - 42: tables dropped, rights revoked, a migration under way, or a statement that is wrong for every record.
///   The wrong statement is [`Blame::Extent`], since it may depend on the record: its partition stands alone.
/// - 25006 after a failover, 0A000 and 26000 of plans and statements that a session no longer has, 28, 3D, 3F,
///   40, 53, 55, 57, 58, 72, XX, and all that has no SQLSTATE: nothing there is about a value.
/// - 57014, 55P03, 25P03: not within a time limit. A lock that is held, a slow disk, or simply too much at once.
pub fn blame(error: &tokio_postgres::Error) -> Blame {
    match error.as_db_error() {
        Some(db) => {
            let raised = db.routine() == Some("exec_stmt_raise");
            by_code(db.code().code(), raised, (db.schema(), db.table(), db.constraint()))
        }
        None => without_code(error),
    }
}

/// Classes that name the data.
const DATA: [&str; 10] = ["09", "10", "20", "21", "22", "23", "27", "44", "54", "P0"];
/// Classes that are the world's also where a trigger raises them.
const WORLD: [&str; 14] = ["08", "0A", "25", "26", "28", "3D", "3F", "40", "42", "53", "55", "57", "58", "XX"];
/// Of class 42, what the schema, the rights or a migration under way bring about.
const MISSING: [&str; 7] = ["42501", "42P01", "42703", "42883", "42704", "42P10", "42809"];
/// Not within a time limit, on a page that cannot be read, or behind an error that the handler kept to itself.
const EXTENT: [&str; 6] = ["57014", "55P03", "25P03", "25P02", "XX001", "XX002"];

fn by_code(code: &str, raised: bool, (schema, table, constraint): (Option<&str>, Option<&str>, Option<&str>)) -> Blame {
    let ours = schema == Some("throughline");
    let class = code.get(..2).unwrap_or_default();
    match (code, class) {
        ("23514", _) if lacks_partition(schema, table, constraint) => Blame::World,
        ("23505" | "23503", _) if ours => Blame::Extent,
        _ if EXTENT.contains(&code) => Blame::Extent,
        (_, "42") if !MISSING.contains(&code) => Blame::Extent,
        _ if DATA.contains(&class) || raised && !WORLD.contains(&class) => Blame::Data,
        _ => Blame::World,
    }
}

/// Whether a row of the store has a time for which there is no partition. A check that a row breaks has the same
/// code, and a name.
pub fn is_without_partition(error: &tokio_postgres::Error) -> bool {
    let without = |db: &DbError| {
        *db.code() == SqlState::CHECK_VIOLATION && lacks_partition(db.schema(), db.table(), db.constraint())
    };
    error.as_db_error().is_some_and(without)
}

fn lacks_partition(schema: Option<&str>, table: Option<&str>, constraint: Option<&str>) -> bool {
    schema == Some("throughline") && constraint.is_none() && matches!(table, Some("outbox" | "commands"))
}

/// The driver tells its kinds of errors apart in their text alone.
fn without_code(error: &tokio_postgres::Error) -> Blame {
    let text = error.to_string();
    let mistyped = error.source().is_some_and(|source| source.is::<WrongType>());
    // A column of another type than the program's is a matter of the schema.
    let unsent = text.starts_with("error serializing") && !mistyped;
    if unsent || text.starts_with("error encoding") || text.contains("unexpected number of rows") {
        return Blame::Data;
    }
    Blame::World
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(code: &str) -> Blame {
        by_code(code, false, (Some("read"), Some("balances"), None))
    }

    #[test]
    fn only_what_names_the_data_is_blamed_on_it() {
        for code in ["21000", "22001", "22003", "22P02", "22P05", "22021", "23502", "23503", "23505", "23514", "23P01"]
        {
            assert_eq!(judged(code), Blame::Data, "{code}");
        }
        for code in ["23000", "44000", "54000", "54001", "P0001", "P0002", "P0004", "20000", "27000"] {
            assert_eq!(judged(code), Blame::Data, "{code}");
        }
        for code in ["25006", "42501", "42P01", "42703", "42883", "0A000", "26000", "3F000", "3D000", "28P01", "28000"]
        {
            assert_eq!(judged(code), Blame::World, "{code}");
        }
        for code in ["53100", "53200", "53300", "55000", "55006", "57P01", "57P03", "57P05", "58030", "58P01", "XX000"]
        {
            assert_eq!(judged(code), Blame::World, "{code}");
        }
        for code in ["08006", "40001", "40P01", "25P01", "2BP01", "72000", "F0001", "HV000", "CR000", "ZZ999"] {
            assert_eq!(judged(code), Blame::World, "{code}");
        }
        for code in ["57014", "55P03", "25P03", "25P02", "42601", "42804", "XX001"] {
            assert_eq!(judged(code), Blame::Extent, "{code}");
        }
    }

    #[test]
    fn a_code_of_a_triggers_author_is_the_datas_and_a_strangers_is_not() {
        let raised = |code| by_code(code, true, (None, None, None));
        assert_eq!([raised("MYOWN"), raised("U0001"), raised("45000")], [Blame::Data; 3]);
        assert_eq!([raised("25006"), raised("53100")], [Blame::World; 2]);
        assert_eq!(judged("MYOWN"), Blame::World);
    }

    #[test]
    fn a_missing_time_partition_is_told_from_a_check() {
        let of = |table, constraint| by_code("23514", false, (Some("throughline"), Some(table), constraint));
        assert_eq!(of("outbox", None), Blame::World);
        assert_eq!(of("commands", None), Blame::World);
        assert_eq!(of("outbox", Some("outbox_value_check")), Blame::Data);
        assert_eq!(by_code("23514", false, (Some("read"), Some("outbox"), None)), Blame::Data);
    }

    #[test]
    fn a_conflict_within_the_store_is_nobodys_fault() {
        for code in ["23505", "23503"] {
            assert_eq!(by_code(code, false, (Some("throughline"), Some("events"), Some("a_key"))), Blame::Extent);
        }
        assert_eq!(by_code("23502", false, (Some("throughline"), Some("events"), None)), Blame::Data);
    }
}
