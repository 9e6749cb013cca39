//! A card's rates, as the time model reads them.

use super::efficiency::{Efficiencies, k};
use tonnage_catalog::Gpu;
use tonnage_catalog::gpu::Vendor;

/// Memory and generation: what decides which constants hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// HBM up to Ampere.
    Ampere,
    Hopper,
    /// Blackwell with HBM.
    Blackwell,
    /// GDDR up to Ampere.
    Gddr8,
    /// GDDR from Ada on.
    Gddr9,
    Unified,
}

/// Rates in operations and bytes a second.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    pub id: String,
    pub class: Class,
    pub geforce: bool,
    pub nvlink: bool,
    pub bandwidth: f64,
    pub fp32: f64,
    pub r16: f64,
    pub r8: f64,
    pub r4: f64,
    pub int8: f64,
    /// Marketed bytes.
    pub memory: f64,
    /// No measurement of a card of this make was fitted.
    pub extrapolated: bool,
}

impl Card {
    /// `None` where the catalog has no bandwidth or no rate of it.
    pub fn of(gpu: &Gpu) -> Option<Card> {
        let r = &gpu.rates;
        let t = |x: f64| x * 1e12;
        let fp32 = r.fp32?;
        // a listed 16-bit rate below the single-precision one is that of the units without matrix products
        let r16 = r.bf16.or(r.fp16).filter(|x| *x >= fp32).unwrap_or(fp32);
        let r8 = r.fp8.unwrap_or(r16);
        let memory = gpu.memory_type.as_str();
        let new = gpu
            .compute_capability
            .is_some_and(|c| (c.major, c.minor) >= (8, 9));
        let class = if memory.contains("unified") {
            Class::Unified
        } else if memory.contains("HBM") {
            match gpu.compute_capability.map(|c| c.major) {
                Some(0..=8) => Class::Ampere,
                Some(9) | None => Class::Hopper,
                _ => Class::Blackwell,
            }
        } else if new {
            Class::Gddr9
        } else {
            Class::Gddr8
        };
        Some(Card {
            id: gpu.id.clone(),
            class,
            geforce: gpu.name.contains("GeForce"),
            nvlink: gpu.interconnect.contains("NVLink") && memory.contains("HBM"),
            bandwidth: gpu.bandwidth_gb_s? * 1e9,
            fp32: t(fp32),
            r16: t(r16),
            r8: t(r8),
            r4: t(r.fp4.unwrap_or(r8 / 1.0)),
            int8: t(r.int8.unwrap_or(r16)),
            memory: f64::from(gpu.memory_gb_marketed.get()) * 1e9,
            extrapolated: !matches!(gpu.vendor, Vendor::Nvidia | Vendor::Apple),
        })
    }

    /// Part of the 16-bit rate that training products reach.
    pub fn products(&self, e: &Efficiencies) -> f64 {
        e.get(match self.class {
            Class::Ampere => k::GEMM_AMPERE,
            Class::Hopper => k::GEMM_HOPPER,
            Class::Blackwell => k::GEMM_BLACKWELL,
            Class::Gddr8 | Class::Unified => k::GEMM_GDDR8,
            Class::Gddr9 => k::GEMM_GDDR9,
        })
    }

    /// Part of the bandwidth that reading weights for one token reaches.
    pub fn read(&self, e: &Efficiencies) -> f64 {
        e.get(match self.class {
            Class::Ampere => k::READ_AMPERE,
            Class::Hopper | Class::Blackwell => k::READ_HBM,
            Class::Gddr8 | Class::Gddr9 => k::READ_GDDR,
            Class::Unified => k::READ_UNIFIED,
        })
    }

    /// Part of the 16-bit rate that a prompt reaches.
    pub fn prefill(&self, e: &Efficiencies) -> f64 {
        let part = e.get(match self.class {
            Class::Ampere | Class::Hopper | Class::Blackwell => k::PREFILL_HBM,
            Class::Gddr8 => k::PREFILL_GDDR8,
            Class::Gddr9 => k::PREFILL_GDDR9,
            Class::Unified => k::PREFILL_UNIFIED,
        });
        part * if self.geforce {
            e.get(k::PREFILL_GEFORCE)
        } else {
            1.0
        }
    }

    pub(crate) fn is_gddr(&self) -> bool {
        matches!(self.class, Class::Gddr8 | Class::Gddr9)
    }
}
