//! Time as money: dated and sourced prices of cards and instances.

use crate::time::Span;
use serde::Serialize;
use tonnage_catalog::instance::instances;

/// What an hour of one card costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Offer {
    /// `provider/name`, or "your price".
    pub what: String,
    /// Cards that are rented together.
    pub gpus: u32,
    /// US dollars an hour for all of them.
    pub usd_per_hour: f64,
    pub spot: bool,
    pub region: String,
    /// ISO date of the price; empty: the user's own.
    pub date: String,
    pub source: String,
}

impl Offer {
    /// The user's own price for one card.
    pub fn own(usd_per_hour: f64) -> Offer {
        Offer {
            what: "your price".into(),
            gpus: 1,
            usd_per_hour,
            spot: false,
            region: String::new(),
            date: String::new(),
            source: "given by --price".into(),
        }
    }

    /// Dollars an hour and card.
    pub fn per_card(&self) -> f64 {
        self.usd_per_hour / f64::from(self.gpus.max(1))
    }
}

/// On-demand offers of a card with date and source, the cheapest for one card first: instances of one card before larger ones, whose
/// other cards would be paid for too.
pub fn offers(gpu_id: &str) -> Vec<Offer> {
    let mut out: Vec<Offer> = instances()
        .filter(|i| i.gpu_id == gpu_id)
        .filter_map(|i| {
            let gpus = i.gpus.whole().filter(|n| *n > 0)?;
            let p = i.price.as_ref()?;
            Some(Offer {
                what: i.id(),
                gpus,
                usd_per_hour: p.on_demand as f64 / 1e6,
                spot: false,
                region: p.region.clone(),
                date: p.date.clone(),
                source: p.source.clone(),
            })
        })
        .collect();
    out.sort_by(|a, b| {
        a.gpus
            .cmp(&b.gpus)
            .then(a.usd_per_hour.total_cmp(&b.usd_per_hour))
    });
    out
}

/// Money for a speed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cost {
    pub offer: Offer,
    /// US dollars for a million tokens.
    pub usd_per_million_tokens: Span,
    /// The whole work, where its size is known: hours and dollars.
    pub total: Option<Total>,
}

/// The whole of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Total {
    pub tokens: f64,
    pub hours: Span,
    pub usd: Span,
}

/// The cost of one card at `tokens_per_s` for an offer (all cards of an instance are paid, one is used), and of `tokens` in all.
pub fn cost(tokens_per_s: Span, offer: &Offer, tokens: Option<f64>) -> Cost {
    let per_second = offer.usd_per_hour / 3600.0;
    Cost {
        offer: offer.clone(),
        usd_per_million_tokens: tokens_per_s.of(1e6 * per_second),
        total: tokens.map(|n| {
            let seconds = tokens_per_s.of(n);
            Total {
                tokens: n,
                hours: seconds.map(|s| s / 3600.0),
                usd: seconds.map(|s| s * per_second),
            }
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_tokens_a_second_at_3_60_an_hour_is_a_dollar_a_million() {
        let speed = Span {
            low: 500.0,
            expected: 1000.0,
            high: 2000.0,
        };
        let c = cost(speed, &Offer::own(3.6), Some(3.6e6));
        let per = c.usd_per_million_tokens;
        assert!(
            (per.expected - 1.0).abs() < 1e-12
                && (per.low - 0.5).abs() < 1e-12
                && (per.high - 2.0).abs() < 1e-12
        );
        let t = c.total.unwrap();
        assert!((t.hours.expected - 1.0).abs() < 1e-12 && (t.usd.expected - 3.6).abs() < 1e-12);
    }

    #[test]
    fn every_offer_has_a_date_and_a_source() {
        let all: Vec<Offer> = ["a100-sxm4-80gb", "h100-sxm", "l4", "rtx-4090"]
            .iter()
            .flat_map(|g| offers(g))
            .collect();
        assert!(!all.is_empty());
        for o in all {
            assert!(
                !o.date.is_empty() && !o.source.is_empty() && o.usd_per_hour > 0.0,
                "{o:?}"
            );
        }
    }
}
