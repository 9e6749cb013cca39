//! Cards and their memory against the document's own needs.

use super::super::claim::{Claim, Phase, Role, What};
use super::super::judge::{Row, card_id};
use super::{Finding, NEAR, document, ends, finding, is_total};
use std::collections::BTreeMap;

/// Cards: memory as printed, minimum above recommended, smaller than the need, said to be good and tight.
pub(super) fn cards(rows: &[Row], out: &mut Vec<Finding>) {
    let named = |r: &&Row| matches!(r.claim.what, What::Card(_));
    for r in rows.iter().filter(named) {
        let c = &r.claim;
        if let Some(name) = &c.gpu
            && c.low > 0.0
            && card_id(name, Some(c.low)).is_err()
            && let Some(real) = real_memory(name)
        {
            out.push(finding(
                "card-memory",
                &[c],
                format!("{name} is printed with {}; it has {real}", c.printed()),
            ));
        }
        if c.what == What::Card(Role::Minimum) {
            let pair = rows.iter().map(|r| &r.claim).find(|o| {
                o.what == What::Card(Role::Recommended)
                    && o.block == c.block
                    && o.line == c.line
                    && o.subject == c.subject
            });
            if let Some(o) = pair
                && o.low > 0.0
                && c.low > o.low
            {
                let text = format!(
                    "the recommended card ({}) is smaller than the minimum ({})",
                    o.printed(),
                    c.printed()
                );
                out.push(finding("cards", &[c, o], text));
            }
        }
        // the document's own totals for that subject
        let need = rows.iter().map(|r| &r.claim).filter(|o| {
            document(o) == document(c)
                && o.phase == c.phase
                && is_total(o)
                && (o.subject == c.subject || o.subject.rsplit('/').next() == Some(&c.subject))
                && o.settings.iter().all(|(k, v)| c.settings.get(k) == Some(v))
        });
        for o in need {
            if let (Some((_, most)), Some((least, _))) = (ends(c).filter(|e| e.1 > 0.0), ends(o))
                && least > most * (1.0 + NEAR)
            {
                let text = format!(
                    "the {} has {}, the document's own need is {}",
                    c.what.name_of_card(),
                    c.printed(),
                    o.printed()
                );
                out.push(finding("cards", &[c, o], text));
            }
        }
    }
    batches(rows, out);
}

impl What {
    fn name_of_card(&self) -> &'static str {
        match self {
            What::Card(r) => r.name(),
            _ => "card",
        }
    }
}

/// Batches of one card, and cards of one batch, in two places.
fn batches(rows: &[Row], out: &mut Vec<Finding>) {
    let batch = |c: &Claim| -> Option<u64> {
        let b = c.settings.get("batch_size")?;
        b.rsplit('-').next()?.parse().ok()
    };
    for (i, a) in rows.iter().enumerate() {
        for b in rows.iter().skip(i + 1) {
            let (x, y) = (&a.claim, &b.claim);
            let both = matches!(x.what, What::Card(_)) && matches!(y.what, What::Card(_));
            if document(x) != document(y) || x.subject != y.subject || x.phase != y.phase {
                continue;
            }
            if both && x.block != y.block && x.low == y.low && x.low > 0.0 {
                // the same size of card
                if let (Some(m), Some(n)) = (batch(x), batch(y))
                    && m != n
                {
                    let text = format!(
                        "a card of {} holds batch {m} in one place and {n} in another",
                        x.printed()
                    );
                    out.push(finding("cards", &[x, y], text));
                }
            }
            // recommended in one place, tight in another
            let says = |v: &Claim| v.verdict.as_deref() == Some("tight");
            let (tight, role) = match (says(x), says(y)) {
                (false, true) => (y, x),
                (true, false) => (x, y),
                _ => continue,
            };
            if let What::Card(role_is) = role.what
                && role.verdict.is_none()
                && matches!(tight.what, What::Card(_))
                && role_is != Role::Minimum
                && role.low <= tight.low
                && tight.low <= role.high.unwrap_or(f64::INFINITY)
            {
                let text = format!(
                    "{} is the {} in one place and tight in another",
                    tight.printed(),
                    role.what.name_of_card()
                );
                out.push(finding("cards", &[role, tight], text));
            }
        }
    }
    smallest(rows, out);
}

/// The smallest card that two places of a document name for a job.
fn smallest(rows: &[Row], out: &mut Vec<Finding>) {
    let mut least: BTreeMap<(&str, &str), BTreeMap<&str, &Claim>> = BTreeMap::new();
    for c in rows
        .iter()
        .map(|r| &r.claim)
        .filter(|c| matches!(c.what, What::Card(_)) && c.low > 0.0 && c.phase == Phase::Training)
    {
        let of = least.entry((document(c), &c.subject)).or_default();
        let now = of.entry(&c.block).or_insert(c);
        if c.low < now.low {
            *now = c;
        }
    }
    for of in least.values() {
        let all: Vec<&Claim> = of.values().copied().collect();
        for pair in all.windows(2) {
            let sizes = (pair[0].low, pair[1].low);
            let tables = pair.iter().all(|c| {
                rows.iter()
                    .filter(|r| r.claim.block == c.block && matches!(r.claim.what, What::Card(_)))
                    .count()
                    > 1
            });
            if tables && (sizes.0 / sizes.1).max(sizes.1 / sizes.0) >= 1.3 {
                let text = format!(
                    "the smallest card is {} in one place and {} in another",
                    pair[0].printed(),
                    pair[1].printed()
                );
                out.push(finding("cards", pair, text));
            }
        }
    }
}

fn real_memory(name: &str) -> Option<String> {
    use tonnage_catalog::{LookupError, gpu};
    let of = |id: &str| gpu(id).ok().map(|g| format!("{} GB", g.memory_gb_marketed));
    match gpu(name) {
        Ok(g) => of(&g.id),
        Err(LookupError::Ambiguous { candidates, .. }) => {
            let mut all: Vec<String> = candidates.iter().filter_map(|c| of(c)).collect();
            all.dedup();
            Some(all.join(" or "))
        }
        Err(_) => None,
    }
}

/// "With this memory you train that model" and "that model needs" against the rows of totals.
pub(super) fn tables(rows: &[Row], out: &mut Vec<Finding>) {
    for r in rows {
        let c = &r.claim;
        let What::Largest(m) = c.what else { continue };
        let model = c
            .answer
            .as_deref()
            .unwrap_or("")
            .split(' ')
            .next()
            .unwrap_or("");
        let total = |o: &&Claim| {
            let method = o.settings.get("method").map_or("", String::as_str);
            o.what == What::Total
                && document(o) == document(c)
                && o.phase == Phase::Training
                && o.subject == model
                && method.split('-').next() == Some(m.name())
        };
        for o in rows.iter().map(|r| &r.claim).filter(total) {
            if o.low > c.low {
                let text = format!(
                    "{} is said to train {model} ({}); the table asks {}",
                    c.printed(),
                    m.name(),
                    o.printed()
                );
                out.push(finding("cards", &[c, o], text));
            } else if o.low == c.low {
                let text = format!(
                    "{} for {model} ({}) leaves no margin over the table's {}",
                    c.printed(),
                    m.name(),
                    o.printed()
                );
                out.push(finding("cards", &[c, o], text));
            }
        }
    }
}
