//! The three lanes of the commands: their order and their names, wherever lanes are told apart.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Which commands topic a command travels on. Order is kept within a stream and lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// Decided first.
    Priority,
    /// The lane of commands that name none.
    #[default]
    Normal,
    /// Decided last, never starved.
    Bulk,
}

impl Lane {
    /// By falling priority: the order of `TopicNames::lanes`.
    pub const ALL: [Self; 3] = [Self::Priority, Self::Normal, Self::Bulk];

    /// Place in [`Lane::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// Lower case, as requests, headers and metrics spell it.
    pub fn name(self) -> &'static str {
        ["priority", "normal", "bulk"][self.index()]
    }

    /// The lane of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|lane| lane.name() == name)
    }
}
