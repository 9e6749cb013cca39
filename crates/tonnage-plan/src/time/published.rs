//! Published speeds (`throughput` records): what a row says, and the prediction for it.

use super::card::{Card, Class};
use super::efficiency::{Efficiencies, Fitted, k};
use super::shape::ModelShape;
use serde_json::Value;
use tonnage_core::validate::Row;

/// Number format of weights and products.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Format {
    /// Bytes of a stored weight.
    bytes: f64,
    /// Bits of the products.
    bits: u8,
    /// Weights are unpacked on the way.
    packed: bool,
}

/// The software's way of working.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// Own loop with fused attention and norms.
    Flash,
    /// Compiled, or fused kernels throughout.
    Compiled,
    /// transformers with DeepSpeed or peft.
    Eager,
    LlamaCpp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Full,
    Adapters,
    Packed,
    Decode,
    Prefill,
    Serve,
    Fits,
}

/// How the value is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    PerCard,
    Total,
    SecondsPerStep,
}

/// A published row, understood.
#[derive(Clone, Debug)]
pub struct Case {
    pub id: String,
    pub task: String,
    pub metric: String,
    pub value: f64,
    /// Rows of one model, card and software: left out together when the fit is judged.
    pub family: String,
    shape: ModelShape,
    card: Card,
    kind: Task,
    unit: Unit,
    style: Style,
    format: Format,
    cards: f64,
    tp: f64,
    cp: f64,
    sharded: bool,
    offload: bool,
    host_optimizer: bool,
    seq: f64,
    micro: f64,
    accumulation: f64,
    /// Forward passes that are done again.
    recompute: f64,
    mixed: bool,
    tied: bool,
    input: f64,
    output: f64,
}

fn format(text: &str) -> Format {
    let t = text.to_lowercase();
    let f = |bytes, bits, packed| Format {
        bytes,
        bits,
        packed,
    };
    let has = |words: &[&str]| words.iter().any(|w| t.contains(w));
    match () {
        _ if t.contains("mxfp8") || t.contains("fp8") => f(1.0, 8, false),
        _ if t.contains("fp4") => f(0.56, 4, false),
        _ if has(&["q8_0", "q8"]) => f(8.5 / 8.0, 16, true),
        _ if has(&["q6_k", "q6"]) => f(6.56 / 8.0, 16, true),
        _ if has(&["q5"]) => f(5.67 / 8.0, 16, true),
        _ if has(&["q4"]) => f(4.85 / 8.0, 16, true),
        _ if has(&["q3"]) => f(3.9 / 8.0, 16, true),
        _ if has(&["q2"]) => f(3.3 / 8.0, 16, true),
        _ if has(&["nf4", "int4", "gptq", "awq", "4-bit", "4bit"]) => f(0.56, 16, true),
        _ if has(&["int8", "8-bit", "8bit"]) => f(1.03, 16, true),
        _ if has(&["fp32", "f32", "float32"]) && !t.contains("amp") => f(4.0, 32, false),
        _ => f(2.0, 16, false),
    }
}

/// The number after a word: `TP 8`, `TP8`.
fn degree(text: &str, word: &str) -> Option<f64> {
    let at = text.find(word)? + word.len();
    let rest = text[at..].trim_start();
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok().filter(|n| *n >= 1.0)
}

