//! `redeemer schema`: prints the contract. The JSON Schemas of command and events are generated from the types that read
//! and write them, the AsyncAPI document from the topology. `docs/contract` holds its output for the default
//! configuration; a test compares them.

pub mod asyncapi;
mod coupon_page;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde_json::Value;

use self::coupon_page::Language;
use crate::cli::files::{PUBLIC, write_file};
use crate::cli::{Failure, print};
use crate::config::Config;
use crate::policy::file_name::Typed;
use crate::wire::schema::{self, Dialect};

/// Arguments of `schema`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The document to print.
    #[arg(value_enum, required_unless_present = "write", conflicts_with = "write")]
    document: Option<Document>,
    /// Write every document to a file in this folder instead.
    #[arg(long, value_name = "FOLDER")]
    write: Option<PathBuf>,
}

/// One document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Document {
    /// JSON Schema of a command, in either spelling.
    Command,
    /// JSON Schema of a result event.
    Event,
    /// JSON Schema of an audit event: what an operator did with a parked command.
    Audit,
    /// JSON Schema of an audit event of the operator console: logins, logouts and refused logins.
    Console,
    /// AsyncAPI 3 document of exchanges, queues, operations and messages, under the configured names.
    Asyncapi,
    /// A page about the coupon in a result event.
    Coupon,
    /// The same page in Chinese.
    #[value(name = "coupon-zh-CN")]
    CouponChinese,
}

impl Document {
    /// The name of its file.
    pub fn file(self) -> &'static str {
        match self {
            Self::Command => "command.schema.json",
            Self::Event => "event.schema.json",
            Self::Audit => "audit.schema.json",
            Self::Console => "console.schema.json",
            Self::Asyncapi => "asyncapi.json",
            Self::Coupon => "coupon.md",
            Self::CouponChinese => "coupon.zh-CN.md",
        }
    }

    /// Its text, which ends with a line feed.
    ///
    /// # Errors
    /// None in practice: JSON values can be written.
    pub fn text(self, config: &Config) -> anyhow::Result<String> {
        let value: Value = match self {
            Self::Command => schema::command(Dialect::Draft2020),
            Self::Event => schema::event(Dialect::Draft2020),
            Self::Audit => schema::audit(Dialect::Draft2020),
            Self::Console => schema::console(Dialect::Draft2020),
            Self::Asyncapi => asyncapi::document(&config.topology())?,
            Self::Coupon => return Ok(coupon_page::page(Language::English)),
            Self::CouponChinese => return Ok(coupon_page::page(Language::Chinese)),
        };
        Ok(serde_json::to_string_pretty(&value).context("no JSON")? + "\n")
    }
}

/// Prints one document or writes them all.
///
/// # Errors
/// If the folder cannot be written to, or the reader of the output has closed it.
pub fn run(arguments: &Arguments, config: &Config) -> Result<(), Failure> {
    if let Some(document) = arguments.document {
        return Ok(print(document.text(config)?.trim_end())?);
    }
    let folder = arguments.write.clone().unwrap_or_default();
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", Typed(&folder)))?;
    for document in Document::value_variants() {
        let path = folder.join(document.file());
        write_file(&path, PUBLIC, document.text(config)?.as_bytes())
            .with_context(|| format!("cannot write {}", Typed(&path)))?;
        print(&Typed(&path).to_string())?;
    }
    Ok(())
}
