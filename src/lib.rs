pub mod crash;
pub mod engine;
pub mod kafka;
pub mod settings;
pub mod store;