impl Case {
    /// Reads a row.
    ///
    /// # Errors
    /// Why there is no prediction.
    pub fn read(r: &Value) -> Result<Case, String> {
        let text = |key: &str| r[key].as_str().unwrap_or("").to_string();
        let n = |key: &str| r[key].as_f64();
        let (task, metric) = (text("task"), text("metric"));
        let value = n("value").ok_or("no value")?;
        let kind = match (task.as_str(), metric.as_str()) {
            (_, "fits") => Task::Fits,
            ("pretrain" | "full-finetune", _) => Task::Full,
            ("lora", _) => Task::Adapters,
            ("qlora", _) => Task::Packed,
            ("decode", _) => Task::Decode,
            ("prefill", _) => Task::Prefill,
            ("serve", _) => Task::Serve,
            (t, _) => return Err(format!("the task `{t}` is not known")),
        };
        let unit = match metric.as_str() {
            "tokens_per_s_per_gpu" => Unit::PerCard,
            "tokens_per_s"
            | "output_tokens_per_s"
            | "total_output_tokens_per_s"
            | "prompt_tokens_per_s"
            | "fits" => Unit::Total,
            "seconds_per_iter" => Unit::SecondsPerStep,
            m => return Err(format!("the metric `{m}` is not known")),
        };
        let model = text("model");
        let params = n("params_exact").map(|p| p / 1e9).or(n("params_b"));
        let shape = ModelShape::find(&model, params, n("active_params_b"))
            .ok_or_else(|| format!("the size of the model `{model}` is not known"))?;
        let gpu = tonnage_catalog::gpu(&text("gpu_id")).map_err(|e| e.to_string())?;
        let card =
            Card::of(&gpu).ok_or_else(|| format!("the catalog has no rates of {}", gpu.id))?;
        let software = text("framework").to_lowercase();
        let parallel = text("parallelism");
        let precision = text("precision");
        let style = if software.contains("llama.cpp") || software.contains("exllama") {
            Style::LlamaCpp
        } else if software.contains("deepspeed") || software.contains("transformers") {
            Style::Eager
        } else if [
            "torchtitan",
            "megatron",
            "torchtune",
            "compile",
            "tensorrt",
            "vllm",
            "sglang",
        ]
        .iter()
        .any(|w| software.contains(w))
        {
            Style::Compiled
        } else {
            Style::Flash
        };
        let mut format = format(&precision);
        let gptq = precision.contains("GPTQ");
        if kind == Task::Packed {
            format = Format {
                bytes: 0.56,
                bits: 16,
                packed: true,
            };
        }
        let tunes = matches!(kind, Task::Adapters | Task::Packed);
        let recompute = match (
            &r["activation_checkpointing"],
            tunes && style == Style::Eager,
        ) {
            (Value::Bool(true), _) => 1.0,
            (Value::String(s), _) if s == "full" => 1.0,
            (Value::Bool(false) | Value::String(_), _) => 0.0,
            // the pages' own scripts switch it on
            (_, true) => 1.0,
            _ if software == "torchtune" => 1.0,
            _ => 0.0,
        };
        let cards = n("n_gpus").unwrap_or(if kind == Task::Full { 1024.0 } else { 1.0 });
        let note = text("note");
        let tied = plain_start(&model, "mpt");
        Ok(Case {
            id: text("id"),
            family: format!("{model}/{}/{software}/{gptq}", card.id),
            tp: degree(&parallel, "TP").unwrap_or(1.0),
            cp: degree(&parallel, "CP").unwrap_or(1.0),
            sharded: parallel.contains("FSDP") && !parallel.contains("FSDP 0") && cards > 1.0,
            offload: parallel.contains("offload"),
            host_optimizer: note.contains("offload"),
            seq: n("seq_len").unwrap_or(8192.0),
            micro: n("micro_batch").unwrap_or(1.0),
            accumulation: n("grad_accum").unwrap_or(1.0),
            mixed: precision.contains("amp") || format.bits != 16,
            input: n("input_len").or(n("tokens")).unwrap_or(1024.0),
            output: n("output_len").or(n("tokens")).unwrap_or(512.0),
            task,
            metric,
            value,
            shape,
            card,
            kind,
            unit,
            style,
            format,
            cards,
            recompute,
            tied,
        })
    }

    /// The prediction, in the unit of the row's metric.
    pub fn predict(&self, e: &Efficiencies) -> f64 {
        match self.kind {
            Task::Fits => f64::from(u8::from(self.fits())),
            Task::Decode => self.decode(e),
            Task::Prefill => self.prefill(e),
            Task::Serve => self.serve(e),
            Task::Full | Task::Adapters | Task::Packed => {
                let per_card = self.train(e);
                match self.unit {
                    Unit::PerCard => per_card,
                    Unit::Total => per_card * self.cards,
                    Unit::SecondsPerStep => self.micro * self.accumulation * self.seq / per_card,
                }
            }
        }
    }

    /// Is it a speed (and not a verdict)?
    pub fn is_speed(&self) -> bool {
        self.kind != Task::Fits
    }

    /// Weights, the cache of the tokens, and half a GiB for context and work space, against what a card gives.
    fn fits(&self) -> bool {
        let part = if self.card.class == Class::Unified {
            0.75
        } else {
            0.95
        };
        let s = &self.shape;
        let weights = s.params * self.format.bytes;
        let cache = 4.0 * s.layers * s.kv * self.input;
        weights + cache + 0.5e9 * self.cards <= part * self.card.memory * self.cards
    }

    fn rate(&self, bits: u8) -> f64 {
        match bits {
            4 => self.card.r4,
            8 => self.card.r8,
            32 => self.card.fp32,
            _ => self.card.r16,
        }
    }

    /// What is kept of the 16-bit part at narrower products.
    fn narrow(&self, e: &Efficiencies) -> f64 {
        match self.format.bits {
            4 => e.get(k::GEMM_FP4),
            8 => e.get(k::GEMM_FP8),
            _ => 1.0,
        }
    }

