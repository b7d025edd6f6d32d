//! How many connections each port may hold, out of the files that this process may open.
//!
//! The operating system's limit is the authority. What Kafka and PostgreSQL need, and what the admin port
//! needs, is kept back from the API's share: whoever fills the API cannot make the process blind or mute.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::settings::HttpSettings;

/// Connections of each port, at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shares {
    /// Files that the process may open.
    pub(super) limit: usize,
    pub(super) api: usize,
    pub(super) admin: usize,
}

/// The shares of this process, with its soft limit raised to the hard one.
pub(super) fn of_process(settings: &HttpSettings) -> Shares {
    shares(raised(), settings)
}

/// The limit that holds from now on. A limit that cannot be read or raised is taken as it is.
fn raised() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return usize::MAX };
    let limit = if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// What the settings say, where the limit allows it. Under a low one each claim shrinks with it: three of four
/// files stay with Kafka and PostgreSQL, and the admin port keeps a sixteenth.
fn shares(limit: usize, settings: &HttpSettings) -> Shares {
    let kept = settings.descriptors_reserved.min(limit / 4 * 3);
    let admin = settings.admin_connections_max.min((limit / 16).max(4));
    let api = settings.connections_max.min(limit.saturating_sub(kept + admin).max(1));
    Shares { limit, api, admin }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_hold_where_the_limit_allows_and_shrink_with_it_where_not() {
        let settings = HttpSettings::default();
        let of = |limit| {
            let Shares { api, admin, .. } = shares(limit, &settings);
            (api, admin)
        };
        assert_eq!(of(1 << 20), (settings.connections_max, settings.admin_connections_max));
        assert_eq!(of(usize::MAX), (settings.connections_max, settings.admin_connections_max));
        assert_eq!(of(1_024), (1_024 - 768 - 64, 64));
        assert_eq!(of(256), (256 - 192 - 16, 16));
        assert_eq!(of(16), (1, 4));
    }

    #[test]
    fn the_shares_and_the_reserve_never_exceed_the_limit() {
        let settings = HttpSettings::default();
        for limit in (16..70_000).step_by(7) {
            let Shares { api, admin, .. } = shares(limit, &settings);
            let kept = settings.descriptors_reserved.min(limit / 4 * 3);
            assert!(api >= 1 && admin >= 1 && api + admin + kept <= limit + 1, "{limit}: {api} {admin} {kept}");
        }
    }
}
