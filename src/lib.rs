pub mod app;
pub mod cli;
pub mod engine;
pub mod kafka;
pub mod settings;
pub mod store;