    /// Tokens a second and card.
    fn train(&self, e: &Efficiencies) -> f64 {
        let (s, c) = (&self.shape, &self.card);
        let tunes = self.kind != Task::Full;
        let part = c.products(e);
        let experts = if s.is_sparse() {
            e.get(k::GEMM_SPARSE)
        } else {
            1.0
        };
        let passes = if tunes { 4.0 } else { 6.0 } + 2.0 * self.recompute;
        let products = passes * s.products(self.tied)
            / (self.rate(self.format.bits) * part * self.narrow(e) * experts);
        let attention = (6.0 + 2.0 * self.recompute) * s.layers * s.query * self.seq
            / (c.r16 * part * e.get(k::ATTENTION));
        let bytes = match (self.style, s.is_sparse()) {
            (_, true) => e.get(k::SPARSE_BYTES),
            (Style::Compiled, _) => e.get(k::COMPILED_BYTES),
            (Style::Eager, _) => eager_bytes(tunes) / e.get(k::POINTWISE),
            _ => e.get(k::FUSED_BYTES),
        } * if self.style == Style::Eager {
            1.0
        } else {
            1.0 + self.recompute / 3.0
        };
        let pointwise = bytes * (s.layers * s.hidden + s.vocab / 4.0) * 2.0 / c.bandwidth;
        let mut t = products + attention + pointwise;
        let tokens = self.seq * self.micro / self.cp;
        if self.tp > 1.0 {
            t /= e.get(k::TENSOR).powf(self.tp.log2());
        }
        if self.kind == Task::Packed {
            // each pass reads the packed weight, writes and reads the unpacked one
            t += 3.0 * s.params * 2.5 / (c.bandwidth * e.get(k::UNPACK)) / tokens;
        }
        if self.sharded {
            let moves = if tunes { 2.0 } else { 3.0 };
            let link = match (c.nvlink, c.is_gddr(), self.cards <= 8.0) {
                (true, _, true) => e.get(k::NET_NVLINK),
                (_, false, _) => e.get(k::NET_HOSTS),
                _ => e.get(k::NET_PCIE),
            };
            let move_time = s.params / self.tp * self.format.bytes.min(2.0) * moves / link / tokens;
            // hidden behind the arithmetic where the links are wide
            t = if c.is_gddr() {
                t + move_time
            } else {
                t.hypot(move_time)
            };
        }
        if self.offload {
            t += 0.2 * s.params * self.format.bytes / e.get(k::OFFLOAD) / tokens;
        }
        let mut host = s.layers * e.get(k::LAUNCH_LAYER) * self.tp;
        if self.style == Style::Eager {
            if self.cards > 1.0 {
                t *= e.get(k::NODES);
            }
            host = s.layers * eager_kernels(tunes) * e.get(k::LAUNCH);
            if self.kind == Task::Packed {
                host *= e.get(k::LAUNCH_PACKED);
            }
        }
        let host = host / tokens;
        t = (t.powi(6) + host.powi(6)).powf(1.0 / 6.0);
        if !tunes {
            let shards = if self.sharded || self.tp > 1.0 {
                self.cards.min(8.0)
            } else {
                self.cards
            };
            let bytes = match (self.style, self.host_optimizer) {
                (Style::Compiled, true) => 20.0,
                _ if self.cards == 1.0 => 10.0,
                _ if self.mixed => 28.0 / shards,
                _ => 24.0 / shards,
            };
            t += s.params * bytes / c.bandwidth / (tokens * self.accumulation);
        }
        1.0 / t
    }

    fn cache_bytes(&self, tokens: f64) -> f64 {
        4.0 * self.shape.layers * self.shape.kv * tokens
    }

    /// Tokens a second of one sequence.
    fn decode(&self, e: &Efficiencies) -> f64 {
        let (s, c) = (&self.shape, &self.card);
        let bytes = s.products(false) * self.format.bytes + self.cache_bytes(self.output / 2.0);
        match self.style {
            Style::LlamaCpp => {
                let slow = if c.class == Class::Unified { 2.5 } else { 1.0 };
                let split = e.get(k::SPLIT) * if c.is_gddr() { 0.3 } else { 1.0 };
                1.0 / (bytes / (c.bandwidth * c.read(e))
                    + s.layers * e.get(k::TOKEN_LLAMACPP) * slow
                    + (self.cards - 1.0) * split)
            }
            Style::Eager => {
                let unpack = match (self.format.packed, self.format.bytes < 0.8) {
                    (true, true) => 0.8,
                    _ => 1.0,
                };
                1.0 / (bytes / (c.bandwidth * e.get(k::READ_COMPILED))
                    + s.layers * e.get(k::TOKEN_EAGER) * unpack)
            }
            _ => {
                let reduce = if self.cards > 1.0 {
                    2.0 * e.get(k::ALL_REDUCE)
                } else {
                    0.0
                };
                1.0 / (bytes / self.cards / (c.bandwidth * e.get(k::READ_COMPILED))
                    + s.layers * (e.get(k::TOKEN_COMPILED) + reduce))
            }
        }
    }

