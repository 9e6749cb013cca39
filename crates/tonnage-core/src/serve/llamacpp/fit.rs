//! `--fit` (on by default): what llama.cpp itself makes of a context and a number of layers that were not given (v0.5.0,
//! common/fit.cpp, `common_params_fit_impl`; called by `common_init_result` in common/common.cpp). Verified by
//! groundtruth/dry-run-llama.jsonl.

use super::{Buft, Error, Kind, Settings, estimate, hparams};
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
    /// Layers of each of several devices, where it dealt them out.
    pub tensor_split: Option<Vec<f32>>,
    /// The context it would like to have, where that was reduced.
    pub context_from: Option<u64>,
    /// All layers, where it keeps some on the host.
    pub layers_of: Option<u64>,
    /// Bytes are missing, but flags forbid what is left to be changed; the engine tries all the same.
    pub given_up: bool,
}

/// Bytes of each device, as the engine's own dry load gives them.
struct Used {
    all: Vec<i64>,
    /// Of them the weights of all devices.
    weights: i64,
}

/// The question with what does not change.
struct Ask<'a> {
    gguf: &'a Gguf,
    settings: &'a Settings,
    /// Free bytes of each device less what is to be left.
    targets: Vec<i64>,
}

impl Ask<'_> {
    /// With the settings' own division over devices.
    fn plain(&self, context_len: u64) -> Result<Used, Error> {
        self.of(Settings {
            context_len,
            ..self.settings.clone()
        })
    }

    /// With so many layers on each device.
    fn dealt(&self, context_len: u64, layers: &[u64]) -> Result<Vec<i64>, Error> {
        let split = layers.iter().map(|n| *n as f32).collect();
        let asked = Settings {
            context_len,
            gpu_layers: layers.iter().sum(),
            tensor_split: (layers.len() > 1).then_some(split),
            ..self.settings.clone()
        };
        Ok(self.of(asked)?.all)
    }

    fn of(&self, s: Settings) -> Result<Used, Error> {
        let e = estimate(self.gguf, &s)?;
        let devices = 0..s.devices.len() as u8;
        let weights = devices
            .clone()
            .map(|i| e.bytes(Buft::Cuda(i), Kind::Weights));
        Ok(Used {
            weights: weights.sum::<u64>() as i64,
            all: devices.map(|i| e.device_bytes(i) as i64).collect(),
        })
    }

    /// Layers of each device, from the last (which has the output head) to the first: as many as it takes, by false position between those
    /// that it takes and those that it does not.
    fn deal(&self, context_len: u64, all: u64) -> Result<Vec<u64>, Error> {
        let mut layers = vec![0; self.targets.len()];
        let mut used = self.dealt(context_len, &layers)?;
        for i in (0..layers.len()).rev() {
            let mut high = layers.clone();
            high[i] = all - layers[i + 1..].iter().sum::<u64>();
            if high[i] == 0 {
                continue;
            }
            let mut used_high = self.dealt(context_len, &high)?;
            if used_high[i] <= self.targets[i] {
                (layers, used) = (high, used_high);
                continue;
            }
            while high[i] - layers[i] > 1 {
                let delta = high[i] - layers[i];
                let room = i128::from(self.targets[i] - used[i]);
                let more = i128::from(used_high[i] - used[i]).max(1);
                // the engine's steps are unsigned: below 0 is a large number
                let step = u64::from((i128::from(delta) * room / more) as u32);
                let mut tried = layers.clone();
                tried[i] += step.max(1).min(delta - 1);
                let used_tried = self.dealt(context_len, &tried)?;
                if used_tried[i] <= self.targets[i] {
                    (layers, used) = (tried, used_tried);
                } else {
                    (high, used_high) = (tried, used_tried);
                }
            }
        }
        Ok(layers)
    }
}

/// The engine's fit. None where it is not modelled: no device, experts that would go to the host, a build for Vulkan.
///
/// # Errors
/// As [`estimate`].
pub fn fit(gguf: &Gguf, s: &Settings, r: &Request) -> Result<Option<Fitted>, Error> {
    let h = hparams::read(gguf)?;
    let trained = gguf.get("context_length").and_then(|v| v.as_u64());
    let (false, false, Some(trained)) = (s.devices.is_empty(), s.vulkan(), trained) else {
        return Ok(None);
    };
    let layers = h.n_layer as u64;
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
        tensor_split: None,
        context_from: None,
        layers_of: None,
        given_up: false,
    };
    let target = |d: &super::Device| d.free_bytes as i64 - r.margin as i64;
    let ask = Ask {
        gguf,
        settings: s,
        targets: s.devices.iter().map(target).collect(),
    };
    let full = ask.plain(done.context_len)?;
    if full.all.iter().zip(&ask.targets).all(|(u, t)| u <= t) {
        return Ok(Some(done));
    }
    let devices = s.devices.len() as i64;
    let mut room: i64 = ask.targets.iter().sum();
    let used: i64 = full.all.iter().sum();
    if auto && used > room && most > least {
        done.context_from = Some(most);
        done.context_len = least;
        if devices > 1 {
            // layers are dealt whole: half of one is lost on each device, and one more for safety
            let on_devices = s.gpu_layers.min(layers).max(1) as i64;
            let share = if h.n_expert == 0 { 2 } else { 6 };
            room -= (devices + 1) * (full.weights / on_devices) / share;
        }
        let used_least: i64 = ask.plain(least)?.all.iter().sum();
        if room > used_least {
            // linear between the least and the most
            let more = i128::from(most - least) * i128::from(room - used_least)
                / i128::from(used - used_least).max(1);
            let n = least + more as u64;
            done.context_len = (n - n % (256 * streams)).max(least);
            if devices == 1 {
                return Ok(Some(done));
            }
        }
    }
    if r.layers_given || (devices > 1 && s.tensor_split.is_some()) {
        done.given_up = true;
        return Ok(Some(done));
    }
    if h.n_expert > 0 {
        return Ok(None);
    }
    let dealt = ask.deal(done.context_len, layers + 1)?;
    done.gpu_layers = dealt.iter().sum();
    done.layers_of = (done.gpu_layers <= layers).then_some(layers + 1);
    done.tensor_split = (devices > 1).then(|| dealt.iter().map(|n| *n as f32).collect());
    Ok(Some(done))
}
