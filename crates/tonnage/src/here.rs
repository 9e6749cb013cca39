//! The card of this machine, as it is now: the verdict's card where none is named (`--gpu auto` asks for it by name).

use tonnage_catalog::{Gpu, Gpus};
use tonnage_core::Diagnostic;
use tonnage_core::verdict::Present;
use tonnage_host::device::{DeviceReading, Readers, System};

/// The word that asks for it.
pub const AUTO: &str = "auto";

/// The row of the catalog for a device by its driver's name; of several, the one of its size.
pub fn row(d: &DeviceReading, gpus: &Gpus) -> Result<Gpu, String> {
    use tonnage_catalog::LookupError::Ambiguous;
    match gpus.find(&d.name) {
        Ok(g) => Ok(g),
        Err(Ambiguous { candidates, .. }) if d.memory.is_some() => {
            let total = d.memory.map_or(0, |m| m.total);
            let near = |g: &Gpu| {
                g.memory_mib_reported
                    .map_or(u64::MAX, |m| (m.get() << 20).abs_diff(total))
            };
            candidates
                .iter()
                .filter_map(|c| gpus.find(c).ok())
                .min_by_key(near)
                .filter(|g| near(g) < total / 20)
                .ok_or_else(|| format!("{}: no card of its size is in the catalog", d.name))
        }
        Err(e) => Err(e.to_string()),
    }
}

/// The device that CUDA would take first.
fn first(all: &[DeviceReading]) -> Option<&DeviceReading> {
    let wanted = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let named = wanted.as_deref().and_then(|w| w.split(',').next());
    match named.map(str::trim).filter(|n| !n.is_empty()) {
        Some(n) => all
            .iter()
            .find(|d| n.parse() == Ok(d.index) || d.key.starts_with(n)),
        None => all.first(),
    }
}

/// The card that is here. `None`: there is none, or `tonnage` may not look (TONNAGE_NO_DEVICE).
///
/// # Errors
/// There is one that cannot answer, in words.
pub fn present(gpus: &Gpus) -> Result<Option<Present>, String> {
    if std::env::var_os("TONNAGE_NO_DEVICE").is_some_and(|v| !v.is_empty()) {
        return Ok(None);
    }
    let Ok(all) = Readers::local(&System::default()).and_then(|mut r| r.read()) else {
        return Ok(None);
    };
    let Some(d) = first(&all) else {
        return Ok(None);
    };
    let Some(m) = d.memory else {
        return Err(format!(
            "GPU {} ({}) does not say what memory it has: {}",
            d.index,
            d.name,
            d.troubles.join("; ")
        ));
    };
    let g = row(d, gpus)?;
    Ok(Some(Present {
        gpu: g.id,
        usable: m.usable(),
        free: m.free,
    }))
}

/// `auto` where a card is here.
pub fn default_name(gpus: &Gpus) -> Option<&'static str> {
    matches!(present(gpus), Ok(Some(_))).then_some(AUTO)
}

/// What `--gpu` means: a name is that card, idle; `auto`, or nothing, is the card that is here.
///
/// # Errors
/// `auto` where there is no card to speak of.
pub fn asked(
    given: Option<&str>,
    gpus: &Gpus,
) -> Result<(Option<String>, Option<Present>), Diagnostic> {
    let unavailable = |e: String| Diagnostic::error("unavailable", e);
    match given {
        Some(AUTO) => match present(gpus) {
            Ok(Some(p)) => Ok((None, Some(p))),
            Ok(None) => Err(unavailable(
                "--gpu auto: no GPU that can be read is in this machine".into(),
            )
            .help("tonnage gpus lists the cards that can be named")),
            Err(e) => Err(unavailable(format!("--gpu auto: {e}"))),
        },
        Some(name) => Ok((Some(name.into()), None)),
        // what cannot be read is no reason to refuse a question that did not ask for it
        None => Ok((None, present(gpus).unwrap_or(None))),
    }
}
