//! `tonnage audit`

use crate::Status;
use crate::jobs::read_text;
use crate::output::Output;
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};
use tonnage_core::{Diagnostic, Job, import};
use tonnage_plan::audit::{self, Bindings, text};
use tonnage_report::json;

/// `tonnage audit`
#[derive(Args, Debug)]
pub struct AuditArgs {
    /// A Markdown document, README or model card; or a JSON file of claims
    pub file: PathBuf,
    /// What the document's names and settings mean (default: FILE with .audit.toml in place of its extension, where it exists)
    #[arg(long, value_name = "FILE")]
    pub bindings: Option<PathBuf>,
    /// List the claims that were found, without judging them
    #[arg(long)]
    pub claims: bool,
    #[arg(long, value_enum, default_value_t = AuditFormat::Text)]
    pub format: AuditFormat,
}

/// `--format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AuditFormat {
    Text,
    Json,
    Md,
}

pub fn run(a: &AuditArgs, out: &Output) -> Status {
    match audited(a) {
        Ok(audit) => {
            out.print(&match a.format {
                AuditFormat::Text => text::text(&audit, &out.style),
                AuditFormat::Json => json::pretty(&audit),
                AuditFormat::Md => text::markdown(&audit, &out.style),
            });
            if audit.fails() {
                Status::DoesNotFit
            } else {
                Status::Ok
            }
        }
        Err(bad) => {
            out.complain(&bad);
            Status::BadInput
        }
    }
}

fn audited(a: &AuditArgs) -> Result<audit::Audit, Vec<Diagnostic>> {
    let document = read_text(&a.file)?;
    let beside = a.file.with_extension("audit.toml");
    let path = a
        .bindings
        .clone()
        .or_else(|| Some(beside).filter(|p| p.exists()));
    let bindings = match &path {
        Some(p) => {
            Bindings::parse(&p.display().to_string(), &read_text(p)?).map_err(|d| vec![d])?
        }
        None => Bindings::default(),
    };
    let folder = path
        .as_deref()
        .and_then(Path::parent)
        .map(Path::to_path_buf);
    let open = |name: &str| -> Result<Job, Vec<Diagnostic>> {
        let p = folder
            .as_ref()
            .map_or_else(|| name.into(), |f| f.join(name));
        import::read(&p.display().to_string(), &read_text(&p)?)
    };
    let file = a.file.display().to_string();
    if a.claims {
        let rows = audit::list(&file, &document, &bindings).map_err(|d| vec![d])?;
        return Ok(rows);
    }
    audit::audit(&file, &document, &bindings, &open).map_err(|d| vec![d])
}
