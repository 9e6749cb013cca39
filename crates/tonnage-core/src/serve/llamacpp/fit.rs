//! `--fit` (on by default): what llama.cpp itself makes of a context and a number of layers that were not given (v0.5.0,
//! common/fit.cpp, `common_params_fit_impl`; called by `common_init_result` in common/common.cpp). Verified by
//! groundtruth/dry-run-llama.jsonl.

use super::{Error, Settings, estimate, hparams};
use tonnage_model::readers::gguf::Gguf;

/// What the command line says about it.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// `-c N` with N above 0: the context stays.
    pub context_given: bool,
    /// `-c 0`: the model's context, not to be reduced.
    pub full_context: bool,
    /// `-ngl`: the layers stay.
    pub layers_given: bool,
    /// Bytes to be left free on the device (`--fit-target`, 1024 MiB).
    pub margin: u64,
    /// Least context of one stream (`--fit-ctx`, 4096).
    pub context_min: u64,
}

/// What it made of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Fitted {
    pub context_len: u64,
    pub gpu_layers: u64,
    /// The context it would like to have, where that was reduced.
    pub context_from: Option<u64>,
    /// All layers, where it keeps some on the host.
    pub layers_of: Option<u64>,
    /// Bytes are missing, but flags forbid what is left to be changed; the engine tries all the same.
    pub given_up: bool,
}

/// The engine's fit for one device. None where it is not modelled: no device, several of which one is short, experts that would go to the host.
///
/// # Errors
/// As [`estimate`].
pub fn fit(gguf: &Gguf, s: &Settings, r: &Request) -> Result<Option<Fitted>, Error> {
    let h = hparams::read(gguf)?;
    let trained = gguf.get("context_length").and_then(|v| v.as_u64());
    let (false, Some(trained)) = (s.devices.is_empty(), trained) else {
        return Ok(None);
    };
    let layers = h.n_layer as u64 + 1;
    let used = |context_len: u64, gpu_layers: u64| -> Result<Vec<i64>, Error> {
        let asked = Settings {
            context_len,
            gpu_layers,
            ..s.clone()
        };
        let e = estimate(gguf, &asked)?;
        Ok((0..s.devices.len())
            .map(|i| e.device_bytes(i as u8) as i64)
            .collect())
    };
    let n_seq = s.n_seq.max(1);
    let streams = if s.kv_unified { 1 } else { n_seq };
    // one context for each sequence, whatever `n_ctx = 0` means to the engine alone
    let most = (trained * n_seq).min(u64::from(u32::MAX));
    let least = match r.full_context {
        true => u64::from(u32::MAX),
        false => (r.context_min * streams).min(u64::from(u32::MAX)),
    };
    let auto = !r.context_given;
    let mut done = Fitted {
        context_len: if auto { most } else { s.context_len },
        gpu_layers: s.gpu_layers,
        context_from: None,
        layers_of: None,
        given_up: false,
    };
    let targets: Vec<i64> = s
        .devices
        .iter()
        .map(|d| d.free_bytes as i64 - r.margin as i64)
        .collect();
    let full = used(done.context_len, s.gpu_layers)?;
    if full.iter().zip(&targets).all(|(u, t)| u <= t) {
        return Ok(Some(done));
    }
    let ([target], [used_full]) = (&targets[..], &full[..]) else {
        return Ok(None);
    };
    let (target, used_full) = (*target, *used_full);
    if auto && most > least {
        done.context_from = Some(most);
        done.context_len = least;
        let used_least = used(least, s.gpu_layers)?[0];
        if target > used_least {
            // linear between the least and the most
            let more = (most - least) as i128 * i128::from(target - used_least)
                / i128::from(used_full - used_least).max(1);
            let n = least + more as u64;
            done.context_len = (n - n % (256 * streams)).max(least);
            return Ok(Some(done));
        }
    }
    if r.layers_given {
        done.given_up = true;
        return Ok(Some(done));
    }
    if h.n_expert > 0 {
        return Ok(None);
    }
    // false position between no layer and all
    let n = done.context_len;
    let (mut low, mut high) = (0, layers);
    let (mut used_low, mut used_high) = (used(n, 0)?[0], used(n, layers)?[0]);
    if used_high > target {
        while high - low > 1 {
            let delta = high - low;
            // a negative quotient is a large number to the engine, whose steps are unsigned
            let step = (i128::from(delta) * i128::from(target - used_low)
                / i128::from(used_high - used_low)) as u32;
            let step = u64::from(step).max(1).min(delta - 1);
            let tried = used(n, low + step)?[0];
            if tried <= target {
                (low, used_low) = (low + step, tried);
            } else {
                (high, used_high) = (low + step, tried);
            }
        }
        done.layers_of = Some(layers);
        done.gpu_layers = low;
    } else {
        done.gpu_layers = layers;
    }
    Ok(Some(done))
}
