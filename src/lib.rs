pub mod app;
pub mod cli;
pub mod engine;
pub mod settings;