    /// Prompt tokens a second.
    fn prefill(&self, e: &Efficiencies) -> f64 {
        let s = &self.shape;
        let flops = 2.0 * s.products(false) + 2.0 * s.layers * s.query * self.input;
        let packed = if self.format.packed {
            e.get(k::PREFILL_PACKED)
        } else {
            1.0
        };
        let cards = self.cards.powf(e.get(k::PREFILL_CARDS));
        self.card.r16 * self.card.prefill(e) * packed * cards / flops
    }

    /// Output tokens a second with every request queued: as many sequences as the memory holds (the engines' own limit of 2,048), a
    /// step reads weights and cache, prompts are computed once.
    fn serve(&self, e: &Efficiencies) -> f64 {
        let (s, c, n) = (&self.shape, &self.card, self.cards);
        let (input, output) = (self.input, self.output);
        let cache = 2.0 * s.layers * s.kv * self.format.bytes.max(1.0);
        let free = 0.9 * c.memory * n - s.params * self.format.bytes * 1.03;
        let sequences = (free / (cache * (input + 0.6 * output))).clamp(1.0, 2048.0);
        let experts = if s.is_sparse() {
            e.get(k::SERVE_SPARSE)
        } else {
            1.0
        };
        let rate = n
            * self.rate(self.format.bits)
            * e.get(k::SERVE_PRODUCTS)
            * experts
            * if self.format.bits == 4 {
                e.get(k::GEMM_FP4)
            } else {
                1.0
            };
        let flops = 2.0 * s.products(false);
        let links = |tokens: f64| {
            if n > 1.0 {
                4.0 * s.layers * tokens * s.hidden / e.get(k::NET_NVLINK)
            } else {
                0.0
            }
        };
        let reduce = if n > 1.0 {
            2.0 * s.layers * e.get(k::ALL_REDUCE)
        } else {
            0.0
        };
        let step = sequences * flops / rate
            + s.params * self.format.bytes / (n * c.bandwidth * e.get(k::SERVE_READ))
            + sequences * cache * (input + output / 2.0)
                / (n * c.bandwidth * e.get(k::SERVE_CACHE))
            + s.layers * e.get(k::SERVE_LAYER)
            + links(sequences)
            + reduce;
        let prompt = input * flops / rate
            + 2.0 * s.layers * s.query * input * input / (n * c.r16 * 0.4)
            + links(input);
        sequences * output / (output * step + sequences * prompt)
    }
}

/// Bytes (per two of element size) that a layer's pointwise operators move for a hidden unit and token: counted by the simulator for a
/// 7B decoder, eager, with checkpointing (`tests/time.rs`).
pub const EAGER_BYTES_ADAPTERS: f64 = 450.0;
/// The same when all weights are trained.
pub const EAGER_BYTES_FULL: f64 = 332.0;
/// Operators of a layer in the same jobs.
pub const EAGER_KERNELS_ADAPTERS: f64 = 197.0;
/// The same when all weights are trained.
pub const EAGER_KERNELS_FULL: f64 = 141.0;

fn eager_bytes(tunes: bool) -> f64 {
    if tunes {
        EAGER_BYTES_ADAPTERS
    } else {
        EAGER_BYTES_FULL
    }
}

fn eager_kernels(tunes: bool) -> f64 {
    if tunes {
        EAGER_KERNELS_ADAPTERS
    } else {
        EAGER_KERNELS_FULL
    }
}

fn plain_start(name: &str, with: &str) -> bool {
    name.to_lowercase().starts_with(with)
}

/// The rows of a `throughput` record: its own metric, in the group of its task.
pub fn rows(record: &Value) -> Vec<Row> {
    let text = |key: &str| record[key].as_str().unwrap_or("?");
    let (id, metric, task) = (text("id"), text("metric"), text("task"));
    let measured = record["value"].clone();
    vec![match Case::read(record) {
        Err(why) => Row::unsupported(id, metric, task, measured, &why),
        Ok(c) => {
            let p = c.predict(&Fitted::builtin().values);
            let predicted = if c.is_speed() {
                Value::from(p)
            } else {
                Value::from(p as u64)
            };
            Row::new(id, metric, task, measured, predicted, 0.0)
        }
    }]
}
